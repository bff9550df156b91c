"""MLflow: one experiment a name, one parent run a (settings, seed), one nested run a round.

The ledger is the truth and MLflow its mirror. Runs are found again by their tags. Figures are sent with the time at
which they were recorded, and MLflow's database keeps one row for equal (run, metric, step, value, time): what has been
sent before can be sent again and stands there once.

During a run all is sent by a thread (an ``Outbox``), each thing until it has arrived: a server that is out of reach
costs training nothing, and gets what it missed when it is back.
"""

import contextlib
import dataclasses
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mlflow.entities import Run

from pipeline.ground.environment import git_commit
from pipeline.ground.errors import Stopped, one_line
from pipeline.ground.extras import needed
from pipeline.report.sizes import Sizes
from pipeline.report.table import layers_csv
from pipeline.rounds.job import Job, Watcher
from pipeline.rounds.ledger import Ledger, Round, weights_digest
from pipeline.settings.groups import Settings
from pipeline.settings.identity import fingerprint
from pipeline.tracking.origin import data_input, description, origin
from pipeline.tracking.outbox import Outbox
from pipeline.tracking.store import PATIENCE, Store, kept, metrics
from pipeline.training.state import Epoch

NOTE = "mlflow.note.content"
"""The tag that MLflow shows as a run's description."""
SECONDS_BETWEEN = 5.0
"""A round's curve leaves at most so often, and at the round's end."""


