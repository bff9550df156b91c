"""Trained weights from a file: a state dict, as it is or within a checkpoint, as safetensors or in a ``.pt``."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.ground.errors import SettingsError, one_line
from pipeline.ground.tensors import packed

SHOWN = 8
EXTRA = "_extra_state"
DEEPEST = 3
"""How many names a prefix has at most, such as ``module.model.``."""
TAKES = "takes a .safetensors file, or a network.state_dict() in a .pt file"


def read_weights(path: Path, network: nn.Module) -> dict[str, Tensor]:
    """A state dict that fits ``network``: the same names and shapes, on the CPU, in the network's own types.

    A file may hold it within a checkpoint, under a prefix (of a LightningModule, of DataParallel, of a compiled
    network), with one name alone of tensors that the network shares, and without ``num_batches_tracked``.

    Raises:
        SettingsError: if the file cannot be read, or with all names and shapes that do not fit.
    """
    try:
        read: Any = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise SettingsError(
            [f"model.weights: got {str(path)!r}, which is no file of tensors alone; {TAKES}"]
        ) from error
    except Exception as error:
        raise SettingsError(
            [f"model.weights: got {str(path)!r}, which cannot be read ({one_line(error)}); {TAKES}"]
        ) from error
    state = network.state_dict()
    extra = {name: each for name, each in state.items() if not isinstance(each, Tensor)}
    expected = {name: each for name, each in state.items() if isinstance(each, Tensor)}
    try:
        named = _under_prefix(_state_dict(read), state)
    except ValueError as error:
        raise SettingsError([f"model.weights: got {str(path)!r}, which {error}; {TAKES}"]) from error
    extra = {name: named.get(name, each) for name, each in extra.items()}
    found = _completed({name: each for name, each in named.items() if isinstance(each, Tensor)}, expected)
    faults = [f"{name} is missing" for name in expected if name not in found]
    faults += [f"{name} is not of the network" for name in named if name not in state]
    faults += [
        f"{name} has shape {tuple(found[name].shape)}, takes {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in found and found[name].shape != tensor.shape
    ]
    faults += [
        f"{name} is complex, takes {tensor.dtype}".replace("torch.", "")
        for name, tensor in expected.items()
        if name in found and found[name].is_complex() and not tensor.is_complex()
    ]
    faults += [
        f"{name} holds a number that is not finite"
        for name, tensor in expected.items()
        if name in found and not found[name].is_complex() and not bool(found[name].to(tensor.dtype).isfinite().all())
    ]
    if faults:
        more = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise SettingsError([f"model.weights: {path} does not fit: {'; '.join(faults[:SHOWN])}{more}"])
    fitting = {name: found[name].to(tensor.dtype).contiguous() for name, tensor in expected.items()}
    return packed({name: fitting.get(name, extra.get(name)) for name in state})


def _state_dict(read: Any) -> Mapping[str, Any]:
    """The state dict of a file: all of it, or the one entry of a checkpoint that is one.

    Raises:
        ValueError: if there is none, or there are several.
    """
    if _is_state_dict(read):
        return cast(Mapping[str, Any], read)
    entries = read.items() if isinstance(read, Mapping) else ()
    found = {str(name): each for name, each in entries if _is_state_dict(each) and each}
    if len(found) > 1:
        raise ValueError(f"holds several state dicts ({', '.join(found)})")
    if not found:
        raise ValueError("holds more than tensors by name")
    return next(iter(found.values()))


def _is_state_dict(thing: Any) -> bool:
    return isinstance(thing, Mapping) and all(
        _is_plain(each) or str(name).endswith(EXTRA) for name, each in thing.items()
    )


def _under_prefix(found: Mapping[str, Any], expected: Mapping[str, Any]) -> dict[str, Any]:
    """A state dict by the names that ``expected`` has: those of the prefix under which most of them stand.

    Raises:
        ValueError: if there are several such prefixes.
    """
    plain = {_uncompiled(name): each for name, each in found.items()}
    names = {_uncompiled(name): name for name in expected}
    starts = (name.split(".")[:depth] for depth in range(1, DEEPEST + 1) for name in plain)
    fitting = dict.fromkeys(["", *("".join(f"{part}." for part in each) for each in starts)], 0)
    fitting = {prefix: sum(prefix + name in plain for name in names) for prefix in fitting}
    most = max(fitting.values())
    best = [prefix for prefix, count in fitting.items() if count == most]
    if most and best[0] and len(best) > 1:
        raise ValueError(f"holds such weights more than once, under {', '.join(best)}")
    under = {name.removeprefix(best[0]): each for name, each in plain.items() if name.startswith(best[0])}
    return {names.get(name, name): each for name, each in under.items()}


def _uncompiled(name: str) -> str:
    return name.replace("_orig_mod.", "")


def _completed(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a file leaves out: further names of a tensor that the network shares, and counts of batches."""
    places = {name: (each.data_ptr(), each.shape, each.stride()) for name, each in expected.items() if each.numel()}
    shared = {place: found[name] for name, place in places.items() if name in found}
    counts = {name: each for name, each in expected.items() if name.endswith("num_batches_tracked")}
    again = {name: shared[place] for name, place in places.items() if place in shared}
    return {**counts, **again, **found}


def _is_plain(value: object) -> bool:
    """Whether it is a tensor with numbers of its own, each in its place."""
    return isinstance(value, Tensor) and value.layout is torch.strided and not value.is_meta
