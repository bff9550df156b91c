"""The retraining methods, as rows of a table: which weights a round starts from, which rate, how long.

A retraining of t epochs goes through the last t epochs of round 0; the rewind point is where they begin (Renda et al.
2020, section 2).
"""

import dataclasses
from dataclasses import dataclass

from pipeline.settings.groups import Pruning, Retraining, Training
from pipeline.training.tape import Tape

NAMES = {
    ("final", "replay"): "lr_rewinding",
    ("final", "hold"): "fine_tuning",
    ("rewound", "replay"): "weight_rewinding",
    ("rewound", "hold"): "weight_rewinding_low_rate",
    ("fresh", "replay"): "reinitialisation",
    ("fresh", "hold"): "reinitialisation_low_rate",
}
"""(weights, rate): the name of a method in the literature."""


def method_name(retraining: Retraining) -> str:
    """The literature's name of a row. To rewind weights by the whole of T is the original lottery ticket."""
    name = NAMES[retraining.weights, retraining.rate]
    return "lottery_ticket" if name == "weight_rewinding" and retraining.length == 1 else name


def run_title(pruning: Pruning, retraining: Retraining) -> str:
    """What a run is called in a comparison: its method, and what was pruned how if not weights by magnitude."""
    what = ("random " if pruning.criterion == "random" else "") + f"{pruning.structure}s"
    if pruning.shares is not None:
        what += f" by {pruning.policy or 'given shares'}"
    what += " by magnitude per MAC" if pruning.criterion == "magnitude_per_mac" else ""
    name = method_name(retraining)
    if retraining.rate == "hold" and retraining.hold != "last":
        name += f" at {retraining.hold:g} of the highest rate"
    return name if what == "weights" else f"{name} ({what.replace('random weights', 'random pruning')})"


@dataclass(frozen=True)
class Span:
    """Epochs ``first`` to ``last`` (excluded) of round 0, which has ``total_steps`` batches in all."""

    first: int
    last: int
    steps_per_epoch: int
    total_steps: int

    @property
    def epochs(self) -> int:
        return self.last - self.first

    def steps(self, epoch: int) -> int:
        """Batches of an epoch; the last may be cut short by ``max_steps``."""
        return min(self.steps_per_epoch, self.total_steps - epoch * self.steps_per_epoch)


def training_span(training: Training, steps_per_epoch: int) -> Span:
    """Round 0: the whole schedule. T is ``epochs`` over the data, or ``max_steps`` where that is less."""
    total = min(training.epochs * steps_per_epoch, training.max_steps or training.epochs * steps_per_epoch)
    return Span(0, -(-total // steps_per_epoch), steps_per_epoch, total)


def retraining_span(retraining: Retraining, dense: Span) -> Span:
    """A later round: the last t epochs of round 0, t = ``length`` x T in whole epochs, at least one."""
    return dataclasses.replace(dense, first=dense.last - max(1, round(retraining.length * dense.last)))


def retraining_tape(retraining: Retraining, recorded: Tape) -> Tape:
    """What a later round's optimizers use: the tape of round 0, or one rate of it throughout."""
    return recorded.held(retraining.hold) if retraining.rate == "hold" else recorded
