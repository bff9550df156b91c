"""What a network, callbacks, optimizers and data remember: kept with the rounds, or told of before a training."""

import dataclasses
import itertools
import threading

import numpy as np
import pytest
import torch
import torchmetrics
from lightning.pytorch import Callback, LightningDataModule
from torch import nn

from pipeline.ground.errors import SettingsError
from pipeline.networks.layers import left_out, prunable
from pipeline.rounds import loop
from pipeline.rounds.building import build_job
from pipeline.rounds.choice import network_after
from tests.conftest import settings
from tests.networks.test_given import Net
from tests.objective.test_own import Died, DiesAfter
from tests.objective.test_rehearsal import loader
from tests.own_modules import Plain

HERE = "tests.objective.test_memory"
QUICK = ["training.epochs=3", "pruning.rounds=1", "deploy.sizes=false"]
SCORED = ["objective.score=val/accuracy", "objective.better=higher"]


class Bare(Net):
    """As it is."""


class Drifts(Net):
    """Divides by a mean of what it has seen, which its state dict leaves out."""

    def __init__(self):
        super().__init__()
        self.register_buffer("size", torch.ones(64), persistent=False)
        self.register_buffer("shift", torch.full((64,), 0.5), persistent=False)

    def forward(self, x):
        x = x.flatten(1)
        if self.training:
            self.size.mul_(0.9).add_(x.abs().mean(0).detach() + 0.02, alpha=0.1)
        return super().forward(x * self.shift / self.size)


class Ours(Plain):
    """Named here."""


class DriftsAsAModule(Plain):
    def __init__(self):
        super().__init__()
        self.network = Drifts()


def job(network, runs, *overrides, data=None, watcher=None):
    kind = network if isinstance(network, type) else type(network)
    named = [f"model.module={HERE}.{kind.__name__}", *SCORED] if issubclass(kind, Plain) else ["model=custom"]
    named += [] if issubclass(kind, Plain) else [f"model.network={HERE}.{kind.__name__}"]
    given = None if isinstance(network, type) else network
    made, site = build_job(settings(*named, *QUICK, *overrides), runs, given, data or (loader(), loader(), loader()))
    return made, site if watcher is None else dataclasses.replace(site, watcher=watcher)


def same_after_a_kill(runs, network, data=lambda: None):
    """Whether a run that dies and goes on ends as one that does not, round by round."""
    whole = job(network, runs / "whole", data=data())
    rounds = loop.run(*whole)
    for died in ((0, 2), (1, 1)):
        with pytest.raises(Died):
            loop.run(*job(network, runs / "killed", data=data(), watcher=DiesAfter(*died)))
    other = job(network, runs / "killed", data=data())
    found = loop.run(*other)
    assert [each.test for each in rounds] == [each.test for each in found]
    assert [each.history[-1].metrics for each in rounds] == [each.history[-1].metrics for each in found]
    return all(whole[1].ledger_of(each).digest(each) == other[1].ledger_of(each).digest(each) for each in range(2))


@pytest.mark.parametrize("network", [Drifts, DriftsAsAModule])
def test_a_buffer_outside_the_state_dict_that_training_changes_is_kept_with_every_round(network, tmp_path):
    assert same_after_a_kill(tmp_path, network=network)
    made, site = job(network, tmp_path / "whole")
    place = "network." if network is DriftsAsAModule else ""
    assert sum(f"training changes {place}size, which {network.__name__} leaves out" in each for each in made.notes) == 1
    first, second = (network_after(made, site, index).state_dict() for index in range(2))
    assert f"{place}shift" not in first
    assert not torch.equal(first[f"{place}size"], second[f"{place}size"])


def test_a_network_with_such_a_buffer_scores_what_its_round_scored(tmp_path):
    made, site = job(Drifts(), tmp_path)
    rounds = loop.run(made, site)
    images, labels = next(iter(loader(batch=16)))
    for each in rounds:
        with torch.no_grad():
            scores = network_after(made, site, each.index)(images)
        assert float((scores.argmax(1) == labels).float().mean()) == pytest.approx(each.test["test_accuracy"])


class MadeLate(Net):
    """Makes a buffer of its state dict when it is called."""

    first, persistent = None, True

    def __init__(self):
        super().__init__()
        self.register_buffer("ones", self.first, self.persistent)

    def forward(self, x):
        if self.ones is None or len(self.ones) < len(x):
            self.ones = torch.ones(len(x), 16)
        return self.output(self.hidden(x.flatten(1)).relu() * self.ones[: len(x)])


class Grows(MadeLate):
    first = torch.ones(1, 16)


class MadeAnew(MadeLate):
    persistent = False


class Twice(Bare):
    """One part under two names."""

    def __init__(self):
        super().__init__()
        self.one = self.other = nn.Module()
        self.one.register_buffer("seen", torch.zeros(()), persistent=False)

    def forward(self, x):
        if self.training:
            self.one.seen += x.mean().detach()
        return super().forward(x) * (1 + 0.01 * self.other.seen)


