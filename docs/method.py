"""Draws docs/method.png, the method in one picture: `make pictures`.

Rates and masks are the pipeline's own: schedule, retraining methods and pruning step of the digits experiment.
"""

from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from pipeline.pruning.criteria import magnitude
from pipeline.pruning.prune import prune
from pipeline.report.style import COLOURS, WIDTH, save, style
from pipeline.settings.build import build
from pipeline.settings.composition import composed
from pipeline.settings.groups import Settings
from pipeline.training.retraining import method_name, retraining_span, retraining_tape, training_span
from pipeline.training.schedule import scheduled
from pipeline.training.tape import scheduled_tape

METHODS = {
    "lr_rewinding": ("Learning-rate rewinding", "the rate goes back, the weights stay"),
    "weight_rewinding": ("Weight rewinding", "the rate goes back, and the weights that are left too"),
    "fine_tuning": ("Fine-tuning", "nothing goes back: the rate stays at its last value"),
}
"""By the name in conf/retraining: a title, and what it does."""
ROUNDS = 3
STEPS = 20
"""Batches of an epoch."""
SIDE = 10
"""Of the square of weights that is pruned."""
LANES = (2.6e-4, 1.3e-4, 6.5e-5)
"""Where on the axis of rates the arrows of weights are, a lane a round."""
REPLAYED = "#eeeeee"


@cache
def settings(method: str) -> Settings:
    """Of the digits experiment; every method retrains 0.6 of the first training, as weight rewinding does by itself."""
    return build(composed([f"retraining={method}", "retraining.length=0.6"]))


def rates(method: str) -> list[list[float]]:
    """The learning rate of every step of the dense training, and of each round after it."""
    asked = settings(method)
    training, retraining, full = asked.training, asked.retraining, asked.training.optimizer.rate
    dense = training_span(training, STEPS)
    rate = scheduled(training.schedule, full, dense.total_steps)
    tape = scheduled_tape(rate, full, [dense.steps(epoch) for epoch in range(dense.last)], [{"lr": full}])
    span = retraining_span(retraining, dense)
    later = retraining_tape(retraining, tape, span.epochs)
    return [
        [
            used.at(0, epoch, step)[0, "lr"]
            for epoch in range(part.first, part.last)
            for step in range(part.steps(epoch))
        ]
        for used, part in [(tape, dense), *[(later, span)] * ROUNDS]
    ]


def fraction() -> float:
    """What share of the weights that are left a round prunes."""
    asked = settings("lr_rewinding").pruning.fraction
    assert asked is not None
    return asked


def masks() -> list[torch.Tensor]:
    """Which of 100 weights are left in the dense network and after each round's pruning."""
    draws = torch.Generator().manual_seed(0)
    weights = torch.randn(SIDE, SIDE, generator=draws)
    found = [{"weights": torch.ones(SIDE, SIDE, dtype=torch.bool)}]
    for _ in range(ROUNDS):
        found.append(prune({"weights": magnitude(weights, draws)}, found[-1], fraction=fraction()))
    return [each["weights"] for each in found]


@style()
def drawing() -> Figure:
    """Masks above, and below them the rate of each method over the epochs."""
    asked = settings("weight_rewinding")
    dense = training_span(asked.training, STEPS)
    span = retraining_span(asked.retraining, dense)
    starts = [0, *(dense.last + n * span.epochs for n in range(ROUNDS + 1))]
    figure = Figure(figsize=(WIDTH, 7.4))
    strip, *rows = figure.subplots(1 + len(METHODS), 1, sharex=True, height_ratios=[1.25, *[1.7] * len(METHODS)])
    _strip(strip, starts)
    for axes, name in zip(rows, METHODS, strict=True):
        _row(axes, name, starts, rewind=span.first)
    rows[-1].set_xticks([span.first, *starts])
    rows[-1].set(xlabel="epochs of training", xlim=(0, starts[-1]))
    return figure


def _strip(axes: Axes, starts: Sequence[int]) -> None:
    """The masks, each above the training that it is used in."""
    axes.set(ylim=(0, 1))
    axes.axis("off")
    axes.text(0.4, 0.4, "mask:\nwhat is left\nis dark", va="center")
    for number, (mask, (first, last)) in enumerate(zip(masks(), pairwise(starts), strict=True)):
        middle = (first + last) / 2
        square = axes.inset_axes((middle - 4, 0.02, 8, 0.74), transform=axes.transData)
        square.imshow(mask, cmap="Greys", vmin=0, vmax=1.25)
        square.set_xticks([n - 0.5 for n in range(SIDE + 1)], labels=[])
        square.set_yticks([n - 0.5 for n in range(SIDE + 1)], labels=[])
        square.grid(color="#999999", alpha=1, linewidth=0.4)
        square.tick_params(length=0)
        square.spines[:].set_visible(True)
        share = f"{int(mask.sum())} of {mask.numel()} weights"
        name = "dense training" if number == 0 else f"round {number}"
        axes.text(middle, 0.82, f"{name}\n{share}", ha="center", va="bottom")
        if number:
            arrow = {"arrowstyle": "-|>", "color": "black"}
            axes.annotate("", (first + 1.6, 0.4), (first - 1.6, 0.4), arrowprops=arrow)
            axes.text(first, 0.45, f"prune\n{fraction():.0%}", ha="center", va="bottom")


def _row(axes: Axes, name: str, starts: Sequence[int], rewind: int) -> None:
    """One method: the rate of every step, and where each round's weights come from."""
    asked = settings(name).retraining
    assert method_name(asked) == name
    title, words = METHODS[name]
    axes.set(yscale="log", ylim=(LANES[-1] / 1.8, 0.4), yticks=[0.1, 0.01, 0.001], yticklabels=["0.1", "0.01", "0.001"])
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_title(f"{title}: {words}", loc="left", fontweight="bold")
    axes.set(ylabel="learning rate")
    axes.grid(visible=False)
    for (first, last), values in zip(pairwise(starts), rates(name), strict=True):
        epochs = [first + (last - first) * step / len(values) for step in range(len(values) + 1)]
        axes.stairs(values, epochs, baseline=None, color=COLOURS[name], linewidth=2.2)
        axes.axvline(first, color="black", linewidth=0.8)
    if asked.rate == "replay":
        axes.axvspan(rewind, starts[-1], color=REPLAYED, linewidth=0, zorder=0)
        axes.text((rewind + starts[1]) / 2, 0.2, "this part ...", ha="center", va="center")
        for first, last in pairwise(starts[1:]):
            axes.text((first + last) / 2, 0.2, "... again", ha="center", va="center")
    arrow = {"arrowstyle": "-|>", "color": "black", "shrinkA": 0, "shrinkB": 0}
    if asked.weights == "rewound":
        for lane, start in zip(LANES, starts[1:], strict=False):
            axes.annotate("", (rewind, lane), (start, lane), arrowprops=arrow)
            axes.plot([start], [lane], "o", color="black", markersize=4)
        axes.plot([rewind] * 2, [LANES[0] * 1.4, LANES[-1] / 1.4], color="black", linewidth=2.5)
        axes.text(0.4, LANES[1], f"weights:\nback to\nepoch {rewind}", va="center")
    else:
        for start in starts[1:-1]:
            axes.annotate("", (start + 2.5, LANES[1]), (start - 2.5, LANES[1]), arrowprops=arrow)
        axes.text(0.4, LANES[1], "weights:\ngo on", va="center")


if __name__ == "__main__":
    save(drawing(), Path(__file__).with_suffix(".png"))
