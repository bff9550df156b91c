"""Runs from their ledgers, as the records that a comparison takes. Reads what is on disk, trains nothing."""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

from pipeline.ground.errors import PipelineError
from pipeline.objective.score import Score
from pipeline.report import sizes, timing
from pipeline.report.comparison import RunRecord
from pipeline.rounds.ledger import Ledger, dense_home, recorded_identity, recorded_score
from pipeline.settings.groups import Pruning, Retraining
from pipeline.settings.identity import LATER, LENGTHENS, flat
from pipeline.training.retraining import run_title


def records(runs: Path, name: str, *, measured: bool = False) -> list[RunRecord]:
    """Every run of an experiment in ``runs``, under the name of its folder; ``measured``: with the bytes and times that
    are kept beside its rounds, wherever they were taken.

    Raises:
        PipelineError: if there is none.
    """
    found = sorted(_records(runs, name, measured), key=lambda record: (record.name, record.seed))
    if not found:
        raise PipelineError(
            f"no complete round of experiment {name!r} in {runs}: run it first, or name its folder by runs="
        )
    return found


def _records(runs: Path, name: str, measured: bool) -> Iterator[RunRecord]:
    for folder in runs.glob("*/seed-*"):
        if not re.fullmatch(re.escape(name) + "-[0-9a-f]{8}", folder.parent.name):
            continue
        identity = recorded_identity(folder / "round-01" / "round.json")
        if identity is None:
            continue
        first = Ledger(*dense_home(runs, identity))
        dense = first.read(0)
        ledger = Ledger(folder, identity)
        later = itertools.takewhile(lambda r: r is not None, map(ledger.read, itertools.count(1)))
        rounds = [each for each in (dense, *later) if each is not None]
        pruning = {**LATER["pruning"], **dict.fromkeys(LENGTHENS), **identity["pruning"]}
        retraining = LATER["retraining"] | identity["retraining"]
        teacher, ema = retraining.pop("teacher"), identity["training"].get("ema")
        method = run_title(Pruning(**pruning), Retraining(**retraining), teacher, ema)
        if pruning["policy"] is not None:  # whose name says it: its shares are others for each seed
            pruning["shares"] = None
        yield RunRecord(
            name=folder.parent.name,
            method=method,
            seed=identity["seed"],
            settings={key: str(value) for key, value in flat(identity | {"pruning": pruning}).items()},
            rounds=tuple(
                each.figures | (_measured((ledger if each.index else first).path(each.index)) if measured else {})
                for each in rounds
            ),
            started_ms=rounds[0].finished_ms,
            score=Score.read(recorded_score(folder / "round-01" / "round.json")),
        )


def _measured(folder: Path) -> dict[str, float]:
    found = (sizes.kept_in(folder), timing.kept_in(folder))
    return {name: value for each in found if each is not None for name, value in each.figures.items()}
