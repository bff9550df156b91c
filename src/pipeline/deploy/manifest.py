"""The facts of a bundle, as its ``manifest.json`` has them; ``board/run.py``, which runs alone, reads that file too."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.deploy.board.run import FORMAT
from pipeline.ground.documents import written

FILE = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Which round of which run a bundle is made of."""

    format: int = FORMAT
    name: str
    method: str
    seed: int
    round: int
    density: float
    macs: Mapping[str, int]
    """Multiply-adds of one input: ``dense``, ``kept``, and (of a manifest) ``computed`` by ONNX Runtime."""
    fingerprint: str
    data_digest: str
    git_commit: str
    settings: Mapping[str, Any]
    """Those of ``deploy``."""
    mlflow_run_id: str


@dataclass(frozen=True, kw_only=True)
class Manifest(Origin):
    """All of them."""

    classes: Sequence[str] | None
    """Names of the classes that the answers are scores of (empty: they have none); null where they are none."""
    names: Sequence[str]
    """Names that the data have for labels."""
    inputs: Sequence[Mapping[str, Any]]
    """``name``, ``shape`` (None: any size), ``type``, and by ``kind`` how a file becomes one: of an ``image`` its
    ``mode`` and ``shorter_side``, of a ``sound`` its ``rate``; ``arrays`` come as they are."""
    outputs: Sequence[Mapping[str, Any]]
    """``name``, ``shape`` (None: any size) and ``type``."""
    models: Mapping[str, Mapping[str, Any]]
    """By file: ``kind``, ``tolerance`` of its golden outputs (relative to the largest), ``between``: that of the
    sparse engine's for what ONNX Runtime computes between its parts, ``sha256``."""
    size_bytes: Mapping[str, int]
    gzip_bytes: Mapping[str, int]
    positions: Mapping[str, float]
    """Bytes of all positions of weights, and the fewest that these densities allow."""
    score: Mapping[str, str | bool]
    """What judges the network: ``label``, ``better`` (higher or lower), ``percent``."""
    scores: Mapping[str, Mapping[str, float]]
    """By split and form of the network; empty, with the reason in ``unjudged``, where forms cannot be judged by it."""
    unjudged: str | None
    float_layers: Sequence[str]
    """Layers that the int8 model has in float."""
    latency: Mapping[str, Mapping[str, float]]
    """``milliseconds`` and ``ratio`` to the dense network's, by form, on the machine that made the bundle."""
    onnxruntime: Mapping[str, str]
    """``oldest`` and ``newest`` version."""
    engine: Mapping[str, Any]
    """Of the sparse engine: why a model is ``uncovered``, or the operators that ONNX Runtime computes ``beside`` it,
    ``libraries`` by file, why some are ``missing``, and the
    versions of ``onnxruntime`` that they were tried with."""
    versions: Mapping[str, str]

    @property
    def model_bytes(self) -> int:
        """Bytes of ``model.onnx``."""
        return self.size_bytes[self.models["model.onnx"]["kind"]]

    def write(self, folder: Path) -> None:
        """Writes it into a bundle."""
        (folder / FILE).write_text(written(dataclasses.asdict(self), indent=1) + "\n")


def read(bundle: Path) -> Manifest:
    """The manifest of a bundle."""
    return Manifest(**json.loads((bundle / FILE).read_text()))
