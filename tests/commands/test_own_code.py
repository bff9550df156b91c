"""A user's own network and data that do something wrong: a sentence and an exit status, never a traceback."""

import pickle
import re
import sys

import pytest
import pytorch_lightning as lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pipeline import prune_by_rewinding
from pipeline.__main__ import main
from pipeline.commands.attempt import IN_FULL
from pipeline.ground.errors import SettingsError
from pipeline.networks import build_network
from pipeline.networks.weights import read_weights
from pipeline.rounds import loop as rounds
from pipeline.rounds.building import build_job
from pipeline.settings.groups import Model
from tests.conftest import settings


class Good(lightning.LightningDataModule):
    """16 vectors of 64 numbers, labels 0 to 9."""

    def loader(self, labels=None, count=16):
        labels = torch.arange(count) % 10 if labels is None else labels
        return DataLoader(TensorDataset(torch.randn(count, 64), labels), batch_size=8)

    def train_dataloader(self):
        return self.loader()

    def val_dataloader(self):
        return self.loader()

    def test_dataloader(self):
        return self.loader()


class NotSetUp(Good):
    def setup(self, stage):
        raise KeyError("no\nsuch column")


class NoClasses(Good):
    classes = 10


class NotMade(Good):
    def __init__(self):
        raise RuntimeError("no database")


class Negative(Good):
    def train_dataloader(self):
        return self.loader(torch.full((16,), -1))


class OutOfRange(Good):
    def train_dataloader(self):
        return self.loader(torch.full((16,), 10))


class OneHot(Good):
    def val_dataloader(self):
        return self.loader(torch.zeros(16, 10, dtype=torch.int64))


class Lengths(Good):
    def val_dataloader(self):
        return Given((torch.zeros(8, 64), torch.zeros(5, dtype=torch.int64)))


class ThreeLater(Good):
    def test_dataloader(self):
        pair = torch.zeros(8, 64), torch.zeros(8, dtype=torch.int64)
        return Given(pair, (*pair, 1))


class NoBatches(Good):
    def test_dataloader(self):
        return []


class Breaks(Good):
    def train_dataloader(self):
        return Broken()


class TooShort(Good):
    def train_dataloader(self):
        return Short()


class Given:
    def __init__(self, *batches):
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        return iter(self.batches)


class Short:
    def __len__(self):
        return 5

    def __iter__(self):
        yield torch.zeros(8, 64), torch.zeros(8, dtype=torch.int64)


class Leaves(Good):
    def setup(self, stage):
        sys.exit(0)


class Broken:
    def __len__(self):
        return 2

    def __iter__(self):
        yield torch.zeros(8, 64), torch.zeros(8, dtype=torch.int64)
        raise RuntimeError("disk on fire")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.output = nn.Linear(64, 10)

    def forward(self, x):
        return self.output(x.flatten(1))


class FailsToBeMade(Net):
    def __init__(self):
        {}["width"]


class FailsInTraining(Net):
    def forward(self, x):
        if self.training:
            raise ValueError("only fails in training")
        return super().forward(x)


