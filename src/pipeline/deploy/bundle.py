"""The folder that goes to the board: models, facts, golden answers, and the program that checks and runs them.

export the masked network -> float32, packed
                          -> int8 by calibration -> packed
each as one node, which the sparse engine may take
check all of it; write it into a temporary folder; move that into place whole
"""

import dataclasses
import gzip
import hashlib
import importlib.metadata
import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray
from onnx import ModelProto, ValueInfoProto, helper

from pipeline.data import picture
from pipeline.data.dataset import Split
from pipeline.deploy import card, kernels, signature
from pipeline.deploy.manifest import Manifest, Origin
from pipeline.deploy.mixed import within
from pipeline.deploy.models import Models, between, check, engine_fault, form, models, positions, unrounded
from pipeline.deploy.node import left_to_onnxruntime, opened
from pipeline.deploy.pack import unpacked
from pipeline.deploy.runtime import Arrays, answers, arrays, latencies, session, tolerance
from pipeline.deploy.signature import signing_key
from pipeline.deploy.subject import Elsewhere, Form, Subject
from pipeline.ground.environment import expanded
from pipeline.ground.errors import PipelineError, SettingsError
from pipeline.ground.files import whole_folder
from pipeline.settings.groups import Deploy

OLDEST_ONNXRUNTIME = "1.22.1"
ENGINE_ONNXRUNTIME = ["1.20", "1.22", "1.24", "1.27", "1.32"]
"""Versions that the sparse engine has been seen to work with; with any other a bundle computes without it."""
GOLDEN, COMPARED = 4, 100
DENSE = "dense.onnx"
"""File beside a bundle: the whole network in float32, which the bundle's models are compared with."""
PROGRAM = (Path(__file__).with_name("board") / "run.py", Path(picture.__file__))


def make(subject: Subject, *, deploy: Deploy, origin: Origin, folder: Path, told: Callable[[str], None]) -> Manifest:
    """Makes the bundle of a network in ``folder``, checks included, and returns its manifest; ``told`` hears of it.

    Raises:
        PipelineError: with all that a check has found; then ``folder`` is as it was.
        SettingsError: if ``deploy.sign_key`` names no key, or ``deploy.input`` is not what the network takes.
    """
    key = signing_key(expanded(deploy.sign_key)) if deploy.sign_key else None
    told("exporting, quantising and packing")
    classes = subject.classes
    metadata = {} if classes is None else {"classes": json.dumps(list(classes))}
    found = models(subject, deploy.calibration_images, deploy.width_multiple, metadata, deploy.dynamic_axes)
    inputs = taken(found.plain, subject, deploy)
    told("checking")
    golden = arrays(next(iter(subject.examples("test", GOLDEN))))
    if faults := check(found, subject, next(iter(subject.examples("validation", COMPARED))), deploy.dynamic_axes):
        raise PipelineError("; ".join(faults))
    told("evaluating")
    found, scores, unjudged = _judged(found, subject, deploy, told)
    kinds: dict[str, Literal["int8", "float32"]] = {"model.onnx": deploy.values}
    if deploy.values == "int8" and deploy.reference:
        kinds["model_fp32.onnx"] = "float32"
    files: dict[str, ModelProto] = {name: getattr(found, kind) for name, kind in kinds.items()}
    content = {name: model.SerializeToString(deterministic=True) for name, model in files.items()}
    size = len(content["model.onnx"])
    if deploy.max_bytes is not None and size > deploy.max_bytes:
        raise PipelineError(f"model.onnx has {size:,} bytes, deploy.max_bytes allows {deploy.max_bytes:,}")
    told("building the sparse engine" if deploy.kernels else "timing")
    libraries, missing = _libraries(deploy.kernels)
    uncovered = {
        name: found.uncovered[kind] or (engine_fault(files[name], golden) if libraries else None)
        for name, kind in kinds.items()
    }
    told("timing")
    engine = {
        "uncovered": uncovered,
        "beside": {name: left_to_onnxruntime(files[name]) for name, reason in uncovered.items() if reason is None},
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
    }
    running = {
        "dense": session(found.dense),
        "float32": session(found.float32),
        "int8_dense": session(unpacked(opened(found.int8))),
        "int8": session(found.int8),
    }
    manifest = Manifest(
        **dataclasses.asdict(replace(origin, macs={**origin.macs, "computed": found.macs})),
        classes=None if classes is None else list(classes),
        names=list(subject.dataset.classes),
        inputs=inputs,
        outputs=[described(value) for value in found.plain.graph.output],
        models={
            name: {
                "kind": kind,
                "tolerance": tolerance(files[name], kind),
                "between": between(files[name]),
                "sha256": hashlib.sha256(content[name]).hexdigest(),
            }
            for name, kind in kinds.items()
        },
        size_bytes=found.size_bytes | {"dense_lean": found.dense.ByteSize()},
        gzip_bytes={"dense": _gzip(found.dense), "float32": _gzip(found.float32), "int8": _gzip(found.int8)},
        positions=positions(found.int8_facts),
        score={name: getattr(subject.score, name) for name in ("label", "better", "percent")},
        scores=scores,
        unjudged=unjudged,
        float_layers=list(found.float_layers),
        latency=latencies(running, {name: each[:1] for name, each in golden.items()}),
        onnxruntime={"oldest": OLDEST_ONNXRUNTIME, "newest": importlib.metadata.version("onnxruntime")},
        engine=engine,
        versions={
            name: importlib.metadata.version(name) for name in ("torch", "onnx", "onnxruntime", "numpy", "pillow")
        },
    )
    golden_answers: dict[str, Arrays] = {name: answers(session(model), golden) for name, model in files.items()}
    for name, model in files.items():
        if uncovered[name] is None:
            golden_answers[f"{name}, sparse"] = unrounded(model, golden)
    content |= {name: library for name, (_, library) in libraries.items()}
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.with_name(DENSE).write_bytes(found.dense.SerializeToString())
    kept = {
        f"{part}/{name}": each
        for part, one in {"inputs": golden, **golden_answers}.items()
        for name, each in one.items()
    }
    _write(folder, content, manifest, kept, key)
    return manifest


