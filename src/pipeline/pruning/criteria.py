"""Criteria: what scores a weight. The lowest scores are pruned."""

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

Criterion = Callable[[Tensor, torch.Generator], Tensor]
"""A weight tensor, and a generator for a criterion that draws -> scores of the same shape."""


def magnitude(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Absolute values (Han et al. 2015)."""
    return weight.abs()


def lamp(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Each weight's square as a share of the layer's squares that are not smaller, float32.

    Layer-adaptive magnitude (Lee et al. 2021, section 3, 2): over the whole network these compete as if each layer were
    pruned by magnitude to a share of its own. Dead weights are zeros and add nothing.
    """
    squares, order = weight.abs().double().square().flatten().sort(stable=True)
    not_smaller = squares.flip(0).cumsum(0).flip(0)
    scores = torch.empty_like(squares).scatter_(0, order, squares / not_smaller.clamp_min(torch.finfo().tiny))
    return scores.view(weight.shape).float()


def random(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform draws: the control that any criterion has to beat."""
    return torch.rand(weight.shape, generator=generator)


CRITERIA: Mapping[str, Criterion] = {
    "magnitude": magnitude,
    "magnitude_per_mac": magnitude,
    "lamp": lamp,
    "random": random,
}


class Scores(Mapping[str, Tensor]):
    """Scores by name, made when they are looked at: so those of one tensor at a time take memory."""

    def __init__(
        self,
        criterion: Criterion,
        weights: Mapping[str, Tensor],
        generator: Callable[[str], torch.Generator],
        prices: Mapping[str, float] | None = None,
    ) -> None:
        """``generator`` makes a new one for a tensor's name, the same each time; ``prices`` divide its scores."""
        self.criterion, self.weights, self.generator = criterion, weights, generator
        self.prices = prices

    def __getitem__(self, name: str) -> Tensor:
        scores = self.criterion(self.weights[name], self.generator(name))
        return scores if self.prices is None else scores / self.prices[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)
