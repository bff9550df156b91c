"""Runs from their ledgers, as the records that a comparison takes. Reads what is on disk, trains nothing."""

import itertools
import re
from pathlib import Path

from pipeline.ground.errors import PipelineError
from pipeline.objective.score import Score
from pipeline.report import sizes, timing
from pipeline.report.comparison import RunRecord
from pipeline.rounds.ledger import Ledger, Round, dense_home, recorded_identity, recorded_score, round_0_is_gone
from pipeline.settings.groups import Pruning, Retraining
from pipeline.settings.identity import LATER, LENGTHENS, flat
from pipeline.training.retraining import run_title


def records(runs: Path, name: str, *, measured: bool = False) -> list[RunRecord]:
    """Every run of an experiment in ``runs``, under the name of its folder; ``measured``: with the bytes and times that
    are kept beside its rounds, wherever they were taken.

    Raises:
        PipelineError: if there is none.
    """
    named = re.compile(re.escape(name) + "-[0-9a-f]{8}")
    folders = (each for each in runs.glob("*/seed-*") if named.fullmatch(each.parent.name))
    made = (record(each, measured=measured) for each in folders)
    found = sorted((each for each in made if each is not None), key=lambda each: (each.name, each.seed))
    if not found:
        raise PipelineError(
            f"no complete round of experiment {name!r} in {runs}: run it first, or name its folder by runs="
        )
    return found


def record(folder: Path, *, last: int | None = None, measured: bool = False) -> RunRecord | None:
    """The run whose ledger is in a folder, up to its ``last`` round; None where none is complete but the dense one.

    Raises:
        PipelineError: if its round 0 is gone, which all figures are held against.
    """
    identity = recorded_identity(folder / "round-01" / "round.json")
    if identity is None:
        return None
    first = Ledger(*dense_home(folder.parents[1], identity))
    if (dense := first.read(0)) is None:
        raise PipelineError(round_0_is_gone(folder, first.folder))
    ledger = Ledger(folder, identity)
    indices = itertools.count(1) if last is None else range(1, last + 1)
    later = itertools.takewhile(lambda r: r is not None, map(ledger.read, indices))
    rounds = [dense, *(each for each in later if each is not None)]
    pruning = {**LATER["pruning"], **dict.fromkeys(LENGTHENS), **identity["pruning"]}
    retraining = LATER["retraining"] | identity["retraining"]
    teacher, ema = retraining.pop("teacher"), identity["training"].get("ema")
    method = run_title(Pruning(**pruning), Retraining(**retraining), teacher, ema)
    if pruning["policy"] is not None:  # whose name says it: its shares are others for each seed
        pruning["shares"] = None
    return RunRecord(
        name=folder.parent.name,
        method=method,
        seed=identity["seed"],
        settings={key: str(value) for key, value in flat(identity | {"pruning": pruning}).items()},
        rounds=tuple(
            _figures(each, (ledger if each.index else first).path(each.index) if measured else None) for each in rounds
        ),
        started_ms=rounds[0].finished_ms,
        score=Score.read(recorded_score(folder / "round-01" / "round.json")),
    )


def _figures(round_: Round, folder: Path | None) -> dict[str, float]:
    """The round in numbers, as MLflow has them, with what is kept beside it in ``folder``."""
    found = [] if folder is None else [sizes.kept_in(folder), timing.kept_in(folder)]
    beside = {name: value for each in found if each is not None for name, value in each.figures.items()}
    return {name: float(value) for name, value in {**round_.figures, **beside}.items()}
