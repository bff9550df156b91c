"""Trained weights from a file: a plain state dict, as safetensors or as a ``.pt`` that holds nothing but tensors."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.ground.errors import SettingsError, one_line

SHOWN = 8
TAKES = "takes a .safetensors file, or a network.state_dict() in a .pt file"


def read_weights(path: Path, network: nn.Module) -> dict[str, Tensor]:
    """A state dict that fits ``network``: the same names and shapes, on the CPU, in the network's own types.

    Raises:
        SettingsError: if the file cannot be read, or with all names and shapes that do not fit.
    """
    try:
        found: Any = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise SettingsError(
            [f"model.weights: got {str(path)!r}, which is no file of tensors alone; {TAKES}"]
        ) from error
    except Exception as error:
        raise SettingsError(
            [f"model.weights: got {str(path)!r}, which cannot be read ({one_line(error)}); {TAKES}"]
        ) from error
    if not isinstance(found, Mapping) or not all(map(_is_plain, found.values())):
        raise SettingsError([f"model.weights: got {str(path)!r}, which holds more than tensors by name; {TAKES}"])
    expected = network.state_dict()
    faults = [f"{name} is missing" for name in expected if name not in found]
    faults += [f"{name} is not of the network" for name in found if name not in expected]
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
    return {name: found[name].to(tensor.dtype).contiguous() for name, tensor in expected.items()}


def _is_plain(value: object) -> bool:
    """Whether it is a tensor with numbers of its own, each in its place."""
    return isinstance(value, Tensor) and value.layout is torch.strided and not value.is_meta
