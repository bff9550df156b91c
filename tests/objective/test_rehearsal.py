"""What a rehearsal and a trial of the smallest batches tell before anything is trained."""

import dataclasses
import functools
from collections import namedtuple

import numpy as np
import pytest
import pytorch_lightning
import torch
from lightning.pytorch import LightningDataModule
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from pipeline import prune_by_rewinding
from pipeline.ground.errors import PipelineError, SettingsError
from pipeline.rounds import loop
from pipeline.rounds.building import build_job
from pipeline.rounds.choice import network_after
from tests.conftest import settings
from tests.networks.test_given import Net

HERE = "tests.objective.test_rehearsal"
QUICK = ["training.epochs=1", "pruning.rounds=1", "deploy.sizes=false"]
Outputs = namedtuple("Outputs", "main auxiliary")


@dataclasses.dataclass
class Scores:
    main: torch.Tensor
    auxiliary: torch.Tensor


def loader(count=16, batch=8, labels=None, **named):
    """Images (1, 8, 8), labels 0 to 9 unless they are given."""
    images = torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(images, torch.arange(count) % 10 if labels is None else labels), batch, **named)


class Auxiliary(Net):
    """More than one output in training alone."""

    answer = tuple

    def forward(self, x):
        scores = super().forward(x)
        return type(self).answer((scores, scores)) if self.training else scores


class Segments(Auxiliary):
    answer = staticmethod(lambda scores: {"out": scores[0], "aux": scores[1]})


class Named(Auxiliary):
    answer = staticmethod(lambda scores: Outputs(*scores))


class Data(Auxiliary):
    answer = staticmethod(lambda scores: Scores(*scores))


class Nothing(Auxiliary):
    answer = staticmethod(lambda scores: None)


class MoreInEvaluation(Net):
    def forward(self, x):
        scores = super().forward(x)
        return scores if self.training else (scores, scores)


class Normalised(Net):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(16)

    def forward(self, x):
        return self.output(self.norm(self.hidden(x.flatten(1))).relu())


class NormalisedByBatch(Normalised):
    """Kept in training on purpose."""

    def forward(self, x):
        self.norm.train()
        return super().forward(x)


class Planes(nn.Module):
    """Normalises planes of one pixel, which takes two examples in evaluation too."""

    def __init__(self):
        super().__init__()
        self.maps, self.norm, self.output = nn.Conv2d(1, 8, 8), nn.GroupNorm(8, 8), nn.Linear(8, 10)

    def forward(self, x):
        return self.output(self.norm(self.maps(x)).flatten(1))


class Dropped(Net):
    def forward(self, x):
        return self.output(F.dropout(self.hidden(x.flatten(1)).relu()))


class Noisy(Net):
    def forward(self, x):
        return super().forward(x + 0.1 * torch.rand_like(x))


class KeptInTraining(Normalised):
    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout()

    def forward(self, x):
        return self.output(self.drop.train()(self.hidden(x.flatten(1))))


class Attends(nn.Module):
    """Deterministic in evaluation: dropout, attention, normalisation."""

    def __init__(self):
        super().__init__()
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.norm, self.output = nn.BatchNorm1d(8), nn.Linear(64, 10)

    def forward(self, x):
        return self.output(self.norm(self.block(x[:, 0])).flatten(1))


def job(network, data, runs, *overrides):
    return build_job(settings(*QUICK, *overrides), runs, network, data)


OTHER_OUTPUTS = {
    Auxiliary: "gives a tuple in training",
    Segments: "gives a dict in training",
    Named: "gives a Outputs in training",
    Data: "gives a Scores in training",
    Nothing: "gives a NoneType in training",
    MoreInEvaluation: "gives a tuple in evaluation",
}


