"""Criteria: what scores a weight. The lowest scores are pruned."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Criterion = Callable[[Mapping[str, Tensor], torch.Generator], dict[str, Tensor]]
"""Weights by name, and a generator for those that draw -> scores of the same shapes."""


def magnitude(weights: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """Absolute values (Han et al. 2015)."""
    return {name: weight.abs() for name, weight in weights.items()}


def random(weights: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """Uniform draws: the control that any criterion has to beat."""
    return {name: torch.rand(weight.shape, generator=generator) for name, weight in weights.items()}


CRITERIA: Mapping[str, Criterion] = {"magnitude": magnitude, "random": random}
