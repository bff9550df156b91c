"""Draws docs/front.png, the picture of the README's first table: `make pictures`.

It shows what docs/evidence has of cifar10_fast.
"""

from pathlib import Path

from matplotlib.figure import Figure

from pipeline.report.ledgers import records
from pipeline.report.pictures import score_by_cost
from pipeline.report.style import save

DOCS = Path(__file__).parent


def figure() -> Figure:
    """Test accuracy of each round against the weights that are left."""
    (run,) = records(DOCS / "evidence", "cifar10_fast")
    points = [(100 * each["density"], run.score.scale * each[run.score.test]) for each in run.rounds]
    return score_by_cost({"learning-rate rewinding": points}, "weights kept (%)", run.score, "CIFAR-10, one seed")


if __name__ == "__main__":
    save(figure(), DOCS / "front.png")
