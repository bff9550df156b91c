"""Tables and curves from ledgers. Reads what is on disk, trains nothing."""

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.ground.errors import PipelineError
from pipeline.report.pictures import accuracy_curves
from pipeline.rounds.ledger import Ledger, Round, dense_home, recorded_identity
from pipeline.settings.groups import LATER, Retraining
from pipeline.training.retraining import method_name

USUAL: Mapping[str, Any] = LATER | {
    "fraction": 0.2, "criterion": "magnitude", "scope": "global", "exclude": [], "target_density": None,
}  # fmt: skip
"""Pruning settings that need no word in a label."""


def comparison(curves: dict[str, Sequence[Round]]) -> str:
    """Test accuracy of several runs by density, as a Markdown table; a hyphen where a run has no such round."""
    densities = sorted({round(r.density, 4) for rounds in curves.values() for r in rounds}, reverse=True)
    lines = [["density", *curves], ["---:"] * (len(curves) + 1)]
    for density in densities:
        cells = [[r for r in rounds if round(r.density, 4) == density] for rounds in curves.values()]
        lines.append([f"{density:.4f}", *(f"{c[0].figures['test_accuracy']:.2%}" if c else "-" for c in cells)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def curves_of(runs: Path, name: str) -> dict[str, Sequence[Round]]:
    """All rounds of every run of an experiment in ``runs``, by method and seed, and by folder where these are equal.

    Raises:
        PipelineError: if there is none.
    """
    found = sorted(_ledgers(runs, name), key=lambda each: each[:2])
    if not found:
        raise PipelineError(
            f"no complete round of experiment {name!r} in {runs}: run it first, or name its folder by runs="
        )
    times = Counter(label for label, _, _ in found)
    return {label if times[label] == 1 else f"{label} ({folder})": rounds for label, folder, rounds in found}


def write(runs: Path, name: str) -> tuple[str, list[Path]]:
    """The comparison table of an experiment, and the files that it was written to: Markdown and picture."""
    curves = curves_of(runs, name)
    table = comparison(curves)
    text, picture = runs / f"{name}.md", runs / f"{name}.png"
    text.write_text(table)
    accuracy_curves(curves, name).savefig(picture, dpi=150)
    return table, [text, picture]


def _ledgers(runs: Path, name: str) -> Iterator[tuple[str, str, Sequence[Round]]]:
    """Label, folder and rounds of each run."""
    for folder in runs.glob("*/seed-*"):
        if not re.fullmatch(re.escape(name) + "-[0-9a-f]{8}", folder.parent.name):
            continue
        identity = recorded_identity(folder / "round-01" / "round.json")
        if identity is None:
            continue
        dense = Ledger(*dense_home(runs, identity)).read(0)
        ledger = Ledger(folder, identity)
        later = itertools.takewhile(lambda r: r is not None, map(ledger.read, itertools.count(1)))
        yield label(identity), folder.parent.name, [each for each in (dense, *later) if each is not None]


def label(identity: Mapping[str, Any]) -> str:
    """What sets a run apart from others of its experiment: pruning, method and seed."""
    pruning, retraining = identity["pruning"], Retraining(**identity["retraining"])
    words = [method_name(retraining)]
    words += ["reset optimizer"] if retraining.optimizer_state == "reset" else []
    known = {key: pruning.get(key, usual) for key, usual in USUAL.items()}
    known |= {"shares": None} if known["policy"] is not None else {}
    words += [f"{key} {known[key]}" for key, usual in USUAL.items() if known[key] != usual]
    return ", ".join([*words, f"seed {identity['seed']}"])