@pytest.mark.parametrize("kind", OTHER_OUTPUTS)
def test_outputs_that_no_loss_takes_are_a_sentence_at_both_doors(kind, tmp_path):
    sentence = f"{kind.__name__}.* fails on .*{OTHER_OUTPUTS[kind]}, takes a network that .*; or a LightningModule"
    for door in (
        lambda: build_job(settings("model=custom", f"model.network={HERE}.{kind.__name__}", *QUICK), tmp_path),
        lambda: prune_by_rewinding(kind(), (loader(),) * 3, *QUICK, f"runs={tmp_path}"),
    ):
        with pytest.raises(SettingsError, match=sentence) as error:
            door()
        assert len(error.value.faults) == 1
    assert not list(tmp_path.iterdir())
    assert len(OTHER_OUTPUTS) == 6


ALONE = r"fails on 1 in {} \(.*Expected more than 1 value per channel.*\); takes another"
SMALLEST = [
    (["model=mobilenet_v2", "training.batch_size=52"], r"got 52, which leaves 1 of 1197 training examples for the last "
     r"batch, and mobilenet_v2 fails on 1 in training .*; takes another, such as 53"),
    (["model=mobilenet_v2", "training.batch_size=1"], "got 1, which leaves 1 of 1197 .*; takes another, such as 3"),
    (["model=custom", f"model.network={HERE}.Normalised", "training.batch_size=1196"], "got 1196, .*such as 1197"),
    (["model=mobilenet_v2", "training.batch_size=199", "training.devices=2"],
     "got 199, which leaves 3 of 1197 .* last batch of 2 processes, and mobilenet_v2 fails on 1 in .*such as 200"),
    (["model=mobilenet_v2", "training.batch_size=46", "training.devices=2"],
     "got 46, which leaves 1 of 1197 .* last batch of 2 processes, and mobilenet_v2 fails on 1 in .*such as 47"),
]  # fmt: skip
OWN_LOADERS = [
    (Normalised, [loader(17), loader(), loader()], [], r"data: train_dataloader\(\) of Loaders has batch_size=8, which "
     "leaves 1 of 17 examples for the last batch, and .*" + ALONE.format("training") + ".* drop_last=True"),
    (NormalisedByBatch, [loader(), loader(17), loader()], [], r"val_dataloader\(\) .*" + ALONE.format("evaluation")),
    (Planes, [loader(), loader(), loader(9)], [], r"test_dataloader\(\) .*" + ALONE.format("evaluation")),
    (Normalised, [loader(33), loader(), loader()], ["training.devices=2"], "leaves 1 of 17 .*batch of 2 processes"),
    (Normalised, [loader(17, drop_last=True), loader(17), loader(17)], [], None),
    (Net, [loader(17), loader(17), loader(17)], [], None),
    (Normalised, [loader(17), loader(), loader()], ["trainer.limit_train_batches=2"], None),
    (Normalised, [loader(17), loader(), loader()], ["training.max_steps=2"], None),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "sentence"), SMALLEST)
def test_a_last_batch_of_one_example_is_known_before(overrides, sentence, tmp_path):
    with pytest.raises(SettingsError, match=f"training.batch_size: {sentence}"):
        build_job(settings("data=digits", *QUICK, *overrides), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "overrides", [[], ["training.batch_size=53"], ["training.batch_size=65", "training.devices=2"]]
)
def test_other_last_batches_are_no_matter(overrides, tmp_path):
    build_job(settings("data=digits", "model=mobilenet_v2", *QUICK, *overrides), tmp_path)


@pytest.mark.parametrize(("kind", "loaders", "overrides", "sentence"), OWN_LOADERS)
def test_the_same_of_loaders_of_ones_own(kind, loaders, overrides, sentence, tmp_path):
    if sentence is None:
        assert len(loop.run(*job(kind(), loaders, tmp_path, *overrides))) == 2
        return
    with pytest.raises(SettingsError, match=sentence):
        job(kind(), loaders, tmp_path, *overrides)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", [Planes, NormalisedByBatch])
def test_a_network_that_takes_no_example_alone_is_counted_by_batches(kind, tmp_path):
    done = loop.run(*job(kind(), (loader(),) * 3, tmp_path))
    assert [layer.positions for layer in done[1].layers] == [1, 1]


