"""Averages of weights: along one training (EMA), and over several trainings of one mask (a soup)."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as lightning
import torch
from torch import Tensor, nn

from pipeline.training.state import State


class MovingAverage(lightning.Callback):
    """An exponential moving average of the weights, which is what is validated, and what the training ends with.

    After each batch ``average = decay x average + (1 - decay) x weights``, of every number of the state dict that is
    no whole one: running statistics too (Polyak and Juditsky 1992; the constant decay as in Tarvainen and Valpola
    2017, section 2). It begins with the weights that the training begins with.
    """

    def __init__(self, network: nn.Module, decay: float, so_far: Mapping[str, Tensor] | None) -> None:
        """``so_far`` is the average of a training that goes on."""
        self.network, self.decay, self.so_far = network, decay, so_far
        self.weights: dict[str, Tensor] = {}

    def on_fit_start(self, trainer: Any, module: Any) -> None:
        own = self._own()
        given = self.so_far or own
        self.average = {name: torch.empty_like(each).copy_(given[name]) for name, each in own.items()}

    @torch.no_grad()
    def on_train_batch_end(self, *_: Any) -> None:
        own = self._own()
        torch._foreach_lerp_([*self.average.values()], [own[name] for name in self.average], 1 - self.decay)

    def on_validation_start(self, *_: Any) -> None:
        self.weights = {name: each.clone() for name, each in self._own().items()}
        self.become(self.average)

    def on_validation_end(self, *_: Any) -> None:
        self.become(self.weights)

    @torch.no_grad()
    def become(self, values: Mapping[str, Tensor]) -> None:
        """Gives the network these values."""
        for name, each in self._own().items():
            each.copy_(values[name])

    def kept(self) -> dict[str, Tensor]:
        """The average so far, as CPU tensors of its own."""
        return {
            name: each.to("cpu", copy=True, memory_format=torch.contiguous_format)
            for name, each in self.average.items()
        }

    def _own(self) -> dict[str, Tensor]:
        tensors = {**dict(self.network.named_parameters()), **dict(self.network.named_buffers())}
        return {name: each.detach() for name, each in tensors.items() if not _whole(each)}


def mean_of(states: Sequence[State]) -> State:
    """The mean of states, number by number, of weights and of what optimizers remember; whole numbers are the first's.

    Of trainings of one mask, a sparse model soup (Zimmer et al. 2023, *Sparse Model Soups*, section 3): dead weights
    stay dead.
    """

    def of_one(tensors: Sequence[Tensor]) -> Tensor:
        first = tensors[0]
        if _whole(first):
            return first
        exact = torch.promote_types(first.dtype, torch.float64)
        return torch.stack([each.to(exact) for each in tensors]).mean(0).to(first.dtype)

    def mean(each: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        return {name: of_one([tensors[name] for tensors in each]) for name in each[0]}

    return State(mean([state.network for state in states]), mean([state.optimizer for state in states]))


def _whole(tensor: Tensor) -> bool:
    """Whether its numbers are whole ones, of which there is no mean."""
    return not (tensor.is_floating_point() or tensor.is_complex())
