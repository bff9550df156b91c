"""Plain networks with a loss and metrics from a row, on data of one's own with all its hooks."""

import dataclasses

import pytest
import torch
import torchmetrics
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pipeline import prune_by_rewinding
from pipeline.ground.errors import SettingsError
from pipeline.networks.layers import left_out, prunable
from pipeline.rounds import loop
from pipeline.rounds.building import build_job
from pipeline.rounds.choice import network_after
from tests.conftest import settings
from tests.objective.test_own import Died, DiesAfter

SHORT = ["training.epochs=2", "pruning.rounds=1", "deploy.sizes=false", "training.optimizer.rate=0.05"]


def own_data_job(tmp_path, network, data, *overrides, watcher=None):
    job, site = build_job(
        settings("model=custom", f"model.network=tests.own_data.{network}", f"data.module=tests.own_data.{data}",
                 *SHORT, *overrides), tmp_path,
    )  # fmt: skip
    return job, site if watcher is None else dataclasses.replace(site, watcher=watcher)


ROWS = {
    "classification": ("Flat", "Digits", [], "accuracy", "higher", True),
    "multilabel": ("Flat", "ManyLabels", ["model.arguments.outputs=3"], "average_precision", "higher", True),
    "regression": ("Flat", "Brightness", ["model.arguments.outputs=1"], "mae", "lower", False),
    "segmentation": ("PerPixel", "Pixels", [], "iou", "higher", True),
}


@pytest.mark.parametrize("row", ROWS)
def test_every_row_trains_prunes_and_scores(row, tmp_path):
    network, data, overrides, name, better, percent = ROWS[row]
    job, site = own_data_job(tmp_path, network, data, f"objective={row}", *overrides)
    assert (job.score.validation, job.score.test) == (f"validation_{name}", f"test_{name}")
    assert (job.score.better, job.score.percent) == (better, percent)
    done = loop.run(job, site)
    assert done[1].density == pytest.approx(0.8, abs=0.01)
    assert {f"validation_{name}", f"test_{name}", "validation_loss", "train_loss"} <= done[1].figures.keys()


def test_a_loss_has_arguments_and_a_floor_is_of_the_score(tmp_path):
    job, site = own_data_job(
        tmp_path, "Flat", "Digits", "objective.loss_arguments={weight: [1,2,1,1,1,1,1,1,1,1], label_smoothing: 0.1}",
        "objective.score=loss", "pruning.max_score_drop=10", "pruning.rounds=2",
    )  # fmt: skip
    loss = job.trainable.module.loss
    assert loss.label_smoothing == 0.1
    assert loss.weight.tolist() == [1, 2, *[1] * 8]
    assert len(loop.run(job, site)) == 3
    assert job.score.better == "lower"
    stopped = dataclasses.replace(job, pruning=dataclasses.replace(job.pruning, max_score_drop=0.0, rounds=9))
    done = loop.run(stopped, site)
    drops = [job.score.drop(r.figures["validation_loss"], done[0].figures["validation_loss"]) for r in done]
    assert all(drop <= 1e-9 for drop in drops[:-1])


DATA = {
    "hooks of a data module run": ("Flat", "Hooked"),
    "batches by name, an output with logits": ("TwoInputs", "Named"),
    "a loader without a length": ("Flat", "NoLength"),
    "a view that channels-last breaks, a Conv3d": ("Volume", "Digits"),
}


@pytest.mark.parametrize("case", DATA)
def test_data_as_they_are(case, tmp_path):
    network, data = DATA[case]
    job, site = own_data_job(tmp_path, network, data, "training.epochs=6")
    done = loop.run(job, site)
    assert done[1].figures["test_accuracy"] > 0.3
    if network == "Volume":
        assert not job.trainable.channels_last
        assert any("trains without channels-last memory" in note for note in job.notes)


def test_a_network_of_the_table_for_data_that_do_not_say_their_classes_is_a_sentence(tmp_path):
    with pytest.raises(SettingsError, match=r"got small_cnn, which takes the number of classes; the data module takes"):
        build_job(settings("data.module=tests.own_data.Digits", *SHORT), tmp_path)
    job, _ = build_job(settings("data.module=tests.own_data.WithClasses", *SHORT), tmp_path)
    assert job.network.output.out_features == 10


