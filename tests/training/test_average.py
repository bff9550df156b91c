"""Averages of weights against plain loops."""

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.data import DataLoader

from pipeline import prune_by_rewinding
from pipeline.data.dataset import Shard
from pipeline.rounds import loop as rounds
from pipeline.training.average import MovingAverage, mean_of
from pipeline.training.state import State
from pipeline.training.train import evaluate


def floats(network):
    return {name: each.clone() for name, each in network.state_dict().items() if each.is_floating_point()}


def test_a_training_with_ema_ends_with_the_average_of_its_steps_by_hand(small_job):
    job, site = small_job("training.ema=0.9", "pruning.rounds=1")
    plain, plain_site = small_job("pruning.rounds=1")
    assert site.dense.folder != plain_site.dense.folder
    steps, average = [], floats(job.network)

    def after_step(optimizer, *_):
        for name, value in floats(job.network).items():
            average[name] += (value - average[name]) * (1 - 0.9)
        steps.append(None)

    hook = register_optimizer_step_post_hook(after_step)
    job = rounds.dataclasses.replace(job, pruning=rounds.dataclasses.replace(job.pruning, rounds=0))
    try:
        done = rounds.run(job, site)
    finally:
        hook.remove()
    reached = site.dense.state(0)
    assert len(steps) == 25
    for name, value in average.items():
        torch.testing.assert_close(reached.network[name], value, rtol=1e-5, atol=1e-6)
    rounds.run(plain, plain_site)
    raw = plain_site.dense.state(0)
    assert not torch.allclose(raw.network["output.weight"], reached.network["output.weight"])
    assert reached.optimizer.keys() == raw.optimizer.keys()
    assert all(torch.equal(reached.optimizer[key], value) for key, value in raw.optimizer.items())
    validated = evaluate(job.trainable, "validation", reached)
    assert done[0].history[-1].metrics["validation_accuracy"] == validated["validation_accuracy"]


def test_a_mean_of_states_is_that_of_every_number():
    first = State({"a": torch.tensor([1.0, 2]), "n": torch.tensor(3)}, {"a|momentum_buffer": torch.tensor([0.0, 4])})
    second = State({"a": torch.tensor([2.0, 0]), "n": torch.tensor(5)}, {"a|momentum_buffer": torch.tensor([1.0, 0])})
    mean = mean_of([first, second])
    assert mean.network["a"].tolist() == [1.5, 1.0]
    assert mean.network["n"] == 3
    assert mean.optimizer["a|momentum_buffer"].tolist() == [0.5, 2.0]


def test_complex_numbers_are_averaged_as_others_are():
    each = [State({"a": torch.tensor([1.0 + 2j, real])}, {}) for real in (0.0, 4.0)]
    assert mean_of(each).network["a"].tolist() == [1 + 2j, 2]
    network = nn.Linear(1, 1, bias=False, dtype=torch.complex64)
    average = MovingAverage(network, 0.5, {"weight": torch.full((1, 1), 2j)})
    average.on_fit_start(None, None)
    average.on_train_batch_end()
    assert torch.equal(average.kept()["weight"], (network.weight.detach() + 2j) / 2)


