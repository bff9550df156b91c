"""MLflow: one experiment a name, one parent run a (settings, seed), one nested run a round.

The ledger is the truth and MLflow its mirror. Runs are found again by their tags. Figures are sent with the time at
which they were recorded, and MLflow's database keeps one row for equal (run, metric, step, value, time): what has been
sent before can be sent again and stands there once.

During a run all is sent by a thread (an ``Outbox``), each thing until it has arrived: a server that is out of reach
costs training nothing, and gets what it missed when it is back.
"""

import contextlib
import dataclasses
import hashlib
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# a request may have arrived although it failed: to try again is left to those who look first
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")

from filelock import FileLock
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag, ViewType
from mlflow.exceptions import MlflowException, RestException

from pipeline.ground.environment import git_commit
from pipeline.ground.errors import PipelineError, Stopped, one_line
from pipeline.report.pictures import layer_sparsity
from pipeline.report.table import layers_csv
from pipeline.rounds.ledger import Ledger, Round
from pipeline.settings.groups import Settings, fingerprint, flat
from pipeline.tracking.outbox import Outbox
from pipeline.training.train import Epoch

BATCH = 1000
"""MLflow's limit on metrics a call."""
SECONDS_BETWEEN = 5.0
"""A round's curve leaves at most so often, and at the round's end."""
PATIENCE = 30.0
"""Seconds that a server may be out of reach at the start of a run, and again at its end."""
FAILURES = (MlflowException, OSError, ImportError)
"""What MLflow raises where its store is out of reach, or does not do what it should."""


def embedded_uri(runs: Path) -> str:
    """The default store: a SQLite database in the runs folder."""
    return f"sqlite:///{(runs / 'mlflow' / 'mlflow.db').resolve()}"


def tracking_uri(uri: str | None, runs: Path) -> str:
    """The store that is used: by setting, by ``MLFLOW_TRACKING_URI``, or the embedded one."""
    return uri or os.environ.get("MLFLOW_TRACKING_URI") or embedded_uri(runs)


def connected(uri: str, runs: Path) -> MlflowClient:
    """A client of a store that answers; the embedded store is made if there is none.

    Raises:
        PipelineError: if it does not answer for ``PATIENCE`` seconds, or refuses.
    """
    until = time.monotonic() + PATIENCE
    with told_of(uri):
        if uri == embedded_uri(runs):
            make_embedded_store(runs)
        client = MlflowClient(uri)
        while True:
            try:
                client.search_experiments(max_results=1)
                return client
            except MlflowException as error:
                no_answer = uri.startswith("http") and not isinstance(error, RestException)
                if not no_answer or time.monotonic() > until:
                    raise
                time.sleep(1)


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


def experiment(client: MlflowClient, name: str, runs: Path) -> str:
    """Id of an experiment, found or made (perhaps by another process at the same time).

    Raises:
        PipelineError: if it is deleted.
    """
    found = client.get_experiment_by_name(name)
    if found is None:
        embedded = client.tracking_uri == embedded_uri(runs)
        location = (runs / "mlflow" / "artifacts" / name).resolve().as_uri() if embedded else None
        try:
            return client.create_experiment(name, artifact_location=location)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            return experiment(client, name, runs)
    if found.lifecycle_stage == "deleted":
        raise PipelineError(
            f"the MLflow experiment {name!r} is deleted there: "
            f"restore it (mlflow experiments restore -x {found.experiment_id}), or take another name="
        )
    return found.experiment_id


def run_with(client: MlflowClient, experiment_id: str, tags: Mapping[str, str]) -> Run | None:
    """The run of an experiment that has these tags, if there is one."""
    query = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
    found = client.search_runs([experiment_id], query, ViewType.ACTIVE_ONLY, max_results=1)
    return found[0] if found else None


def opened(client: MlflowClient, experiment_id: str, tags: Mapping[str, str], title: str, reopen: bool) -> Run:
    """The run with these tags: found (and set RUNNING again, unless it is to stay FINISHED) or made."""
    found = run_with(client, experiment_id, tags)
    if found is None:
        return client.create_run(experiment_id, run_name=title, tags=dict(tags))
    if found.info.status != "RUNNING" and (reopen or found.info.status != "FINISHED"):
        client.update_run(found.info.run_id, status="RUNNING")
        return client.get_run(found.info.run_id)
    return found


