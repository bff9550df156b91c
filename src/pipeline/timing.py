"""``task=measure``: what a round's network takes beside the dense one, here in milliseconds and on ARM in instructions.

The float network without its dead channels against the dense one, by ONNX Runtime on one thread, taking turns.
"""

import dataclasses
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.deploy import arm, bundle
from pipeline.deploy.runtime import latencies
from pipeline.environment import environment
from pipeline.ledger import Round, write_file
from pipeline.rounds import Job, ledger_of, network_after
from pipeline.settings import Deploy

BOARD = arm.PROCESSORS[0]


@dataclass(frozen=True)
class Timing:
    """One round's network: milliseconds of an inference and their ratio to the dense network's; instructions on ARM.

    ``instructions`` are None where no ARM can be emulated; ``processor`` is that of the milliseconds.
    """

    latency_ms: float
    latency_ratio: float
    instructions: int | None
    processor: str
    width_multiple: int
    taken_ms: int

    @property
    def figures(self) -> dict[str, float]:
        """In numbers, for tracking."""
        known = {"latency_ms": self.latency_ms, "latency_ratio": self.latency_ratio}
        return known if self.instructions is None else known | {"instructions": self.instructions}


def measured(job: Job, rounds: Sequence[Round], deploy: Deploy, told: Callable[[str], None]) -> list[Timing]:
    """The timing of rounds: read where it is kept beside them, else taken and kept.

    Raises:
        PipelineError: if the network cannot be exported.
    """
    return [_kept(job, each, deploy) or _taken(job, each, deploy, told) for each in rounds]


def table(rounds: Sequence[Round], timings: Sequence[Timing]) -> str:
    """Lines for a person."""
    head = ("round", "density", "MACs kept", "ms", "of dense", "ARM instructions", "of dense")
    rows = [head]
    for round_, each in zip(rounds, timings, strict=True):
        counts = (each.instructions, timings[0].instructions)
        rows.append(
            (
                str(round_.index),
                f"{round_.density:.4f}",
                f"{round_.macs_kept / round_.macs_dense:.4f}",
                f"{each.latency_ms:.4f}",
                f"{each.latency_ratio:.3f}",
                "-" if counts[0] is None else f"{counts[0]:,}",
                "-" if counts[0] is None or counts[1] is None else f"{counts[0] / counts[1]:.3f}",
            )
        )
    return "\n".join("".join(f"{cell:>{len(name) + 3}}" for cell, name in zip(row, head, strict=True)) for row in rows)


def _path(job: Job, round_: Round) -> Path:
    return ledger_of(job, round_.index).path(round_.index) / "timing.json"


def _kept(job: Job, round_: Round, deploy: Deploy) -> Timing | None:
    try:
        timing = Timing(**json.loads(_path(job, round_).read_text()))
    except (OSError, ValueError, TypeError):
        return None
    same = timing.width_multiple == deploy.width_multiple and timing.processor == environment()["processor"]
    return timing if same and (timing.instructions is not None or arm.missing()) else None


def _taken(job: Job, round_: Round, deploy: Deploy, told: Callable[[str], None]) -> Timing:
    told(f"measuring round {round_.index}")
    dense, model = bundle.float_models(network_after(job, round_.index), job.dataset, deploy.width_multiple)
    one, _ = next(bundle.first(job.dataset.raw("validation"), 1))
    times = latencies({"dense": dense, "float32": model}, one)
    instructions = None
    if arm.missing() is None:
        told(f"counting the instructions of round {round_.index} on an emulated {BOARD.board}")
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "model.onnx").write_bytes(model.SerializeToString())
            np.savez(folder / "inputs.npz", allow_pickle=False, inputs=one)
            instructions = arm.instructions(BOARD, folder / "model.onnx", folder / "inputs.npz", folder)
    timing = Timing(
        times["milliseconds"]["float32"],
        times["ratio"]["float32"],
        instructions,
        str(environment()["processor"]),
        deploy.width_multiple,
        time.time_ns() // 1_000_000,
    )
    write_file(_path(job, round_), json.dumps(dataclasses.asdict(timing)).encode())
    return timing
