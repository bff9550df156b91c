"""A network as a user gives it: taken out of what only runs it, copied, and refused where no round could keep it."""

import copy
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy

from pipeline.ground.errors import SettingsError, one_line
from pipeline.ground.tensors import fits_a_file, packed, unpacked


def unwrapped(network: Any) -> Any:
    """The network that ``torch.compile``, ``DataParallel`` or ``DistributedDataParallel`` run; else what is given."""
    if "_orig_mod" in getattr(network, "_modules", {}):
        return unwrapped(network._orig_mod)
    return unwrapped(network.module) if isinstance(network, DataParallel | DistributedDataParallel) else network


def own_parts(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The parts of a network by name, itself among them, without what only runs another and keeps how often it did."""
    return ((name, part) for name, part in network.named_modules() if unwrapped(part) is part)


def keep(network: nn.Module, buffers: Iterable[str]) -> None:
    """Has a state dict hold buffers that it leaves out (``persistent=False``)."""
    for name in buffers:
        place, _, own = name.rpartition(".")
        network.get_submodule(place)._non_persistent_buffers_set.discard(own)


def copied(network: nn.Module) -> nn.Module:
    """A copy of what was given.

    Raises:
        SettingsError: if it cannot be copied.
    """
    check_kept(network)
    try:
        return copy.deepcopy(network)
    except Exception as error:
        raise SettingsError([f"network: {not_copied(network, error)}"]) from error


def not_copied(network: nn.Module, error: Exception) -> str:
    """Why a network cannot be copied, and what could be."""
    name = type(network).__name__
    for place, part in reversed([*network.named_modules()]):
        for own, value in [*vars(part).items(), *part._parameters.items(), *part._buffers.items()]:
            if own not in ("_modules", "_parameters", "_buffers") and not _can_be_copied(value):
                where = f"{place}.{own}".lstrip(".")
                kind = type(value).__name__
                if isinstance(value, Tensor):
                    return (
                        f"{name} cannot be copied, for {where} is computed from others; takes one without weight_norm "
                        "or torch.nn.utils.prune (their parametrize forms can be)"
                    )
                return (
                    f"{name} cannot be copied, for its {where} ({kind}) cannot: {one_line(error)}; takes one that "
                    "makes it when it is used, or leaves it out in __getstate__()"
                )
    return f"{name} cannot be copied: {one_line(error)}; takes one that copy.deepcopy() copies"


def _can_be_copied(value: Any) -> bool:
    try:
        copy.deepcopy(value)
    except Exception:
        return False
    return True


def check_kept(network: nn.Module) -> None:
    """Files must hold all of a network's state, and a training be able to load it.

    Raises:
        SettingsError: if a part of it is lazy, without numbers, sparse, quantised, an object or of an odd type; or if
            it is a script.
    """
    if isinstance(network, torch.jit.ScriptModule):
        raise SettingsError(["network: got one that is compiled to TorchScript; takes the module that it was made of"])
    try:
        state = network.state_dict()
    except Exception as error:
        raise SettingsError([f"network: {type(network).__name__} has no state dict: {one_line(error)}"]) from error
    for name, each in state.items():
        if fault := _fault(each):
            raise SettingsError([f"network: {name} {fault}"])


def check_loads(network: nn.Module) -> None:
    """A network must load what it says to be its state; it does so here, with its own.

    Raises:
        SettingsError: if it does not.
    """
    try:
        network.load_state_dict(unpacked(packed(network.state_dict())))
    except Exception as error:
        raise SettingsError(
            [f"network: {type(network).__name__} does not load its own state dict: {one_line(error)}; takes one whose "
             "load_state_dict() takes what its state_dict() gives, an extra state with set_extra_state() too"]
        ) from error  # fmt: skip


def _fault(entry: Any) -> str | None:
    if not isinstance(entry, Tensor):
        try:
            unpacked(packed({"": entry}))
        except Exception:
            return f"is a {type(entry).__name__}, takes tensors, numbers, text and collections of these as extra state"
        return None
    if is_lazy(entry):
        return "has no shape before a first call; takes layers that are not lazy"
    if entry.is_meta:
        return "has no numbers, as it is on the meta device; takes a network with weights"
    if entry.is_quantized or entry.layout is not torch.strided or not fits_a_file(entry):
        return f"is {_type(entry)}, which no file of tensors holds; takes dense tensors of usual types, such as float32"
    if any(size > 1 and not stride for size, stride in zip(entry.shape, entry.stride(), strict=True)):
        return "has one number in several places (expand()), which cannot be loaded; takes it with clone()"
    return None


def _type(tensor: Tensor) -> str:
    layout = "" if tensor.layout is torch.strided else f"{str(tensor.layout).removeprefix('torch.')} of "
    return layout + str(tensor.dtype).removeprefix("torch.")
