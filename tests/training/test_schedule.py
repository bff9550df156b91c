"""The learning rate against PyTorch's own schedulers and the paper's steps."""

import pytest
import torch
from hypothesis import given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st

from pipeline.ground.errors import SettingsError
from pipeline.rounds import loop as rounds
from pipeline.settings.groups import Cosine, OneCycle, Retraining, StepDecay
from pipeline.training.optimizer import make_optimizer
from pipeline.training.retraining import method_name, retraining_span, retraining_tape, training_span
from pipeline.training.schedule import scheduled
from pipeline.training.tape import scheduled_tape
from tests.conftest import settings

STEP = StepDecay("step", (0.5, 0.75), 0.1, 0.0)
SCHEDULES = {
    "step": STEP,
    "step with warm-up": StepDecay("step", (0.5, 0.75), 0.1, 0.1),
    "cosine": Cosine("cosine", 0.0),
    "cosine with warm-up": Cosine("cosine", 0.2),
    "one cycle": OneCycle("one_cycle", 0.3),
}


def torch_rates(make, steps, full=0.4):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], full)
    scheduler = make(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_step_decay_is_torchs():
    expected = torch_rates(lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [50, 75], 0.1), 100)
    assert [scheduled(STEP, 0.4, 100)(s) for s in range(100)] == pytest.approx(expected)


def test_cosine_is_torchs():
    expected = torch_rates(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 100), 100)
    assert [scheduled(SCHEDULES["cosine"], 0.4, 100)(s) for s in range(100)] == pytest.approx(expected)


def test_warm_up_is_torchs():
    expected = torch_rates(lambda o: torch.optim.lr_scheduler.LinearLR(o, 0.1, 1.0, 9), 40)
    rate = scheduled(SCHEDULES["step with warm-up"], 0.4, 100)
    assert [rate(s) for s in range(40)] == pytest.approx(expected)


def test_one_cycle_is_a_triangle():
    rate = scheduled(SCHEDULES["one cycle"], 0.4, 100)
    assert [rate(s) for s in (0, 14, 29)] == pytest.approx([0.4 / 30, 0.2, 0.4])
    falling = [rate(s) for s in range(29, 100)]
    assert falling == sorted(falling, reverse=True)
    assert falling[-1] == pytest.approx(0.4 / 71)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@given(total=st.integers(1, 400), data=st.data())
def test_every_schedule_is_defined_on_its_steps_alone(schedule, total, data):
    rate = scheduled(schedule, 0.1, total)
    assert 0 <= rate(data.draw(st.integers(0, total - 1))) <= 0.1 + 1e-12
    for outside in (-1, total):
        with pytest.raises(ValueError, match="outside of the schedule"):
            rate(outside)


def test_the_shipped_recipe_is_the_papers():
    recipe = settings("+experiment=resnet20")
    span = training_span(recipe.training, 391)
    assert (span.total_steps, span.last, span.steps_per_epoch) == (71_108, 182, 391)
    assert span.steps(0) == 391
    assert span.steps(181) == 71_108 - 181 * 391
    rate = scheduled(recipe.training.schedule, recipe.training.optimizer.rate, span.total_steps)
    changes = [s for s in range(1, span.total_steps) if rate(s) != rate(s - 1)]
    assert changes == [round(71_108 * 91 / 182), round(71_108 * 136 / 182)]
    assert [rate(s) for s in (0, changes[0], changes[1])] == pytest.approx([0.1, 0.01, 0.001])


def test_positions_are_shares_so_fewer_epochs_scale_the_recipe():
    training = settings("+experiment=resnet20", "training.epochs=2").training
    assert training_span(training, 391).total_steps == 782
    rate = scheduled(training.schedule, training.optimizer.rate, 782)
    changes = [s for s in range(1, 782) if rate(s) != rate(s - 1)]
    assert changes == [391, round(782 * 136 / 182)]


