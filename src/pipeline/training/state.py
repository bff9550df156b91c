"""All that training changes, as values: taken from a network and its optimizer, masked, and given back."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.pruning.masks import Masks


@dataclass(frozen=True)
class State:
    """All that training changes, as CPU tensors of its own.

    ``network`` is the plain network's state dict. ``optimizer`` maps "<parameter>|<entry>" (such as
    "conv.weight|momentum_buffer") to tensors; it is empty before the first step.
    """

    network: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]


@dataclass(frozen=True)
class Epoch:
    """One finished epoch: ``number`` counts from 1 within the round, ``rate`` is that of its first step."""

    number: int
    rate: float
    metrics: Mapping[str, float]
    seconds: float
    finished_ms: int


def masked(state: State, masks: Masks) -> State:
    """The state with every dead weight, and all that the optimizer remembers of it, exactly zero."""

    def zeroed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        mask_of = {key: masks.get(key.split("|")[0]) for key in tensors}
        return {
            key: tensor if (mask := mask_of[key]) is None or mask.shape != tensor.shape else tensor.where(mask, 0)
            for key, tensor in tensors.items()
        }

    return State(zeroed(state.network), zeroed(state.optimizer))


def capture(network: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> State:
    """A copy of all that training changes."""
    entries = {} if optimizer is None else {
        f"{name}|{entry}": value
        for name, parameter in network.named_parameters()
        for entry, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }  # fmt: skip
    return State(_copied(network.state_dict()), _copied(entries))


def _copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }


def restore(optimizer: torch.optim.Optimizer, network: nn.Module, entries: Mapping[str, Tensor]) -> None:
    """Gives a new optimizer the entries of ``State.optimizer``, laid out in memory as their parameters are."""
    parameters = dict(network.named_parameters())
    for key, value in entries.items():
        name, entry = key.rsplit("|", 1)
        parameter = parameters[name]
        like = torch.empty_like(parameter) if value.shape == parameter.shape and value.ndim else value.clone()
        optimizer.state[parameter][entry] = like.copy_(value)
