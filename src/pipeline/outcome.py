"""The outcome sheet: what every round of a run is worth in bytes on disk, beside its accuracy."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from pipeline import pictures, table
from pipeline.deploy import bundle
from pipeline.ledger import Round, write_file
from pipeline.rounds import Job, ledger_of, network_after
from pipeline.settings import Deploy


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


def curves(rounds: Sequence[Round], sizes: Sequence[Mapping[str, float]], method: str, title: str) -> dict[str, Figure]:
    """The pictures of a run by file name: accuracy against density, and against bytes where there are ``sizes``."""
    drawn = {"accuracy_vs_sparsity.png": pictures.accuracy_curves({method: rounds}, title)}
    if sizes:
        drawn["accuracy_vs_bytes.png"] = pictures.accuracy_by_bytes(rounds, sizes, f"{title}, {method}")
    return drawn


def write(
    folder: Path, rounds: Sequence[Round], sizes: Sequence[Sizes], best: Round, method: str, title: str
) -> list[Path]:
    """Table, figures and pictures of a run into a folder; the figures of ``best`` into ``metrics.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    extra = [each.figures for each in sizes]
    (folder / "rounds.csv").write_text(table.as_csv(rounds, extra))
    (folder / "rounds.md").write_text(table.markdown(rounds, extra))
    figures = best.figures | (extra[best.index] if extra else {})
    (folder / "metrics.json").write_text(json.dumps({"round": best.index, **figures}, indent=1) + "\n")
    for name, curve in curves(rounds, extra, method, title).items():
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