class Tied(nn.Module):
    """Two layers that share a weight, which the state dict names twice."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.output = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.output(self.second(self.first(x.flatten(1)).relu()))


class Lazy(Net):
    def __init__(self):
        super().__init__()
        self.output = nn.LazyLinear(10)


class Computed(Net):
    def __init__(self):
        super().__init__()
        self.hidden = nn.utils.parametrizations.weight_norm(nn.Linear(64, 64))

    def forward(self, x):
        return self.output(self.hidden(x.flatten(1)))


class NoLayers(Net):
    def __init__(self):
        super().__init__()
        self.output = nn.BatchNorm1d(64)

    def forward(self, x):
        return self.output(x.flatten(1))[:, :10]


class Frozen(Net):
    def __init__(self):
        super().__init__()
        self.requires_grad_(False)


HERE = "tests.commands.test_own_code"
DATA = {
    "NotSetUp": (2, r"data: NotSetUp cannot be set up: KeyError: .*no\\nsuch column.*"),
    "NoClasses": (2, r"data: NoClasses cannot be set up: 'int' object is not iterable"),
    "NotMade": (2, r"data.arguments: got {}, but RuntimeError: no database at .*test_own_code.py, line \d+; takes \(\)"),
    "Negative": (2, r"objective.loss: CrossEntropyLoss fails on outputs float32 .8, 10. from .* and targets int64 .8,. from -1 to -1 of train: IndexError: Target -1 is out of bounds.*"),
    "OutOfRange": (2, r"objective.loss: CrossEntropyLoss fails on outputs float32 .8, 10. from .* and targets int64 .8,. from 10 to 10 of train: IndexError: Target 10 is out of bounds.*"),
    "OneHot": (2, r"model.network: .*Net' turns 2 inputs into .*|objective.loss: CrossEntropyLoss fails on .*"),
    "Lengths": (2, r"data: batch 1 of val_dataloader\(\) of Lengths is tensors of \(8, 64\) and \(5,\); takes .*"),
    "ThreeLater": (1, r"data: batch 2 of test_dataloader\(\) of ThreeLater is a tuple of another form; takes .*"),
    "NoBatches": (2, r"data: test_dataloader\(\) of NoBatches gives no batches"),
    "TooShort": (1, r"data: the loader that trains ends after 1 batches of 5"),
    "Leaves": (2, r"data: Leaves cannot be set up: SystemExit: 0"),
    "Breaks": (1, r"your network or data fail at .*test_own_code.py, line \d+: RuntimeError: disk on fire"),
}  # fmt: skip
NETWORKS = {
    f"{HERE}.FailsToBeMade": (
        2,
        r"model.arguments: got {}, but KeyError: 'width' at .*test_own_code.py, line \d+; takes \(\)",
    ),
    f"{HERE}.FailsInTraining": (
        2,
        r"FailsInTraining fails on its first batch at .*test_own_code.py, line \d+: .*only fails in training",
    ),
    f"{HERE}.Computed": (
        2,
        r"model.network: the weight of layer 'hidden' is computed from others .*; takes plain layers",
    ),
    f"{HERE}.NoLayers": (2, r"model.network: has no convolution, linear or attention layer, so nothing can be pruned"),
    f"{HERE}.Frozen": (
        2,
        r"model.network: every weight is frozen \(requires_grad is false\), so nothing can be pruned",
    ),
    "tests.own_code_with_a_fault.Net": (
        2,
        r"model.network: got 'tests.own_code_with_a_fault.Net', but SyntaxError: .*",
    ),
    ".": (2, r"model.network: got '.', but .*; takes one of .*"),
}


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Runs the command line in this process; returns its exit status and what it says on stderr."""

    def run(*arguments):
        short = ["training.epochs=1", "pruning.rounds=1", f"runs={tmp_path / 'runs'}"]
        monkeypatch.setattr(sys, "argv", ["pipeline", *short, *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code, capsys.readouterr().err

    return run


def test_the_tables_are_not_empty():
    assert (len(DATA), len(NETWORKS)) == (12, 7)


@pytest.mark.parametrize("name", DATA)
def test_data_that_do_something_wrong(name, command, tmp_path):
    status, sentence = DATA[name]
    got, err = command("model=custom", f"model.network={HERE}.Net", "data=own", f"data.module={HERE}.{name}")
    assert re.fullmatch(sentence + r"\n", err)
    assert got == status
    assert status == 1 or not (tmp_path / "runs").exists()


@pytest.mark.parametrize("by", ["HYDRA_FULL_ERROR", "debug"])
@pytest.mark.parametrize("name", ["NotSetUp", "NotMade", "Negative", "Leaves", "Breaks"])
def test_the_whole_traceback_is_there_for_who_asks(name, by, command, monkeypatch):
    monkeypatch.setenv(IN_FULL, "of an earlier command")
    monkeypatch.delenv(IN_FULL)
    if by == "HYDRA_FULL_ERROR":
        monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    asked = ["debug=true"] if by == "debug" else []
    status, sentence = DATA[name]
    got, err = command("model=custom", f"model.network={HERE}.Net", "data=own", f"data.module={HERE}.{name}", *asked)
    traceback, told = err.rstrip("\n").rsplit("\n", 1)
    assert re.fullmatch(sentence, told)
    assert got == status
    assert traceback.startswith("Traceback (most recent call last):\n")
    assert "test_own_code.py" in traceback or name == "Negative"


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_that_does_something_wrong(name, command, tmp_path, monkeypatch):
    (tmp_path / "own_code_with_a_fault.py").write_text("def f(:\n")
    monkeypatch.setattr("tests.__path__", [*sys.modules["tests"].__path__, str(tmp_path)])
    status, sentence = NETWORKS[name]
    got, err = command("model=custom", f"model.network={name}")
    assert re.fullmatch(sentence + r"\n", err)
    assert got == status


@pytest.mark.parametrize("method", ["lr_rewinding", "weight_rewinding", "lottery_ticket", "reinitialisation"])
def test_a_pruned_weight_that_two_layers_share_stays_zero_under_both_names(method, tmp_path):
    chosen = settings(
        "model=custom", f"model.network={HERE}.Tied", "training.epochs=3", "pruning.rounds=2", f"retraining={method}"
    )  # fmt: skip
    job, site = build_job(chosen, tmp_path)
    rounds.run(job, site)
    weights, masks = site.ledger.state(2).network, site.ledger.masks(2)
    assert set(masks) == {"first.weight", "output.weight"}
    assert (~masks["first.weight"]).sum() > 1000
    for name in ("first.weight", "second.weight"):
        assert (weights[name][~masks["first.weight"]] == 0).all()
        assert (weights[name][masks["first.weight"]] != 0).any()


def test_lazy_layers_get_their_initial_weights_from_the_seed():
    first, same, other = (
        build_network(Model(f"{HERE}.Lazy", None, {}, None, None), torch.zeros(1, 64), 10, seed).state_dict()[
            "output.weight"
        ]
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


class Anything:
    pass


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (Anything, r"which is no file of tensors alone; takes a .safetensors file"),
        ({"state_dict": {"output.weight": torch.zeros(2)}}, "does not fit: output.bias is missing; output.weight has shape"),
        ({"output.weight": torch.zeros(10, 64, device="meta")}, "which holds more than tensors by name"),
        ({"output.weight": torch.zeros(10, 64).to_sparse()}, "which holds more than tensors by name"),
        ({"output.weight": torch.full((10, 64), 1e300, dtype=torch.float64)}, "output.weight holds a number that is not finite"),
        ({"output.weight": torch.zeros(10, 64) * 1j, "output.bias": torch.zeros(10)}, "output.weight is complex, takes float32"),
    ],
)  # fmt: skip
def test_files_that_hold_no_weights(content, sentence, tmp_path):
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(SettingsError, match=sentence):
        read_weights(tmp_path / "weights.pt", Net())


def test_bytes_that_are_no_file_of_weights(tmp_path):
    for number, content in enumerate((b"", b"x", pickle.dumps({"a": 1})[:-3], b"\x80\x02h\x65.")):
        path = tmp_path / f"{number}.pt"
        path.write_bytes(content)
        with pytest.raises(SettingsError, match=r"model.weights: got .*; takes a .safetensors file") as error:
            read_weights(path, Net())
        assert "weights_only" not in str(error.value)


@pytest.mark.parametrize(
    "setting", ["model.weights=~no-such-user/w.pt", "data.source=~no-such-user/images"], ids=["weights", "images"]
)
def test_a_home_that_is_not_there(setting, command):
    group = ["data=cifar10"] if setting.startswith("data") else []
    got, err = command(*group, setting)
    assert got == 2
    assert err.startswith(f"{setting.split('=')[0]}: got ")
    assert err.count("\n") == 1


def test_what_goes_wrong_with_the_python_call_is_told_at_once(tmp_path):
    with pytest.raises(SettingsError) as error:
        prune_by_rewinding("Net", "data", "model=resnet20", "task=plan", {"seed": 1}, f"runs={tmp_path}")
    told = "\n".join(error.value.faults)
    for sentence in (
        "model=resnet20: network and data are given", "task=plan: network and data are given",
        "network: got 'Net', takes a torch.nn.Module, or a class", "data: got 'data', takes a LightningDataModule", "settings: got {'seed': 1}, takes text",
    ):  # fmt: skip
        assert sentence in told
    assert len(error.value.faults) == 5
    assert not list(tmp_path.iterdir())
