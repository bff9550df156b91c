"""MLflow: one experiment a name, one parent run a (settings, seed), one nested run a round.

The ledger is the truth and MLflow its mirror. Runs are found again by their tags. Figures are sent with the time at
which they were recorded, and MLflow's database keeps one row for equal (run, metric, step, value, time): what has been
sent before can be sent again and stands there once.
"""

import contextlib
import dataclasses
import hashlib
import logging
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "4")  # half a minute; MLflow's own 7 are over four

from filelock import FileLock
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag, ViewType
from mlflow.exceptions import MlflowException

from pipeline.environment import git_commit
from pipeline.errors import PipelineError
from pipeline.ledger import Ledger, Round
from pipeline.pictures import layer_sparsity
from pipeline.settings import Settings, fingerprint, flat
from pipeline.table import layers_csv
from pipeline.train import Epoch

BATCH = 1000
"""MLflow's limit on metrics a call."""
SECONDS_BETWEEN = 5.0
"""A round's curve leaves at most so often, and at the round's end."""


def embedded_uri(runs: Path) -> str:
    """The default store: a SQLite database in the runs folder."""
    return f"sqlite:///{(runs / 'mlflow' / 'mlflow.db').resolve()}"


def make_embedded_store(runs: Path) -> None:
    """Makes the default store if there is none: one process at a time, and whole or not at all."""
    folder = runs / "mlflow"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        if not (folder / "mlflow.db").exists():
            unfinished = folder / "unfinished.db"
            unfinished.unlink(missing_ok=True)
            MlflowClient(f"sqlite:///{unfinished.resolve()}").search_experiments()
            unfinished.replace(folder / "mlflow.db")


def _experiment(client: MlflowClient, name: str, artifact_location: str | None) -> str:
    """Id of an experiment, found or made (perhaps by another process at the same time)."""
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(name, artifact_location=artifact_location)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            return _experiment(client, name, artifact_location)
    if found.lifecycle_stage == "deleted":
        raise PipelineError(
            f"the MLflow experiment {name!r} is deleted there: "
            f"restore it (mlflow experiments restore -x {found.experiment_id}), or take another name="
        )
    return found.experiment_id


