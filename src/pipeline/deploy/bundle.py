"""The folder that goes to the board: models, facts, golden answers, and the program that checks and runs them.

export the masked network -> float32, packed
                          -> int8 by calibration -> packed
each as one node, which the sparse engine may take
check all of it; write it into a temporary folder; move that into place whole
"""

import gzip
import hashlib
import importlib.metadata
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import ModelProto
from torch import Tensor, nn

from pipeline.data.dataset import AnySplit, Dataset
from pipeline.deploy import card, kernels
from pipeline.deploy.export import exported, lean
from pipeline.deploy.pack import PackedTensor, packed, unpacked
from pipeline.deploy.program import one_node, opened
from pipeline.deploy.quantize import quantised, with_float_activations
from pipeline.deploy.runtime import latencies, optimised_operators, scores, session
from pipeline.deploy.shrink import macs, shrunk
from pipeline.ground.errors import PipelineError
from pipeline.settings.groups import Deploy

OLDEST_ONNXRUNTIME = "1.22.1"
TOLERANCE = 1e-4
"""Largest difference of the float model's scores from the masked network's."""
GOLDEN_TOLERANCE = {"float32": 1e-3, "int8": 0.0}
"""Largest difference from the golden outputs on another machine."""
ENGINE_ONNXRUNTIME = ["1.20", "1.22", "1.24", "1.27", "1.32"]
"""Versions that the sparse engine has been seen to work with; with any other a bundle computes without it."""
GOLDEN, COMPARED = 4, 100
BATCH = 50
"""Inputs at a time, so that activations stay small."""
DENSE = "dense.onnx"
"""File beside a bundle: the whole network in float32, which the bundle's models are compared with."""
BOARD = Path(__file__).with_name("board") / "run.py"


@dataclass(frozen=True)
class Models:
    """One network in the forms that are compared. ``plain`` is as PyTorch exports it; packed ones have ``facts``.

    ``uncovered`` says why the sparse engine cannot compute a packed model; None where it can.
    ``macs`` are the multiply-adds of one input without dead channels.
    """

    plain: ModelProto
    dense: ModelProto
    float32: ModelProto
    int8: ModelProto
    float32_facts: Mapping[str, PackedTensor]
    int8_facts: Mapping[str, PackedTensor]
    uncovered: Mapping[str, str | None]
    macs: int

    @property
    def size_bytes(self) -> dict[str, int]:
        """Bytes of the files: the plain export, and the two packed models."""
        return {
            "dense": self.plain.ByteSize(),
            "float32": self.float32.ByteSize(),
            "int8": self.int8.ByteSize(),
        }


def models(
    network: nn.Module,
    dataset: Dataset,
    calibration_images: int,
    multiple: int,
    metadata: Mapping[str, str] | None = None,
) -> Models:
    """Exports, quantises and packs a network that has its pruned weights at zero; dead channels go before.

    ``multiple`` as of ``shrunk``.
    """
    calibration = [piece for batch, _ in first(dataset.raw("train"), calibration_images) for piece in _pieces(batch)]
    inputs = torch.from_numpy(calibration[0])
    plain, source, smaller = _exports(network, dataset, inputs, multiple)
    float32, float32_facts = packed(lean(source, metadata))
    int8, int8_facts = packed(lean(quantised(source, calibration), metadata))
    (float32, float32_fault), (int8, int8_fault) = one_node(float32), one_node(int8)
    uncovered = {"float32": float32_fault, "int8": int8_fault}
    computed = macs(smaller, dataset.preprocessing.apply(inputs[:1]))
    return Models(plain, lean(plain, metadata), float32, int8, float32_facts, int8_facts, uncovered, computed)


def _exports(
    network: nn.Module, dataset: Dataset, inputs: Tensor, multiple: int
) -> tuple[ModelProto, ModelProto, nn.Module]:
    """The network as PyTorch exports it, whole and without dead channels, and the latter itself."""
    apply = dataset.preprocessing.apply
    plain = exported(network, apply, inputs)
    smaller = shrunk(network, apply(inputs), multiple)
    return plain, plain if smaller is network else exported(smaller, apply, inputs), smaller


