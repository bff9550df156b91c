"""How far a job of a sweep is, noted as it goes."""

import time
from pathlib import Path

from pipeline.commands.sweep_notes import SECONDS_BETWEEN, Note, write
from pipeline.rounds.job import Job, Watcher
from pipeline.rounds.ledger import Round
from pipeline.training.state import Epoch


class JobProgress(Watcher):
    """A watcher that notes how far a job is."""

    def __init__(self, folder: Path, number: int, job: Job, planned_rounds: int | None) -> None:
        """``planned_rounds`` counts those after round 0; None if only accuracy ends the run."""
        self.folder, self.number = folder, number
        dense = job.dense_span.last if job.trained is None else 0
        self.epochs = dense + (planned_rounds or 0) * job.epochs_a_round
        self.before = self.found = self.trained = 0
        self.index, self.last, self.told = 0, 0.0, ""

    def round_started(self, index: int, epochs: int, done: tuple[Epoch, ...]) -> None:
        self.index = index
        self.found += len(done)
        self._note(len(done))

    def note(self, sentence: str) -> None:
        if sentence.startswith("warning"):
            self.told = sentence
            self._note(0)

    def epoch_done(self, index: int, history: tuple[Epoch, ...]) -> None:
        if time.monotonic() - self.last >= SECONDS_BETWEEN:
            self._note(len(history))

    def round_done(self, result: Round, folder: Path, *, trained: bool) -> None:
        self.index = result.index
        self.before += result.epochs
        self.found += 0 if trained else result.epochs
        self.trained += trained
        self._note(0)

    def _note(self, epochs: int) -> None:
        self.last = time.monotonic()
        of = max(1, self.epochs)
        share, found = min(1.0, (self.before + epochs) / of), min(1.0, self.found / of)
        write(self.folder, self.number, Note("running", share, found, f"round {self.index}", self.told))