class MakesAnew(Plain):
    """A buffer outside the state dict is made longer by a call."""

    def __init__(self):
        super().__init__()
        self.network = MadeAnew()
        self.network.ones = torch.ones(1, 16)


def test_a_module_whose_buffers_grow_goes_on_after_a_kill(tmp_path):
    assert same_after_a_kill(tmp_path, network=MakesAnew)


@pytest.mark.parametrize("kind", [MadeLate, Grows, MadeAnew, Twice])
def test_buffers_that_a_call_makes_and_parts_with_two_names_train_as_others(kind, tmp_path):
    for given in (kind, kind()):
        made, site = job(given, tmp_path / str(isinstance(given, type)))
        assert len(loop.run(made, site)) == 2
        found = network_after(made, site, 1)
        assert torch.isfinite(found(torch.ones(3, 1, 8, 8))).all()
    assert same_after_a_kill(tmp_path / "died", network=kind)


def test_fresh_weights_come_with_fresh_buffers(tmp_path):
    made, site = job(Drifts, tmp_path, "retraining.weights=fresh", "retraining.optimizer_state=reset")
    loop.run(made, site)
    assert torch.equal(made.initial(1)["size"], torch.ones(64))


class CountsInPython(Net):
    def __init__(self):
        super().__init__()
        self.calls, self._noise, self.mean = 0, np.random.default_rng(0), torch.zeros(())

    def forward(self, x):
        self.calls += 1
        self.mean = self.mean + x.mean()
        return super().forward(x + float(self._noise.normal()) * 0.01)


class CachesALength(Net):
    """Changes nothing that counts."""

    def __init__(self):
        super().__init__()
        self._shape, self.lstm = None, nn.LSTM(16, 16)

    def forward(self, x):
        self._shape = x.shape
        return self.output(self.lstm(self.hidden(x.flatten(1)).relu())[0])


def test_what_a_plain_network_remembers_in_python_is_told_of(tmp_path):
    told = [each for each in job(CountsInPython(), tmp_path)[0].notes if "no state dict holds" in each]
    assert len(told) == 1
    assert "CountsInPython changes calls, _noise, mean, which" in told[0]
    assert not any("no state dict" in each for each in job(CachesALength(), tmp_path)[0].notes)


class Restless(torch.optim.SGD):
    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        self.steps = 0

    def step(self, *arguments, **named):
        self.steps += 1
        return super().step(*arguments, **named)


class CountsSteps(Callback):
    def __init__(self):
        self.seen = 0

    def on_train_batch_end(self, *_):
        self.seen += 1


class SaysItself(CountsSteps):
    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"]


class Remembering(Plain):
    def __init__(self):
        super().__init__()
        self.whole = torchmetrics.MeanMetric()
        self.logged = torchmetrics.MeanMetric()
        self.by_batch = torchmetrics.MeanMetric()
        self.total = torch.zeros(())

    def training_step(self, batch, index):
        loss = super().training_step(batch, index)
        self.total = self.total + loss.detach()
        self.whole.update(loss.detach())
        self.log("whole", self.whole.compute())
        self.logged.update(loss.detach())
        self.log("logged", self.logged)
        self.log("by_batch", self.by_batch(loss.detach()))
        return loss

    def configure_optimizers(self):
        return Restless(self.parameters(), lr=0.1)

    def configure_callbacks(self):
        return [CountsSteps(), SaysItself()]


def test_what_a_module_its_callbacks_and_optimizers_remember_is_told_of(tmp_path):
    notes = job(Remembering, tmp_path)[0].notes
    assert [each.split(", which")[0] for each in notes if "no state dict holds" in each] == [
        "warning: Remembering changes total"
    ]
    assert [each.split(":")[1] for each in notes if "never resets" in each] == [" Remembering never resets whole"]
    assert any(
        "training changes steps of Restless, seen of CountsSteps, which is kept nowhere" in each for each in notes
    )


class ByEpoch(LightningDataModule):
    """Its loaders depend on the epoch in which they are made."""

    def train_dataloader(self):
        return loader(16 + 8 * self.trainer.current_epoch)

    def val_dataloader(self):
        return loader(8 + 8 * self.trainer.current_epoch)

    test_dataloader = val_dataloader


class Stateful(LightningDataModule):
    """Shows another part of its examples each time, and says in its state dict which."""

    def __init__(self):
        super().__init__()
        self.turn = 0

    def train_dataloader(self):
        return self

    def __len__(self):
        return 2

    def __iter__(self):
        self.turn += 1
        images, labels = next(iter(loader(64, 64)))
        yield from ((images[start : start + 8], labels[start : start + 8]) for start in (8 * (self.turn % 7), 0))

    def val_dataloader(self):
        return loader()

    test_dataloader = val_dataloader

    def state_dict(self):
        return {"turn": self.turn}

    def load_state_dict(self, state):
        self.turn = state["turn"]


