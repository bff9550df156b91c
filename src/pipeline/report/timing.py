"""``task=measure``: what a round's network takes beside the dense one: milliseconds here, instructions and foretold
milliseconds on ARM.

In three ways, each without its dead channels: float32 and int8 by ONNX Runtime, float32 by the sparse engine. One
thread, one input; the ways take turns with the dense float network.
"""

import dataclasses
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.deploy import arm, kernels
from pipeline.deploy.arm.cycles import milliseconds
from pipeline.deploy.recipe import recipe
from pipeline.ground import tables
from pipeline.ground.documents import written
from pipeline.ground.errors import PipelineError
from pipeline.ground.files import write_file
from pipeline.rounds.choice import subject_of
from pipeline.rounds.job import Job, Site
from pipeline.rounds.ledger import Round
from pipeline.settings.groups import Deploy

if TYPE_CHECKING:  # what is kept is read without ONNX
    from onnx import ModelProto

    from pipeline.deploy.models import Models
    from pipeline.deploy.runtime import Arrays

BOARD, PROCESSOR = "Raspberry Pi 4", arm.CORTEX_A72
WAYS = ("float32", "int8", "sparse")
Ways = Mapping[str, "tuple[ModelProto, Path | None]"]
"""Each way's model and library."""


@dataclass(frozen=True)
class Timing:
    """One round's network, by way: milliseconds of an inference, their ratio to the dense network's, ARM instructions,
    and the least and most milliseconds that are foretold for the board.

    A way is missing where the engine does not cover the network or cannot be built, ``instructions`` and ``board`` are
    empty where no ARM can be emulated. ``processor`` is that of the milliseconds, ``recipe`` as of ``deploy.recipe``.
    """

    milliseconds: Mapping[str, float]
    ratios: Mapping[str, float]
    instructions: Mapping[str, int]
    processor: str
    width_multiple: int
    calibration_images: int
    taken_ms: int
    recipe: Mapping[str, str] = field(default_factory=dict)
    board: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def figures(self) -> dict[str, float]:
        """In numbers, for tracking; those of float32 have bare names."""
        parts = {
            "latency_ms": self.milliseconds,
            "latency_ratio": self.ratios,
            "instructions": self.instructions,
            "board_ms_least": {way: least for way, (least, _) in self.board.items()},
            "board_ms_most": {way: most for way, (_, most) in self.board.items()},
        }
        return {
            name if way == "float32" else f"{way}_{name}": values[way]
            for name, values in parts.items()
            for way in WAYS
            if way in values
        }


def measured(
    job: Job, site: Site, rounds: Sequence[Round], deploy: Deploy, told: Callable[[str], None]
) -> list[Timing]:
    """The timing of rounds: read where it is kept beside them, else taken and kept.

    Raises:
        PipelineError: if the network cannot be exported.
    """
    return [_stored(site, each, deploy) or _taken(job, site, each, deploy, told) for each in rounds]


def stored(site: Site, rounds: Sequence[Round], deploy: Deploy) -> list[dict[str, float]]:
    """Figures of every round's timing; empty where none is kept beside it."""
    found = (_stored(site, each, deploy) for each in rounds)
    return [{} if each is None else each.figures for each in found]


def table(rounds: Sequence[Round], timings: Sequence[Timing]) -> str:
    """Lines for a person, at most 80 columns: beside a number is its share of the dense float network's."""
    rows = [("round", "density", "MACs", "way", "ms", "share", "ARM, M", "share", "Pi 4, ms")]
    dense = timings[0].instructions.get("float32")
    for round_, each in zip(rounds, timings, strict=True):
        for way, taken in each.milliseconds.items():
            count = each.instructions.get(way)
            rows.append(
                (
                    str(round_.index),
                    f"{round_.density:.4f}",
                    f"{round_.macs_kept / round_.macs_dense:.4f}",
                    way,
                    tables.short(taken),
                    f"{each.ratios[way]:.3f}",
                    "-" if count is None else tables.short(count / 1e6),
                    "-" if count is None or dense is None else f"{count / dense:.3f}",
                    " to ".join(map(tables.short, each.board[way])) if way in each.board else "-",
                )
            )
    return tables.aligned(rows)


