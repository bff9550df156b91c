"""Figures with their spread: contestants take turns, so that a slow minute of the machine meets them all."""

from collections.abc import Callable, Mapping, Sequence

from pipeline.report.comparison import Spread, spread

__all__ = ["Spread", "in_turns", "ratio", "spread"]


def ratio(above: Sequence[float], below: Sequence[float]) -> Spread:
    """Of measurements taken in turns: turn by turn."""
    return spread([a / b for a, b in zip(above, below, strict=True)])


def in_turns(contestants: Mapping[str, Callable[[], float]], turns: int) -> dict[str, list[float]]:
    """Measures each contestant once a turn, in an order that is reversed from turn to turn."""
    measured: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(turns):
        for name in list(contestants)[:: -1 if turn % 2 else 1]:
            measured[name].append(contestants[name]())
    return measured