def where(uri: str, experiment_id: str) -> str:
    """How a person gets to see an experiment of a store."""
    query = "workflowType=machine_learning&searchFilter=tags.kind%20!%3D%20%22round%22"
    page = f"/#/experiments/{experiment_id}/runs?{query}"
    if uri.startswith("http"):
        return uri + page
    command = f"{Path(sys.executable).with_name('mlflow')} ui --backend-store-uri {uri}"
    return f"{command}\n        and then http://127.0.0.1:5000{page}"


class Tracker:
    """Mirrors one run into MLflow. Left by an exception, its runs end as KILLED or FAILED."""

    def __init__(
        self,
        settings: Settings,
        runs: Path,
        ledger: Ledger,
        title: str,
        told: Callable[[str], None],
        reopen: bool = True,
    ) -> None:
        """Opens the parent run of a ledger: a new one, or the one that it had before (FINISHED, unless ``reopen``).

        ``told`` hears of a server that goes out of reach later on.

        Raises:
            PipelineError: if the tracking server cannot be reached, or the experiment is deleted there.
        """
        for library in ("mlflow", "alembic"):
            logging.getLogger(library).setLevel(logging.WARNING)
        self.uri = tracking_uri(settings.tracking.uri, runs)
        self.title, self.told = title, told
        self.identity = {"fingerprint": fingerprint(ledger.identity)[:16], "seed": str(ledger.identity["seed"])}
        self.client = connected(self.uri, runs)
        with told_of(self.uri):
            self.experiment_id = experiment(self.client, settings.name, runs)
            parent = self._run({**self.identity, "kind": "job"}, title, reopen)
            self.run_id = parent.info.run_id
            self.artifact_uri = parent.info.artifact_uri
            self._describe(parent, settings, ledger)
        self.round_runs: dict[int, str] = {}
        self.sent: dict[int, int] = {}
        self.last_epochs = 0.0
        self.outbox = Outbox(FAILURES, self._tell)

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if error is not None:
            self.abort("KILLED" if isinstance(error, Stopped) else "FAILED")
        self.outbox.close()

    @property
    def where(self) -> str:
        """How a person gets to see the store."""
        return where(self.uri, self.experiment_id)

    def round_started(self, index: int, epochs: int, done: tuple[Epoch, ...]) -> None:
        self.outbox.put(lambda: self._round_run(index))

    def batch_done(self, batches: int, of: int) -> None: ...

    def note(self, sentence: str) -> None: ...

    def epoch_done(self, index: int, history: tuple[Epoch, ...]) -> None:
        if time.monotonic() - self.last_epochs >= SECONDS_BETWEEN:
            self.last_epochs = time.monotonic()
            self.outbox.put(lambda: self._send_epochs(index, history))

    def round_done(self, result: Round, folder: Path, *, trained: bool) -> None:
        self.outbox.put(lambda: self._send_round(result, folder))

    def finish(
        self,
        rounds: Sequence[Round],
        sizes: Sequence[Mapping[str, float]],
        *,
        texts: Mapping[str, str],
        figures: Mapping[str, Figure],
        tags: Mapping[str, str],
    ) -> None:
        """Puts bytes of every round and the report into the runs and ends the parent as FINISHED."""
        for result, figures_ in zip(rounds, sizes, strict=False):
            self.outbox.put(partial(self._send_sizes, result, figures_))
        self.outbox.put(lambda: self._send_report(rounds[-1], texts, figures, tags))

    def log_figures(self, result: Round, figures: Mapping[str, float], time_ms: int) -> None:
        """Adds figures that were taken at a time to a round of a run that has ended; the latest count."""
        with told_of(self.uri):
            run = self._round_run(result.index)
            for run_id in (self.run_id, run.info.run_id):
                self._send(run_id, metrics(figures, time_ms, result.index))

    def delivered(self) -> bool:
        """Waits until all has arrived, for ``PATIENCE`` seconds at most if MLflow fails; says whether all has."""
        return self.outbox.drained(PATIENCE)

    def abort(self, status: str) -> None:
        """Ends the parent run and its open rounds as FAILED or KILLED."""
        with contextlib.suppress(Exception):  # a bug in sending, which is told where the run itself ends well
            self.outbox.drained(0.0)
        self.outbox.close()
        try:
            for run_id in [*self.round_runs.values(), self.run_id]:
                if self.client.get_run(run_id).info.status == "RUNNING":
                    self.client.set_terminated(run_id, status)
        except FAILURES as error:
            self.told(f"MLflow was not told of the end: {one_line(error)}")

    def log_bundle(self, folder: Path, manifest: Mapping[str, Any], digest: str) -> None:
        """Logs a bundle and its model to the parent run and registers the model, once a digest, as ``arm``."""
        with told_of(self.uri):
            figures = {
                **{f"bundle_{kind}_bytes": size for kind, size in manifest["size_bytes"].items()},
                **{
                    f"bundle_{split}_accuracy_{kind}": accuracy
                    for split, by_kind in manifest["accuracy"].items()
                    for kind, accuracy in by_kind.items()
                },
            }
            self._send(self.run_id, metrics(figures, time.time_ns() // 1_000_000, manifest["round"]))
            self._tag({"bundle_digest": digest, "bundle_round": str(manifest["round"])})
            self.client.log_artifacts(self.run_id, str(folder), "bundle")
            version = self._version(folder, manifest["name"])
            self.client.set_registered_model_alias(manifest["name"], "arm", version)
            self.client.set_terminated(self.run_id, "FINISHED")

    def _version(self, folder: Path, name: str) -> str:
        """The version of the registered model that is the bundle's model; a new one if there is none yet."""
        digest = hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()
        for version in self.client.search_model_versions(f"name = '{name}'"):
            if version.tags.get("model_digest") == digest:
                return version.version
        with contextlib.suppress(MlflowException):  # it is there already; anything else shows in the next call
            self.client.create_registered_model(name)
        path = f"model-{digest[:8]}"
        self._log_model(folder, self.run_id, path)
        made = self.client.create_model_version(
            name, f"{self.artifact_uri}/{path}", self.run_id, tags={"model_digest": digest}
        )
        return made.version

    def _log_model(self, folder: Path, run_id: str, path: str) -> None:
        """Logs the bundle's model as MLflow's, with the golden inputs as example."""
        import mlflow.onnx
        import numpy as np
        import onnx

        from pipeline.deploy.runtime import EXACT

        golden = np.load(folder / "golden.npz")
        with tempfile.TemporaryDirectory() as place:
            mlflow.onnx.save_model(
                onnx.load(folder / "model.onnx"),
                Path(place) / "model",
                signature=mlflow.models.infer_signature(golden["inputs"], golden["model.onnx"]),
                input_example=golden["inputs"],
                pip_requirements=(folder / "requirements.txt").read_text().split(),
                onnx_execution_providers=["CPUExecutionProvider"],
                onnx_session_options={"extra_session_config": EXACT},
                save_as_external_data=False,
            )
            self.client.log_artifacts(run_id, str(Path(place) / "model"), path)

    def _tell(self, failure: Exception | None) -> None:
        if failure is None:
            self.told(f"MLflow at {self.uri} is back and gets what it missed")
        else:
            self.told(
                f"warning: MLflow at {self.uri} fails: {one_line(failure)}; the run goes on, the ledger keeps all, and "
                "MLflow gets what it misses when it is back"
            )

    def _describe(self, parent: Run, settings: Settings, ledger: Ledger) -> None:
        """What the parent run was made with."""
        self._tag(
            {
                "method": self.title.split(",")[0],
                "data_digest": ledger.identity["data_digest"],
                "precision": ledger.identity["training"]["precision"],
                "compile": ledger.identity["training"]["compile"],
                "git_commit": git_commit(),
                "mlflow.source.git.commit": git_commit(),
                "ledger": str(ledger.folder.resolve()),
            }
        )
        params = {key: str(value) for key, value in flat(dataclasses.asdict(settings)).items()}
        known = parent.data.params
        changed = {key: value for key, value in params.items() if known.get(key, value) != value}
        self.client.log_batch(
            self.run_id,
            params=[Param(key, value) for key, value in params.items() if key not in known],
            tags=[RunTag(f"changed.{key}", value) for key, value in changed.items()],
        )
        self.client.log_dict(self.run_id, dataclasses.asdict(settings), "settings.yaml")

    def _tag(self, tags: Mapping[str, str]) -> None:
        self.client.log_batch(self.run_id, tags=[RunTag(key, value) for key, value in tags.items()])

    def _round_run(self, index: int) -> Run:
        tags = {
            **self.identity,
            "kind": "round",
            "round": str(index),
            "mlflow.parentRunId": self.run_id,
        }
        run = self._run(tags, f"round {index:02d}", reopen=False)
        self.round_runs[index] = run.info.run_id
        return run

    def _run(self, tags: Mapping[str, str], title: str, reopen: bool = True) -> Run:
        return opened(self.client, self.experiment_id, tags, title, reopen)

    def _send_epochs(self, index: int, history: Sequence[Epoch]) -> None:
        rows = [
            metric
            for epoch in history[self.sent.get(index, 0) :]
            for metric in metrics(
                {**epoch.metrics, "learning_rate": epoch.rate, "epoch_seconds": epoch.seconds},
                epoch.finished_ms,
                epoch.number,
            )
        ]
        self._send(self.round_runs[index], rows)
        self.sent[index] = len(history)

    def _send_round(self, result: Round, folder: Path) -> None:
        """Sends what MLflow does not have yet of a complete round; its run is FINISHED when all of it is there."""
        run = self._round_run(result.index)
        self._send(self.run_id, metrics(result.figures, result.finished_ms, result.index))
        if run.info.status == "FINISHED":
            return
        self._send_epochs(result.index, result.history)
        self._send(run.info.run_id, metrics(result.figures, result.finished_ms, result.history[-1].number))
        for name in ("weights", "masks"):
            self.client.log_artifact(run.info.run_id, str(folder / f"{name}.safetensors"))
        self.client.log_text(run.info.run_id, layers_csv(result), "layers.csv")
        self.client.log_figure(run.info.run_id, layer_sparsity(result), "layers.png")
        self.client.set_terminated(run.info.run_id, "FINISHED", end_time=result.finished_ms)

    def _send_sizes(self, result: Round, figures: Mapping[str, float]) -> None:
        rows = metrics(figures, result.finished_ms, result.index)
        self._send(self.run_id, rows)
        self._send(self.round_runs[result.index], rows)

    def _send_report(
        self, last: Round, texts: Mapping[str, str], figures: Mapping[str, Figure], tags: Mapping[str, str]
    ) -> None:
        for name, text in texts.items():
            self.client.log_text(self.run_id, text, name)
        for name, figure in figures.items():
            self.client.log_figure(self.run_id, figure, name)
        self._tag(tags)
        self.client.update_run(self.run_id, name=f"{self.title}, density {last.density:.3f}")
        self.client.set_terminated(self.run_id, "FINISHED")

    def _send(self, run_id: str, rows: Sequence[Metric]) -> None:
        send(self.client, run_id, rows)


def send(client: MlflowClient, run_id: str, rows: Sequence[Metric]) -> None:
    """Sends rows, as many a call as MLflow takes."""
    for first in range(0, len(rows), BATCH):
        client.log_batch(run_id, metrics=rows[first : first + BATCH])


def metrics(figures: Mapping[str, float], time_ms: int, step: int) -> list[Metric]:
    """Figures as MLflow's rows."""
    return [Metric(key, float(value), time_ms, step) for key, value in figures.items()]


class told_of:
    """Turns MLflow's errors into a sentence that names the store."""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, FAILURES):
            raise PipelineError(
                f"MLflow at {self.uri} fails: {one_line(error)}; what is trained is safe in the ledger, and the same "
                "command goes on from there; tracking.uri or MLFLOW_TRACKING_URI names another store"
            ) from error
