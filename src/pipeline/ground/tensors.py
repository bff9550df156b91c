"""Files of tensors that carry their digest."""

import hashlib
import io
import json
from collections.abc import Mapping
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pipeline.ground.documents import written
from pipeline.ground.errors import PipelineError
from pipeline.ground.files import write_file

PACKED = b"as torch.save writes it:"


def remedy(folder: Path) -> str:
    """What to do about a damaged round."""
    return f"delete {folder} (and the rounds after it) to have it trained again"


def tensor_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes, in the order of names."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        sha.update(f"{name} ".encode())
        update_digest(sha, tensors[name])
    return sha.hexdigest()


def update_digest(sha: Any, thing: Any) -> None:
    """Takes anything into a digest: tensors and arrays by type, shape and bytes, collections part by part."""
    if isinstance(thing, np.ndarray):
        numbers = thing.dtype.kind in "biufc" and thing.dtype.char not in "gG"
        native = np.array(thing, thing.dtype.newbyteorder("="), order="C")
        thing = torch.from_numpy(native) if numbers else thing.tolist()
    if isinstance(thing, Tensor):
        sha.update(f"{str(thing.dtype).removeprefix('torch.')} {tuple(thing.shape) or (1,)}".encode())
        sha.update(_numbers(thing).reshape(-1).view(torch.uint8).numpy().data)
    elif isinstance(thing, Mapping):
        for key, each in thing.items():
            sha.update(f"{key!r}:".encode())
            update_digest(sha, each)
    elif isinstance(thing, list | tuple):
        sha.update(f"{len(thing)}".encode())
        for each in thing:
            update_digest(sha, each)
    elif isinstance(thing, set | frozenset | date | timedelta | Decimal):
        sha.update(repr(sorted(map(repr, thing)) if isinstance(thing, set | frozenset) else thing).encode())
    elif isinstance(thing, bytes | str | int | float | bool | complex | type(None)):
        sha.update(repr(thing).encode())
    elif hasattr(thing, "__dict__"):
        sha.update(type(thing).__qualname__.encode())
        update_digest(sha, vars(thing))
    else:
        sha.update(type(thing).__qualname__.encode())


def _numbers(tensor: Tensor) -> Tensor:
    """All numbers of a tensor, one after the other on the CPU; none of one on the meta device."""
    if tensor.is_meta:
        return torch.empty(0)
    dense = tensor.detach() if tensor.layout is torch.strided else tensor.detach().to_dense()
    plain = dense.dequantize() if dense.is_quantized else dense
    return plain.cpu().resolve_conj().resolve_neg().contiguous()


def packed(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """A state dict as tensors alone: what is none (an extra state) as the bytes that ``torch.save`` makes of it."""
    return {name: each if isinstance(each, Tensor) else _packed(each) for name, each in state.items()}


def unpacked(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The state dict that ``packed`` was given.

    Raises:
        UnpicklingError: if an entry is more than tensors, numbers, text and collections of these.
    """
    return {name: _unpacked(each) for name, each in tensors.items()}


def _packed(entry: Any) -> Tensor:
    written = io.BytesIO()
    torch.save(entry, written)
    return torch.frombuffer(bytearray(PACKED + written.getvalue()), dtype=torch.uint8)


def _unpacked(tensor: Tensor) -> Any:
    if tensor.dtype != torch.uint8 or tensor.ndim != 1 or bytes(tensor[: len(PACKED)].tolist()) != PACKED:
        return tensor
    return torch.load(io.BytesIO(tensor[len(PACKED) :].cpu().numpy().tobytes()), weights_only=True)


def fits_a_file(tensor: Tensor) -> bool:
    """Whether a file holds such a tensor, with its digest: by its type and layout."""
    try:
        one = {"": tensor.detach().reshape(-1)[:1].to("cpu", copy=True, memory_format=torch.contiguous_format)}
        save(one)
        tensor_digest(one)
    except Exception:
        return False
    return True


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None) -> str:
    """Writes a safetensors file with a digest of its tensors in its header, and returns the digest."""
    digest = tensor_digest(tensors)
    # one entry: safetensors writes several in an order that changes from process to process
    write_file(path, save(dict(tensors), {"pipeline": written({**(metadata or {}), "digest": digest})}))
    return digest


def read_tensors(path: Path) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    """Tensors and metadata of a file that ``write_tensors`` has written.

    Raises:
        PipelineError: if it is damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = json.loads((file.metadata() or {})["pipeline"])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise PipelineError(f"{path} is damaged ({error}); {remedy(path.parent)}") from error
    if metadata.get("digest") != tensor_digest(tensors):
        raise PipelineError(f"{path} is damaged (its tensors are not those of its digest); {remedy(path.parent)}")
    return tensors, metadata
