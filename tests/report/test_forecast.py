"""Bytes and time before training, against those of the rounds that were trained."""

import pytest
import torch

from pipeline.deploy.kernels import target_here
from pipeline.report import forecast, sizes
from pipeline.rounds.loop import run
from tests.conftest import settings


def silent(*_):
    pass


@pytest.mark.parametrize(
    ("rounds", "looks"), [(0, [0]), (1, [0, 1]), (2, [0, 1, 2]), (3, [0, 1, 2, 3]), (14, [0, 5, 9, 14])]
)
def test_the_first_and_last_round_are_looked_at_and_two_between(rounds, looks):
    assert forecast.looked_at(rounds) == looks


@pytest.mark.slow
@pytest.mark.parametrize("pruned", [(), ("pruning=blocks",), ("pruning=filters", "pruning.rounds=2")])
def test_it_foretells_what_the_rounds_then_weigh(small_job, pruned):
    job, site = small_job("pruning.fraction=0.6", *pruned)
    deploy = settings("deploy.calibration_images=20").deploy
    before = list(forecast.forecasts(job, deploy, 2))
    rounds = run(job, site)
    after = sizes.measured(job, site, rounds, deploy, silent)
    assert [each.index for each in before] == [0, 1, 2]
    for foretold, done, size in zip(before[: len(rounds)], rounds, after, strict=True):  # filters may end sooner
        assert foretold.density == pytest.approx(done.density, rel=0.1)  # filters go whole
        assert foretold.float32_bytes == pytest.approx(size.float32_bytes, rel=0.1)
        assert foretold.int8_bytes == pytest.approx(size.int8_bytes, rel=0.2)
        assert foretold.milliseconds > 0
        assert foretold.gain > 0
        assert foretold.sparse <= (target_here() is not None)
    assert before[0].macs_kept == rounds[0].macs_dense
    assert len(forecast.table(before).splitlines()) == 4


def test_a_network_that_cannot_be_exported_costs_a_sentence(small_job):
    job, _ = small_job()

    class Odd(type(job.network)):
        def forward(self, images):
            return super().forward(torch.linalg.svd(images)[2] + images)

    job.network.__class__ = Odd
    (line,) = forecast.told(job, settings().deploy, 2)
    assert line.startswith("no forecast of bytes and time: the network cannot be exported to ONNX")