@pytest.mark.parametrize(
    ("retraining", "name", "first_epoch", "rates"),
    [
        ("lr_rewinding", "lr_rewinding", 0, (0.1, 0.001)),
        ("weight_rewinding", "weight_rewinding", 8, (0.1, 0.001)),
        ("lottery_ticket", "lottery_ticket", 0, (0.1, 0.001)),
        ("fine_tuning", "fine_tuning", 0, (0.001, 0.001)),
        ("weight_rewinding_low_rate", "weight_rewinding_low_rate", 8, (0.001, 0.001)),
        ("reinitialisation", "reinitialisation", 0, (0.1, 0.001)),
    ],
)
def test_each_method_is_a_row(retraining, name, first_epoch, rates):
    chosen = settings(f"retraining={retraining}")
    dense = training_span(chosen.training, 19)
    span = retraining_span(chosen.retraining, dense)
    assert method_name(chosen.retraining) == name
    assert (span.first, span.last) == (first_epoch, 20)
    rate = scheduled(chosen.training.schedule, chosen.training.optimizer.rate, dense.total_steps)
    full, groups = 0.1, [{"params": [], "lr": 0.1, "momentum": 0.9}]
    recorded = scheduled_tape(rate, full, [dense.steps(e) for e in range(20)], groups)
    tape = retraining_tape(chosen.retraining, recorded, span.epochs)
    used = [tape.at(0, epoch, step) for epoch, step in ((span.first, 0), (19, dense.steps(19) - 1))]
    assert tuple(each[0, "lr"] for each in used) == pytest.approx(rates)
    assert all(each[0, "momentum"] == 0.9 for each in used)


def test_a_retraining_has_at_least_one_epoch():
    dense = training_span(settings("training.epochs=2").training, 19)
    assert retraining_span(Retraining("final", "replay", "last", 0.01, "keep", 1), dense).first == 1


@given(epochs=st.integers(1, 5), longer=st.integers(1, 20), steps=st.integers(1, 7))
@settings_of_hypothesis(max_examples=50, deadline=None)
def test_a_stretched_tape_has_the_same_course_in_more_epochs(epochs, longer, steps):
    """Against interpolation by the nearest step before."""
    rates = [float(step) for step in range(epochs * steps)]
    groups = [{"params": [], "lr": 1.0, "momentum": 0.9}]
    tape = scheduled_tape(lambda step: rates[step], 1.0, [steps] * epochs, groups)
    stretched = retraining_tape(Retraining("rewound", "replay", "last", 14, "keep", 1), tape, epochs + longer)
    total = (epochs + longer) * steps
    for position in range(total):
        epoch, step = divmod(position, steps)
        assert stretched.at(0, epoch, step)[0, "lr"] == rates[position * len(rates) // total]
        assert stretched.at(0, epoch, step)[0, "momentum"] == 0.9
    assert stretched.global_step(epochs + longer) == total


@pytest.mark.parametrize(("length", "first", "epochs"), [(0.6, 8, 12), (1, 0, 20), (1.5, 0, 30), (14, 0, 280)])
def test_a_retraining_is_as_long_as_its_share_of_t(length, first, epochs):
    chosen = settings("retraining=lottery_ticket", f"retraining.length={length}")
    span = retraining_span(chosen.retraining, training_span(chosen.training, 19))
    assert (span.first, span.epochs) == (first, epochs)
    assert span.steps(span.last - 1) == 19


def test_rates_of_groups_follow_the_schedule_each_at_its_own_height(small_job):
    job, site = small_job("training.optimizer.rates={bias: 64, output.weight: 0.5}", "pruning.rounds=0")
    rounds.run(job, site)
    tape, plain = site.dense.tape(), small_job()[0].schedule()
    groups = make_optimizer(job.network, job.training.optimizer).param_groups
    names = {parameter: name for name, parameter in job.network.named_parameters()}
    assert [{names[each] for each in group["params"]} for group in groups][1:] == [
        {"features.1.bias", "features.4.bias", "features.7.bias", "output.bias"}, {"output.weight"},
    ]  # fmt: skip
    for group, factor in enumerate((1, 64, 0.5)):
        assert tape.numbers[f"0|{group}|lr"].tolist() == pytest.approx((plain.numbers["0|0|lr"] * factor).tolist())
    assert all(torch.equal(tape.numbers[key], values) for key, values in job.schedule().numbers.items())


def test_a_rate_of_no_parameter_is_a_sentence(small_job):
    with pytest.raises(
        SettingsError, match=r"training.optimizer.rates: got 'head.weight', which matches no parameter; they"
    ):
        small_job("training.optimizer.rates={head.weight: 2}")
