"""Bytes of every round's deployed model and the score that it has in int8, kept beside the round."""

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.deploy.recipe import recipe
from pipeline.ground.files import write_file
from pipeline.rounds.choice import subject_of
from pipeline.rounds.job import Job, Site
from pipeline.rounds.ledger import Round
from pipeline.settings.groups import Deploy

if TYPE_CHECKING:  # what is kept is read without ONNX
    from pipeline.deploy.models import Models
    from pipeline.deploy.subject import Subject


INT8_SCORE = "int8_score"
"""The figure that a network in int8 is scored by."""


@dataclass(frozen=True)
class Sizes:
    """Bytes of one network's ONNX files: plain export, packed float, packed int8; and what they were made with.

    ``int8_score`` is the test score of the last, by ONNX Runtime; None where answers alone do not tell it.
    """

    dense_bytes: int
    float32_bytes: int
    int8_bytes: int
    calibration_images: int
    width_multiple: int = 1
    recipe: Mapping[str, str] = field(default_factory=dict)
    int8_score: float | None = None
    taken_ms: int | None = None
    """When they were measured; None of those that were kept before this was recorded."""

    @property
    def figures(self) -> dict[str, float]:
        """In numbers, for tables and tracking."""
        found = {
            "dense_bytes": self.dense_bytes,
            "float32_bytes": self.float32_bytes,
            "int8_bytes": self.int8_bytes,
            "bytes_compression": self.dense_bytes / self.int8_bytes,
        }
        return found if self.int8_score is None else found | {INT8_SCORE: self.int8_score}


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
    found = models(subject, *made, dynamic_axes=deploy.dynamic_axes)
    size = found.size_bytes
    sizes = Sizes(
        size["dense"],
        size["float32"],
        size["int8"],
        *made,
        recipe(deploy.dynamic_axes),
        _int8_score(found, subject),
        time.time_ns() // 1_000_000,
    )
    write_file(_path(site, round_), json.dumps(dataclasses.asdict(sizes)).encode())
    return sizes


def _int8_score(found: "Models", subject: "Subject") -> float | None:
    from pipeline.deploy.models import form

    try:
        return subject.judged(form(found.int8, subject), "test")
    except Exception:  # bytes are known whether or not a module of a user's can be judged by answers
        return None