def _judged(
    found: Models, subject: Subject, deploy: Deploy, told: Callable[[str], None]
) -> tuple[Models, dict[str, dict[str, float]], str | None]:
    """The models, int8 with float layers where the score needs them; scores by split and form; why there are none.

    Raises:
        PipelineError: if int8 loses more of the validation score than ``deploy.max_score_drop`` allows.
    """
    score = subject.score
    try:
        reference = subject.judged(form(found.float32, subject), "validation")
        if deploy.values == "int8":
            allowed = deploy.max_score_drop * (1 if score.percent else abs(reference)) + 1e-9
            lost = score.drop(subject.judged(form(found.int8, subject), "validation"), reference)
            if not lost <= allowed:
                told("searching for the layers that int8 leaves in float")
                held = within(found, subject, reference, allowed)
                if not held.float_layers:
                    raise PipelineError(
                        f"int8 loses {score.shown_drop(lost)} of the validation {score.label}, deploy.max_score_drop "
                        f"allows {score.shown_drop(allowed)}, and no choice of float layers holds that: "
                        "deploy.values=float32 ships the float model"
                    )
                found = held
        forms: dict[str, Form] = {
            "masked": subject.answered,
            "float32": form(found.float32, subject),
            "int8": form(found.int8, subject),
        }
        splits: tuple[Split, ...] = ("validation", "test")
        return found, {each: {kind: subject.judged(one, each) for kind, one in forms.items()} for each in splits}, None
    except Elsewhere as reason:
        return found, {}, str(reason)


def taken(model: ModelProto, subject: Subject, deploy: Deploy) -> list[dict[str, Any]]:
    """What each input of a model is, and how a file becomes one.

    Raises:
        SettingsError: if ``deploy.input`` says something that it cannot be.
    """
    found = [described(value) for value in model.graph.input]
    image, kind = subject.dataset.preprocessing.image, deploy.input
    if kind == "auto":
        kind = "arrays" if image is None else "image"
    shape = found[0]["shape"]
    shown = " x ".join("N" if side is None else str(side) for side in shape)
    takes = {
        "image": len(shape) == 4 and shape[1] in (1, 3),
        "sound": len(shape) == 2 or (len(shape) == 3 and shape[1] == 1),
    }
    if kind != "arrays" and (len(found) > 1 or not takes[kind]):
        raise SettingsError(
            [f"deploy.input: got {kind}, but the network takes {len(found)} tensors, the first {shown}; takes arrays"]
        )
    how: dict[str, Any] = {"kind": kind}
    if kind == "image":
        how |= dict(image or {"mode": "L" if shape[1] == 1 else "RGB", "shorter_side": None})
    elif kind == "sound":
        how["rate"] = deploy.sample_rate
    return [each | how for each in found]


def described(value: ValueInfoProto) -> dict[str, Any]:
    """Name, shape (None: any size) and type of a model's input or output."""
    tensor = value.type.tensor_type
    shape = [each.dim_value if each.HasField("dim_value") else None for each in tensor.shape.dim]
    return {"name": value.name, "shape": shape, "type": str(helper.tensor_dtype_to_np_dtype(tensor.elem_type))}


def _libraries(names: Iterable[str]) -> tuple[dict[str, tuple[kernels.Target, bytes]], str | None]:
    """The sparse engine for each target, by file, best first; or why none can be built here."""
    try:
        targets = sorted(map(kernels.target_of, names), key=kernels.TARGETS.index)
        return {f"engine-{each.name}.so": (each, kernels.library(each).read_bytes()) for each in targets}, None
    except PipelineError as error:
        return {}, str(error)


def _gzip(model: ModelProto) -> int:
    return len(gzip.compress(model.SerializeToString(), mtime=0))


def _write(
    folder: Path,
    content: Mapping[str, bytes],
    manifest: Manifest,
    golden: Mapping[str, NDArray[Any]],
    key: Ed25519PrivateKey | None,
) -> None:
    """Writes all files beside ``folder`` and moves them into its place at once."""
    with whole_folder(folder) as unfinished:
        for file, model in content.items():
            (unfinished / file).write_bytes(model)
        np.savez(unfinished / "golden.npz", allow_pickle=False, **golden)
        manifest.write(unfinished)
        (unfinished / "requirements.txt").write_text(card.requirements(manifest))
        (unfinished / "README.md").write_text(card.readme(manifest, signed=key is not None))
        for part in PROGRAM:
            shutil.copy(part, unfinished)
        files = sorted(unfinished.iterdir())
        sums = "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files).encode()
        (unfinished / "SHA256SUMS").write_bytes(sums)
        if key is not None:
            (unfinished / signature.FILE).write_bytes(key.sign(sums))


def digest(folder: Path) -> str:
    """SHA-256 of a bundle: of the sums of its files."""
    return hashlib.sha256((folder / "SHA256SUMS").read_bytes()).hexdigest()
