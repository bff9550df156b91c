"""The outcome sheet: what every round of a run is worth in bytes, time and instructions, beside its accuracy."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from pipeline.deploy import bundle
from pipeline.report import pictures, table
from pipeline.rounds.ledger import Round, write_file
from pipeline.rounds.loop import Job, ledger_of, network_after
from pipeline.settings.groups import Deploy


@dataclass(frozen=True)
class Sizes:
    """Bytes of one network's ONNX files: plain export, packed float, packed int8; and what they were made with."""

    dense_bytes: int
    float32_bytes: int
    int8_bytes: int
    calibration_images: int
    width_multiple: int = 1

    @property
    def figures(self) -> dict[str, float]:
        """In numbers, for tables and tracking."""
        return {
            "dense_bytes": self.dense_bytes,
            "float32_bytes": self.float32_bytes,
            "int8_bytes": self.int8_bytes,
            "bytes_compression": self.dense_bytes / self.int8_bytes,
        }


def measured(job: Job, rounds: Sequence[Round], deploy: Deploy, told: Callable[[int], None]) -> list[Sizes]:
    """Sizes of every round: read where they are kept beside it, else measured by making the files, and kept.

    Raises:
        PipelineError: if the network cannot be exported.
    """
    return [_kept(job, each, deploy) or _made(job, each, deploy, told) for each in rounds]


def kept(job: Job, rounds: Sequence[Round], deploy: Deploy) -> list[Sizes]:
    """Sizes of every round where all are kept beside the rounds, else none."""
    found = [each for round_ in rounds if (each := _kept(job, round_, deploy)) is not None]
    return found if len(found) == len(rounds) else []


Figures = Sequence[Mapping[str, float]]
"""Of every round what is known of it, in numbers; empty where that is nothing."""
PICTURES = {
    "accuracy_vs_bytes.png": (
        "kB on disk",
        1e-3,
        {"packed float32": "float32_bytes", "packed int8": "int8_bytes", "plain export, dense": "dense_bytes"},
    ),
    "accuracy_vs_time.png": (
        "time of an inference here, one thread (% of the dense float network's)",
        100.0,
        {"float32": "latency_ratio", "int8": "int8_latency_ratio", "sparse engine": "sparse_latency_ratio"},
    ),
    "accuracy_vs_instructions.png": (
        "million ARM instructions of an inference",
        1e-6,
        {"float32": "instructions", "int8": "int8_instructions", "sparse engine": "sparse_instructions"},
    ),
}
"""By file: what accuracy is drawn against, the factor of its figures, and a line's label and figure."""
OF_THE_DENSE = ("dense_bytes",)
"""Figures that are drawn of round 0 alone."""


def curves(rounds: Sequence[Round], figures: Figures, method: str, title: str) -> dict[str, Figure]:
    """The pictures of a run by file name: accuracy against density, and against each cost that two rounds have."""
    drawn = {"accuracy_vs_sparsity.png": pictures.accuracy_curves({method: rounds}, title)}
    for name, (cost, factor, kinds) in PICTURES.items():
        lines = {}
        for label, kind in kinds.items():
            shown = rounds[:1] if kind in OF_THE_DENSE else rounds
            points = [(known[kind] * factor, r) for r, known in zip(shown, figures, strict=False) if kind in known]
            if points:
                lines[label] = points
        if any(len(points) > 1 for points in lines.values()):
            drawn[name] = pictures.accuracy_by_cost(lines, cost, f"{title}, {method}")
    return drawn


def write(
    folder: Path,
    rounds: Sequence[Round],
    sizes: Sequence[Sizes],
    timings: Figures,
    best: Round,
    method: str,
    title: str,
) -> list[Path]:
    """Table, figures and pictures of a run into a folder; the figures of ``best`` into ``metrics.json``.

    ``timings`` are figures of every round, empty for one that has not been timed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    extra = [each.figures for each in sizes]
    (folder / "rounds.md").write_text(table.markdown(rounds, extra))
    known = [{**(extra[n] if extra else {}), **timings[n]} for n in range(len(rounds))]
    (folder / "rounds.csv").write_text(table.as_csv(rounds, known))
    figures = best.figures | known[best.index]
    (folder / "metrics.json").write_text(json.dumps({"round": best.index, **figures}, indent=1) + "\n")
    for name, curve in curves(rounds, known, method, title).items():
        curve.savefig(folder / name, dpi=150)
    return sorted(folder.iterdir())


def _path(job: Job, round_: Round) -> Path:
    return ledger_of(job, round_.index).path(round_.index) / "sizes.json"


def _kept(job: Job, round_: Round, deploy: Deploy) -> Sizes | None:
    try:
        sizes = Sizes(**json.loads(_path(job, round_).read_text()))
    except (OSError, ValueError, TypeError):
        return None
    made = (sizes.calibration_images, sizes.width_multiple)
    return sizes if made == (deploy.calibration_images, deploy.width_multiple) else None


def _made(job: Job, round_: Round, deploy: Deploy, told: Callable[[int], None]) -> Sizes:
    told(round_.index)
    found = bundle.models(
        network_after(job, round_.index), job.dataset, deploy.calibration_images, deploy.width_multiple
    )
    size = found.size_bytes
    sizes = Sizes(size["dense"], size["float32"], size["int8"], deploy.calibration_images, deploy.width_multiple)
    write_file(_path(job, round_), json.dumps(dataclasses.asdict(sizes)).encode())
    return sizes