def _path(site: Site, round_: Round) -> Path:
    return site.ledger_of(round_.index).path(round_.index) / "timing.json"


def kept_in(folder: Path) -> Timing | None:
    """The timing that is kept in a round's folder, whatever it was taken with."""
    try:
        return Timing(**json.loads((folder / "timing.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _stored(site: Site, round_: Round, deploy: Deploy) -> Timing | None:
    timing = kept_in(_path(site, round_).parent)
    if timing is None:
        return None
    from pipeline.deploy.board.run import processor

    made = timing.width_multiple, timing.calibration_images, timing.processor, timing.recipe
    if made != (deploy.width_multiple, deploy.calibration_images, processor(), recipe(deploy.dynamic_axes)):
        return None
    return timing if timing.instructions or arm.missing() else None


def _taken(job: Job, site: Site, round_: Round, deploy: Deploy, told: Callable[[str], None]) -> Timing:
    from pipeline.deploy.board.run import processor
    from pipeline.deploy.models import models
    from pipeline.deploy.runtime import arrays

    told(f"measuring round {round_.index}")
    subject = subject_of(job, site, round_.index)
    found = models(subject, deploy.calibration_images, deploy.width_multiple, dynamic_axes=deploy.dynamic_axes)
    one = arrays(next(iter(subject.examples("validation", 1))))
    sparse = covered(found, one)
    here = forms(found, kernels.target_here() if sparse else None)
    times = in_turns(found, here, one)
    there: Mapping[str, arm.Executed] = {}
    if not arm.missing():
        there = _executed(forms(found, kernels.target_of("aarch64") if sparse else None), one, round_, told)
    foretold = zip(there, milliseconds(list(there.values()), PROCESSOR), strict=True) if there else ()
    timing = Timing(
        {way: times["milliseconds"][way] for way in here},
        {way: times["ratio"][way] for way in here},
        {way: each.instructions for way, each in there.items()},
        processor(),
        deploy.width_multiple,
        deploy.calibration_images,
        time.time_ns() // 1_000_000,
        recipe(deploy.dynamic_axes),
        {way: each[BOARD] for way, each in foretold},
    )
    write_file(_path(site, round_), written(dataclasses.asdict(timing)).encode())
    return timing


def in_turns(found: "Models", ways: Ways, one: "Arrays", seconds: float = 2.0) -> dict[str, Any]:
    """``latencies`` of the ways, and ratios to the dense float network's."""
    from pipeline.deploy.runtime import latencies, session

    running = {way: session(model, library=library) for way, (model, library) in ways.items()}
    return latencies({"dense": session(found.dense)} | running, one, seconds)


def covered(found: "Models", one: "Arrays") -> bool:
    """Whether the sparse engine computes the float32 model, as far as this machine can tell."""
    from pipeline.deploy.models import engine_fault

    return found.uncovered["float32"] is None and engine_fault(found.float32, one) is None


def forms(found: "Models", target: kernels.Target | None) -> Ways:
    """Each way's model and library; no sparse one where no library is asked for, or none can be built."""
    ways: dict[str, tuple[ModelProto, Path | None]] = {"float32": (found.float32, None), "int8": (found.int8, None)}
    if target is not None:
        with suppress(PipelineError):
            ways["sparse"] = (found.float32, kernels.library(target))
    return ways


def _executed(
    ways: Ways,
    one: "Arrays",
    round_: Round,
    told: Callable[[str], None],
) -> dict[str, arm.Executed]:
    """What one inference executes on the board, by way."""
    told(f"counting the instructions of round {round_.index} on an emulated {BOARD}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.savez(folder / "inputs.npz", allow_pickle=False, **{f"inputs/{name}": each for name, each in one.items()})
        files = {way: (folder / f"{way}.onnx", library) for way, (_, library) in ways.items()}
        for way, (model, _) in ways.items():
            files[way][0].write_bytes(model.SerializeToString())
        found = arm.executed(PROCESSOR, list(files.values()), folder / "inputs.npz", folder)
    return dict(zip(files, found, strict=True))
