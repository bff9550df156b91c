"""Runs from their ledgers, as the records that a comparison takes. Reads what is on disk, trains nothing."""

import dataclasses
import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.ground.errors import PipelineError
from pipeline.report.comparison import RunRecord
from pipeline.rounds.ledger import Ledger, dense_home, recorded_identity
from pipeline.settings.groups import Pruning, Retraining
from pipeline.settings.identity import LATER, LENGTHENS, flat
from pipeline.training.retraining import method_name, run_title

USUAL: Mapping[str, Any] = LATER | {
    "fraction": 0.2, "criterion": "magnitude", "scope": "global", "exclude": [], "target_density": None,
}  # fmt: skip
"""Pruning settings that need no word in a label."""


def records(runs: Path, name: str) -> list[RunRecord]:
    """Every run of an experiment in ``runs``, named by method and seed, and by folder where these are equal.

    Raises:
        PipelineError: if there is none.
    """
    found = sorted(_records(runs, name), key=lambda each: (each[0].name, each[1]))
    if not found:
        raise PipelineError(
            f"no complete round of experiment {name!r} in {runs}: run it first, or name its folder by runs="
        )
    times = Counter(record.name for record, _ in found)
    return [
        record if times[record.name] == 1 else dataclasses.replace(record, name=f"{record.name} ({folder})")
        for record, folder in found
    ]


def _records(runs: Path, name: str) -> Iterator[tuple[RunRecord, str]]:
    """Each run, and the name of its folder."""
    for folder in runs.glob("*/seed-*"):
        if not re.fullmatch(re.escape(name) + "-[0-9a-f]{8}", folder.parent.name):
            continue
        identity = recorded_identity(folder / "round-01" / "round.json")
        if identity is None:
            continue
        dense = Ledger(*dense_home(runs, identity)).read(0)
        ledger = Ledger(folder, identity)
        later = itertools.takewhile(lambda r: r is not None, map(ledger.read, itertools.count(1)))
        rounds = [each for each in (dense, *later) if each is not None]
        pruning = Pruning(**(LATER | dict.fromkeys(LENGTHENS) | identity["pruning"]))
        record = RunRecord(
            name=label(identity),
            method=run_title(pruning, Retraining(**identity["retraining"])),
            seed=identity["seed"],
            settings={key: str(value) for key, value in flat(identity).items()},
            rounds=tuple(each.figures for each in rounds),
            started_ms=rounds[0].finished_ms,
        )
        yield record, folder.parent.name


def label(identity: Mapping[str, Any]) -> str:
    """What sets a run apart from others of its experiment: pruning, method and seed."""
    pruning, retraining = identity["pruning"], Retraining(**identity["retraining"])
    words = [method_name(retraining)]
    words += ["reset optimizer"] if retraining.optimizer_state == "reset" else []
    known = {key: pruning.get(key, usual) for key, usual in USUAL.items()}
    known |= {"shares": None} if known["policy"] is not None else {}
    words += [f"{key} {known[key]}" for key, usual in USUAL.items() if known[key] != usual]
    return ", ".join([*words, f"seed {identity['seed']}"])
