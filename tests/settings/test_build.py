"""What a user can get wrong on the command line: a sentence each, exit status 2, no traceback, nothing written."""

import sys

import pytest

from pipeline.__main__ import main

ONE_FAULT = {
    "training.epocs=3": "training.epocs: unknown setting; did you mean training.epochs?",
    "+colour=red": "colour: unknown setting; takes ",
    "sed=1": "sed: unknown setting; did you mean seed?",
    "pruning.rounds=three": 'pruning.rounds: got "three", takes a whole number from 0 or null',
    "pruning.rounds=-1": "pruning.rounds: got -1, takes a whole number from 0 or null",
    "pruning.rounds=2.5": "pruning.rounds: got 2.5, takes a whole number from 0 or null",
    "pruning.fraction=1": "pruning.fraction: got 1, takes a share from 0 to below 1 or null",
    "pruning.fraction=20%": 'pruning.fraction: got "20%", takes a share from 0 to below 1',
    "pruning.fraction=1/0": 'pruning.fraction: got "1/0", takes a share',
    "pruning.fraction=null": "pruning.fraction: got null with pruning.rounds=14 and pruning.target_density=null, takes",
    "pruning.criterion=magnitud": 'pruning.criterion: got "magnitud", takes magnitude or magnitude_per_mac or lamp or random',
    "pruning.mac_strength=-1": "pruning.mac_strength: got -1, takes a number from 0",
    "deploy.measure=every": 'deploy.measure: got "every", takes outcome or all',
    "pruning.scope=everything": 'pruning.scope: got "everything", takes global or layer or erk',
    "pruning.exclude=output": 'pruning.exclude: got "output", takes a list, each item text',
    "pruning.exclude=[conv9]": "pruning.exclude: got 'conv9', which matches no layer; the layers are features.0",
    "pruning.exclude=['*']": "pruning.exclude: got ['*'], which leaves no layer to prune",
    "pruning.empty_layer=ignore": 'pruning.empty_layer: got "ignore", takes warn or error or a share',
    "pruning.target_density=0": "pruning.target_density: got 0, takes a share above 0 and below 1",
    "pruning.target_density=0.01": "pruning.target_density: got 0.01, which no round reaches: pruning.rounds=14 of "
    "pruning.fraction=0.2 end at density 0.0440; takes pruning.rounds=21 or more, or null",
    "pruning.rounds=null": "pruning: got rounds, target_density and max_score_drop all null, takes at least one",
    "retraining.length=0": "retraining.length: got 0, takes a number above 0",
    "retraining.copies=0": "retraining.copies: got 0, takes a whole number from 1",
    "training.ema=1": "training.ema: got 1, takes a share above 0 and below 1",
    "training.teacher=me": 'training.teacher: got "me", takes dense or previous or null',
    "training.optimizer.rates={bias: 0}": 'training.optimizer.rates: got {"bias": 0}, takes a mapping of names, each to',
    "data.flip=sometimes": 'data.flip: got "sometimes", takes true or false or alternate',
    "data.crop_fill=mirror": 'data.crop_fill: got "mirror", takes zeros or reflect',
    "model.whitened=features": "model.whitened: got 'features', which is no convolution of the images; takes features.0",
    "retraining.weights=old": 'retraining.weights: got "old", takes final or rewound or fresh',
    "retraining=rewinding": "Could not find 'retraining/rewinding' Available options in 'retraining': fine_tuning",
    "model=resnet21": "Could not find 'model/resnet21'",
    "+experiment=imagenet": "Could not find 'experiment/imagenet' Available options in 'experiment': amc_digits",
    "model.network=resnet": "model.network: got 'resnet', takes one of cifar_resnet, fast_cnn, imagenet_resnet, lenet_300_100",
    "model.network=no.such.Net": "model.network: got 'no.such.Net', but No module named 'no'",
    "model.network=torch.nn.Lineer": "model.network: got 'torch.nn.Lineer', but module 'torch.nn' has no attribute",
    "model.network=torch.nn.functional.relu": "but relu() got an unexpected keyword argument",
    "model.network=torch.nn.Identity": "turns 2 inputs into",
    "model.arguments.depth=20": "but small_cnn() got an unexpected keyword argument 'depth'; takes (shape:",
    "model=custom": "model: got neither of network and module, takes one of them",
    "model.arguments=3": "model.arguments: got 3, takes a mapping of names to values",
    "training.batch_size=0": "training.batch_size: got 0, takes a whole number from 1",
    "training.epochs=true": "training.epochs: got true, takes a whole number from 1",
    "objective.better=more": 'objective.better: got "more", takes higher or lower',
    "training.schedule=cosine": 'training.schedule: got "cosine", takes a group of settings (choose with '
    "training/schedule=step or cosine or one_cycle)",
    "training.schedule.kind=linear": 'training.schedule.kind: got "linear", takes step or cosine or one_cycle',
    "training/schedule=linear": "Could not find 'training/schedule/linear'",
    "training.schedule.milestones=[0.5,1.5]": "training.schedule.milestones: got [0.5, 1.5], takes a list, each item",
    "training.schedule.milestones=[0.5,0.2]": "training.schedule.milestones: got [0.5, 0.2], takes rising shares",
    "training.optimizer.rate=fast": 'training.optimizer.rate: got "fast", takes a number above 0',
    "training.optimizer.rate=-0.1": "training.optimizer.rate: got -0.1, takes a number above 0",
    "training.optimizer.beta1=0.9": "training.optimizer.beta1: unknown setting",
    "data.source=somewhere": "data.source: got 'somewhere', takes null for data.dataset=digits",
    "data.dataset=mnist": 'data.dataset: got "mnist", takes digits or cifar10',
    "data.validation_images=5000": "data: got validation_images=5000 from train and test_images=400, takes no more than",
    "seed=-1": "seed: got -1, takes a whole number from 0",
    "name=a/b": "name: got 'a/b', takes what can name a folder and a model: without /",
    "name=\"O'Brien?\"": 'name: got "O\'Brien?", takes what can name a folder and a model: without \'?',
    "task=trian": 'task: got "trian", takes run or plan or report',
    "tracking=none": 'tracking: got "none", takes a group of settings',
}  # fmt: skip

