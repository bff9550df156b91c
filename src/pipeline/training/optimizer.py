"""The optimizers of the settings."""

import torch
from torch import nn

from pipeline.settings.groups import Optimizer, Sgd


def make_optimizer(network: nn.Module, settings: Optimizer) -> torch.optim.Optimizer:
    """SGD or AdamW over all trainable parameters, in one group that decays and one that does not."""
    groups: dict[float, list[nn.Parameter]] = {}
    for parameter in network.parameters():
        if parameter.requires_grad:
            decays = settings.decay_norm_and_bias or parameter.ndim > 1
            groups.setdefault(settings.weight_decay if decays else 0.0, []).append(parameter)
    parameters = [{"params": group, "weight_decay": decay} for decay, group in groups.items()]
    if isinstance(settings, Sgd):
        return torch.optim.SGD(parameters, settings.rate, settings.momentum, nesterov=settings.nesterov, fused=True)
    return torch.optim.AdamW(parameters, settings.rate, (settings.beta1, settings.beta2), fused=True)