RANDOM = "answers differently to the same input twice in evaluation: its scores are random"
BY_BATCH = "answers an input in evaluation by what else is in its batch"
TOLD = {Dropped: RANDOM, Noisy: RANDOM, KeptInTraining: RANDOM, NormalisedByBatch: BY_BATCH}
NOT_TOLD = (Net, Normalised, Attends)


@pytest.mark.parametrize("kind", [*TOLD, *NOT_TOLD])
def test_scores_that_are_random_are_told_and_nothing_is_disturbed(kind, tmp_path):
    network = kind()
    before = {name: each.clone() for name, each in network.state_dict().items()}
    drawn = torch.get_rng_state()
    made, _ = job(network, (loader(),) * 3, tmp_path)
    assert torch.equal(torch.get_rng_state(), drawn)
    for state in (network.state_dict(), made.initial(0)):
        assert all(torch.equal(state[name], each) for name, each in before.items())
    told = [note for note in made.notes if "in evaluation" in note]
    assert len(told) == (kind in TOLD)
    assert all(note.startswith(f"warning: {kind.__name__} {TOLD[kind]}") for note in told)
    assert (len(TOLD), len(NOT_TOLD)) == (4, 3)


class Decides(Net):
    """What it answers by is a number, which no exported graph looks at."""

    def forward(self, x):
        scores = super().forward(x)
        return scores if scores.detach().abs().sum() > 0 else -scores


@pytest.mark.parametrize(("kind", "told"), [(Decides, 1), (Net, 0)])
def test_what_no_file_can_be_made_of_is_told_before_it_is_trained(kind, told, tmp_path):
    made, _ = job(kind(), (loader(),) * 3, tmp_path, "deploy.sizes=true")
    notes = [note for note in made.notes if note.startswith("warning: the network cannot be exported to ONNX")]
    assert len(notes) == told
    assert all(
        f"at {__file__}, line " in note and note.endswith("no file for a board can be made of it") for note in notes
    )


class Texts(LightningDataModule):
    """Five texts of one batch in one row, and where each begins."""

    def train_dataloader(self):
        batch = {"text": torch.arange(20), "offsets": torch.arange(0, 20, 4), "labels": torch.arange(5) % 3}
        return DataLoader([batch], batch_size=None)

    val_dataloader = test_dataloader = train_dataloader