SEVERAL = {
    ("pruning.fraction=2", "training.epochs=0", "sed=1"): ["pruning.fraction", "training.epochs", "sed"],
    ("pruning.rounds=null", "training.optimizer.momentum=0", "training.optimizer.nesterov=true"): ["pruning:", "nesterov"],
    ("data=cifar10", "data.source=/no/such/folder"): ["data.source: got '/no/such/folder', which is no folder; put a copy"],
    ("data=cifar10", "data.source=null"): ["data.source: got null, takes a hub id or a local folder"],
    ("pruning.target_density=0.05", "pruning.empty_layer=0.1"): ["pruning.empty_layer: got 0.1"],
    ("model=resnet20", "model.arguments.depth=21"): ["depth=21 is not 6n + 2"],
    ("~seed",): ["seed: missing"],
    ("pruning=per_mac", "pruning.scope=layer"): ["pruning.criterion: got magnitude_per_mac where weights compete within"],
    ("pruning=per_mac", "pruning.shares={output: 0.5}"): ["got magnitude_per_mac where weights compete within"],
    ("pruning=per_mac", "pruning.structure=filter"): ["got magnitude_per_mac with pruning.structure=filter, takes"],
    ("pruning.fraction=0", "pruning.rounds=null"): ["pruning.fraction: got 0, with which nothing goes, and pruning.rounds=n"],
    ("pruning.fraction=0", "pruning.target_density=0.1"): ["got 0, with which nothing goes"],
    ("pruning=lamp", "pruning.scope=layer"): ["got lamp where weights compete within their layer, which it orders by"],
    ("pruning=lamp", "pruning.structure=filter"): ["got lamp with pruning.structure=filter, takes magnitude or random"],
    ("pruning=erk", "pruning.structure=filter"): ["pruning.scope: got erk with pruning.structure=filter, takes"],
    ("pruning=erk", "pruning.shares={output: 0.5}"): ["pruning.scope: got erk beside shares of layers"],
    ("pruning=erk", "pruning.empty_layer=0.01"): ["pruning.empty_layer: got 0.01 with pruning.scope=erk"],
    ("pruning=gradual", "retraining.copies=2"): ["retraining.copies: got 2 with pruning.schedule=cubic"],
    ("pruning=gradual", "pruning.structure=filter"): ["pruning.schedule: got cubic with pruning.structure=filter"],
    ("training.teacher=dense", "objective.loss=torch.nn.MultiMarginLoss"): ["training.teacher: got dense for MultiMargin"],
    ("training.teacher=dense", "objective=own", "objective.score=a", "model.module=tests.own_modules.Lit", "model.network=null"):
        ["training.teacher: got dense for a LightningModule, whose loss is its own; takes null"],
    ("training.teacher=dense", "objective.loss_arguments={ignore_index: 255}"): [
        "training.teacher: got dense with objective.loss_arguments={ignore_index: 255}, which torch takes for labels alone"
    ],
    ("seed=[",): [""],
    ("~nothing",): ["nothing"],
}  # fmt: skip


@pytest.fixture
def fails(tmp_path, monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["pipeline", f"runs={tmp_path / 'runs'}", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capsys.readouterr()
        assert end.value.code == 2
        assert "Traceback" not in err + out
        assert out == ""
        assert list(tmp_path.iterdir()) == []
        return err

    return run


@pytest.mark.parametrize(("argument", "sentence"), ONE_FAULT.items(), ids=ONE_FAULT)
def test_one_fault_is_one_sentence(argument, sentence, fails):
    error = fails(argument)
    assert sentence in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(("arguments", "parts"), SEVERAL.items(), ids=map(" ".join, SEVERAL))
def test_all_faults_are_told_at_once(arguments, parts, fails):
    lines = fails(*arguments).splitlines()
    assert len(lines) == len(parts)
    assert all(any(part in line for line in lines) for part in parts)


def test_the_tables_are_as_long_as_they_should_be():
    assert len(ONE_FAULT) + len(SEVERAL) >= 30


def test_a_hub_that_cannot_be_reached_and_no_copy(fails, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True, raising=False)
    error = fails("+experiment=resnet20", "data.source=nobody/no-such-data-set")
    assert "data.source: got 'nobody/no-such-data-set', which cannot be read" in error
    assert "name it with data.source=FOLDER; data=digits needs no files" in error
