"""The one call for a network and data of one's own, and the example that is shipped with it."""

import functools
import importlib.util
import shutil
import sys

import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file
from torch import nn

from pipeline import prune_by_rewinding
from pipeline.ground.errors import SettingsError
from pipeline.networks.costs import positions
from pipeline.networks.layers import prunable
from tests.conftest import PROJECT, settings, some_fast
from tests.processes import script

EXAMPLE = PROJECT / "examples" / "transformer.py"
QUICK = ["training.epochs=2", "pruning.rounds=2", "pruning.target_density=null", "deploy.sizes=false"]


@pytest.fixture
def example(monkeypatch):
    """The example as a module, under a name that it keeps."""
    spec = importlib.util.spec_from_file_location("transformer_example", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "transformer_example", module)
    spec.loader.exec_module(module)
    torch.manual_seed(0)
    return module


def test_a_network_and_data_of_ones_own_give_a_result_and_the_network_is_not_changed(example, tmp_path, capsys):
    network = example.Transformer(width=16, layers=1)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    done = prune_by_rewinding(network, example.DigitPatches(), *example.SETTINGS, *QUICK, f"runs={tmp_path}")
    assert [round(r.density, 2) for r in done.rounds] == [1.0, 0.63, 0.4]
    assert done.chosen == done.rounds[-1]
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in before.items())
    assert "accuracy_vs_sparsity.png" in capsys.readouterr().out
    (folder,) = tmp_path.glob("transformer-*/seed-0/round-02")
    weights, masks = (load_file(folder / f"{name}.safetensors") for name in ("weights", "masks"))
    assert done.folder == folder.parent
    pruned = done.network()
    assert type(pruned) is type(network)
    assert all(torch.equal(pruned.state_dict()[name], tensor) for name, tensor in weights.items())
    dense = done.network(0)
    assert all((tensor != 0).all() for name, tensor in dense.named_parameters() if name in masks)
    assert done.table().count("\n") == 5
    assert f"{done.rounds[2].density:.4f}" in repr(done)
    assert done._repr_markdown_().startswith("| round |")
    assert done.figure().axes
    assert set(masks) == {
        "blocks.layers.0.self_attn.in_proj_weight", "blocks.layers.0.self_attn.out_proj.weight",
        "blocks.layers.0.linear1.weight", "blocks.layers.0.linear2.weight", "output.weight",
    }  # fmt: skip
    assert all((pruned.state_dict()[name] == 0).sum() >= (~mask).sum() > 0 for name, mask in masks.items())

    again = example.Transformer(width=16, layers=1)
    again.load_state_dict(before)
    for same in (again, network):
        same = prune_by_rewinding(same, example.DigitPatches(), *example.SETTINGS, *QUICK, f"runs={tmp_path}")
        assert "nothing was trained" in capsys.readouterr().out
        assert all(torch.equal(same.network().state_dict()[name], tensor) for name, tensor in weights.items())
    held = [*QUICK, "retraining=fine_tuning", "retraining.hold=0.1", f"runs={tmp_path}"]
    other = prune_by_rewinding(network, example.DigitPatches(), *example.SETTINGS, *held)
    assert "fine_tuning at 0.1 of the highest rate" in done.compare([other])
    assert done.comparison_figure([other]).axes


def test_the_same_classes_by_the_command_line_prune_the_same_layers(example, tmp_path):
    from pipeline.rounds import loop as rounds
    from pipeline.rounds.building import build_job

    chosen = settings(
        "model=custom", "model.network=transformer_example.Transformer", "model.arguments={width: 16, layers: 1}",
        "data=own", "data.module=transformer_example.DigitPatches", "training.epochs=1", "pruning.rounds=1",
        "training/optimizer=adamw",
    )  # fmt: skip
    done = rounds.run(*build_job(chosen, tmp_path))
    layers = {layer.name: layer.macs for layer in done[1].layers}
    attention, width, tokens = "blocks.layers.0.self_attn", 16, 16
    assert layers[f"{attention}.in_proj_weight"] == tokens * 3 * width * width
    assert layers[f"{attention}.out_proj"] == tokens * width * width
    assert layers["blocks.layers.0.linear1"] == layers["blocks.layers.0.linear2"] == tokens * 4 * width * width
    assert layers["output"] == width * 10


def test_autologging_of_a_users_stays_out_of_a_run(example, tmp_path):
    import mlflow

    uri = f"sqlite:///{tmp_path / 'theirs.db'}"
    mlflow.set_tracking_uri(uri)
    mlflow.pytorch.autolog(log_models=False)
    try:
        quick = [*QUICK, "pruning.rounds=1", "training.epochs=1", "deploy.sizes=false"]
        network = example.Transformer(width=16, layers=1)
        prune_by_rewinding(network, example.DigitPatches(), *example.SETTINGS, *quick, f"runs={tmp_path / 'runs'}")
        assert MlflowClient(uri).search_runs(["0"]) == []
    finally:
        mlflow.pytorch.autolog(disable=True)
        mlflow.set_tracking_uri(None)