class Tracker:
    """Mirrors one run into MLflow."""

    def __init__(self, uri: str | None, runs: Path, name: str) -> None:
        """Connects, and finds or makes the experiment ``name``.

        Raises:
            PipelineError: if the tracking server cannot be reached, or the experiment is deleted there.
        """
        for library in ("mlflow", "alembic"):
            logging.getLogger(library).setLevel(logging.WARNING)
        self.uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or embedded_uri(runs)
        embedded = self.uri == embedded_uri(runs)
        with _told(self.uri):
            if embedded:
                make_embedded_store(runs)
            self.client = MlflowClient(self.uri)
            location = (runs / "mlflow" / "artifacts" / name).resolve().as_uri() if embedded else None
            self.experiment_id = _experiment(self.client, name, location)
        self.round_runs: dict[int, str] = {}
        self.sent: dict[int, int] = {}
        self.last_sent = 0.0

    def start(self, settings: Settings, ledger: Ledger, title: str, reopen: bool = True) -> None:
        """Opens the parent run of a ledger: a new one, or the one that it had before (FINISHED, unless ``reopen``)."""
        with _told(self.uri):
            identity = ledger.identity
            self.identity = {"fingerprint": fingerprint(identity)[:16], "seed": str(identity["seed"])}
            self.parent = self._run({**self.identity, "kind": "job"}, title, reopen)
            self.tag(
                {
                    "method": title.split(",")[0],
                    "data_digest": identity["data_digest"],
                    "git_commit": git_commit(),
                    "mlflow.source.git.commit": git_commit(),
                    "ledger": str(ledger.folder.resolve()),
                }
            )
            params = {key: str(value) for key, value in flat(dataclasses.asdict(settings)).items()}
            known = self.parent.data.params
            changed = {key: value for key, value in params.items() if known.get(key, value) != value}
            self.client.log_batch(
                self.parent.info.run_id,
                params=[Param(key, value) for key, value in params.items() if key not in known],
                tags=[RunTag(f"changed.{key}", value) for key, value in changed.items()],
            )
            self.client.log_dict(self.parent.info.run_id, dataclasses.asdict(settings), "settings.yaml")

    def tag(self, tags: Mapping[str, str]) -> None:
        """Sets tags of the parent run."""
        with _told(self.uri):
            self.client.log_batch(self.parent.info.run_id, tags=[RunTag(k, v) for k, v in tags.items()])

    def round_started(self, index: int, epochs: int, done: tuple[Epoch, ...]) -> None:
        with _told(self.uri):
            self._round_run(index)
            self._send_epochs(index, done)

    def batch_done(self, batches: int, of: int) -> None: ...

    def note(self, sentence: str) -> None: ...

    def epoch_done(self, index: int, history: tuple[Epoch, ...]) -> None:
        if time.monotonic() - self.last_sent >= SECONDS_BETWEEN:
            with _told(self.uri):
                self._send_epochs(index, history)

    def round_done(self, result: Round, folder: Path, *, trained: bool) -> None:
        """Sends what MLflow does not have yet of a complete round; its run is FINISHED when all of it is there."""
        with _told(self.uri):
            run = self._round_run(result.index)
            self._send(self.parent.info.run_id, _metrics(result.figures, result.finished_ms, result.index))
            if run.info.status == "FINISHED":
                return
            self._send_epochs(result.index, result.history)
            self._send(run.info.run_id, _metrics(result.figures, result.finished_ms, result.history[-1].number))
            for name in ("weights", "masks"):
                self.client.log_artifact(run.info.run_id, str(folder / f"{name}.safetensors"))
            self.client.log_text(run.info.run_id, layers_csv(result), "layers.csv")
            self.client.log_figure(run.info.run_id, layer_sparsity(result), "layers.png")
            self.client.set_terminated(run.info.run_id, "FINISHED", end_time=result.finished_ms)

    def sizes(self, rounds: Sequence[Round], sizes: Sequence[Mapping[str, float]]) -> None:
        """Sends the bytes of every round's files."""
        with _told(self.uri):
            for result, figures in zip(rounds, sizes, strict=True):
                metrics = _metrics(figures, result.finished_ms, result.index)
                self._send(self.parent.info.run_id, metrics)
                self._send(self.round_runs[result.index], metrics)

    def finish(self, texts: Mapping[str, str], figures: Mapping[str, Figure], tags: Mapping[str, str]) -> None:
        """Puts the report into the parent run and ends it as FINISHED."""
        with _told(self.uri):
            for name, text in texts.items():
                self.client.log_text(self.parent.info.run_id, text, name)
            for name, figure in figures.items():
                self.client.log_figure(self.parent.info.run_id, figure, name)
            self.tag(tags)
            self.client.set_terminated(self.parent.info.run_id, "FINISHED")

    def log_bundle(self, folder: Path, manifest: Mapping[str, Any], digest: str) -> None:
        """Logs a bundle and its model to the parent run and registers the model, once a digest, as ``arm``."""
        run_id = self.parent.info.run_id
        with _told(self.uri):
            figures = {
                **{f"bundle_{kind}_bytes": size for kind, size in manifest["size_bytes"].items()},
                **{
                    f"bundle_{split}_accuracy_{kind}": accuracy
                    for split, by_kind in manifest["accuracy"].items()
                    for kind, accuracy in by_kind.items()
                },
            }
            self._send(run_id, _metrics(figures, time.time_ns() // 1_000_000, manifest["round"]))
            self.tag({"bundle_digest": digest, "bundle_round": str(manifest["round"])})
            self.client.log_artifacts(run_id, str(folder), "bundle")
            version = self._version(folder, manifest["name"])
            self.client.set_registered_model_alias(manifest["name"], "arm", version)
            self.client.set_terminated(run_id, "FINISHED")

    def _version(self, folder: Path, name: str) -> str:
        """The version of the registered model that is the bundle's model; a new one if there is none yet."""
        digest = hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()
        for version in self.client.search_model_versions(f"name = '{name}'"):
            if version.tags.get("model_digest") == digest:
                return version.version
        with contextlib.suppress(MlflowException):  # it is there already; anything else shows in the next call
            self.client.create_registered_model(name)
        run, path = self.parent.info, f"model-{digest[:8]}"
        self._log_model(folder, run.run_id, path)
        made = self.client.create_model_version(
            name, f"{run.artifact_uri}/{path}", run.run_id, tags={"model_digest": digest}
        )
        return made.version

    def _log_model(self, folder: Path, run_id: str, path: str) -> None:
        """Logs the bundle's model as MLflow's, with the golden inputs as example."""
        import mlflow.onnx
        import numpy as np
        import onnx

        golden = np.load(folder / "golden.npz")
        with tempfile.TemporaryDirectory() as place:
            mlflow.onnx.save_model(
                onnx.load(folder / "model.onnx"),
                Path(place) / "model",
                signature=mlflow.models.infer_signature(golden["inputs"], golden["model.onnx"]),
                input_example=golden["inputs"],
                pip_requirements=(folder / "requirements.txt").read_text().split(),
                onnx_execution_providers=["CPUExecutionProvider"],
                save_as_external_data=False,
            )
            self.client.log_artifacts(run_id, str(Path(place) / "model"), path)

    def abort(self, status: str) -> None:
        """Ends the parent run and its open rounds as FAILED or KILLED."""
        try:
            for run_id in [*self.round_runs.values(), self.parent.info.run_id]:
                if self.client.get_run(run_id).info.status == "RUNNING":
                    self.client.set_terminated(run_id, status)
        except MlflowException as error:
            logging.getLogger(__name__).warning("MLflow was not told of the end: %s", error)

    def _round_run(self, index: int) -> Run:
        tags = {
            **self.identity,
            "kind": "round",
            "round": str(index),
            "mlflow.parentRunId": self.parent.info.run_id,
        }
        run = self._run(tags, f"round {index:02d}", reopen=False)
        self.round_runs[index] = run.info.run_id
        return run

    def _run(self, tags: Mapping[str, str], title: str, reopen: bool = True) -> Run:
        """The run with these tags: found (and set RUNNING again, unless it is to stay FINISHED) or made."""
        query = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        found = self.client.search_runs([self.experiment_id], query, ViewType.ACTIVE_ONLY, max_results=1)
        if not found:
            return self.client.create_run(self.experiment_id, run_name=title, tags=dict(tags))
        if found[0].info.status != "RUNNING" and (reopen or found[0].info.status != "FINISHED"):
            self.client.update_run(found[0].info.run_id, status="RUNNING")
            return self.client.get_run(found[0].info.run_id)
        return found[0]

    def _send_epochs(self, index: int, history: Sequence[Epoch]) -> None:
        metrics = [
            metric
            for epoch in history[self.sent.get(index, 0) :]
            for metric in _metrics(
                {**epoch.metrics, "learning_rate": epoch.rate, "epoch_seconds": epoch.seconds},
                epoch.finished_ms,
                epoch.number,
            )
        ]
        self._send(self.round_runs[index], metrics)
        self.sent[index] = len(history)
        self.last_sent = time.monotonic()

    def _send(self, run_id: str, metrics: Sequence[Metric]) -> None:
        for first in range(0, len(metrics), BATCH):
            self.client.log_batch(run_id, metrics=metrics[first : first + BATCH])


def _metrics(figures: Mapping[str, float], time_ms: int, step: int) -> list[Metric]:
    return [Metric(key, float(value), time_ms, step) for key, value in figures.items()]


class _told:
    """Turns MLflow's errors into a sentence."""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, MlflowException | OSError | ImportError):
            message = " ".join(str(error).split())[:300]
            raise PipelineError(
                f"MLflow at {self.uri} fails: {message}; what is trained is safe in the ledger, and the same command "
                "goes on from there; tracking.uri or MLFLOW_TRACKING_URI names another store"
            ) from error
