"""MLflow's store: an experiment found or made, its runs opened and written to, and all of them read back."""

import dataclasses
import hashlib
import logging
import os
import shlex
import shutil
import sqlite3
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit
from urllib.request import url2pathname

import mlflow
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag, ViewType
from mlflow.exceptions import MlflowException, RestException
from sqlalchemy import URL

from pipeline.ground.environment import cache_folder
from pipeline.ground.errors import PipelineError, SettingsError, one_line
from pipeline.ground.extras import missing
from pipeline.ground.files import whole
from pipeline.objective.score import Score
from pipeline.report.comparison import FIGURES, RunRecord
from pipeline.settings.groups import Settings
from pipeline.settings.identity import OF_A_NETWORK, flat, used
from pipeline.tracking.names import grouped, known_as, text_of, without_secrets

BATCH, PARAMETERS = 1000, 100
"""MLflow's limits on metrics, and on parameters or tags, a call."""
PATIENCE = 30.0
"""Seconds that a server may be out of reach at the start of a run, and again at its end."""
PAGE = 1000
SHOWN_AS = {
    "mlflow.experimentKind": "custom_model_development",
    "mlflow.note.content": "Networks made small by pruning: a run a method and seed, in it a run for each round.",
}
"""Tags of an experiment: MLflow opens it as training of models, and says what it is."""
T = TypeVar("T")
OF_THE_MACHINE = ("data_digest", "precision", "compile")
"""Tags that change numbers as settings do."""


@contextmanager
def without_autologging() -> Iterator[None]:
    """Within it, a user's ``mlflow.autolog()`` does not log every training of a run once more, as a run of its own."""
    from mlflow.utils.autologging_utils import disable_autologging

    with disable_autologging():
        yield


def embedded_uri(runs: Path) -> str:
    """The default store: a SQLite database in the runs folder."""
    return sqlite_uri(runs / "mlflow" / "mlflow.db")


def sqlite_uri(database: Path) -> str:
    """The address of a SQLite database.

    A path with a character that means something in an address is coded, and the driver is named: MLflow would make a
    folder of the coded path otherwise.
    """
    path = str(database.resolve())
    if not {"?", "%"} & set(path):
        return f"sqlite:///{path}"
    return URL.create("sqlite+pysqlite", database=path).render_as_string(hide_password=False)


def tracking_uri(uri: str | None, runs: Path) -> str:
    """The store that is used: by setting, by ``MLFLOW_TRACKING_URI``, or the embedded one."""
    return uri or os.environ.get("MLFLOW_TRACKING_URI") or embedded_uri(runs)


def make_embedded_store(runs: Path) -> None:
    """Makes the default store if there is none: one process at a time, and whole or not at all."""
    folder = runs / "mlflow"
    # else a store that is deleted and made again lives on in the connections of this process
    os.environ.setdefault("MLFLOW_SQLALCHEMYSTORE_POOLCLASS", "NullPool")
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        if not (folder / "mlflow.db").exists():
            with whole(folder / "mlflow.db") as unfinished:
                shutil.copyfile(_tables(), unfinished)
                MlflowClient(sqlite_uri(unfinished)).search_experiments()


PLACES = (
    ("experiments", "artifact_location"), ("runs", "artifact_uri"), ("logged_models", "artifact_location"),
    ("model_versions", "source"), ("model_versions", "storage_location"),
)  # fmt: skip
"""Tables and columns of MLflow's that hold whole paths of files."""


def _follow_moved_folder(runs: Path) -> None:
    """Has all that the default store tells of find its files beside it, where its folder was moved or is a copy."""
    folder = runs.resolve() / "mlflow"
    now = (folder / "artifacts").as_uri()
    with closing(sqlite3.connect(folder / "mlflow.db", timeout=PATIENCE)) as database, database:
        for name, location in database.execute("SELECT name, artifact_location FROM experiments").fetchall():
            end = (folder / "artifacts" / name).as_uri().removeprefix(now)
            before = (location or "").removesuffix(end)
            if before in (now, location) or not before.endswith("/mlflow/artifacts") or _same(before, folder):
                continue
            for table, column in PLACES:
                database.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",
                    (now, len(before) + 1, len(before) + 1, f"{before}/"),
                )


def _same(artifacts: str, folder: Path) -> bool:
    """Whether files at that address lie in the store's folder, by another of its paths."""
    other = Path(url2pathname(urlsplit(artifacts).path)).parent
    return other.exists() and other.samefile(folder)


def _tables() -> Path:
    """A store with nothing in it, which this release of MLflow has made: that takes it seconds, so it is done once."""
    place = cache_folder() / f"mlflow-{mlflow.__version__}.db"
    with FileLock(place.with_suffix(".lock")):
        if not place.exists():
            with whole(place) as unfinished:
                MlflowClient(sqlite_uri(unfinished)).search_experiments()
                with closing(sqlite3.connect(unfinished)) as database, database:
                    database.execute("DELETE FROM experiments")  # the one that has the path of its store
    return place