def test_an_endless_loader_takes_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.data.own.WITHOUT_LENGTH", 50)
    with pytest.raises(SettingsError, match=r"has no length and gave 50 batches; takes trainer.limit_train_batches=N"):
        own_data_job(tmp_path, "Flat", "Endless")
    job, site = own_data_job(tmp_path, "Flat", "Endless", "trainer.limit_train_batches=5")
    assert job.steps_per_epoch == 5
    assert len(loop.run(job, site)) == 2


@pytest.mark.parametrize(
    "arguments",
    [
        "{}",
        pytest.param("{workers: 2}", marks=pytest.mark.slow),
        pytest.param("{workers: 2, persistent: true}", marks=pytest.mark.slow),
        "{generator: true}",
    ],
)
def test_ordinary_augmentation_resumes_bit_for_bit(arguments, tmp_path):
    overrides = [f"data.arguments={arguments}", "training.epochs=3"]
    whole = own_data_job(tmp_path / "whole", "Flat", "Noisy", *overrides)
    loop.run(*whole)
    for died in ((0, 1), (0, 2), (1, 1)):
        with pytest.raises(Died):
            loop.run(*own_data_job(tmp_path / "killed", "Flat", "Noisy", *overrides, watcher=DiesAfter(*died)))
    job, site = own_data_job(tmp_path / "killed", "Flat", "Noisy", *overrides)
    loop.run(job, site)
    for index in range(2):
        assert whole[1].ledger_of(index).digest(index) == site.ledger_of(index).digest(index)
    told = any("generator of their own" in note for note in job.notes)
    assert told == ("generator" in arguments)


@pytest.mark.parametrize("name", ["LongAndFrozen", "LongAndFrozen.built", "Nested.Inner", "factory"])
def test_frozen_tied_recurrent_and_evaluating_parts_of_what_any_callable_makes(name, tmp_path):
    overrides = ["training.epochs=1", "pruning.rounds=1", "pruning.include=[lstm.*]"]
    network = f"model.network=tests.own_modules.{name}"
    job, site = build_job(settings("model=custom", network, *overrides), tmp_path)
    assert "first.weight" not in job.alive()
    assert "two.weight" not in job.alive()
    assert {"one.weight", "lstm.weight_ih_l0", "lstm.weight_hh_l0_reverse"} <= job.alive().keys()
    assert left_out(job.network, (), ("lstm.*",)) == [
        "left out of pruning: frozen weights first (requires_grad is false at the start)"
    ]
    assert any("recurrent weights lstm.weight_ih_l0" in each for each in left_out(job.network, (), ()))
    before = {key: tensor.clone() for key, tensor in job.initial(0).items()}
    loop.run(job, site)
    weights, masks = site.ledger.state(1).network, site.ledger.masks(1)
    assert torch.equal(weights["first.weight"], before["first.weight"])
    assert torch.equal(weights["norm.running_mean"], before["norm.running_mean"])
    assert torch.equal(weights["one.weight"], weights["two.weight"])
    assert sum(int((~mask).sum()) for mask in masks.values()) == round(0.2 * sum(m.numel() for m in masks.values()))
    assert all((weights[key][~mask] == 0).all() for key, mask in masks.items())
    costs = {layer.name: layer for layer in job.layers(masks)}
    assert costs["lstm.weight_ih_l0"].positions == 8
    assert costs["one"].positions == 2
    assert not costs["first"].prunable
    assert prunable(job.network) == ["one.weight", "output.weight"]


def test_a_network_that_comes_in_evaluation_is_trained(tmp_path):
    from pipeline import prune_by_rewinding
    from tests.own_data import Digits, Flat

    network = Flat().eval()
    done = prune_by_rewinding(network, Digits(), *SHORT, f"runs={tmp_path}")
    assert all(module.training for module in done.job.network.modules())
    assert not network.training


def test_numbers_on_planes_are_scored_as_numbers(tmp_path):
    """A denoiser's: every pixel is a number, channels last in memory too."""
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1))
    images = torch.rand(48, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    data = tuple(DataLoader(TensorDataset(part, part), 16) for part in images.split(16))
    done = prune_by_rewinding(network, data, "objective=regression", "training.epochs=2", "pruning.rounds=1",
                              "deploy.sizes=false", f"runs={tmp_path}")  # fmt: skip
    with torch.no_grad():
        answers = network_after(done.job, done.site, 1)(images[32:])
    expected = torchmetrics.functional.r2_score(answers.flatten(), images[32:].flatten())
    figures = done.rounds[1].figures
    assert figures["test_r2"] == pytest.approx(float(expected), abs=1e-4)
    assert figures["test_mae"] == pytest.approx(float((answers - images[32:]).abs().mean()), abs=1e-5)
