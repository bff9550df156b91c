"""Lightning's Trainer: what settings and a user's own function make of it."""

import dataclasses

import pytest
import pytorch_lightning
import torch
from pytorch_lightning.utilities.combined_loader import CombinedLoader
from torch.utils.data import DataLoader

from pipeline import prune_by_rewinding
from pipeline.data.own import Loaders, OwnBatches, Use
from pipeline.ground.errors import SettingsError
from pipeline.rounds import loop
from pipeline.rounds.building import build_job
from pipeline.settings.identity import dense_identity
from tests.conftest import SMALL, settings
from tests.own_data import Digits
from tests.own_modules import BATCHES, Lit

SHORT = ["training.epochs=2", "pruning.rounds=1", "deploy.sizes=false"]
OWN = ["objective.score=val_accuracy", "objective.better=higher"]


class ClipsItself(Lit):
    def on_before_optimizer_step(self, optimizer):
        torch.nn.utils.clip_grad_norm_(self.parameters(), 0.05)


def run(tmp_path, module, *overrides):
    job, site = build_job(
        settings(f"model.module={module.__module__}.{module.__name__}", *OWN, *SHORT, *overrides), tmp_path
    )
    return loop.run(job, site), site


def same_weights(one, other):
    one, other = one.state(1).network, other.state(1).network
    return all(torch.equal(one[name], tensor) for name, tensor in other.items())


def test_clipping_by_the_trainer_is_clipping_by_hand(tmp_path):
    _, hand = run(tmp_path / "hand", ClipsItself)
    _, trainer = run(tmp_path / "trainer", Lit, "trainer.gradient_clip_val=0.05")
    _, plain = run(tmp_path / "plain", Lit)
    assert same_weights(hand.ledger, trainer.ledger)
    assert not same_weights(plain.ledger, trainer.ledger)


@pytest.mark.parametrize(("limits", "steps"), [
    (["trainer.accumulate_grad_batches=4"], 5),
    (["trainer.limit_train_batches=6"], 6),
    (["trainer.limit_train_batches=0.5"], 9),
    (["trainer.limit_train_batches=6", "trainer.accumulate_grad_batches=3"], 2),
])  # fmt: skip
@pytest.mark.parametrize("module", [True, False])
def test_steps_of_an_epoch_under_limits_and_accumulation(limits, steps, module, tmp_path):
    own = ["model.module=tests.own_modules.Lit", *OWN] if module else []
    job, site = build_job(settings(*own, *SHORT, *limits), tmp_path)
    done = loop.run(job, site)
    assert site.dense.tape().starts["0"].tolist() == [0, steps, 2 * steps]
    assert len(done) == 2
    assert BATCHES == 19


FAULTS = {
    "gradient_clipval=1": r"trainer.gradient_clipval: unknown or not for rounds; did you mean trainer.gradient_clip_val\?",
    "max_epochs=3": r"trainer.max_epochs: got 3, takes training.epochs, which says the same",
    "devices=2": r"trainer.devices: got 2, takes training.devices",
    "fast_dev_run=true": r"trainer.fast_dev_run: unknown or not for rounds; takes accelerator, ",
    "precision=17": r"trainer: got \{'precision': 17\}, but ",
    "gradient_clip_algorithm=by_magic": r"trainer: got \{'gradient_clip_algorithm': 'by_magic'\}, but ",
    "limit_train_batches=0": r"trainer.limit_train_batches: got 0, ",
    "limit_val_batches=1.5": r"trainer.limit_val_batches: got 1.5, takes a whole number of batches from 1, or a share",
    "accumulate_grad_batches=0": r"trainer.accumulate_grad_batches: got 0, takes a whole number from 1",
    "check_val_every_n_epoch=2": r"trainer.check_val_every_n_epoch: unknown or not for rounds",
    "reload_dataloaders_every_n_epochs=3": r"trainer.reload_dataloaders_every_n_epochs: unknown or not for rounds",
    "limit_train_batches=0.05": r"trainer.limit_train_batches: got 0.05, which is none of 19 batches; takes a whole",
    "limit_val_batches=0.01": r"trainer.limit_val_batches: got 0.01, which is none of \d+ batches; takes a whole number",
    "limit_test_batches=0.01": r"trainer.limit_test_batches: got 0.01, which is none of \d+ batches; takes a whole",
}


