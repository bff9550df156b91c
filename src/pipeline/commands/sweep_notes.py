"""How far each job of a sweep is: as it tells in a file of its own, and as a person sees it.

    <runs>/sweeps/<digest8>/job-03.json     how far a job is and how it ended, as it writes it
                            job-03.log      what it printed

Any process may read the files.
"""

import dataclasses
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.ground.files import write_file
from pipeline.ground.progress import Printer, progress_bar, time_left
from pipeline.settings.groups import Settings

ENDED = ("done", "complete", "failed")
STATES = {
    "done": "done",
    "complete": "complete before",
    "failed": "failed",
    "stopped": "stopped",
    "running": "cut off",
    "waiting": "not started",
}
"""What a job can be, and what the summary calls it once the sweep is over."""
MOST_SHOWN = 8
"""Running jobs that have a line of their own on a terminal."""
SECONDS_BETWEEN = 0.5


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
    result: str = ""
    """What it ended with."""
    ledger: str = ""
    """The folder of its rounds, where those of a longer run may lie too."""
    rounds: int = 0
    """How many of them are the job's, beside the dense network."""


@dataclass(frozen=True)
class Sweep:
    """The jobs of a command: what each is called, its settings, and the folder of their notes."""

    titles: tuple[str, ...]
    settings: tuple[Settings, ...]
    folder: Path

    def notes(self) -> list[Note]:
        """How far each job is."""
        return [read(self.folder, number) for number in range(len(self.titles))]


def read(folder: Path, number: int) -> Note:
    """A job's note; that it waits, if it has none."""
    try:
        return Note(**json.loads(_note_path(folder, number).read_text()))
    except FileNotFoundError:
        return Note()


def write(folder: Path, number: int, note: Note) -> None:
    """Writes a job's note, whole."""
    write_file(_note_path(folder, number), json.dumps(dataclasses.asdict(note)).encode())


def log_path(folder: Path, number: int) -> Path:
    """What a job prints."""
    return folder / f"job-{number:02d}.log"


def _note_path(folder: Path, number: int) -> Path:
    return folder / f"job-{number:02d}.json"


class View:
    """Shows a sweep while it runs: a line for each job that ends, and on a terminal bars with the time left."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        self.console = Printer(file=sys.stdout)
        self.bar = progress_bar(self.console)
        self.whole = self.bar.add_task("", status="")
        self.jobs = [self.bar.add_task(f"  {each}", total=1.0, status="", visible=False) for each in sweep.titles]
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
        with self.bar:
            over = False
            while not over:
                over = self._over.wait(SECONDS_BETWEEN)
                notes = self.sweep.notes()
                self._tell_ended(notes)
                self._show(notes)

    def _tell_ended(self, notes: Sequence[Note]) -> None:
        for number, note in enumerate(notes):
            if note.state in ENDED and number not in self.told:
                self.told.add(number)
                words = "".join(f": {each}" for each in (note.result, note.sentence) if each)
                self.console.print(
                    f"{len(self.told):>4} of {len(notes)}  {note.state:<9} {self.sweep.titles[number]}{words}"
                )

    def _show(self, notes: Sequence[Note]) -> None:
        running = [number for number, note in enumerate(notes) if note.state == "running"]
        left = seconds_left(notes, time.monotonic() - self.started)
        self.bar.update(
            self.whole,
            total=len(notes),
            completed=sum(1.0 if note.state in ENDED else note.share for note in notes),
            description=f"{sum(note.state in ENDED for note in notes)} of {len(notes)} jobs, {len(running)} running",
            status="" if left is None else time_left(left),
        )
        for number, note in enumerate(notes):
            shown = number in running[:MOST_SHOWN]
            self.bar.update(self.jobs[number], visible=shown, completed=note.share, status=note.at)


def seconds_left(notes: Sequence[Note], seconds: float) -> float | None:
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
    missing = len(notes) - counts["done"] - counts["complete"]
    if missing:
        lines.append("the same command runs what is missing")
    return missing, lines
