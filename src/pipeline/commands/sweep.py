"""Many jobs as one: ``python -m pipeline -m ...``. Hydra's launchers start them; here is what they tell of themselves.

    <runs>/sweeps/<digest8>/job-03.json     how far a job is and how it ended, as it writes it
                            job-03.log      what it printed

The digest is that of the command, so the same command typed again has the same folder. A job that fails leaves its
sentence there and lets the others go on.
"""

import contextlib
import dataclasses
import hashlib
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pipeline.ground.errors import SettingsError
from pipeline.settings.composition import composed
from pipeline.settings.groups import Settings, build

if TYPE_CHECKING:
    from pipeline.rounds.ledger import Round
    from pipeline.rounds.loop import Job
    from pipeline.training.train import Epoch

STATES = {
    "done": "done",
    "complete": "complete before",
    "failed": "failed",
    "stopped": "stopped",
    "running": "cut off",
    "waiting": "not started",
}
"""What a job can be, and what the summary calls it once the sweep is over."""
ENDED = ("done", "complete", "failed")
SECONDS_BETWEEN_LOOKS = 0.5
MOST_SHOWN = 8
"""Running jobs that have a line of their own on a terminal."""


@dataclass(frozen=True)
class Note:
    """How far a job is."""

    state: str = "waiting"
    share: float = 0.0
    """Of its epochs, how much is done."""
    found: float = 0.0
    """Of its epochs, how much it found done."""
    at: str = ""
    sentence: str = ""
    """How it failed, or what a person should know."""


@dataclass(frozen=True)
class Sweep:
    """The jobs of a command: what each is called, its settings, and the folder of their notes."""

    titles: tuple[str, ...]
    settings: tuple[Settings, ...]
    folder: Path

    def notes(self) -> list[Note]:
        """How far each job is."""
        return [read(self.folder, number) for number in range(len(self.titles))]


def planned(overrides: Sequence[str], runs_folder: Callable[[str | None], Path]) -> Sweep:
    """The jobs that Hydra makes of a command's overrides, all checked before one is started.

    Raises:
        SettingsError: with the faults of all jobs.
    """
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    (jobs,) = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    varied = [word for word in {w: None for job in jobs for w in job} if not all(word in job for job in jobs)]
    titles = tuple(" ".join(word.lstrip("+") for word in job if word in varied) or "the job" for job in jobs)
    faults: dict[str, None] = {}
    settings = []
    for job in jobs:
        try:
            settings.append(build(composed([word for word in job if not word.startswith("hydra")])))
        except SettingsError as error:
            faults |= dict.fromkeys(error.faults)
    for each in settings:
        if each.task not in ("run", "sync", "measure"):
            faults |= {f"task: got {each.task} in a sweep (-m), takes run, sync or measure": None}
        if each.training.devices * each.training.nodes > 1:
            faults |= {
                "training.devices: got several processes for a job of a sweep (-m), takes training.devices=1 and "
                "training.nodes=1: a sweep's jobs share the machine": None
            }
    if faults:
        raise SettingsError(list(faults))
    digest = hashlib.sha256(json.dumps([word for word in overrides if not word.startswith("hydra")]).encode())
    folder = runs_folder(settings[0].runs).absolute() / "sweeps" / digest.hexdigest()[:8]
    return Sweep(titles, tuple(settings), folder)


def read(folder: Path, number: int) -> Note:
    """A job's note; that it waits, if it has none."""
    try:
        return Note(**json.loads(_note_path(folder, number).read_text()))
    except FileNotFoundError:
        return Note()


def write(folder: Path, number: int, note: Note) -> None:
    """Writes a job's note, whole."""
    path = _note_path(folder, number)
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(dataclasses.asdict(note)))
    unfinished.replace(path)


def log_path(folder: Path, number: int) -> Path:
    """What a job prints."""
    return folder / f"job-{number:02d}.log"


def _note_path(folder: Path, number: int) -> Path:
    return folder / f"job-{number:02d}.json"


def work(settings: Settings, runs: Path, folder: Path, number: int) -> bool:
    """Does a job of a sweep, noting how far it is; says whether there was anything to do.

    Where another process is at the same run, it waits for that to end.
    """
    from pipeline.commands.run import build_job, measure_job, run_job, sync_job
    from pipeline.commands.search import with_policy
    from pipeline.rounds.loop import planned_rounds

    def wait(holder: str) -> None:
        print(f"waiting for {holder}, which is at this run")

    if settings.task == "run":
        with_policy(settings, runs, wait)
    job = build_job(settings, runs)
    if settings.task == "sync":
        print(sync_job(job, settings, runs))
        return True
    if settings.task == "measure":
        print(measure_job(job, settings, runs, print))
        return True
    progress = Progress(folder, number, job, planned_rounds(job))
    run_job(job, settings, runs, (progress,), wait)
    return progress.trained > 0


@contextlib.contextmanager
def logged(path: Path) -> Iterator[None]:
    """What is printed in the block goes to a file."""
    with path.open("w", buffering=1) as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        yield


