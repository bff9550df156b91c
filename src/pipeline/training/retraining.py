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
    return "lottery_ticket" if name == "weight_rewinding" and retraining.length >= 1 else name


def run_title(pruning: Pruning, retraining: Retraining, teacher: str | None = None, ema: float | None = None) -> str:
    """What a run is called in a comparison: its method, what was pruned how if not weights by magnitude in rounds, and
    what was added."""
    name = method_name(retraining)
    if retraining.rate == "hold" and retraining.hold != "last":
        name += f" at {retraining.hold:g} of the highest rate"
    if pruning.fraction == 0 and pruning.shares is None:
        name = "dense_control" if name == "lr_rewinding" else f"{name} (nothing pruned)"
    else:
        if pruning.schedule == "cubic":
            name = "gradual" if name == "lottery_ticket" else f"{name}, gradual"
        if retraining.length > 1:
            name += f" in {retraining.length:g} T"
        what = _what(pruning)
        name += f" ({what})" if what != "weights" else ""
    added = {
        f"{retraining.copies} copies": retraining.copies > 1,
        f"{teacher} teacher": teacher is not None,
        f"EMA {ema or 0:g}": ema is not None,
    }
    return " + ".join([name, *(each for each, there in added.items() if there)])


def _what(pruning: Pruning) -> str:
    """What a run prunes, and by what."""
    parts = f"blocks of {pruning.block}" if pruning.structure == "block" else f"{pruning.structure}s"
    if pruning.shares is not None:
        what = f"{parts} by {pruning.policy or 'given shares'}"
    elif pruning.criterion == "random":
        what = "random pruning" if pruning.structure == "weight" else f"random {parts}"
    else:
        by = {"magnitude_per_mac": " by magnitude per MAC", "lamp": " by LAMP"}.get(pruning.criterion, "")
        what = f"{parts}{by}" + (", ERK" if pruning.scope == "erk" else "")
    target = pruning.target_density
    at_once = pruning.schedule == "at_once" and target is not None and (pruning.fraction or 0) >= 1 - target - 1e-9
    return f"{what}, one shot" if at_once else what


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
    """A later round: the last t epochs of round 0, t = ``length`` x T in whole epochs, at least one; where that is more
    than T, so many full epochs."""
    epochs = max(1, round(retraining.length * dense.last))
    if epochs > dense.last:
        return Span(0, epochs, dense.steps_per_epoch, epochs * dense.steps_per_epoch)
    return dataclasses.replace(dense, first=dense.last - epochs)


def retraining_tape(retraining: Retraining, recorded: Tape, epochs: int) -> Tape:
    """What a later round's optimizers use: the tape of round 0, stretched to ``epochs`` where these are more, or one
    rate of it throughout."""
    tape = recorded.stretched(epochs) if epochs > recorded.epochs else recorded
    return tape.held(retraining.hold) if retraining.rate == "hold" else tape