class Tracker(Watcher):
    """Mirrors one run into MLflow. Left by an exception, its runs end as KILLED or FAILED."""

    def __init__(
        self,
        settings: Settings,
        runs: Path,
        ledger: Ledger,
        job: Job,
        told: Callable[[str], None],
        reopen: bool = True,
    ) -> None:
        """Opens the parent run of a ledger: a new one, or the one that it had before (FINISHED, unless ``reopen``).

        ``told`` hears of a server that goes out of reach later on.

        Raises:
            PipelineError: if the tracking server cannot be reached, or the experiment is deleted there.
            SettingsError: if the use of the machine is to be recorded and psutil is not installed.
        """
        if settings.tracking.system_metrics:
            needed("system", "tracking.system_metrics")
        self.store = Store(settings, runs, make=True)
        self.uri, self.client, self.where = self.store.uri, self.store.client, self.store.where
        self.title, self.told = job.title, told
        self.identity = {"fingerprint": fingerprint(ledger.identity)[:16], "seed": str(ledger.identity["seed"])}
        self.settings = _as_recorded(settings, ledger)
        self.tags = {
            "method": job.method,
            "score": job.score.text(),
            "data_digest": ledger.identity["data_digest"],
            "precision": ledger.identity["training"]["precision"],
            "compile": ledger.identity["training"]["compile"],
            "git_commit": git_commit(),
            "mlflow.source.git.commit": git_commit(),
            "ledger": str(ledger.folder.resolve()),
        }
        self.data = data_input(ledger.identity)
        with self.store.told():
            self._open(reopen)
        self.complete: dict[int, tuple[Round, Path]] = {}
        self.last_epochs = 0.0
        self.ended = False
        self.outbox = Outbox(self._tell)
        self.outbox.put(self._send_data)

    def _open(self, reopen: bool) -> None:
        """Opens the parent run, in which no round stands yet as far as is known; it counts once all of it is told."""
        parent = self.store.opened({**self.identity, "kind": "job"}, self.title, reopen)
        run_id = parent.info.run_id
        try:
            known = parent.data.tags
            self.described = self.tags | {key: known.get(key, each) for key, each in origin().items()}
            note = known.get(NOTE) or description(self.title, self.described, None)
            self.store.tag(run_id, {**self.described, NOTE: note})
            self.store.describe(parent, self.settings)
            self.client.log_dict(run_id, kept(self.settings), "settings.yaml")
        except Exception:
            if parent.info.status == "RUNNING":
                with contextlib.suppress(Exception):
                    self.client.set_terminated(run_id, "FAILED")
            raise
        self.run_id = run_id
        self.machine = _machine(self.store, run_id) if self.settings.tracking.system_metrics else None
        self.round_runs: dict[int, str] = {}
        self.sent: dict[int, int] = {}
        self.arrived: set[int] = set()

    def _open_anew(self) -> None:
        """Opens another parent run, for a round that MLflow has is being trained anew: their curves never mix.

        The old one stays as it is, under another kind, and the new one gets the rounds that are complete.
        """
        self.client.set_terminated(self.run_id, "FINISHED")
        self.tag({"kind": "job, trained anew later"})
        self._open(reopen=True)
        self.outbox.put(self._send_data)

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if error is not None:
            broken = "KILLED" if isinstance(error, Stopped | KeyboardInterrupt | BrokenPipeError) else "FAILED"
            self.abort("FINISHED" if self.ended else broken)
        self.outbox.close()
        if self.machine is not None:
            self.machine.finish()

    def round_started(self, index: int, epochs: int, done: tuple[Epoch, ...]) -> None:
        self.outbox.put(lambda: self._begin_round(index))

    def epoch_done(self, index: int, history: tuple[Epoch, ...]) -> None:
        if time.monotonic() - self.last_epochs >= SECONDS_BETWEEN:
            self.last_epochs = time.monotonic()
            self.outbox.put(lambda: self._send_epochs(index, history))

    def round_done(self, result: Round, folder: Path, *, trained: bool) -> None:
        self.outbox.put(lambda: self._send_round(result, folder))

    def finish(
        self,
        rounds: Sequence[Round],
        sizes: Sequence[Sizes],
        *,
        texts: Mapping[str, str],
        files: Sequence[Path],
        tags: Mapping[str, str],
    ) -> None:
        """Puts bytes of every round and the report into the runs and ends the parent as FINISHED."""
        self.ended = True
        for result, size in zip(rounds, sizes, strict=False):
            self.outbox.put(partial(self._send_figures, result, size.figures, size.taken_ms or result.finished_ms))
        self.outbox.put(lambda: self._send_report(rounds[-1], texts, files, tags))

    def log_figures(self, result: Round, figures: Mapping[str, float], time_ms: int) -> None:
        """Adds figures that were taken at a time to a round of a run that has ended; the latest count."""
        with self.store.told():
            self._round_run(result.index)
            self._send_figures(result, figures, time_ms)

    def delivered(self) -> bool:
        """Waits until all has arrived, for ``PATIENCE`` seconds at most if MLflow fails; says whether all has."""
        return self.outbox.drained(PATIENCE)

    def abort(self, status: str) -> None:
        """Ends the parent run with this status, and its open rounds as FAILED or KILLED."""
        self.outbox.drained(0.0)
        self.outbox.close()
        of_rounds = "KILLED" if status == "FINISHED" else status
        try:
            for run_id in [*self.round_runs.values(), self.run_id]:
                if self.client.get_run(run_id).info.status == "RUNNING":
                    self.client.set_terminated(run_id, status if run_id == self.run_id else of_rounds)
        except Exception as error:
            self.told(f"MLflow was not told of the end: {one_line(error)}")

    def _tell(self, failure: Exception | None) -> None:
        meanwhile = "the run goes on, the ledger keeps all, and MLflow gets what it misses when it is back"
        self.told(self.store.outage(failure, meanwhile))

    def tag(self, tags: Mapping[str, str]) -> None:
        """Tags the parent run."""
        self.store.tag(self.run_id, tags)

    def _round_run(self, index: int) -> Run:
        tags = {**self.identity, "kind": "round", "round": str(index), "mlflow.parentRunId": self.run_id}
        run = self.store.opened(tags, f"round {index:02d}", reopen=False)
        self.round_runs[index] = run.info.run_id
        return run

    def _send_data(self) -> None:
        self.client.log_inputs(self.run_id, [self.data])

    def _begin_round(self, index: int) -> None:
        if self._round_run(index).info.status == "FINISHED":
            self._open_anew()
        self._send_complete()
        self._round_run(index)

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
        self.store.send(self.round_runs[index], rows)
        self.sent[index] = len(history)

    def _send_round(self, result: Round, folder: Path) -> None:
        """Sends what MLflow does not have yet of a complete round, and of those before it."""
        digest = weights_digest(folder)
        if self._round_run(result.index).data.tags.get("weights", digest) != digest:
            self._open_anew()
        self.complete[result.index] = (result, folder)
        self.arrived.discard(result.index)
        self._send_complete()

    def _send_complete(self) -> None:
        """Sends the complete rounds that have not arrived; a round's run is FINISHED when all of it is there."""
        for index, (result, folder) in self.complete.items():
            if index not in self.arrived:
                self._send_whole(result, folder)
                self.arrived.add(index)

    def _send_whole(self, result: Round, folder: Path) -> None:
        run = self._round_run(result.index)
        if run.info.status == "FINISHED":
            self.store.send(self.run_id, metrics(result.figures, result.finished_ms, result.index))
            return
        run_id = run.info.run_id
        self._send_epochs(result.index, result.history)
        self._send_figures(result, result.figures, result.finished_ms)
        for name in ("weights", "masks"):
            self.client.log_artifact(run_id, str(folder / f"{name}.safetensors"))
        self.client.log_text(run_id, layers_csv(result), "layers.csv")
        self._send_picture(run_id, result)
        self.store.tag(run_id, {"weights": weights_digest(folder)})
        self.client.set_terminated(run_id, "FINISHED", end_time=result.finished_ms)

    def _send_picture(self, run_id: str, result: Round) -> None:
        """Draws a round's layers and sends the picture; one that cannot be drawn costs the picture."""
        from pipeline.report.pictures import layer_sparsity  # no training waits for matplotlib
        from pipeline.report.style import save

        with tempfile.TemporaryDirectory() as place:
            path = Path(place) / "layers.png"
            try:
                save(layer_sparsity(result), path)
            except Exception as error:
                self.told(f"the layers of round {result.index} are not drawn: {one_line(error)}")
                return
            self.client.log_artifact(run_id, str(path))

    def _send_figures(self, result: Round, figures: Mapping[str, float], time_ms: int) -> None:
        """Figures of a round go to the parent at the number of the round, to the round's run at its last epoch."""
        self.store.send(self.run_id, metrics(figures, time_ms, result.index))
        self.store.send(self.round_runs[result.index], metrics(figures, time_ms, result.history[-1].number))

    def _send_report(
        self, last: Round, texts: Mapping[str, str], files: Sequence[Path], tags: Mapping[str, str]
    ) -> None:
        for name, text in texts.items():
            self.client.log_text(self.run_id, text, name)
        for file in files:
            self.client.log_artifact(self.run_id, str(file))
        self.tag({**tags, NOTE: description(self.title, self.described, texts["rounds.md"])})
        self.client.update_run(self.run_id, name=f"{100 * last.density:.3g}% {self.title}")
        self.client.set_terminated(self.run_id, "FINISHED")


def _machine(store: Store, run_id: str) -> Any:
    """MLflow's own thread, which records a run's use of the machine until the run has ended."""
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor = SystemMetricsMonitor(run_id, resume_logging=True, tracking_uri=store.address)
    monitor.start()
    return monitor


def _as_recorded(settings: Settings, ledger: Ledger) -> Settings:
    """The settings with at least as many rounds as an earlier call has left complete: a shorter one changes nothing."""
    pruning, complete = settings.pruning, 0
    while pruning.rounds is not None and ledger.read(complete + 1) is not None:
        complete += 1
    if pruning.rounds is None or pruning.rounds >= complete:
        return settings
    return dataclasses.replace(settings, pruning=dataclasses.replace(pruning, rounds=complete))