def check(found: Models, network: nn.Module, dataset: Dataset, inputs: NDArray[Any]) -> list[str]:
    """What is wrong with the models, a sentence each; ``inputs`` (N, ...) are compared on."""
    faults = []
    for name, model, facts in (
        ("float32", found.float32, found.float32_facts),
        ("int8", found.int8, found.int8_facts),
    ):
        try:
            onnx.checker.check_model(model, full_check=True)
        except Exception as error:
            faults.append(f"{name}: the ONNX checker refuses it: {error}")
            continue
        dense = unpacked(opened(model))
        answer, expected = (scores(session(each), [inputs])[0] for each in (model, dense))
        if not np.array_equal(answer, expected):
            faults.append(f"{name}: packed and unpacked models do not give the same scores")
        if facts and optimised_operators(model) != optimised_operators(dense):
            more = optimised_operators(model) - optimised_operators(dense)
            faults.append(f"{name}: weights are unpacked at every inference ({', '.join(sorted(more))})")
    with torch.no_grad():
        expected = network.eval()(dataset.preprocessing.apply(torch.from_numpy(inputs))).numpy()
    difference = float(np.abs(scores(session(found.float32), [inputs])[0] - expected).max())
    if not difference <= TOLERANCE * max(1.0, float(np.abs(expected).max())):
        faults.append(f"float32: its scores differ by {difference:.3g} from the network's, takes {TOLERANCE:g}")
    return faults


def make(
    network: nn.Module,
    dataset: Dataset,
    *,
    deploy: Deploy,
    facts: Mapping[str, Any],
    folder: Path,
    told: Callable[[str], None],
) -> dict[str, Any]:
    """Makes the bundle of a network in ``folder``, checks included, and returns its manifest; ``told`` hears of it.

    Raises:
        PipelineError: with all that a check has found; then ``folder`` is as it was.
    """
    network = network.eval()
    told("exporting, quantising and packing")
    metadata = {"classes": json.dumps(list(dataset.classes))}
    found = models(network, dataset, deploy.calibration_images, deploy.width_multiple, metadata)
    told("checking")
    golden, _ = next(first(dataset.raw("test"), GOLDEN))
    compared, _ = next(first(dataset.raw("validation"), COMPARED))
    faults = check(found, network, dataset, compared)
    if faults:
        raise PipelineError("; ".join(faults))
    told("evaluating")
    accuracy = {split: accuracies(found, network, dataset, split) for split in ("validation", "test")}
    lost = accuracy["validation"]["float32"] - accuracy["validation"]["int8"]
    if deploy.values == "int8" and lost > deploy.max_accuracy_drop + 1e-9:
        raise PipelineError(
            f"int8 loses {lost * 100:.2f} points of validation accuracy, deploy.max_accuracy_drop allows "
            f"{deploy.max_accuracy_drop * 100:g}: deploy.values=float32 ships the float model"
        )
    files = {"model.onnx": found.int8, "model_fp32.onnx": found.float32}
    kinds = {"model.onnx": "int8", "model_fp32.onnx": "float32"}
    if deploy.values == "float32":
        files, kinds = {"model.onnx": found.float32}, {"model.onnx": "float32"}
    content = {name: model.SerializeToString(deterministic=True) for name, model in files.items()}
    size = len(content["model.onnx"])
    if deploy.max_bytes is not None and size > deploy.max_bytes:
        raise PipelineError(f"model.onnx has {size:,} bytes, deploy.max_bytes allows {deploy.max_bytes:,}")
    told("building the sparse engine" if deploy.kernels else "timing")
    libraries, missing = _libraries(deploy.kernels)
    told("timing")
    example = golden[:1]
    manifest = {
        "format": 1,
        **facts,
        "macs": facts["macs"] | {"computed": found.macs},
        "classes": list(dataset.classes),
        "input": {
            "shape": [None, *golden.shape[1:]],
            "type": str(golden.dtype),
            "image": dataset.preprocessing.image,
        },
        "models": {
            name: {
                "kind": kind,
                "tolerance": GOLDEN_TOLERANCE[kind],
                "sha256": hashlib.sha256(content[name]).hexdigest(),
            }
            for name, kind in kinds.items()
        },
        "size_bytes": found.size_bytes | {"dense_lean": found.dense.ByteSize()},
        "gzip_bytes": {"dense": _gzip(found.dense), "float32": _gzip(found.float32), "int8": _gzip(found.int8)},
        "positions": positions(found.int8_facts),
        "accuracy": accuracy,
        "latency": latencies(
            {
                "dense": session(found.dense),
                "float32": session(found.float32),
                "int8_dense": session(unpacked(opened(found.int8))),
                "int8": session(found.int8),
            },
            example,
        ),
        "onnxruntime": {"oldest": OLDEST_ONNXRUNTIME, "newest": importlib.metadata.version("onnxruntime")},
        "engine": {
            "uncovered": {name: found.uncovered[kind] for name, kind in kinds.items()},
            "libraries": {
                name: {
                    "machine": target.machine,
                    "features": sorted(target.features),
                    "precision": target.precision,
                    "tolerance": kernels.TOLERANCE[target.precision],
                    "sha256": hashlib.sha256(library).hexdigest(),
                }
                for name, (target, library) in libraries.items()
            },
            "missing": missing,
            "onnxruntime": ENGINE_ONNXRUNTIME,
        },
        "versions": {
            name: importlib.metadata.version(name) for name in ("torch", "onnx", "onnxruntime", "numpy", "pillow")
        },
    }
    answers = {name: scores(session(model), [golden])[0] for name, model in files.items()}
    for name, model in files.items():
        if found.uncovered[kinds[name]] is None:
            exact = with_float_activations(unpacked(opened(model)))
            answers[f"{name}, sparse"] = scores(session(exact), [golden])[0]
    content |= {name: library for name, (_, library) in libraries.items()}
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.with_name(DENSE).write_bytes(found.dense.SerializeToString())
    _write(folder, content, manifest, {"inputs": golden, **answers})
    return manifest


