"""Bytes of every round's deployed model, kept beside the round."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.deploy.recipe import recipe
from pipeline.ground.files import write_file
from pipeline.rounds.choice import subject_of
from pipeline.rounds.job import Job, Site
from pipeline.rounds.ledger import Round
from pipeline.settings.groups import Deploy


@dataclass(frozen=True)
class Sizes:
    """Bytes of one network's ONNX files: plain export, packed float, packed int8; and what they were made with."""

    dense_bytes: int
    float32_bytes: int
    int8_bytes: int
    calibration_images: int
    width_multiple: int = 1
    recipe: Mapping[str, str] = field(default_factory=dict)

    @property
    def figures(self) -> dict[str, float]:
        """In numbers, for tables and tracking."""
        return {
            "dense_bytes": self.dense_bytes,
            "float32_bytes": self.float32_bytes,
            "int8_bytes": self.int8_bytes,
            "bytes_compression": self.dense_bytes / self.int8_bytes,
        }


def measured(job: Job, site: Site, rounds: Sequence[Round], deploy: Deploy, told: Callable[[int], None]) -> list[Sizes]:
    """Sizes of every round: read where they are kept beside it, else measured by making the files, and kept.

    Raises:
        PipelineError: if the network cannot be exported.
    """
    return [_stored(site, each, deploy) or _made(job, site, each, deploy, told) for each in rounds]


def stored(site: Site, rounds: Sequence[Round], deploy: Deploy) -> list[Sizes]:
    """Sizes of every round where all are kept beside the rounds, else none."""
    found = [each for round_ in rounds if (each := _stored(site, round_, deploy)) is not None]
    return found if len(found) == len(rounds) else []


def _path(site: Site, round_: Round) -> Path:
    return site.ledger_of(round_.index).path(round_.index) / "sizes.json"


def kept_in(folder: Path) -> Sizes | None:
    """The sizes that are kept in a round's folder, whatever they were made with."""
    try:
        return Sizes(**json.loads((folder / "sizes.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _stored(site: Site, round_: Round, deploy: Deploy) -> Sizes | None:
    sizes = kept_in(_path(site, round_).parent)
    made = None if sizes is None else (sizes.calibration_images, sizes.width_multiple, sizes.recipe)
    asked = (deploy.calibration_images, deploy.width_multiple, recipe(deploy.dynamic_axes))
    return sizes if made == asked else None


def _made(job: Job, site: Site, round_: Round, deploy: Deploy, told: Callable[[int], None]) -> Sizes:
    from pipeline.deploy.models import models  # no training waits for ONNX

    told(round_.index)
    subject, made = subject_of(job, site, round_.index), (deploy.calibration_images, deploy.width_multiple)
    size = models(subject, *made, dynamic_axes=deploy.dynamic_axes).size_bytes
    sizes = Sizes(size["dense"], size["float32"], size["int8"], *made, recipe(deploy.dynamic_axes))
    write_file(_path(site, round_), json.dumps(dataclasses.asdict(sizes)).encode())
    return sizes
