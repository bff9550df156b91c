"""The retraining methods, as rows of a table: which weights a round starts from, which rate, how long.

Positions count round 0's epochs and steps. A retraining of t epochs goes through the positions of the last t epochs of
round 0; the rewind point is where they begin (Renda et al. 2020, section 2).
"""

from dataclasses import dataclass

from pipeline.settings.groups import Pruning, Retraining, Training
from pipeline.training.schedule import Rate, held, scheduled

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
    return name if what == "weights" else f"{name} ({what.replace('random weights', 'random pruning')})"


@dataclass(frozen=True)
class Span:
    """Epochs ``first`` to ``last`` (excluded) of round 0's positions, and the rate at each step."""

    first: int
    last: int
    steps_per_epoch: int
    total_steps: int
    rate: Rate

    def steps(self, epoch: int) -> int:
        """Steps of an epoch; the last may be cut short by ``max_steps``."""
        return min(self.steps_per_epoch, self.total_steps - epoch * self.steps_per_epoch)

    def position(self, epoch: int, batch: int) -> int:
        """Position of a batch in round 0's schedule."""
        return epoch * self.steps_per_epoch + batch


def training_span(training: Training, steps_per_epoch: int) -> Span:
    """Round 0: the whole schedule. T is ``epochs`` over the data, or ``max_steps`` where that is less."""
    total = min(training.epochs * steps_per_epoch, training.max_steps or training.epochs * steps_per_epoch)
    rate = scheduled(training.schedule, training.optimizer.rate, total)
    return Span(0, -(-total // steps_per_epoch), steps_per_epoch, total, rate)


def retraining_span(retraining: Retraining, dense: Span) -> Span:
    """A later round: the last t epochs of round 0, t = ``length`` x T in whole epochs, at least one."""
    epochs = max(1, round(retraining.length * dense.last))
    rate = held(dense.rate, dense.total_steps - 1) if retraining.rate == "hold" else dense.rate
    return Span(dense.last - epochs, dense.last, dense.steps_per_epoch, dense.total_steps, rate)
