"""Bundles in MLflow: logged to the run that they are of, their models registered."""

import contextlib
import hashlib
import re
import tempfile
import time
from pathlib import Path

import mlflow.onnx
import numpy as np
import onnx
from mlflow.exceptions import MlflowException

from pipeline.deploy.board.run import EXACT
from pipeline.deploy.manifest import Manifest
from pipeline.tracking.store import metrics
from pipeline.tracking.tracker import Tracker


def log_bundle(tracker: Tracker, folder: Path, manifest: Manifest, digest: str) -> None:
    """Logs a bundle and its model to a run and registers the model, once a digest, as ``arm``."""
    label = re.sub(r"\W+", "_", str(manifest.score["label"]))
    with tracker.store.told():
        figures = {
            **{f"bundle_{kind}_bytes": size for kind, size in manifest.size_bytes.items()},
            **{
                f"bundle_{split}_{label}_{kind}": value
                for split, by_kind in manifest.scores.items()
                for kind, value in by_kind.items()
            },
        }
        tracker.store.send(tracker.run_id, metrics(figures, time.time_ns() // 1_000_000, manifest.round))
        tracker.tag({"bundle_digest": digest, "bundle_round": str(manifest.round)})
        tracker.client.log_artifacts(tracker.run_id, str(folder), "bundle")
        version = _version(tracker, folder, manifest.name)
        tracker.client.set_registered_model_alias(manifest.name, "arm", version)
        tracker.client.set_terminated(tracker.run_id, "FINISHED")


def _version(tracker: Tracker, folder: Path, name: str) -> str:
    """The version of the registered model that is the bundle's model; a new one if there is none yet."""
    digest = hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()
    for version in tracker.client.search_model_versions(f"name = '{name}'"):
        if version.tags.get("model_digest") == digest:
            return version.version
    with contextlib.suppress(MlflowException):  # it is there already; anything else shows in the next call
        tracker.client.create_registered_model(name)
    path = f"model-{digest[:8]}"
    _log_model(tracker, folder, path)
    made = tracker.client.create_model_version(
        name, f"{tracker.artifact_uri}/{path}", tracker.run_id, tags={"model_digest": digest}
    )
    return made.version


def _log_model(tracker: Tracker, folder: Path, path: str) -> None:
    """Logs the bundle's model as MLflow's, with the golden inputs as example."""
    golden = np.load(folder / "golden.npz")
    inputs, outputs = (
        {key.removeprefix(part): golden[key] for key in golden.files if key.startswith(part)}
        for part in ("inputs/", "model.onnx/")
    )
    example = inputs if len(inputs) > 1 else next(iter(inputs.values()))
    answer = outputs if len(outputs) > 1 else next(iter(outputs.values()))
    with tempfile.TemporaryDirectory() as place:
        mlflow.onnx.save_model(
            onnx.load(folder / "model.onnx"),
            Path(place) / "model",
            signature=mlflow.models.infer_signature(example, answer),
            input_example=example,
            pip_requirements=(folder / "requirements.txt").read_text().split(),
            onnx_execution_providers=["CPUExecutionProvider"],
            onnx_session_options={"extra_session_config": EXACT},
            save_as_external_data=False,
        )
        tracker.client.log_artifacts(tracker.run_id, str(Path(place) / "model"), path)
