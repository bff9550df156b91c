"""Files of tensors that carry their digest."""

import hashlib
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
        tensor = thing.detach().cpu().contiguous()
        sha.update(f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape) or (1,)}".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
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
