"""The round table: one row a round, the same on the terminal, in files and in the documents."""

from collections.abc import Callable, Mapping, Sequence

from pipeline.ground import tables
from pipeline.objective.score import ACCURACY, Score
from pipeline.report.sizes import INT8_SCORE
from pipeline.rounds.ledger import Round

Column = Callable[[Round], str]


def split_columns(score: Score) -> tuple[str, str]:
    """What the columns of the score are called: of accuracy ``validation`` and ``test``, of another its own names."""
    return ("validation", "test") if score == ACCURACY else (score.validation, score.test)


def columns(score: Score) -> dict[str, Column]:
    """The columns by name."""
    validation, test = split_columns(score)
    return {
        "round": lambda r: str(r.index),
        "density": lambda r: f"{r.density:.4f}",
        "sparsity": lambda r: f"{1 - r.density:.2%}",
        "compression": lambda r: f"{r.figures['compression_ratio']:.2f}x",
        validation: lambda r: score.shown(r.figures.get(score.validation)),
        test: lambda r: score.shown(r.figures.get(score.test)),
        "MACs kept": lambda r: f"{r.macs_kept / 1e6:.3f} M",
        "seconds": lambda r: f"{r.seconds:.1f}",
    }


BYTE_COLUMNS = {
    "dense bytes": lambda sizes: f"{sizes['dense_bytes']:,.0f}",
    "float32": lambda sizes: f"{sizes['float32_bytes']:,.0f}",
    "int8": lambda sizes: f"{sizes['int8_bytes']:,.0f}",
    "smaller": lambda sizes: f"{sizes['bytes_compression']:.1f}x",
}
"""Of the plain export, and of the packed files that go to a board; the last is the first over int8."""
WIDTH = 8
"""Of a column at least, so that a row fits a terminal of 80 characters."""
Sizes = Sequence[Mapping[str, float]]
"""Figures by round, as ``sizes.Sizes`` gives them."""


def file_columns(score: Score, sizes: Sizes) -> dict[str, Callable[[Mapping[str, float]], str]]:
    """The columns of ``sizes`` by name: bytes, and what int8 scores where that is known."""
    if not any(INT8_SCORE in each for each in sizes):
        return BYTE_COLUMNS if sizes else {}
    test = split_columns(score)[1]
    return {**BYTE_COLUMNS, f"int8 {test}": lambda sizes: score.shown(sizes.get(INT8_SCORE))}


def header(score: Score) -> str:
    """The names of the columns, as wide as a ``row``."""
    return "".join(name.rjust(_width(name)) for name in columns(score))


def row(round_: Round, score: Score) -> str:
    """One round in a line."""
    return "".join(show(round_).rjust(_width(name)) for name, show in columns(score).items())


def _width(name: str) -> int:
    return max(WIDTH, len(name) + 2)


def markdown(rounds: Sequence[Round], score: Score, sizes: Sizes = ()) -> str:
    """The table for a document; with ``sizes``, bytes of every round's files beside the rest."""
    shown, byte_columns = columns(score), file_columns(score, sizes)
    rows = [
        [show(r) for show in shown.values()] + [show(sizes[n]) for show in byte_columns.values()]
        for n, r in enumerate(rounds)
    ]
    return tables.markdown([*shown, *byte_columns], rows)


def as_csv(rounds: Sequence[Round], sizes: Sizes = ()) -> str:
    """Every figure of every round, unrounded."""
    return tables.as_csv([{"round": r.index, **r.figures, **(sizes[n] if sizes else {})} for n, r in enumerate(rounds)])


def bytes_table(rounds: Sequence[Round], score: Score, sizes: Sizes) -> str:
    """Bytes of every round's files and what int8 scores, a line each."""
    shown, of_files = columns(score), file_columns(score, sizes)
    first = ["round", "density", split_columns(score)[1]]
    lines = [[*first, *of_files]]
    for r, each in zip(rounds, sizes, strict=True):
        lines.append([shown[name](r) for name in first] + [show(each) for show in of_files.values()])
    widths = [max(_width(line[place]) for line in lines) for place in range(len(lines[0]))]
    return "\n".join("".join(c.rjust(w) for c, w in zip(line, widths, strict=True)) for line in lines)


def layers_csv(round_: Round) -> str:
    """Weights, sparsity and multiply-adds of every layer of a round."""
    return tables.as_csv(
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