def parameters(settings: Settings) -> dict[str, str]:
    """The settings that a run uses as MLflow keeps them: flat names to text."""
    return {known_as(key): text_of(value) for key, value in flat(used(settings, kept(settings))).items()}


def kept(settings: Settings) -> dict[str, Any]:
    """Settings as they may be kept for others to read: without a password in the store's address."""
    values = dataclasses.asdict(settings)
    if settings.tracking.uri is not None:
        values["tracking"]["uri"] = without_secrets(settings.tracking.uri)
    return values


def metrics(figures: Mapping[str, float], time_ms: int, step: int) -> list[Metric]:
    """Figures as MLflow's rows, each under the name of its group."""
    return [Metric(known_as(grouped(key, figures)), float(value), time_ms, step) for key, value in figures.items()]


class Store:
    """The settings' experiment on the tracking server."""

    def __init__(self, settings: Settings, runs: Path, *, make: bool = False) -> None:
        """Connects; with ``make`` the experiment is made if there is none.

        Raises:
            SettingsError: if it is a store of plain files, which has no rows that are equal.
            PipelineError: if the server does not answer for ``PATIENCE`` seconds, or refuses, or the experiment is
                deleted there and was to be made.
        """
        for library in ("mlflow", "alembic"):
            logging.getLogger(library).setLevel(logging.WARNING)
        self.address = tracking_uri(settings.tracking.uri, runs)
        self.uri = without_secrets(self.address)
        if urlsplit(self.address).scheme in ("", "file"):
            setting = "MLFLOW_TRACKING_URI" if settings.tracking.uri is None else "tracking.uri"
            raise SettingsError(
                [f"{setting}: got {self.uri}, a store of plain files, where what is sent again stands twice; takes a "
                 "database or server, such as sqlite:////home/me/mlflow.db or http://localhost:5000"]
            )  # fmt: skip
        with self.told():
            self.client = self._connected(runs)
            self.experiment_id = self._experiment(settings.name, runs, make)

    @contextmanager
    def told(self) -> Iterator[None]:
        """Turns whatever MLflow raises, or the library of the place that keeps its files, into a sentence.

        It names the store.
        """
        try:
            yield
        except PipelineError:
            raise
        except Exception as error:
            raise PipelineError(
                f"MLflow at {self.uri} fails: {self._said(error)}; what is trained is safe in the ledger, and the same "
                "command goes on from there; tracking.uri or MLFLOW_TRACKING_URI names another store"
            ) from error

    def outage(self, failure: Exception | None, meanwhile: str) -> str:
        """What a person is told when deliveries begin to fail, and (None) when they arrive again."""
        if failure is None:
            return f"MLflow at {self.uri} is back and gets what it missed"
        return f"warning: MLflow at {self.uri} fails: {self._said(failure)}; {meanwhile}"

    def _said(self, error: Exception) -> str:
        return one_line(error).replace(self.address, self.uri)

    def _connected(self, runs: Path) -> MlflowClient:
        """A client of a store that answers; the embedded store is made if there is none."""
        until = time.monotonic() + PATIENCE
        if self.address == embedded_uri(runs):
            make_embedded_store(runs)
            _follow_moved_folder(runs)
        client = MlflowClient(self.address)
        while True:
            try:
                client.search_experiments(max_results=1)
                return client
            except MlflowException as error:
                no_answer = self.uri.startswith("http") and not isinstance(error, RestException)
                if not no_answer or time.monotonic() > until:
                    raise
                time.sleep(1)

    def _experiment(self, name: str, runs: Path, make: bool) -> str | None:
        """Id of an experiment, found or made (perhaps by another process at the same time)."""
        found = self.client.get_experiment_by_name(name)
        if found is None and make:
            embedded = self.address == embedded_uri(runs)
            location = (runs / "mlflow" / "artifacts" / name).resolve().as_uri() if embedded else None
            try:
                return self.client.create_experiment(name, artifact_location=location, tags=SHOWN_AS)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                return self._experiment(name, runs, make)
        if make and found.lifecycle_stage == "deleted":
            raise PipelineError(
                f"the MLflow experiment {name!r} is deleted there: "
                f"restore it (mlflow experiments restore -x {found.experiment_id}), or take another name="
            )
        return None if found is None else found.experiment_id

    @property
    def where(self) -> str:
        """How a person gets to see the experiment."""
        query = "workflowType=machine_learning&searchFilter=tags.kind%20!%3D%20%22round%22"
        page = f"/#/experiments/{self.experiment_id}/runs?{query}"
        if self.uri.startswith("http"):
            return self.uri + page
        if missing("ui"):
            return f"{self.uri}: pip install 'rewind-pipeline[ui]' has the program that shows it"
        here, program = Path.cwd(), Path(sys.executable).with_name("mlflow")
        program = program.relative_to(here) if program.is_relative_to(here) else program
        store = self.uri.replace(f"sqlite:///{here}/", "sqlite:///")
        command = shlex.join([str(program), "ui", "--backend-store-uri", store])
        return f"{command}\n        and then http://127.0.0.1:5000{page}"

    def opened(self, tags: Mapping[str, str], title: str, reopen: bool) -> Run:
        """The run with these tags: found (and set RUNNING again, unless it is to stay FINISHED) or made."""
        found = self._run_with(tags)
        if found is None:
            return self.client.create_run(self.experiment_id, run_name=title, tags=dict(tags))
        if found.info.status != "RUNNING" and (reopen or found.info.status != "FINISHED"):
            self.client.update_run(found.info.run_id, status="RUNNING")
            return self.client.get_run(found.info.run_id)
        return found

    def _run_with(self, tags: Mapping[str, str]) -> Run | None:
        query = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        found = self.client.search_runs([self.experiment_id], query, ViewType.ACTIVE_ONLY, max_results=1)
        return found[0] if found else None

    def describe(self, run: Run, settings: Settings) -> None:
        """Gives a run the settings that it uses as parameters; another than before is a tag ``changed.<name>``."""
        params, known = parameters(settings), run.data.params
        new = [Param(key, value) for key, value in params.items() if key not in known]
        for some in _by(PARAMETERS, new):
            self.client.log_batch(run.info.run_id, params=some)
        changed = {key for key, each in params.items() if known.get(key, each) != each}
        self.tag(run.info.run_id, {f"changed.{key}": params[key] for key in sorted(changed)})
        for key in params.keys() - changed:
            if (tag := known_as(f"changed.{key}")) in run.data.tags:  # it has its first value again
                self.client.delete_tag(run.info.run_id, tag)

    def tag(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Tags a run."""
        rows = [RunTag(known_as(key), text_of(value)) for key, value in tags.items()]
        for some in _by(PARAMETERS, rows):
            self.client.log_batch(run_id, tags=some)

    def send(self, run_id: str, rows: Sequence[Metric]) -> None:
        """Sends figures to a run, as many a call as MLflow takes."""
        for some in _by(BATCH, rows):
            self.client.log_batch(run_id, metrics=some)

    def runs(self, where: str | None) -> list[RunRecord]:
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
                score = _score(parents[parent])
                wanted = (*FIGURES, score.validation, score.test)
                rounds[parent][index] = _figures(child, wanted)
        return [_tracked(run, _unbroken(rounds[parent])) for parent, run in parents.items() if 0 in rounds[parent]]

    def put(self, kind: str, title: str, folder: Path) -> None:
        """Puts a folder's files into a run of their own; the same tables again go to the same run."""
        assert self.experiment_id is not None, "only what was read from runs is put beside them"
        sha = hashlib.sha256()
        for path in sorted(path for path in folder.iterdir() if path.suffix in (".csv", ".md")):
            sha.update(path.read_bytes())
        tags = {"kind": kind, "digest": sha.hexdigest()[:16]}
        with self.told():
            run = self._run_with(tags)
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


def _by(size: int, rows: Sequence[T]) -> Iterator[Sequence[T]]:
    """The rows, so many at a time."""
    for first in range(0, len(rows), size):
        yield rows[first : first + size]


def _tracked(run: Run, rounds: tuple[Mapping[str, float], ...]) -> RunRecord:
    tags: Mapping[str, Any] = run.data.tags
    return RunRecord(
        name=run.info.run_name,
        method=tags["method"],
        seed=int(tags["seed"]),
        settings=_used(run.data.params) | {key: tags[key] for key in OF_THE_MACHINE if key in tags},
        rounds=rounds,
        started_ms=run.info.start_time,
        score=_score(run),
    )


def _used(params: Mapping[str, str]) -> dict[str, str]:
    """Parameters without those that a LightningModule has none of, which earlier runs had all the same."""
    unused = OF_A_NETWORK if params.get("objective.kind") == "own" else set()
    return {key: value for key, value in params.items() if key.split(".")[:2] not in [["training", u] for u in unused]}


def _figures(run: Run, wanted: Sequence[str]) -> dict[str, float]:
    """The figures that a round's run has of those wanted; earlier runs, and some of users', have them in no group."""
    known = run.data.metrics
    names = {key: next((n for n in (known_as(key), known_as(grouped(key))) if n in known), None) for key in wanted}
    return {key: known[name] for key, name in names.items() if name is not None}


def _score(run: Run) -> Score:
    return Score.read(run.data.tags.get("score"))


def _unbroken(rounds: Mapping[int, Mapping[str, float]]) -> tuple[Mapping[str, float], ...]:
    """The rounds from 0 on, up to the first that is missing."""
    count = next(index for index in range(len(rounds) + 1) if index not in rounds)
    return tuple(rounds[index] for index in range(count))
