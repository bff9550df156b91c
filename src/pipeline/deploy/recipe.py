"""What figures of a network's files depend on beside the network: the code that makes these, the libraries behind it.

A figure that was kept with another recipe is taken anew.
"""

import functools
import hashlib
import importlib.metadata
from collections.abc import Mapping
from pathlib import Path

LIBRARIES = ("torch", "onnx", "onnxscript", "onnxruntime", "ziglang")


@functools.cache
def recipe() -> Mapping[str, str]:
    """A digest of this room's source, the engine's included, and the versions of the libraries that are installed."""
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
