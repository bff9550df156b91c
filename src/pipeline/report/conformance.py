"""Measured medians against the published ones (Renda, Frankle and Carbin 2020; ResNet-20 on CIFAR-10, iterative).

The figures are those of the authors' result tables: median test accuracy of three trials, in %, for a retraining of the
whole length T; weight rewinding at its best t. Ours are held to within half a point.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.ground import tables
from pipeline.report.comparison import Method, RunRecord, Spread, methods

EXPERIMENT = "resnet20"
TOLERANCE = 0.5
"""Points of accuracy."""
SEEDS = 3
DENSE = 91.71
PUBLISHED = {
    "lr_rewinding": {0.8: 92.11, 0.512: 92.29, 0.3277: 92.12, 0.2097: 91.89, 0.1342: 91.47, 0.1074: 91.01},
    "weight_rewinding": {0.8: 91.76, 0.512: 91.94, 0.3277: 91.87, 0.2097: 91.67, 0.1342: 91.41, 0.1074: 90.91},
    "fine_tuning": {0.8: 91.61, 0.512: 91.38, 0.3277: 91.00, 0.2097: 90.46, 0.1342: 88.98, 0.1074: 89.33},
    "lottery_ticket": {0.8: 91.86, 0.512: 90.59, 0.3277: 90.01, 0.2097: 89.21, 0.1342: 87.55, 0.1074: 86.68},
}
NEAR = 0.002
"""Densities are equal that differ by no more: rounds remove whole weights."""


@dataclass(frozen=True)
class Cell:
    """A published figure and what was measured, in %."""

    method: str
    density: float
    published: float
    measured: Spread | None
    seeds: int

    @property
    def verdict(self) -> Literal["within", "outside", "not run"]:
        if self.measured is None:
            return "not run"
        return "within" if abs(self.measured.median - self.published) <= TOLERANCE + 1e-9 else "outside"


def of_the_paper(runs: Sequence[RunRecord], paper: Mapping[str, str]) -> tuple[list[RunRecord], list[str]]:
    """The runs that have the paper's settings, and a sentence for each that has others.

    ``paper`` maps names of settings to values; what is not in it may be anything.
    """
    same, sentences = [], []
    for run in runs:
        others = [f"{k} is {run.settings[k]}, not {v}" for k, v in paper.items() if run.settings.get(k, v) != v]
        if others:
            sentences.append(f"left out: {run.name}: {'; '.join(others)}")
        else:
            same.append(run)
    return same, sentences


def cells(runs: Sequence[RunRecord]) -> list[Cell]:
    """Every published figure with its measured one. Runs of equal seed and method are taken as in a comparison."""
    found = methods(runs) if runs else []
    dense = [point for method in found for point in method.points[:1]]
    most = max(dense, key=lambda point: point.seeds, default=None)
    first = Cell("dense", 1.0, DENSE, None, 0)
    if most is not None:
        first = Cell("dense", 1.0, DENSE, most.score * 100, most.seeds)
    return [first, *(_cell(found, name, *each) for name, row in PUBLISHED.items() for each in row.items())]


def _cell(found: Sequence[Method], name: str, density: float, published: float) -> Cell:
    """Of several lengths of retraining the one counts that validates best, as in the paper."""
    points = [
        point
        for method in found
        if next(iter(method.runs.values())).method == name
        for point in method.points
        if abs(point.density - density) <= NEAR
    ]
    if not points:
        return Cell(name, density, published, None, 0)
    best = max(points, key=lambda point: point.figures["validation_accuracy"].median)
    return Cell(name, density, published, best.score * 100, best.seeds)


def markdown(cells: Sequence[Cell]) -> str:
    """A line for each published figure."""
    head, rows = ["method", "density", "published", "measured", "seeds", "verdict"], []
    for cell in cells:
        measured = f"{cell.measured:.2f}" if cell.measured else "-"
        seeds = str(cell.seeds) if cell.seeds in (0, SEEDS) else f"{cell.seeds} of {SEEDS}"
        rows.append([cell.method, f"{cell.density:.4f}", f"{cell.published:.2f}", measured, seeds, cell.verdict])
    return tables.markdown(head, rows, left=[0, 5])
