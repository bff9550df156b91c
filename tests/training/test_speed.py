"""What ``auto`` becomes, one compilation for all rounds, and exact resume in bfloat16 and compiled."""

import dataclasses

import pytest
import torch
from torch._dynamo.utils import counters

from pipeline.ground.errors import SettingsError
from pipeline.networks.layers import prunable
from pipeline.rounds import loop as rounds
from pipeline.training import speed
from pipeline.training.speed import has_compiler, resolved
from pipeline.training.train import evaluate
from tests.conftest import settings
from tests.rounds.test_loop import Stop, Watch, content, first_steps

compiled = pytest.mark.skipif(not has_compiler(), reason="no C++ compiler (apt-get install g++)")


@pytest.mark.parametrize(
    ("features", "gpu", "compiler", "epochs", "precision", "compile"),
    [
        ({"avx512_bf16"}, False, True, 1000, "bfloat16", "off"),
        ({"avx2"}, False, True, 1000, "float32", "off"),
        ({"amx_bf16", "avx512_bf16"}, False, True, 1000, "bfloat16", "on"),
        ({"amx_bf16"}, False, True, 25, "bfloat16", "on"),
        ({"amx_bf16"}, False, True, 24, "bfloat16", "off"),
        ({"amx_bf16"}, False, False, 1000, "bfloat16", "off"),
        (set(), True, True, 1000, "bfloat16", "on"),
        (set(), True, False, 1000, "bfloat16", "off"),
        ({"amx_bf16"}, True, True, 25, "bfloat16", "off"),
    ],
)
def test_auto_is_decided_by_the_machine_and_the_steps_ahead(
    features, gpu, compiler, epochs, precision, compile, monkeypatch
):
    monkeypatch.setattr(speed, "processor_features", lambda: features)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setattr(speed, "has_compiler", lambda: compiler)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    training = settings("training.precision=auto", "training.compile=auto", f"training.epochs={epochs}").training
    chosen = resolved(training, steps_per_epoch=20)
    assert (chosen.precision, chosen.compile) == (precision, compile)
    assert dataclasses.replace(chosen, precision="auto", compile="auto") == training


@pytest.mark.parametrize(
    ("flags", "fast"),
    [("flags\t\t: fpu avx512f avx512_bf16\n", True), ("flags\t\t: fpu amx_bf16\n", True), ("flags : avx2 avx512f\n", False),
     ("Features\t: fp asimd bf16\n", True), ("Features : fp asimd\n", False), ("", False)],
)  # fmt: skip
def test_fast_bfloat16_is_read_off_the_processor(flags, fast, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("pathlib.Path.read_text", lambda _: flags)
    assert speed.fast_bfloat16() is fast


def test_compiling_without_a_compiler_is_a_sentence(monkeypatch):
    monkeypatch.setattr(speed, "has_compiler", lambda: False)
    with pytest.raises(SettingsError, match=r"training.compile: got on, which takes a C\+\+ compiler"):
        resolved(settings("training.compile=on").training, 20)


def test_bfloat16_keeps_float32_weights_and_continues_bit_for_bit(small_job, tmp_path):
    arguments = ["training.precision=bfloat16", "pruning.rounds=1"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    job, site = small_job(*arguments, runs=whole)
    done = rounds.run(job, site)
    state = site.ledger.state(1)
    assert {tensor.dtype for tensor in state.network.values()} == {torch.float32, torch.int64}
    assert content(whole) != content(rounds_of(small_job, "training.precision=float32", tmp_path / "float32"))
    exact = dataclasses.replace(job.training, precision="float32")
    trainer = dataclasses.replace(job.trainable.trainer, training=exact)
    figures = evaluate(dataclasses.replace(job.trainable, trainer=trainer), "test", state)
    assert done[1].test == pytest.approx(figures, abs=0.02)
    assert done[1].test != figures
    for _ in range(6):
        with pytest.raises(Stop):
            rounds.run(*small_job(*arguments, runs=stopped, watchers=(Watch(dies_after=1),)))
        assert content(stopped) != content(whole)
    rounds.run(*small_job(*arguments, runs=stopped))
    assert content(stopped) == content(whole)


def rounds_of(small_job, argument, runs):
    rounds.run(*small_job(argument, "pruning.rounds=1", runs=runs))
    return runs


@compiled
@pytest.mark.slow
def test_one_compilation_serves_all_rounds_and_a_compiled_run_continues_bit_for_bit(small_job, tmp_path):
    arguments = ["training.compile=on", "pruning.rounds=2", "training.epochs=2", "training.max_steps=null"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    torch._dynamo.reset()
    counters.clear()
    job, site = small_job(*arguments, runs=whole)
    with first_steps(job.network) as seen:
        rounds.run(job, site)
    assert len(seen) == 3
    assert counters["stats"]["unique_graphs"] == 1
    weights = site.ledger.state(2).network
    assert all(f"{name}" in weights for name in prunable(job.network)), "plain names"

    eager, eager_site = small_job(*arguments, "training.compile=off", runs=tmp_path / "eager")
    rounds.run(eager, eager_site)
    for one, other in zip(site.dense.read(0).history, eager_site.dense.read(0).history, strict=True):
        assert one.metrics == pytest.approx(other.metrics, abs=0.03)

    for _ in range(6):
        torch._dynamo.reset()
        with pytest.raises(Stop):
            rounds.run(*small_job(*arguments, runs=stopped, watchers=(Watch(dies_after=1),)))
        assert content(stopped) != content(whole)
    rounds.run(*small_job(*arguments, runs=stopped))
    assert content(stopped) == content(whole)
