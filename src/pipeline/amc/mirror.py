"""A search in MLflow: one run, its episodes as curves, the policy as artifact and picture."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.amc.search import Episode
from pipeline.ground.errors import Stopped
from pipeline.rounds.ledger import Ledger
from pipeline.settings.groups import Settings
from pipeline.settings.identity import fingerprint
from pipeline.tracking.outbox import Outbox
from pipeline.tracking.store import PATIENCE, Store, metrics
from pipeline.tracking.tracker import SECONDS_BETWEEN


class Mirror:
    """Sends a search's episodes as they end, by a thread: a server out of reach costs the search nothing."""

    def __init__(self, settings: Settings, runs: Path, home: Ledger, title: str, told: Callable[[str], None]) -> None:
        """Opens the run of a search: a new one, or the one that it had before.

        Raises:
            PipelineError: if the tracking server cannot be reached.
        """
        self.store = Store(settings, runs, make=True)
        self.where, self.told = self.store.where, told
        tags = {"fingerprint": fingerprint(home.identity)[:16], "seed": str(settings.seed), "kind": "search"}
        with self.store.told():
            run = self.store.opened(tags, title, reopen=True)
            self.store.describe(run, settings)
        self.run_id = run.info.run_id
        self.waiting: list[Episode] = []
        self.last = 0.0
        self.outbox = Outbox(lambda failure: told(self.store.outage(failure, "the search goes on")))

    def __enter__(self) -> "Mirror":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if error is not None:
            status = "KILLED" if isinstance(error, Stopped) else "FAILED"
            self.outbox.put(lambda: self.store.client.set_terminated(self.run_id, status))
        if not self.outbox.drained(PATIENCE if error is None else 2.0) and error is None:
            self.told(f"warning: MLflow at {self.store.uri} misses a part: the same command delivers it")
        self.outbox.close()

    def episode(self, episode: Episode) -> None:
        """One more episode is on disk."""
        self.waiting.append(episode)
        if time.monotonic() - self.last >= SECONDS_BETWEEN:
            self._flush()

    def finish(self, files: Sequence[Path], found: Mapping[str, Any]) -> None:
        """Puts files and the policy's figures into the run and ends it as FINISHED."""
        self._flush()
        figures = {f"policy/{key}": found[key] for key in ("reward", "validation_accuracy", "macs", "parameters")}

        def deliver() -> None:
            self.store.send(self.run_id, metrics(figures, int(files[0].stat().st_mtime * 1000), 0))
            for file in files:
                self.store.client.log_artifact(self.run_id, str(file))
            self.store.client.set_terminated(self.run_id, "FINISHED")

        self.outbox.put(deliver)

    def _flush(self) -> None:
        episodes, self.waiting, self.last = self.waiting, [], time.monotonic()
        rows = [
            row
            for each in episodes
            for row in metrics(
                {"search/reward": each.reward, "validation_accuracy": each.accuracy, "search/cost": each.cost},
                each.finished_ms,
                each.number,
            )
        ]
        self.outbox.put(lambda: self.store.send(self.run_id, rows))