@pytest.mark.parametrize("setting", FAULTS)
def test_what_a_trainer_does_not_take_is_a_sentence_before_training(setting, tmp_path):
    with pytest.raises(SettingsError, match=FAULTS[setting]):
        run(tmp_path, Lit, f"trainer.{setting}")
    assert not list(tmp_path.iterdir())


def test_what_changes_numbers_is_another_run_and_what_shows_them_is_not():
    def identity(*overrides):
        return dense_identity(settings(*overrides))

    assert identity("trainer.gradient_clip_val=1") != identity()
    assert identity("trainer.precision=bf16-true") != identity()
    assert identity("trainer.profiler=simple", "trainer.enable_progress_bar=true") == identity()


def test_a_function_of_the_users_makes_the_trainer(tmp_path):
    made = []

    def trainer(**needed):
        made.append(pytorch_lightning.Trainer(**needed, gradient_clip_val=0.05))
        return made[-1]

    quick = [*OWN, *SHORT, "training.epochs=1"]
    own = prune_by_rewinding(Lit, Digits(), *quick, f"runs={tmp_path}/own", trainer=trainer)
    by_setting = prune_by_rewinding(Lit, Digits(), *quick, "trainer.gradient_clip_val=0.05", f"runs={tmp_path}/set")
    assert made
    assert same_weights(own.site.ledger, by_setting.site.ledger)


class Other(pytorch_lightning.Callback):
    pass


TRAINERS = {
    "nothing": (lambda **needed: None, r"trainer: got None, takes a function that returns a pytorch_lightning.Trainer"),
    "others": (
        lambda **needed: pytorch_lightning.Trainer(**{**needed, "callbacks": [Other()]}),
        r"trainer: the Trainer lacks \w+; takes one made with the keywords given to it",
    ),
    "other epochs": (
        lambda **needed: pytorch_lightning.Trainer(**{**needed, "max_epochs": 7}),
        r"trainer: the Trainer has another max_epochs; takes",
    ),
    "others loaders": (
        lambda **needed: pytorch_lightning.Trainer(**{**needed, "reload_dataloaders_every_n_epochs": 5}),
        r"trainer: the Trainer has another reload_dataloaders_every_n_epochs; takes those given to it",
    ),
    "a failure": (
        lambda **needed: 1 / 0,
        r"trainer: the function given fails at .*test_trainer.py, line \d+: ZeroDivisionError",
    ),
    "other keywords": (lambda max_epochs: None, r"trainer: .*unexpected keyword"),
}


@pytest.mark.parametrize("kind", TRAINERS)
def test_a_function_that_makes_no_trainer_is_a_sentence(kind, tmp_path):
    trainer, sentence = TRAINERS[kind]
    with pytest.raises(SettingsError, match=sentence):
        prune_by_rewinding(Lit, Digits(), *OWN, *SHORT, f"runs={tmp_path}", trainer=trainer)
    assert not list(tmp_path.iterdir())


def test_a_double_precision_of_the_trainers_is_kept(tmp_path):
    done, site = run(tmp_path, Lit, "trainer.precision=64-true", "training.precision=float32")
    assert dataclasses.is_dataclass(done[1])
    assert site.ledger.state(1).network["network.output.weight"].dtype == torch.float64


@pytest.mark.parametrize(("split", "batches"), [("train", 10), ("val", 1), ("test", 1)])
def test_a_share_of_batches_that_is_none_is_known_before_of_the_pipelines_data_too(split, batches, tmp_path):
    share = 0.5 / batches
    with pytest.raises(SettingsError, match=rf"limit_{split}_batches: got {share}, which is none of {batches} batches"):
        build_job(settings(*SMALL, f"trainer.limit_{split}_batches={share}"), tmp_path)


@pytest.mark.parametrize("combine", [list, lambda loaders: dict(enumerate(loaders)), CombinedLoader])
def test_each_of_several_loaders_has_a_length_of_its_own(combine):
    loaders = [DataLoader(torch.arange(count), 4) for count in (8, 4)]
    data = Loaders(loaders[0])
    data.val_dataloader = lambda: combine(loaders)
    assert OwnBatches(data, Use()).lengths("validation") == [2, 1]
