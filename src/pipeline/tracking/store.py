"""Runs as the tracking server has them, whichever machine they ran on; and what was made of them, put beside them."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run, ViewType
from mlflow.exceptions import MlflowException

from pipeline.ground.errors import SettingsError, one_line
from pipeline.report.comparison import FIGURES, TrackedRun
from pipeline.settings.groups import Settings
from pipeline.tracking.tracker import connected, run_with, told_of, tracking_uri

PAGE = 1000
OF_THE_MACHINE = ("data_digest", "precision", "compile")
"""Tags that change numbers as settings do."""


class Store:
    """The settings' experiment on the tracking server."""

    def __init__(self, settings: Settings, runs: Path) -> None:
        """Connects.

        Raises:
            PipelineError: if the server cannot be reached.
        """
        self.uri = tracking_uri(settings.tracking.uri, runs)
        self.client: MlflowClient = connected(self.uri, runs)
        with told_of(self.uri):
            found = self.client.get_experiment_by_name(settings.name)
        self.experiment_id = None if found is None else found.experiment_id

    def runs(self, where: str | None) -> list[TrackedRun]:
        """The runs that have a complete round; ``where`` narrows the choice, in MLflow's own words for filters.

        Raises:
            SettingsError: if MLflow does not understand ``where``.
        """
        if self.experiment_id is None:
            return []
        words = "tags.kind = 'job'" + (f" and {where}" if where else "")
        try:
            parents = {run.info.run_id: run for run in self._found(words)}
        except MlflowException as error:
            if where:
                raise SettingsError([f"compare.where: got {where!r}, but MLflow says: {one_line(error)}"]) from error
            raise
        rounds: dict[str, dict[int, Mapping[str, float]]] = {parent: {} for parent in parents}
        for child in self._found("tags.kind = 'round' and attributes.status = 'FINISHED'"):
            parent, index = child.data.tags.get("mlflow.parentRunId"), int(child.data.tags["round"])
            if parent in rounds:
                rounds[parent][index] = {key: child.data.metrics[key] for key in FIGURES if key in child.data.metrics}
        return [_tracked(run, _unbroken(rounds[parent])) for parent, run in parents.items() if 0 in rounds[parent]]

    def put(self, kind: str, title: str, folder: Path) -> None:
        """Puts a folder's files into a run of their own; the same tables again go to the same run."""
        assert self.experiment_id is not None, "only what was read from runs is put beside them"
        sha = hashlib.sha256()
        for path in sorted(path for path in folder.iterdir() if path.suffix in (".csv", ".md")):
            sha.update(path.read_bytes())
        tags = {"kind": kind, "digest": sha.hexdigest()[:16]}
        with told_of(self.uri):
            run = run_with(self.client, self.experiment_id, tags)
            run = run or self.client.create_run(self.experiment_id, run_name=title, tags=tags)
            self.client.log_artifacts(run.info.run_id, str(folder))
            self.client.set_terminated(run.info.run_id, "FINISHED")

    def _found(self, words: str) -> Iterator[Run]:
        token = None
        while True:
            page = self.client.search_runs([self.experiment_id], words, ViewType.ACTIVE_ONLY, PAGE, page_token=token)
            yield from page
            token = page.token
            if not token:
                return


def _tracked(run: Run, rounds: tuple[Mapping[str, float], ...]) -> TrackedRun:
    tags: Mapping[str, Any] = run.data.tags
    return TrackedRun(
        name=run.info.run_name,
        method=tags["method"],
        seed=int(tags["seed"]),
        settings=run.data.params | {key: tags[key] for key in OF_THE_MACHINE if key in tags},
        rounds=rounds,
        started_ms=run.info.start_time,
    )


def _unbroken(rounds: Mapping[int, Mapping[str, float]]) -> tuple[Mapping[str, float], ...]:
    """The rounds from 0 on, up to the first that is missing."""
    count = next(index for index in range(len(rounds) + 1) if index not in rounds)
    return tuple(rounds[index] for index in range(count))
