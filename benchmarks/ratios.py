"""Figures with their spread: contestants take turns, so that a slow minute of the machine meets them all."""

import statistics
from collections.abc import Callable, Mapping, Sequence

from pipeline.deploy.board.run import STRETCH, turn
from pipeline.report.comparison import Spread, spread

__all__ = ["STRETCH", "Spread", "in_turns", "ratio", "spread"]


def ratio(above: Sequence[float], below: Sequence[float]) -> Spread:
    """Of measurements taken in turns: turn by turn."""
    return spread([a / b for a, b in zip(above, below, strict=True)])


def in_turns(
    contestants: Mapping[str, Callable[[], float]], turns: int, stretch: float = 0.0
) -> dict[str, list[float]]:
    """Measures each contestant in each turn, in an order that is reversed from turn to turn: once, or for ``stretch``
    seconds, of which the median of the second half is kept.
    """
    measured: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(turns):
        for name in list(contestants)[:: -1 if number % 2 else 1]:
            measured[name].append(statistics.median(turn(contestants[name], stretch)))
    return measured
