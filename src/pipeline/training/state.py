"""All that training changes, as values: taken from a network and its optimizers, masked, and given back."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pipeline.ground.tensors import packed, unpacked
from pipeline.pruning.masks import Masks
from pipeline.training.tape import Tape


@dataclass(frozen=True)
class State:
    """What a round starts from and ends in, as CPU tensors of its own.

    ``network`` is the plain network's state dict, ``packed`` where an extra state is no tensor. ``optimizer`` maps
    "<parameter>|<entry>" (such as "conv.weight|momentum_buffer") to tensors, of a second optimizer
    "<parameter>|<entry>|1"; it is empty before the first step.
    """

    network: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]


@dataclass(frozen=True)
class UnderWay:
    """A training after some of its epochs: its state, the tape so far (of round 0), and what else goes on with it.

    ``rest`` holds the states of schedulers, callbacks and hooks as ``torch.save`` writes them; empty for none.
    ``masks`` are those of now, where they change in training, ``average`` that of the weights, where one is taken.
    """

    state: State
    tape: Tape | None = None
    rest: bytes = b""
    masks: Masks = field(default_factory=dict)
    average: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Epoch:
    """One finished epoch: ``number`` counts from 1 within the round, ``rate`` is that of its first step."""

    number: int
    rate: float
    metrics: Mapping[str, float]
    seconds: float
    finished_ms: int


def masked(state: State, masks: Masks) -> State:
    """The state with every dead weight, and all that the optimizers remember of it, exactly zero."""

    def zeroed(tensor: Tensor, name: str) -> Tensor:
        mask = masks.get(name)
        return tensor if mask is None or mask.shape != tensor.shape else tensor.where(mask, 0)

    return State(
        {name: zeroed(tensor, name) for name, tensor in state.network.items()},
        {key: zeroed(tensor, parts(key)[0]) for key, tensor in state.optimizer.items()},
    )


def parts(key: str) -> tuple[str, str, int]:
    """Parameter, entry and optimizer of a key of ``State.optimizer``; a name may have bars of its own."""
    name, entry = key.rsplit("|", 1)
    if not entry.isdecimal():
        return name, entry, 0
    name, inner = name.rsplit("|", 1)
    return name, inner, int(entry)


def capture(network: nn.Module, optimizers: Iterable[Optimizer] = ()) -> State:
    """A copy of all that training changes."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in network.named_parameters()}
    entries = {}
    for index, optimizer in enumerate(optimizers):
        suffix = f"|{index}" if index else ""
        remembered = {names[each]: kept for each, kept in optimizer.state.items() if each in names}
        for name in [name for name in names.values() if name in remembered]:
            for entry, value in remembered[name].items():
                if isinstance(value, Tensor):
                    entries[f"{name}|{entry}{suffix}"] = value
                elif isinstance(value, int | float) and not isinstance(value, bool):
                    kind = torch.int64 if isinstance(value, int) else torch.float64
                    entries[f"{name}|{entry}#{suffix}"] = torch.tensor(value, dtype=kind)
    return State(_copied(packed(network.state_dict())), _copied(entries))


def _copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }


def unkept(network: nn.Module) -> dict[str, Tensor]:
    """The buffers that a state dict leaves out, by name."""
    kept = network.state_dict().keys()
    return {name: buffer for name, buffer in network.named_buffers(remove_duplicate=False) if name not in kept}


def load(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Gives a network a ``State.network``; a buffer that a forward has made since is none again."""
    values = unpacked(state)
    make_room(network, values)
    for name in network.state_dict().keys() - values.keys():
        place, _, own = name.rpartition(".")
        if own in (buffers := network.get_submodule(place)._buffers):
            buffers[own] = None
    network.load_state_dict(values)


def make_room(network: nn.Module, values: Mapping[str, Any]) -> None:
    """Has buffers that a forward makes, or makes longer, take values of theirs of another shape than they have."""
    device = next((each.device for each in network.parameters()), None)
    for place, part in network.named_modules():
        for own, buffer in part._buffers.items():
            value = values.get(f"{place}.{own}".lstrip("."))
            if isinstance(value, Tensor) and (buffer is None or buffer.shape != value.shape):
                part._buffers[own] = torch.empty_like(value, device=device if buffer is None else buffer.device)


def restore(optimizers: Sequence[Optimizer], network: nn.Module, entries: Mapping[str, Tensor]) -> None:
    """Gives new optimizers the entries of ``State.optimizer``, laid out as their parameters are, by torch's own way of
    loading them, which knows where each entry has to be.
    """
    parameters = dict(network.named_parameters())
    for index, optimizer in enumerate(optimizers):
        number = {
            each: n for n, each in enumerate(each for group in optimizer.param_groups for each in group["params"])
        }
        loaded: dict[int, dict[str, Any]] = defaultdict(dict)
        for key, value in entries.items():
            name, entry, place = parts(key)
            if place == index:
                parameter = parameters[name]
                kept = value.item() if entry.endswith("#") else _laid_out(value, parameter)
                loaded[number[parameter]][entry.removesuffix("#")] = kept
        if not loaded:
            continue
        optimizer.load_state_dict({"state": loaded, "param_groups": optimizer.state_dict()["param_groups"]})
        for parameter, n in number.items():  # torch gives all but steps the type of their parameter
            for entry, kept in loaded[n].items():
                if entry != "step" and isinstance(kept, Tensor) and kept.dtype != parameter.dtype:
                    optimizer.state[parameter][entry] = kept.to(parameter.device)


def _laid_out(value: Tensor, parameter: Tensor) -> Tensor:
    """A copy, in memory as its parameter is where it has that shape."""
    if value.shape == parameter.shape and value.ndim:
        return torch.empty_like(parameter, dtype=value.dtype).copy_(value)
    return value.clone()
