"""What a person sees: a line of the table after each round, and on a terminal a bar with the time left."""

import time
from collections.abc import Iterable
from pathlib import Path

from pipeline.ground.progress import Printer, progress_bar, time_left
from pipeline.objective.score import Score
from pipeline.report.table import header, row
from pipeline.rounds.job import Watcher
from pipeline.rounds.ledger import Round
from pipeline.training.state import Epoch


class Display(Watcher):
    """Shows a run. Off a terminal it prints the table's lines and nothing else."""

    def __init__(self, score: Score, planned_rounds: int | None, dense_epochs: int, epochs: int) -> None:
        """``planned_rounds`` counts those after round 0; None if only the score ends the run."""
        self.score, self.planned_rounds, self.epochs = score, planned_rounds, epochs
        self.epochs_left = dense_epochs + (planned_rounds or 0) * epochs
        self.console = Printer()
        self.progress = progress_bar(self.console)
        self.task = self.progress.add_task("", status="starting")
        self.rounds = self.trained = 0
        self.started: float | None = None
        self.epochs_done = 0
        self.seconds = 0.0
        """Of training, in this call."""

    def __enter__(self) -> "Display":
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def heading(self, lines: Iterable[str]) -> None:
        """Lines above the table that say what is about to run; a terminal alone has them."""
        if self.console.is_terminal:
            for line in lines:
                self.console.print(line, style="dim")

    def round_started(self, index: int, epochs: int, done: tuple[Epoch, ...]) -> None:
        self.index, self.round_epochs, self.history = index, epochs, done
        if done:
            self.note(f"round {index} goes on after epoch {len(done)} of {epochs}")
        self.epochs_left -= len(done)
        self.started = self.started or time.perf_counter()
        self._show(0.0)

    def batch_done(self, batches: int, of: int) -> None:
        if not self.progress.disable:
            self._show(batches / of)

    def epoch_done(self, index: int, history: tuple[Epoch, ...]) -> None:
        self.history = history
        self.epochs_done += 1
        self.seconds += history[-1].seconds
        self.epochs_left -= 1
        self._show(0.0)

    def round_done(self, result: Round, folder: Path, *, trained: bool) -> None:
        if not self.rounds:
            self.console.print(header(self.score))
        if not trained:
            self.epochs_left -= result.epochs
        self.rounds += 1
        self.trained += trained
        self.console.print(row(result, self.score) + ("" if trained else "  (found)"))

    def note(self, sentence: str) -> None:
        self.console.print(sentence)

    def measuring(self, index: int) -> None:
        """The loop is done; the bytes of a round are being measured."""
        self.progress.update(self.task, description="bytes", status=f"of round {index}")

    def _show(self, part_of_epoch: float) -> None:
        """``part_of_epoch`` is the share of the present epoch that is done."""
        if self.progress.disable:
            return
        of = "" if self.planned_rounds is None else f"/{self.planned_rounds}"
        status = f"epoch {min(len(self.history) + 1, self.round_epochs)}/{self.round_epochs}"
        if self.history and (reached := self.history[-1].metrics.get(self.score.validation)) is not None:
            status += f"  {self.score.validation} {self.score.shown(reached)}"
        done = self.epochs_done + part_of_epoch
        if self.started is not None and done > 0.01 and self.planned_rounds is not None:
            left = (time.perf_counter() - self.started) / done * max(0.0, self.epochs_left - part_of_epoch)
            status += f"  {time_left(left)} in all"
        self.progress.update(
            self.task,
            description=f"round {self.index}{of}",
            completed=len(self.history) + part_of_epoch,
            total=self.round_epochs,
            status=status,
        )
