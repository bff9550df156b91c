"""What a network will weigh and take at some of the planned densities, before it is trained.

Its initial weights (or those that it starts from) are cut as the rounds would cut trained ones. So bytes and time are a
guess: training moves weights between layers, and codings of random int8 weights are a little longer.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from pipeline.deploy import kernels
from pipeline.deploy.models import models
from pipeline.deploy.runtime import arrays
from pipeline.ground import tables
from pipeline.ground.errors import PipelineError
from pipeline.networks.costs import density
from pipeline.pruning.masks import Masks
from pipeline.report.timing import covered, forms, in_turns
from pipeline.rounds.choice import subject_with
from pipeline.rounds.job import Job
from pipeline.settings.groups import Deploy
from pipeline.training.state import State, masked

LOOKS = 4
"""Rounds that are looked at, round 0 and the last among them."""
SECONDS = 0.5
ALL_CHANNELS = 1 << 20
"""Channels are taken out in multiples of so many: none is. Training revives most that initial weights leave dead."""


@dataclass(frozen=True)
class Forecast:
    """One round's network: bytes of its models, milliseconds of an inference here, the dense one's over these.

    ``sparse`` is whether the sparse engine computes it, or ONNX Runtime, where that knows no faster way.
    """

    index: int
    density: float
    macs_kept: float
    float32_bytes: int
    int8_bytes: int
    milliseconds: float
    gain: float
    sparse: bool


def looked_at(rounds: int) -> list[int]:
    """Which of the rounds 0 to ``rounds`` a forecast is made of."""
    return sorted({round(rounds * look / (LOOKS - 1)) for look in range(LOOKS)})


def forecasts(job: Job, deploy: Deploy, rounds: int) -> Iterator[Forecast]:
    """Forecasts of some of the rounds 0 to ``rounds``.

    Raises:
        PipelineError: if the network cannot be exported or brought to int8.
    """
    weights = job.initial(0) if job.trained is None else job.trained
    masks: Masks = job.alive()
    for index in range(rounds + 1):
        if index:
            masks = job.cut(weights, masks, index)
        if index in looked_at(rounds):
            yield _forecast(job, deploy, index, weights, masks)


def _forecast(job: Job, deploy: Deploy, index: int, weights: Mapping[str, Tensor], masks: Masks) -> Forecast:
    subject = subject_with(job, masked(State(dict(weights), {}), masks).network)
    made = models(subject, deploy.calibration_images, ALL_CHANNELS, dynamic_axes=deploy.dynamic_axes)
    one = arrays(next(iter(subject.examples("validation", 1))))
    ways = forms(made, kernels.target_here() if covered(made, one) else None)
    ways = {way: form for way, form in ways.items() if way != "int8"}
    times = in_turns(made, ways, one, SECONDS)
    way = min(ways, key=lambda each: times["ratio"][each])
    layers, bytes_of = job.layers(masks), made.size_bytes
    return Forecast(
        index,
        density(layers),
        sum(layer.macs_kept for layer in layers),
        bytes_of["float32"],
        bytes_of["int8"],
        times["milliseconds"][way],
        1 / times["ratio"][way],
        way == "sparse",
    )


def table(found: Sequence[Forecast]) -> str:
    """Lines for a person."""
    head = ("round", "density", "MACs, M", "float32", "int8", "ms", "gain", "by")
    rows = [
        (
            str(each.index),
            f"{each.density:.4f}",
            tables.short(each.macs_kept / 1e6),
            f"{each.float32_bytes:,}",
            f"{each.int8_bytes:,}",
            tables.short(each.milliseconds),
            f"{each.gain:.2f}x",
            "sparse engine" if each.sparse else "ONNX Runtime",
        )
        for each in found
    ]
    return tables.aligned([head, *rows])


def told(job: Job, deploy: Deploy, rounds: int) -> Iterator[str]:
    """The forecast, or why there is none, as lines for a person."""
    try:
        found = list(forecasts(job, deploy, rounds))
    except PipelineError as error:
        yield f"no forecast of bytes and time: {error}"
        return
    yield "bytes and time of the models, were the weights pruned as they are before training (one input, one thread):"
    yield table(found)
