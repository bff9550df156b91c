"""The outcome sheet: what every round of a run is worth in bytes, time and instructions, beside its score."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from pipeline.ground.documents import written
from pipeline.objective.score import Score
from pipeline.report import pictures, table
from pipeline.report.sizes import INT8_SCORE, Sizes
from pipeline.report.style import save
from pipeline.rounds.ledger import Round

Figures = Sequence[Mapping[str, float]]
"""Of every round what is known of it, in numbers; empty where that is nothing."""
PICTURES = {
    "vs_sparsity.png": ("weights kept (%)", 100.0, {"masked network": "density"}),
    "vs_bytes.png": (
        "kB on disk",
        1e-3,
        {"packed float32": "float32_bytes", "packed int8": "int8_bytes", "plain export, dense": "dense_bytes"},
    ),
    "vs_time.png": (
        "time of an inference here, one thread (% of the dense float network's)",
        100.0,
        {"float32": "latency_ratio", "int8": "int8_latency_ratio", "sparse engine": "sparse_latency_ratio"},
    ),
    "vs_board_time.png": (
        "most ms of an inference on a Raspberry Pi 4, foretold",
        1.0,
        {"float32": "board_ms_most", "int8": "int8_board_ms_most", "sparse engine": "sparse_board_ms_most"},
    ),
    "vs_instructions.png": (
        "million ARM instructions of an inference",
        1e-6,
        {"float32": "instructions", "int8": "int8_instructions", "sparse engine": "sparse_instructions"},
    ),
}
"""By the end of a file's name: what the score is drawn against, its factor, and a line's label and figure."""
OF_THE_DENSE = ("dense_bytes",)
"""Figures that are drawn of round 0 alone."""


def curves(rounds: Sequence[Round], figures: Figures, score: Score, title: str) -> dict[str, Figure]:
    """The pictures of a run by file name: its score against density, and against each cost that two rounds have."""
    known = [{**r.figures, **(figures[n] if figures else {})} for n, r in enumerate(rounds)]
    test = score.test if score.test in known[0] else score.validation
    drawn = {}
    for name, (cost, factor, kinds) in PICTURES.items():
        lines = {}
        for label, kind in kinds.items():
            shown = [each for each in (known[:1] if kind in OF_THE_DENSE else known) if kind in each]
            scored, told = _scored(kind, shown, test)
            if shown:
                lines[label + told] = [(each[kind] * factor, each[scored] * score.scale) for each in shown]
        if "density" in kinds.values() or any(len(points) > 1 for points in lines.values()):
            drawn[f"{score.slug}_{name}"] = pictures.score_by_cost(lines, cost, score, title)
    return drawn


def _scored(kind: str, shown: Figures, test: str) -> tuple[str, str]:
    """The figure that is the score of what costs ``kind``; what a label says of it where it is another network's."""
    if not kind.startswith("int8"):
        return test, ""
    return (INT8_SCORE, "") if all(INT8_SCORE in each for each in shown) else (test, " (score: float network)")


def write(
    folder: Path,
    rounds: Sequence[Round],
    sizes: Sequence[Sizes],
    timings: Figures,
    best: Round,
    score: Score,
    title: str,
) -> list[Path]:
    """Table, figures and pictures of a run into a folder, in the place of an earlier run's; the finite figures of
    ``best`` into ``metrics.json``.

    ``timings`` are figures of every round, empty for one that has not been timed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for earlier in PICTURES:
        for path in folder.glob(f"*_{earlier}"):
            path.unlink()
    extra = [each.figures for each in sizes]
    (folder / "rounds.md").write_text(table.markdown(rounds, score, extra))
    known = [{**(extra[n] if extra else {}), **timings[n]} for n in range(len(rounds))]
    (folder / "rounds.csv").write_text(table.as_csv(rounds, known))
    figures = best.figures | known[best.index]
    finite = {key: value for key, value in figures.items() if math.isfinite(value)}
    (folder / "metrics.json").write_text(written({"round": best.index, **finite}, indent=1) + "\n")
    drawn = curves(rounds, known, score, title)
    for name, curve in drawn.items():
        save(curve, folder / name)
    return sorted(folder / name for name in ("metrics.json", "rounds.csv", "rounds.md", *drawn))