def _libraries(names: Iterable[str]) -> tuple[dict[str, tuple[kernels.Target, bytes]], str | None]:
    """The sparse engine for each target, by file, best first; or why none can be built here."""
    try:
        targets = sorted(map(kernels.target_of, names), key=kernels.TARGETS.index)
        return {f"engine-{each.name}.so": (each, kernels.library(each).read_bytes()) for each in targets}, None
    except PipelineError as error:
        return {}, str(error)


def accuracies(found: Models, network: nn.Module, dataset: Dataset, split: AnySplit) -> dict[str, float]:
    """Share of a split's inputs that each form of the network gets right."""
    right = {"masked": 0, "float32": 0, "int8": 0}
    sessions = {"float32": session(found.float32), "int8": session(found.int8)}
    count = 0
    for inputs, labels in dataset.raw(split):
        with torch.no_grad():
            masked = [network(dataset.preprocessing.apply(piece)) for piece in inputs.split(BATCH)]
        answers = {"masked": torch.cat(masked).numpy()}
        answers |= {name: np.concatenate(scores(each, _pieces(inputs.numpy()))) for name, each in sessions.items()}
        for name, each in answers.items():
            right[name] += int((each.argmax(1) == labels.numpy()).sum())
        count += len(labels)
    return {name: each / count for name, each in right.items()}


def positions(facts: Mapping[str, PackedTensor]) -> dict[str, float]:
    """Bytes of all positions, and the fewest that these densities allow."""
    return {
        "bytes": sum(each.position_bytes for each in facts.values()),
        "entropy_bytes": round(sum(each.entropy_bytes for each in facts.values()), 1),
    }


def first(batches: Iterable[tuple[Tensor, Tensor]], count: int | None) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """The first inputs of a split (None: all) and their labels, batch by batch."""
    left = sys.maxsize if count is None else count
    for inputs, labels in batches:
        yield inputs[:left].contiguous().numpy(), labels[:left].numpy()
        left -= len(inputs)
        if left <= 0:
            return


def _pieces(batch: NDArray[Any]) -> list[NDArray[Any]]:
    return np.split(batch, range(BATCH, len(batch), BATCH))


def _gzip(model: ModelProto) -> int:
    return len(gzip.compress(model.SerializeToString(), mtime=0))


def _write(
    folder: Path, content: Mapping[str, bytes], manifest: Mapping[str, Any], golden: Mapping[str, NDArray[Any]]
) -> None:
    """Writes all files beside ``folder`` and moves them into its place at once."""
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as name:
        unfinished = Path(name) / "new"
        unfinished.mkdir()
        for file, model in content.items():
            (unfinished / file).write_bytes(model)
        np.savez(unfinished / "golden.npz", allow_pickle=False, **golden)
        (unfinished / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
        (unfinished / "requirements.txt").write_text(card.requirements(manifest))
        (unfinished / "README.md").write_text(card.readme(manifest))
        shutil.copy(BOARD, unfinished / "run.py")
        (unfinished / "SHA256SUMS").write_text(
            "".join(
                f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"
                for path in sorted(unfinished.iterdir())
            )
        )
        if folder.exists():
            folder.rename(Path(name) / "old")
        unfinished.rename(folder)


def digest(folder: Path) -> str:
    """SHA-256 of a bundle: of the sums of its files."""
    return hashlib.sha256((folder / "SHA256SUMS").read_bytes()).hexdigest()