def test_fresh_weights_come_from_the_layers_own_reset(example, tmp_path):
    fresh = [*example.SETTINGS, *QUICK, "retraining=reinitialisation", "pruning.rounds=1", f"runs={tmp_path}"]
    fresh.append("deploy.sizes=false")
    done = prune_by_rewinding(example.Transformer(width=16, layers=1), example.DigitPatches(), *fresh)
    assert len(done.rounds) == 2

    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))
            self.output = nn.Linear(64, 10)

        def forward(self, x):
            return self.output(x.flatten(1).float() * self.scale)

    with pytest.raises(SettingsError, match=r"got fresh, but layer '' has no reset_parameters\(\)"):
        prune_by_rewinding(Bare(), example.DigitPatches(), *fresh)


@pytest.mark.parametrize("way", some_fast(zip(["class", "partial", "lambda"]), [("class",)]))
def test_what_makes_a_network_gives_what_the_command_line_gives(way, example, tmp_path):
    from pipeline.rounds import loop as rounds
    from pipeline.rounds.building import build_job

    same = ["training/optimizer=adamw", "training.epochs=1", "pruning.rounds=1", "retraining=reinitialisation"]
    same.append("deploy.sizes=false")
    make = {
        "class": example.Transformer,
        "partial": functools.partial(example.Transformer, 32),
        "lambda": lambda: example.Transformer(),
    }[way]
    done = prune_by_rewinding(make, example.DigitPatches(), *same, "seed=3", f"runs={tmp_path}/call")
    chosen = settings(
        "model=custom", "model.network=transformer_example.Transformer", "data=own",
        "data.module=transformer_example.DigitPatches", *same, "seed=3",
    )  # fmt: skip
    job, site = build_job(chosen, tmp_path / "command")
    rounds.run(job, site)
    for index in range(2):
        called = done.site.ledger_of(index).state(index).network
        for name, tensor in site.ledger_of(index).state(index).network.items():
            assert torch.equal(called[name], tensor)


def test_runs_that_are_deleted_in_between_are_made_anew(example, tmp_path):
    arguments = [*example.SETTINGS, "training.epochs=1", "pruning.rounds=1", "pruning.target_density=null"]
    for _ in range(2):
        make = functools.partial(example.Transformer, 16, 1)
        prune_by_rewinding(make, example.DigitPatches(), *arguments, "deploy.sizes=false", f"runs={tmp_path}/runs")
        client = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow/mlflow.db")
        (experiment,) = [each for each in client.search_experiments() if each.name == "transformer"]
        assert len(client.search_runs([experiment.experiment_id])) == 3
        shutil.rmtree(tmp_path / "runs")


def test_what_fails_to_make_a_network_is_a_sentence(example, tmp_path):
    with pytest.raises(SettingsError, match=r"network: .*missing 1 required positional argument"):
        prune_by_rewinding(lambda width: None, example.DigitPatches(), f"runs={tmp_path}")
    with pytest.raises(SettingsError, match=r"model.network: .* makes a NoneType, takes"):
        prune_by_rewinding(lambda: None, example.DigitPatches(), f"runs={tmp_path}")
    assert not list(tmp_path.iterdir())


class OneTensor(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return torch.zeros(3)


@pytest.mark.parametrize(
    ("loaders", "sentence"),
    [
        (
            {"val_dataloader": lambda: torch.utils.data.DataLoader(OneTensor())},
            "batch 1 of val_dataloader.. of DigitPatches is a Tensor of another form",
        ),
        ({"test_dataloader": lambda: []}, "test_dataloader.. of DigitPatches gives no batches"),
        (
            {"train_dataloader": lambda: torch.utils.data.DataLoader(OneTensor(), batch_size=2)},
            "batch 1 of train_dataloader.. of DigitPatches is a Tensor of another form; takes .inputs, targets.",
        ),
    ],
)
def test_data_that_do_not_fit_are_a_sentence(loaders, sentence, example, tmp_path):
    data = example.DigitPatches()
    for name, loader in loaders.items():
        setattr(data, name, loader)
    with pytest.raises(SettingsError, match=sentence):
        prune_by_rewinding(example.Transformer(), data, f"runs={tmp_path}")
    assert not list(tmp_path.iterdir())


def test_settings_that_make_no_sense_are_the_same_sentences_as_on_the_command_line(example, tmp_path):
    with pytest.raises(SettingsError, match=r"training.epocs: unknown setting; did you mean training.epochs\?"):
        prune_by_rewinding(example.Transformer(), example.DigitPatches(), "training.epocs=3")


def test_an_attention_that_is_applied_by_the_fast_path_is_counted_too(example):
    network = example.Transformer(width=16, layers=2)
    counts = positions(network, torch.zeros(1, 16, 4, dtype=torch.int64))
    assert {counts[name] for name in prunable(network) if name != "output.weight"} == {16}


@pytest.mark.slow
def test_the_example_ends_within_two_points_of_dense(tmp_path):
    short = ["pruning.fraction=0.54", "deploy.sizes=false"]  # three rounds, not five
    out, _ = script(EXAMPLE, *short, f"runs={tmp_path}", cwd=tmp_path)
    last = out.splitlines()[-1].replace("%", "").replace(",", "").split()
    assert last[:2] == ["density", "0.100:"]
    assert float(last[4]) >= float(last[6]) - 2
    assert float(last[6]) > 85
