"""A search in MLflow: one run, its episodes as curves, the policy as artifact and picture."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow.entities import Param

from pipeline.amc.search import Episode
from pipeline.ground.errors import Stopped, one_line
from pipeline.rounds.ledger import Ledger
from pipeline.settings.groups import Settings, fingerprint, flat
from pipeline.tracking.outbox import Outbox
from pipeline.tracking.tracker import (
    FAILURES,
    PATIENCE,
    SECONDS_BETWEEN,
    connected,
    experiment,
    metrics,
    opened,
    send,
    told_of,
    tracking_uri,
    where,
)


class Mirror:
    """Sends a search's episodes as they end, by a thread: a server out of reach costs the search nothing."""

    def __init__(self, settings: Settings, runs: Path, home: Ledger, title: str, told: Callable[[str], None]) -> None:
        """Opens the run of a search: a new one, or the one that it had before.

        Raises:
            PipelineError: if the tracking server cannot be reached.
        """
        self.uri, self.told = tracking_uri(settings.tracking.uri, runs), told
        self.client = connected(self.uri, runs)
        tags = {"fingerprint": fingerprint(home.identity)[:16], "seed": str(settings.seed), "kind": "search"}
        with told_of(self.uri):
            self.experiment_id = experiment(self.client, settings.name, runs)
            run = opened(self.client, self.experiment_id, tags, title, reopen=True)
            self.run_id = run.info.run_id
            params = {key: str(value) for key, value in flat(dataclasses.asdict(settings)).items()}
            self.client.log_batch(
                self.run_id, params=[Param(key, params[key]) for key in params if key not in run.data.params]
            )
        self.waiting: list[Episode] = []
        self.last = 0.0
        self.outbox = Outbox(FAILURES, self._tell)

    def __enter__(self) -> "Mirror":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if error is not None:
            status = "KILLED" if isinstance(error, Stopped) else "FAILED"
            self.outbox.put(lambda: self.client.set_terminated(self.run_id, status))
        if not self.outbox.drained(PATIENCE if error is None else 2.0) and error is None:
            self.told(f"warning: MLflow at {self.uri} misses a part: the same command delivers it")
        self.outbox.close()

    @property
    def where(self) -> str:
        """How a person gets to see the store."""
        return where(self.uri, self.experiment_id)

    def episode(self, episode: Episode) -> None:
        """One more episode is on disk."""
        self.waiting.append(episode)
        if time.monotonic() - self.last >= SECONDS_BETWEEN:
            self._flush()

    def finish(self, files: Sequence[Path], found: Mapping[str, Any]) -> None:
        """Puts files and the policy's figures into the run and ends it as FINISHED."""
        self._flush()
        figures = {f"policy_{key}": found[key] for key in ("reward", "validation_accuracy", "macs", "parameters")}

        def deliver() -> None:
            send(self.client, self.run_id, metrics(figures, int(files[0].stat().st_mtime * 1000), 0))
            for file in files:
                self.client.log_artifact(self.run_id, str(file))
            self.client.set_terminated(self.run_id, "FINISHED")

        self.outbox.put(deliver)

    def _flush(self) -> None:
        episodes, self.waiting, self.last = self.waiting, [], time.monotonic()
        rows = [
            row
            for each in episodes
            for row in metrics(
                {"reward": each.reward, "validation_accuracy": each.accuracy, "cost": each.cost},
                each.finished_ms,
                each.number,
            )
        ]
        self.outbox.put(lambda: send(self.client, self.run_id, rows))

    def _tell(self, failure: Exception | None) -> None:
        if failure is None:
            self.told(f"MLflow at {self.uri} is back and gets what it missed")
        else:
            self.told(f"warning: MLflow at {self.uri} fails: {one_line(failure)}; the search goes on")
