"""What figures of a network's files depend on beside the network: the code that makes these, the libraries behind it.

A figure that was kept with another recipe is taken anew.
"""

import functools
import hashlib
import importlib.metadata
from collections.abc import Collection, Mapping
from pathlib import Path

LIBRARIES = ("torch", "onnx", "onnxscript", "onnxruntime", "ziglang")


def recipe(dynamic_axes: Mapping[str, Collection[int]]) -> Mapping[str, str]:
    """A digest of this room's source, the engine's included, the versions of the libraries that are installed, and
    the axes that may have any size, where there are such.
    """
    free = " ".join(f"{name} {sorted(axes)}" for name, axes in sorted(dynamic_axes.items()))
    return _code() | ({"dynamic_axes": free} if free else {})


@functools.cache
def _code() -> dict[str, str]:
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.*")):
        if path.suffix in (".py", ".c", ".h"):
            digest.update(path.read_bytes())
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {"source": digest.hexdigest()[:12], **versions}