class Progress:
    """A watcher that notes how far a job is."""

    def __init__(self, folder: Path, number: int, job: "Job", planned_rounds: int | None) -> None:
        """``planned_rounds`` counts those after round 0; None if only accuracy ends the run."""
        self.folder, self.number = folder, number
        dense = job.dense_span.last if job.trained is None else 0
        self.epochs = dense + (planned_rounds or 0) * (job.span.last - job.span.first)
        self.before = self.found = self.trained = 0
        self.index, self.last, self.told = 0, 0.0, ""

    def round_started(self, index: int, epochs: int, done: "tuple[Epoch, ...]") -> None:
        self.index = index
        self.found += len(done)
        self._note(len(done))

    def batch_done(self, batches: int, of: int) -> None: ...

    def note(self, sentence: str) -> None:
        if sentence.startswith("warning"):
            self.told = sentence
            self._note(0)

    def epoch_done(self, index: int, history: "tuple[Epoch, ...]") -> None:
        if time.monotonic() - self.last >= SECONDS_BETWEEN_LOOKS:
            self._note(len(history))

    def round_done(self, result: "Round", folder: Path, *, trained: bool) -> None:
        self.index = result.index
        self.before += len(result.history)
        self.found += 0 if trained else len(result.history)
        self.trained += trained
        self._note(0)

    def _note(self, epochs: int) -> None:
        self.last = time.monotonic()
        of = max(1, self.epochs)
        share, found = min(1.0, (self.before + epochs) / of), min(1.0, self.found / of)
        write(self.folder, self.number, Note("running", share, found, f"round {self.index}", self.told))


class View:
    """Shows a sweep while it runs: a line for each job that ends, and on a terminal one bar with the time left."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        self.console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self.started = time.monotonic()
        self.told: set[int] = set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> "View":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _work(self) -> None:
        live = Live(console=self.console, transient=True, auto_refresh=False) if self.console.is_terminal else None
        with live or contextlib.nullcontext():
            over = False
            while not over:
                over = self._over.wait(SECONDS_BETWEEN_LOOKS)
                notes = self.sweep.notes()
                self._tell_ended(notes)
                if live:
                    live.update(self._picture(notes), refresh=True)

    def _tell_ended(self, notes: Sequence[Note]) -> None:
        for number, note in enumerate(notes):
            if note.state in ENDED and number not in self.told:
                self.told.add(number)
                words = f": {note.sentence}" if note.sentence else ""
                self.console.print(
                    f"{len(self.told):>4} of {len(notes)}  {note.state:<9} {self.sweep.titles[number]}{words}"
                )

    def _picture(self, notes: Sequence[Note]) -> Group:
        done = sum(note.state in ENDED for note in notes)
        running = [(number, note) for number, note in enumerate(notes) if note.state == "running"]
        whole = Table.grid(padding=(0, 1))
        left = time_left(notes, time.monotonic() - self.started)
        told = "" if left is None else f"{timedelta(seconds=round(left))} left"
        share = sum(1.0 if note.state in ENDED else note.share for note in notes) / len(notes)
        whole.add_row(f"{done} of {len(notes)} jobs", ProgressBar(total=1.0, completed=share, width=40), told)
        lines = [
            Text(f"  {self.sweep.titles[number]}  {note.at}  {note.share:.0%}") for number, note in running[:MOST_SHOWN]
        ]
        more = len(running) - MOST_SHOWN
        return Group(whole, *lines, *([Text(f"  and {more} more")] if more > 0 else []))


def time_left(notes: Sequence[Note], seconds: float) -> float | None:
    """Seconds that are left at the speed of the ``seconds`` so far; None before anything was trained."""
    made = sum(note.share - note.found for note in notes if note.state != "complete")
    left = sum(1 - note.share for note in notes if note.state not in ENDED)
    return left * seconds / made if made > 0 else None


def summary(sweep: Sweep) -> tuple[int, list[str]]:
    """How many jobs of a sweep that is over are not done, and lines for a person: how they ended, and what failed."""
    notes = sweep.notes()
    counts = Counter(note.state for note in notes)
    told = ", ".join(f"{counts[state]} {word}" for state, word in STATES.items() if counts[state])
    lines = [f"{len(notes)} jobs: {told}"]
    for number, note in enumerate(notes):
        if note.sentence or note.state not in ("done", "complete"):
            lines.append(
                f"  {STATES[note.state]}: {sweep.titles[number]}" + (f": {note.sentence}" if note.sentence else "")
            )
            if log_path(sweep.folder, number).exists():
                lines.append(f"    {log_path(sweep.folder, number)}")
    unfinished = len(notes) - counts["done"] - counts["complete"]
    if unfinished:
        lines.append("the same command runs what is missing")
    return unfinished, lines


def left(sweep: Sweep, deaths: Counter[int]) -> bool:
    """After the death of processes: whether jobs are left to run.

    A job that ran then is to be run again; at its second death, as ``deaths`` counts them, it has failed.
    """
    for number, note in enumerate(sweep.notes()):
        if note.state == "running":
            deaths[number] += 1
            state, sentence = ("waiting", "") if deaths[number] < 2 else ("failed", "its process was killed, twice")
            write(sweep.folder, number, dataclasses.replace(note, state=state, sentence=sentence))
    return any(note.state == "waiting" for note in sweep.notes())


def cleared(sweep: Sweep) -> None:
    """Forgets what an earlier call of the same command noted."""
    sweep.folder.mkdir(parents=True, exist_ok=True)
    for path in sweep.folder.glob("job-*"):
        path.unlink()
