"""The optimizers of the settings."""

from typing import Any

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
        sgd = torch.optim.SGD(parameters, settings.rate, settings.momentum, nesterov=settings.nesterov, fused=True)
        sgd.register_step_pre_hook(_begin_momentum)
        return sgd
    return torch.optim.AdamW(parameters, settings.rate, (settings.beta1, settings.beta2), fused=True)


def _begin_momentum(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Lets a layer that had no gradient in earlier steps begin with no momentum; torch's fused SGD fails there."""
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    for parameter in parameters if 0 < len(optimizer.state) < len(parameters) else ():
        if parameter not in optimizer.state:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
