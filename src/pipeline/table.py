"""The round table: one row a round, the same on the terminal, in files and in the documents."""

import csv
import io
from collections.abc import Sequence

from pipeline.ledger import Round

COLUMNS = {
    "round": lambda r: str(r.index),
    "density": lambda r: f"{r.density:.4f}",
    "sparsity": lambda r: f"{1 - r.density:.2%}",
    "compression": lambda r: f"{r.figures['compression_ratio']:.2f}x",
    "validation": lambda r: f"{r.figures['validation_accuracy']:.2%}",
    "test": lambda r: f"{r.figures['test_accuracy']:.2%}",
    "MACs kept": lambda r: f"{r.macs_kept / 1e6:.3f} M",
    "seconds": lambda r: f"{r.seconds:.1f}",
}
WIDTH = 12


def header() -> str:
    """The names of the columns, as wide as a ``row``."""
    return "".join(name.rjust(WIDTH) for name in COLUMNS)


def row(round_: Round) -> str:
    """One round in a line."""
    return "".join(show(round_).rjust(WIDTH) for show in COLUMNS.values())


def markdown(rounds: Sequence[Round]) -> str:
    """The table for a document."""
    lines = [
        list(COLUMNS),
        ["---:"] * len(COLUMNS),
        *([show(r) for show in COLUMNS.values()] for r in rounds),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def as_csv(rounds: Sequence[Round]) -> str:
    """Every figure of every round, unrounded."""
    return _csv([{"round": r.index, **r.figures} for r in rounds])


def layers_csv(round_: Round) -> str:
    """Weights, sparsity and multiply-adds of every layer of a round."""
    return _csv(
        [
            {
                "layer": layer.name,
                "prunable": layer.prunable,
                "weights": layer.weights,
                "kept": layer.kept,
                "sparsity": layer.sparsity,
                "macs": layer.macs,
                "macs_kept": layer.macs_kept,
            }
            for layer in round_.layers
        ]
    )


def _csv(rows: Sequence[dict[str, object]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
