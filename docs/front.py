"""Draws docs/front.png, the picture of the README's first table: `make pictures`.

It shows what docs/evidence has of cifar10_fast.
"""

from pathlib import Path

from matplotlib.figure import Figure

from pipeline.report.comparison import methods
from pipeline.report.ledgers import records
from pipeline.report.pictures import score_by_cost
from pipeline.report.style import save

DOCS = Path(__file__).parent


def figure() -> Figure:
    """Test accuracy of each round against the weights that are left: the median of the seeds that have that round."""
    (method,) = methods(records(DOCS / "evidence", "cifar10_fast"))
    points = [(100 * each.density, method.score.scale * each.score.median) for each in method.points]
    seeds = len(method.runs)
    fewer = [each.seeds for each in method.points if each.seeds < seeds]
    title = f"CIFAR-10, median of {seeds} seeds" + (f" (the last {len(fewer)} points: of {fewer[-1]})" if fewer else "")
    return score_by_cost({"learning-rate rewinding": points}, "weights kept (%)", method.score, title)


if __name__ == "__main__":
    save(figure(), DOCS / "front.png")