class OfTexts(pytorch_lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.words, self.last = nn.EmbeddingBag(20, 16), nn.Linear(16, 3)

    def forward(self, text, offsets):
        return self.last(self.words(text, offsets))

    def training_step(self, batch, index):
        return F.cross_entropy(self(batch["text"], batch["offsets"]), batch["labels"])

    def validation_step(self, batch, index):
        self.log("val_loss", self.training_step(batch, index), batch_size=5)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def test_inputs_of_other_lengths_in_one_batch_are_told_before_it_is_trained(tmp_path):
    named = [f"model.module={HERE}.OfTexts", f"data.module={HERE}.Texts", "objective.score=val_loss"]
    made, _ = build_job(settings(*QUICK, *named, "objective.better=lower"), tmp_path)
    told = "warning: OfTexts cannot be deployed: its inputs have other numbers of rows in one batch (input_0 20, input_1 5)"
    assert [note.startswith(told) for note in made.notes if "rows in one batch" in note] == [True]


class Chooses(Net):
    """One of two layers, by the mean of the image."""

    def __init__(self):
        super().__init__()
        self.one, self.other = nn.Linear(10, 10), nn.Linear(10, 10)

    def forward(self, x):
        return torch.cond(
            x.mean() > 0, lambda scores: self.one(scores), lambda scores: self.other(scores), (super().forward(x),)
        )


def test_a_network_that_chooses_a_layer_is_trained_and_the_one_that_an_example_takes_is_counted(tmp_path):
    made, _ = job(Chooses(), (loader(),) * 3, tmp_path)
    taken = {name: made.positions[f"{name}.weight"] for name in ("one", "other")}
    assert sorted(taken.values()) == [0, 1]
    assert made.notes == ()


def test_axes_that_no_input_has_are_told_before_it_is_trained(tmp_path):
    with pytest.raises(
        SettingsError, match=r"deploy.dynamic_axes: got image: \[2\], takes inputs with .*: input \(3\)"
    ):
        job(Net(), (loader(),) * 3, tmp_path, "deploy.sizes=true", "deploy.dynamic_axes={image: [2]}")


FAILS = "objective.loss: CrossEntropyLoss fails on outputs .*"
LABELS = {
    "none for it": ([10] * 16, [0] * 16, SettingsError, f"{FAILS}10 to 10 of train: .*; takes labels from 0 to 9"),
    "below": ([-1] * 16, [0] * 16, SettingsError, f"{FAILS}-1 to -1 of train: .*; takes labels from 0 to 9"),
    "validation": ([0] * 16, [11] * 16, SettingsError, f"{FAILS}11 to 11 of validation: .*; takes labels from 0 to 9"),
    "late": (
        [0] * 15 + [10],
        [0],
        SettingsError,
        r"batch 2 of train_dataloader\(\) of Loaders has label 10; takes .* 9",
    ),
    "late of validation": (
        [0] * 16,
        [0] * 15 + [-3],
        SettingsError,
        r"batch 2 of val_dataloader\(\) of .* label -3; takes",
    ),
    "late of test": (
        [0] * 16,
        [0] * 16,
        SettingsError,
        r"batch 2 of test_dataloader\(\) of Loaders has label 12; takes labels",
    ),
    "too late": ([0] * 47 + [10], [0] * 16, PipelineError, f"{FAILS}0 to 10 of train: .*; takes labels from 0 to 9"),
}


@pytest.mark.parametrize("case", LABELS)
def test_labels_that_have_no_score_are_a_sentence(case, tmp_path):
    train, validation, error, sentence = LABELS[case]
    test = [0] * 15 + [12 * (case == "late of test")]
    loaders = [loader(len(labels), labels=torch.tensor(labels)) for labels in (train, validation, test)]
    with pytest.raises(error, match=sentence) as raised:
        loop.run(*job(Net(), loaders, tmp_path))
    assert type(raised.value) is error
    assert torch.backends.mha.get_fastpath_enabled()  # which counting turns off for as long as it lasts


@pytest.mark.parametrize("said", [[], ["objective.metrics.accuracy.ignore_index=-100"]])
def test_labels_that_the_loss_leaves_out_count_in_no_metric(said, tmp_path):
    labels = torch.tensor([-100, *range(10), 0, 1, 2, 3, -100])
    made, site = job(Net(), (loader(labels=labels),) * 3, tmp_path, *said)
    dense, pruned = loop.run(made, site)
    assert pruned.density < 1
    known = labels >= 0
    images = loader().dataset.tensors[0]
    hits = (network_after(made, site, 0)(images).argmax(1) == labels)[known].float().mean()
    assert dense.figures["test_accuracy"] == pytest.approx(float(hits))


def test_shares_of_classes_are_scored_by_the_largest(tmp_path):
    labels = torch.arange(16) % 10
    shares = 0.9 * torch.nn.functional.one_hot(labels, 10) + 0.01
    made, site = job(Net(), (loader(labels=shares),) * 3, tmp_path, "training.epochs=20")
    dense = loop.run(made, site)[0]
    hits = (network_after(made, site, 0)(loader().dataset.tensors[0]).argmax(1) == labels).float().mean()
    assert dense.figures["test_accuracy"] == pytest.approx(float(hits))
    assert hits > 0


class TakesAMapping(Net):
    def forward(self, parts):
        return super().forward(parts["left"] + parts["right"])


class TakesNames(Net):
    def forward(self, right, left):
        return super().forward(left + right)


@pytest.mark.parametrize("kind", [TakesAMapping, TakesNames])
def test_inputs_by_name_are_given_as_the_network_takes_them(kind, tmp_path):
    images, labels = loader().dataset.tensors
    rows = [({"left": one, "right": torch.zeros_like(one)}, label) for one, label in zip(images, labels, strict=True)]
    made, site = job(kind(), (DataLoader(rows, 8),) * 3, tmp_path)
    assert len(loop.run(made, site)) == 2


class Once(LightningDataModule):
    """Its loaders are iterators."""

    def train_dataloader(self):
        return iter(loader())

    def val_dataloader(self):
        return loader()

    test_dataloader = val_dataloader


def test_data_that_can_be_read_only_once_are_refused(tmp_path):
    with pytest.raises(
        SettingsError, match=r"train_dataloader\(\) of Once gives a .*, which can be read once; takes a"
    ):
        job(Net(), Once(), tmp_path)


class Mixed(Net):
    """A matrix in a layer that is not known."""

    def __init__(self):
        super().__init__()
        self.factors = nn.ParameterList([nn.Parameter(torch.eye(10))])

    def forward(self, x):
        return super().forward(x) @ self.factors[0]


def test_matrices_of_no_known_layer_are_told(tmp_path):
    made, _ = job(Mixed(), (loader(),) * 3, tmp_path)
    assert any("other weights factors.0 (pruning.include=['factors.0'] prunes" in note for note in made.notes)


class WeightNormalised(Net):
    """A recurrent layer whose weights are computed from others."""

    def __init__(self):
        super().__init__()
        self.steps = nn.utils.parametrizations.weight_norm(nn.GRU(10, 10, batch_first=True), "weight_hh_l0")

    def forward(self, x):
        return self.steps(super().forward(x).unsqueeze(1))[0].squeeze(1)


def test_a_recurrent_layer_with_computed_weights_is_refused(tmp_path):
    with pytest.raises(SettingsError, match=r"weight of layer 'steps' is computed from others .*; takes plain layers"):
        job(WeightNormalised(), (loader(),) * 3, tmp_path)


def test_goals_that_cannot_be_met_are_told_before_training(tmp_path):
    halves = ["pruning.fraction=0.5", "pruning.rounds=2", "pruning.empty_layer=0.4"]
    with pytest.raises(
        SettingsError, match=r"pruning.rounds: got 2, with which \d+ weights are to go, but only \d+ may"
    ):
        job(Net(), (loader(),) * 3, tmp_path, *halves)
    filters = ["pruning=filters", "pruning.target_density=0.001"]
    with pytest.raises(SettingsError, match=r"pruning.target_density: got 0.001, with which .* are when every filter"):
        build_job(settings(*filters), tmp_path)


class Centred(nn.Module):
    """Sets weights in its forward, as some normalisations do."""

    def __init__(self):
        super().__init__()
        self.hidden, self.output = nn.Linear(64, 32), nn.Linear(32, 10)
        self.alive = []

    def forward(self, x):
        if self.training:
            with torch.no_grad():
                self.hidden.weight.sub_(self.hidden.weight.mean(1, keepdim=True))
        else:
            self.alive.append(int((self.hidden.weight != 0).sum()))
        return self.output(self.hidden(x.flatten(1)).relu())


def test_what_is_pruned_stays_pruned_where_a_plain_network_sets_weights_itself(tmp_path):
    made, site = job(Centred(), (loader(),) * 3, tmp_path, "training.epochs=2", "pruning.fraction=0.8")
    made.network.alive.clear()
    done = loop.run(made, site)
    (hidden,) = (layer.kept for layer in done[1].layers if layer.name == "hidden")
    assert hidden < 1000
    assert made.network.alive[-1] == hidden
    assert {*made.network.alive} == {2048, hidden}


class Counting(torch.utils.data.Sampler):
    def __init__(self, count):
        self.count, self.epoch = count, 0

    def __len__(self):
        return self.count

    def __iter__(self):
        self.epoch += 1
        yield from torch.randperm(self.count, generator=torch.Generator().manual_seed(self.epoch)).tolist()


class Told(Counting):
    def set_epoch(self, epoch):
        self.epoch = epoch


@pytest.mark.parametrize(("sampler", "told"), [(Counting, True), (Told, False)])
def test_a_sampler_that_counts_for_itself_is_told_of(sampler, told, tmp_path):
    made, _ = job(Net(), (loader(sampler=sampler(16)), loader(), loader()), tmp_path)
    assert any("the data change Counting.epoch, which is kept nowhere" in note for note in made.notes) == told


class Augmented(torch.utils.data.Dataset):
    """Its transform, a function over it or a part of it has a generator."""

    def __init__(self, how):
        rng = np.random.default_rng(0)
        noise = functools.partial(self.noised, rng)
        self.transform = {"part": [noise], "closure": [lambda x: noise(x)], "method": [Noise(rng).add]}[how]

    @staticmethod
    def noised(rng, x):
        return x + torch.from_numpy(rng.normal(size=x.shape)).float()

    def __len__(self):
        return 16

    def __getitem__(self, index):
        return self.transform[0](torch.full((1, 8, 8), index / 16)), index % 10


class Noise:
    def __init__(self, rng):
        self.parts = {"rng": rng}

    def add(self, x):
        return Augmented.noised(self.parts["rng"], x)


@pytest.mark.parametrize("how", ["part", "closure", "method"])
def test_generators_inside_of_transforms_are_seeded_by_the_epoch(how, tmp_path):
    def run(folder, *overrides):
        torch.manual_seed(0)
        made, site = job(Net(), (DataLoader(Augmented(how), 8), loader(), loader()), tmp_path / folder, *overrides)
        return loop.run(made, site), made, site

    _, made, site = run("at once")
    assert any("generator of their own" in note for note in made.notes)
    run("continued", "pruning.rounds=0")
    _, _, continued = run("continued")
    for name, tensor in site.ledger.state(1).network.items():
        assert torch.equal(continued.ledger.state(1).network[name], tensor), name


class TwoViews(pytorch_lightning.LightningModule):
    """Trains on two views of an example, and is validated on one."""

    def __init__(self):
        super().__init__()
        self.network = Normalised()

    def forward(self, x):
        return self.network(x)

    def training_step(self, batch, _):
        first, second, labels = batch
        return F.cross_entropy(self(first) + self(second), labels)

    def validation_step(self, batch, _):
        images, labels = batch
        self.log("val_loss", F.cross_entropy(self(images), labels))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def test_copies_whose_statistics_cannot_be_taken_anew_are_a_sentence_before_training(tmp_path):
    images, labels = loader().dataset.tensors
    data = (DataLoader(TensorDataset(images, images, labels), 8), loader())
    own = [*QUICK, "objective.score=val_loss", "objective.better=lower", "retraining.copies=2", f"runs={tmp_path}"]
    sentence = r"retraining.copies: got 2, .* validation_step\(\) of TwoViews fails on one"
    with pytest.raises(SettingsError, match=sentence):
        prune_by_rewinding(TwoViews(), data, *own)


class Viewed(nn.Module):
    """Trains in no memory: in channels-last for another reason."""

    def __init__(self):
        super().__init__()
        self.seen, self.output = nn.Conv2d(1, 3, 3), nn.Linear(108, 10)

    def forward(self, x):
        seen = self.seen(x)
        scores = self.output(seen.view(len(x), -1))
        if self.training:
            raise ValueError("a fault of its own")
        return scores


def test_what_is_told_of_a_network_that_fails_in_any_case_is_no_choice_of_the_pipelines(tmp_path):
    with pytest.raises(SettingsError, match=r"Viewed fails on its first batch .*: a fault of its own"):
        job(Viewed(), (loader(),) * 3, tmp_path)
