"""The tape: what it holds of a training, and what is made of it."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.rounds import loop
from pipeline.rounds.building import build_job
from pipeline.training.tape import Recorder, Tape, set_numbers
from tests.conftest import settings

SHIPPED = ["step", "cosine", "one_cycle", "cifar_resnet", "imagenet_resnet"]


@pytest.mark.parametrize("schedule", SHIPPED)
@pytest.mark.parametrize("overrides", [[], ["training.max_steps=70"], ["trainer.accumulate_grad_batches=3"]])
def test_what_a_training_records_is_the_pure_schedule(schedule, overrides, tmp_path):
    chosen = ["training.epochs=4", "pruning.rounds=0", "model.arguments.width=4", "deploy.sizes=false"]
    job, site = build_job(settings(f"training/schedule={schedule}", *chosen, *overrides), tmp_path)
    loop.run(job, site)
    recorded, pure = site.dense.tape(), job.schedule()
    assert {k: v.tolist() for k, v in recorded.starts.items()} == {k: v.tolist() for k, v in pure.starts.items()}
    assert recorded.numbers.keys() - pure.numbers.keys() == {"0|0|initial_lr"}  # Lightning's schedulers keep it there
    steps = int(pure.starts["0"][-1])
    for key, numbers in pure.numbers.items():
        assert torch.equal(recorded.numbers[key].expand(steps), numbers.expand(steps))


def groups_at(rate, momentum):
    return [{"params": [], "lr": rate, "betas": (momentum, 0.999), "fused": True, "weight_decay": 0}]


@given(
    st.lists(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=4), min_size=2, max_size=5),
    st.data(),
)
def test_a_tape_that_was_cut_and_joined_is_the_whole_one(epochs, data):
    def record(recorder, part, done):
        for epoch in part:
            recorder.epoch(1, done)
            for step in epoch:
                recorder.step(0, groups_at(*step))
            done += len(epoch)
        return recorder.tape(done)

    cut = data.draw(st.integers(1, len(epochs) - 1))
    whole = record(Recorder(), epochs, 0)
    first = record(Recorder(), epochs[:cut], 0)
    joined = record(Recorder(Tape.of(first.tensors())), epochs[cut:], sum(map(len, epochs[:cut])))
    for tape in (whole, joined, Tape.of(whole.tensors())):
        assert tape.epochs == len(epochs)
        for number, epoch in enumerate(epochs):
            assert tape.global_step(number) == sum(map(len, epochs[:number]))
            for place, (rate, momentum) in enumerate(epoch):
                found = tape.at(0, number, place)
                assert (found[0, "lr"], found[0, "betas.0"]) == (rate, momentum)
            assert tape.at(0, number, 99) == tape.at(0, number, len(epoch) - 1)


def test_what_is_held_and_how_little_a_schedule_ends_with():
    recorder = Recorder()
    recorder.epoch(1, 0)
    for step in range(100):
        recorder.step(0, groups_at(0.4 * (1 + math.cos(math.pi * step / 100)) / 2, 0.9))
    tape = recorder.tape(100)
    assert tape.end_share() == pytest.approx((1 + math.cos(math.pi * 0.99)) / 2)
    assert tape.held("last").at(0, 0, 3)[0, "lr"] == tape.at(0, 0, 99)[0, "lr"]
    assert tape.held(0.25).at(0, 0, 3)[0, "lr"] == pytest.approx(0.1)
    assert tape.held(0.25).at(0, 0, 3)[0, "betas.0"] == 0.9


def test_numbers_go_back_where_they_were_as_what_they_were():
    groups = [{"params": [], "lr": torch.tensor(0.1), "betas": (0.9, 0.99), "weight_decay": 1, "nesterov": True}]
    set_numbers(groups, {(0, "lr"): 0.5, (0, "betas.1"): 0.5, (0, "weight_decay"): 2.0, (0, "gone"): 1.0, (7, "lr"): 1})
    assert groups[0]["lr"].item() == 0.5
    assert groups[0]["betas"] == (0.9, 0.5)
    assert repr(groups[0]["weight_decay"]) == "2"
    assert groups[0]["nesterov"] is True
    assert len(groups) == 1
