"""The optimizers of the settings."""

from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from pipeline.ground.errors import SettingsError
from pipeline.settings.groups import Optimizer, Sgd


def make_optimizer(network: nn.Module, settings: Optimizer) -> torch.optim.Optimizer:
    """SGD or AdamW over all trainable parameters, in a group for each decay and rate that some have.

    Numbers of half precision and complex ones are stepped one operation at a time: torch's fused SGD leaves the former
    as they are on a CPU, and takes none of the latter.

    Raises:
        SettingsError: if a pattern of ``rates`` is of no parameter; if AdamW is to train float16, in which squares of
            gradients and its epsilon are zero.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    trained = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    unknown = [pattern for pattern in settings.rates if not any(_matches(name, pattern) for name in trained)]
    if unknown:
        raise SettingsError(
            [f"training.optimizer.rates: got {unknown[0]!r}, which matches no parameter; they are {', '.join(trained)}"]
        )
    for name, parameter in trained.items():
        decays = settings.decay_norm_and_bias or parameter.ndim > 1
        factor = next((each for pattern, each in settings.rates.items() if _matches(name, pattern)), 1.0)
        groups.setdefault((settings.weight_decay if decays else 0.0, factor), []).append(parameter)
    parameters = [
        {"params": group, "weight_decay": decay, "lr": settings.rate * factor}
        for (decay, factor), group in groups.items()
    ]
    fused = all(each.dtype in (torch.float32, torch.float64) for group in groups.values() for each in group)
    if isinstance(settings, Sgd):
        sgd = torch.optim.SGD(parameters, settings.rate, settings.momentum, nesterov=settings.nesterov, fused=fused)
        sgd.register_step_pre_hook(_begin_momentum)
        return sgd
    if any(each.dtype == torch.float16 for group in groups.values() for each in group):
        raise SettingsError(
            ["training.optimizer: got adamw for weights in float16, in which it divides by zero; takes sgd, or weights "
             "in bfloat16, float32 or float64"]
        )  # fmt: skip
    return torch.optim.AdamW(parameters, settings.rate, (settings.beta1, settings.beta2), fused=fused)


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name.rpartition(".")[2], pattern)


def _begin_momentum(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Lets a layer that had no gradient in earlier steps begin with no momentum; torch's fused SGD fails there."""
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    for parameter in parameters if 0 < len(optimizer.state) < len(parameters) else ():
        if parameter not in optimizer.state:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