@pytest.mark.parametrize("data", [ByEpoch, Stateful])
@pytest.mark.parametrize("network", [Bare, Ours])
def test_data_that_depend_on_their_past_go_on_as_if_nothing_had_stopped(network, data, tmp_path):
    assert same_after_a_kill(tmp_path, network=network, data=data)
    notes = job(network, tmp_path / "whole", data=data())[0].notes
    assert not any("the data change" in each for each in notes)


class TrainsAlone(LightningDataModule):
    def train_dataloader(self):
        return loader()


@pytest.mark.parametrize("data", [TrainsAlone(), (loader(),)])
def test_data_to_train_on_alone_are_enough_for_a_module_whose_score_is_of_the_training(data, tmp_path):
    made, site = job(Ours, tmp_path, "objective.score=train_loss", "objective.better=lower", data=data)
    assert len(loop.run(made, site)) == 2


class KeepsAnArray(Stateful):
    def state_dict(self):
        return {"turn": np.ones(3)}

    def load_state_dict(self, state):
        pass


class CannotTell(Stateful):
    def state_dict(self):
        return {"turn": self.nothing}


def test_a_state_that_no_file_can_give_back_is_told_of_before_training(tmp_path):
    notes = job(Bare, tmp_path, data=KeepsAnArray())[0].notes
    told = "warning: the data, a scheduler, callback or hook keeps more than tensors, numbers and text"
    assert sum(each.startswith(told) for each in notes) == 1
    with pytest.raises(SettingsError, match=r"data: state_dict\(\) of CannotTell fails: .* no attribute"):
        job(Bare, tmp_path, data=CannotTell())


class Order(torch.utils.data.Sampler):
    """A shuffled order, kept in one of several ways."""

    def __init__(self, kind):
        self.kind = kind
        self.order = np.arange(200) if kind == "array" else list(range(200))
        self.turns = itertools.count() if kind == "iterator" else None
        self.cache = {}

    def __len__(self):
        return 200

    def __iter__(self):
        if self.kind in ("list", "array"):
            np.random.default_rng(1).shuffle(self.order)
        self.cache[len(self.cache)] = torch.zeros(3)
        yield from torch.randperm(200, generator=torch.Generator().manual_seed(next(self.turns or iter([0])))).tolist()


@pytest.mark.parametrize(("kind", "told"), [("list", "order"), ("array", "order"), ("iterator", "turns"), ("", None)])
def test_an_order_that_follows_from_the_one_before_is_told_of(kind, told, tmp_path):
    data = (loader(200, sampler=Order(kind)), loader(), loader())
    notes = [each for each in job(Bare(), tmp_path, data=data)[0].notes if "the data change" in each]
    assert [each.split(", which")[0] for each in notes] == ([f"warning: the data change Order.{told}"] if told else [])


class CountsItsPasses(torch.utils.data.DataLoader):
    def __init__(self):
        super().__init__(loader().dataset, 8)
        self.passes = 0

    def __iter__(self):
        self.passes += 1
        return super().__iter__()


class NoLoader:
    def __init__(self):
        self.passes = 0

    def __len__(self):
        return 2

    def __iter__(self):
        self.passes += 1
        return iter(loader())


class GivesIt(LightningDataModule):
    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def train_dataloader(self):
        return self.kind()

    def val_dataloader(self):
        return loader()

    test_dataloader = val_dataloader


@pytest.mark.parametrize("kind", [CountsItsPasses, NoLoader])
def test_a_loader_of_any_kind_that_counts_is_told_of(kind, tmp_path):
    notes = job(Bare, tmp_path, data=GivesIt(kind))[0].notes
    assert any(f"the data change {kind.__name__}.passes, which is kept nowhere" in each for each in notes)


class Locked(Net):
    def __init__(self):
        super().__init__()
        self.output.guard = threading.Lock()


@pytest.mark.parametrize("given", [Locked, Locked()])
def test_what_cannot_be_copied_is_named(given, tmp_path):
    with pytest.raises(SettingsError, match=r"Locked cannot be copied, for its output.guard \(lock\) cannot"):
        job(given, tmp_path)


class Fixed(nn.Linear):
    """Its weight is a buffer."""

    def __init__(self):
        super().__init__(16, 16)
        weight = self.weight.detach()
        del self.weight
        self.register_buffer("weight", weight)


def test_weights_that_are_biases_or_buffers_are_no_fault():
    network = nn.Sequential(nn.Linear(16, 16), Fixed(), nn.MultiheadAttention(16, 2, add_bias_kv=True))
    network[0].extra = nn.Parameter(torch.ones(2, 2))
    assert prunable(network) == ["0.weight", "2.in_proj_weight", "2.out_proj.weight"]
    assert left_out(network, (), ()) == [
        "left out of pruning: other weights 0.extra (pruning.include=['0.extra'] prunes such weights too)",
        "left out of pruning: constant weights 1 (they are buffers)",
    ]