def test_copies_of_a_round_are_trained_in_other_orders_and_averaged_with_statistics_of_their_own(
    small_job, monkeypatch
):
    job, site = small_job("+method=soup", "pruning.rounds=1")
    parts = []
    mean = rounds.mean_of
    monkeypatch.setattr(rounds, "mean_of", lambda states: parts.extend(states) or mean(states))
    done = rounds.run(job, site)
    single, single_site = small_job("pruning.rounds=1")
    rounds.run(single, single_site)
    alone = single_site.ledger.state(1)
    assert len(parts) == 3
    assert all(torch.equal(parts[0].network[name], value) for name, value in alone.network.items())
    assert not torch.equal(parts[0].network["output.weight"], parts[1].network["output.weight"])
    reached, masks = site.ledger.state(1), site.ledger.masks(1)
    for name in masks:
        expected = torch.stack([part.network[name] for part in parts]).mean(0)
        torch.testing.assert_close(reached.network[name], expected)
        assert (reached.network[name][~masks[name]] == 0).all()
    # the first normalisation sees what the first convolution makes of an epoch: its mean over all batches
    images = [batch.inputs for batch in job.dataset.training(128, 10, (0, 1, 0), Shard())]
    convolution = torch.nn.functional.conv2d
    means = torch.stack(
        [convolution(x, reached.network["features.0.weight"], padding=1).mean((0, 2, 3)) for x in images]
    )
    torch.testing.assert_close(reached.network["features.1.running_mean"], means.mean(0), rtol=1e-4, atol=1e-5)
    assert done[1].epochs == 9
    assert [epoch.number for epoch in done[1].history] == list(range(1, 11))
    validated = evaluate(job.trainable, "validation", reached)
    assert done[1].history[-1].metrics["validation_accuracy"] == validated["validation_accuracy"]
    assert job.network.training or all(layer.momentum == 0.1 for layer in normalisations(job.network))


def normalisations(network):
    return [layer for layer in network.modules() if isinstance(layer, torch.nn.BatchNorm2d)]


@pytest.mark.parametrize("teacher", ["dense", "previous"])
def test_half_of_the_loss_is_against_the_teachers_probabilities(teacher, small_job):
    """The first step of round 2 by hand."""
    job, site = small_job(f"training.teacher={teacher}", "pruning.rounds=2", "training.optimizer.weight_decay=0")
    rounds.run(job, site)
    start, teaches = site.ledger.state(1), site.dense.state(0) if teacher == "dense" else site.ledger.state(1)
    masks, gradients = site.ledger.masks(2), {}
    batch = next(iter(job.dataset.training(128, 10, (0, 2, 0), Shard())))
    job.network.load_state_dict(dict(teaches.network))
    answers = job.network.eval()(batch.inputs).detach().softmax(1)
    job.network.load_state_dict({**start.network, **{n: start.network[n].where(m, 0) for n, m in masks.items()}})
    job.network.train()
    scores = job.network(batch.inputs).log_softmax(1)
    own = -scores.gather(1, batch.labels[:, None]).mean()
    loss = own / 2 - (answers * scores).sum(1).mean() / 2
    job.network.zero_grad()
    loss.backward()
    gradients = {name: each.grad.clone() for name, each in job.network.named_parameters()}

    seen = []
    again, elsewhere = small_job(
        f"training.teacher={teacher}", "pruning.rounds=2", "training.optimizer.weight_decay=0",
        runs=site.dense.folder.parents[2],
    )  # fmt: skip
    for path in elsewhere.ledger.path(2).iterdir():
        path.unlink()

    def after_step(optimizer, *_):
        seen.append({name: each.grad.clone() for name, each in again.network.named_parameters()})

    hook = register_optimizer_step_post_hook(after_step)
    try:
        rounds.run(again, elsewhere)
    finally:
        hook.remove()
    for name, gradient in seen[0].items():
        expected = gradients[name].where(masks[name], 0) if name in masks else gradients[name]
        torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-6)


def test_runs_with_and_without_a_teacher_share_their_dense_network(small_job):
    plain, taught = small_job()[1], small_job("training.teacher=dense")[1]
    assert plain.dense.folder == taught.dense.folder
    assert plain.ledger.folder != taught.ledger.folder


def test_copies_that_are_averaged_leave_the_loaders_given_in_python_as_they_were(tmp_path):
    draws = torch.Generator().manual_seed(0)
    rows = [(torch.randn(6, generator=draws), number % 2) for number in range(40)]
    network = torch.nn.Sequential(
        torch.nn.Linear(6, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU(), torch.nn.Linear(8, 2)
    )
    done = prune_by_rewinding(
        network, tuple(DataLoader(rows, 10) for _ in range(3)), "+method=soup", "retraining.copies=2",
        "pruning.rounds=2", "training.epochs=1", f"runs={tmp_path}", "deploy.sizes=false",
    )  # fmt: skip
    assert all(0 <= each.test["test_accuracy"] <= 1 for each in done.rounds)
