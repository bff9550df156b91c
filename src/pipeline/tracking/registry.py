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
from mlflow.entities import LoggedModel, LoggedModelOutput
from mlflow.exceptions import MlflowException
from mlflow.models import Model

from pipeline.deploy.board.run import EXACT
from pipeline.deploy.manifest import Manifest
from pipeline.tracking.store import metrics
from pipeline.tracking.tracker import NOTE, Tracker


def log_bundle(tracker: Tracker, folder: Path, manifest: Manifest, digest: str) -> None:
    """Logs a bundle and its model to a run and registers the model, once a digest, as ``arm``."""
    label = re.sub(r"\W+", "_", str(manifest.score["label"]))
    with tracker.store.told():
        figures = {
            **{f"size/bundle_{kind}_bytes": size for kind, size in manifest.size_bytes.items()},
            **{
                f"{split}/bundle_{label}_{kind}": value
                for split, by_kind in manifest.scores.items()
                for kind, value in by_kind.items()
            },
        }
        tracker.store.send(tracker.run_id, metrics(figures, time.time_ns() // 1_000_000, manifest.round))
        tracker.tag({"bundle_digest": digest, "bundle_round": str(manifest.round)})
        tracker.client.log_artifacts(tracker.run_id, str(folder), "bundle")
        version = _version(tracker, folder, manifest)
        tracker.client.set_registered_model_alias(manifest.name, "arm", version)
        tracker.client.set_terminated(tracker.run_id, "FINISHED")


def _version(tracker: Tracker, folder: Path, manifest: Manifest) -> str:
    """The version of the registered model that is the bundle's model; a new one if there is none yet."""
    digest = hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()
    for version in tracker.client.search_model_versions(f"name = '{manifest.name}'"):
        if version.tags.get("model_digest") == digest:
            return version.version
    told = (folder / "README.md").read_text()
    with contextlib.suppress(MlflowException):  # it is there already; anything else shows in the next call
        tracker.client.create_registered_model(
            manifest.name, description=f"Pruned networks of {manifest.name}; the alias `arm` is the latest bundle's."
        )
    tags, values = {"model_digest": digest}, str(manifest.models["model.onnx"]["kind"])
    model = tracker.client.create_logged_model(
        tracker.store.experiment_id,
        f"{manifest.name}-{digest[:8]}",
        tracker.run_id,
        tags | {NOTE: told},
        {"round": str(manifest.round), "density": f"{manifest.density:.6g}", "values": values},
        "onnx",
    )
    _log_files(tracker, folder, model)
    tracker.client.finalize_logged_model(model.model_id, "READY")
    tracker.client.log_outputs(tracker.run_id, [LoggedModelOutput(model.model_id, manifest.round)])
    made = tracker.client.create_model_version(
        manifest.name, model.artifact_location, tracker.run_id, tags, description=told, model_id=model.model_id
    )
    return made.version


def _log_files(tracker: Tracker, folder: Path, model: LoggedModel) -> None:
    """Logs the bundle's model as MLflow's, with the golden inputs as example."""
    with np.load(folder / "golden.npz") as golden:
        inputs, outputs = (
            {key.removeprefix(part): golden[key] for key in golden.files if key.startswith(part)}
            for part in ("inputs/", "model.onnx/")
        )
    example = inputs if len(inputs) > 1 else next(iter(inputs.values()))
    outputs = {name: np.atleast_1d(each) for name, each in outputs.items()}  # MLflow knows no shape of one number
    answer = outputs if len(outputs) > 1 else next(iter(outputs.values()))
    with tempfile.TemporaryDirectory() as place:
        mlflow.onnx.save_model(
            onnx.load(folder / "model.onnx"),
            Path(place) / "model",
            mlflow_model=Model(
                model.artifact_location, tracker.run_id, model_uuid=model.model_id, model_id=model.model_id
            ),
            signature=mlflow.models.infer_signature(example, answer),
            input_example=example,
            pip_requirements=(folder / "requirements.txt").read_text().split(),
            onnx_execution_providers=["CPUExecutionProvider"],
            onnx_session_options={"extra_session_config": EXACT},
            save_as_external_data=False,
        )
        tracker.client.log_model_artifacts(model.model_id, str(Path(place) / "model"))
