"""Trained weights from a file take the place of round 0's training."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pipeline.ground.errors import SettingsError
from pipeline.ground.tensors import unpacked
from pipeline.networks.weights import read_weights
from pipeline.rounds import loop as rounds
from pipeline.rounds.building import build_job
from tests.conftest import SMALL, settings


@pytest.fixture
def trained(small_job, tmp_path):
    """A dense network trained before, and its folder."""
    job, site = small_job("pruning.rounds=0", runs=tmp_path / "before")
    (dense,) = rounds.run(job, site)
    return dense, site.dense.path(0) / "weights.safetensors"


@pytest.mark.parametrize("kind", ["safetensors", "pt"])
def test_a_network_that_comes_trained_is_pruned_from_there(kind, trained, small_job, tmp_path):
    dense, file = trained
    if kind == "pt":
        state = small_job(f"model.weights={file}")[0].trained
        file = tmp_path / "weights.pt"
        torch.save(dict(state), file)
    job, site = small_job(f"model.weights={file}")
    done = rounds.run(job, site)
    assert [r.index for r in done] == [0, 1, 2]
    assert done[0].test == dense.test
    assert done[0].figures["validation_accuracy"] == dense.figures["validation_accuracy"]
    assert (done[0].seconds, len(done[0].history)) == (0, 1)
    ours, theirs = site.dense.state(0).network, job.trained
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    masks = site.ledger.masks(1)
    threshold = max(float(theirs[name].abs()[~mask].max()) for name, mask in masks.items() if not mask.all())
    assert all(float(theirs[name].abs()[mask].min()) >= threshold for name, mask in masks.items() if mask.any())
    again, again_site = small_job(f"model.weights={file}", "pruning.rounds=3")
    assert again_site.ledger.folder == site.ledger.folder
    assert len(rounds.run(again, again_site)) == 4


def test_other_weights_are_another_run(trained, small_job, tmp_path):
    _, file = trained
    other = tmp_path / "other.safetensors"
    save_file({name: tensor * 2 for name, tensor in small_job()[0].initial(0).items()}, other)
    homes = {small_job(*w)[1].dense.folder for w in ([], [f"model.weights={file}"], [f"model.weights={other}"])}
    assert len(homes) == 3


def test_all_that_does_not_fit_is_told_at_once(trained, tmp_path):
    tensors = dict(build_job(settings(*SMALL), tmp_path)[0].network.state_dict())
    tensors["extra.weight"] = torch.zeros(2)
    tensors["output.weight"] = torch.zeros(10, 7)
    tensors["features.0.weight"] = tensors["features.0.weight"] * torch.nan
    del tensors["output.bias"]
    save_file(tensors, tmp_path / "bad.safetensors")
    with pytest.raises(SettingsError) as error:
        build_job(settings(*SMALL, f"model.weights={tmp_path / 'bad.safetensors'}"), tmp_path)
    (sentence,) = error.value.faults
    for part in (
        "output.bias is missing", "extra.weight is not of the network",
        "output.weight has shape (10, 7), takes (10, 8)", "features.0.weight holds a number that is not finite",
    ):  # fmt: skip
        assert part in sentence


class Payload:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code from a file was run')",))


@pytest.mark.parametrize(
    ("name", "write", "sentence"),
    [
        ("none.safetensors", lambda path: None, "No such file"),
        ("text.safetensors", lambda path: path.write_text("no tensors"), "which cannot be read"),
        ("text.pt", lambda path: path.write_text("no tensors"), "which is no file of tensors alone"),
        ("code.pt", lambda path: torch.save({"a": Payload()}, path), "which is no file of tensors alone"),
        ("nested.pt", lambda path: torch.save({"state": {"a": 1}}, path), "holds more than tensors"),
        ("module.pt", lambda path: torch.save(torch.nn.Linear(2, 2), path), "which is no file of tensors alone"),
        (
            "two.pt",
            lambda path: torch.save({each: {"a": torch.ones(1)} for each in ("model", "ema")}, path),
            r"holds several state dicts \(model, ema\)",
        ),
    ],
)
def test_a_file_that_is_no_state_dict_is_a_sentence(name, write, sentence, tmp_path):
    write(tmp_path / name)
    with pytest.raises(SettingsError, match=f"model.weights: got .*{name}.*{sentence}"):
        build_job(settings(*SMALL, f"model.weights={tmp_path / name}"), tmp_path)


class Normalised(nn.Module):
    """Two layers that share a weight, a normalisation, and a state of its own."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.norm = nn.Linear(4, 4), nn.Linear(4, 4), nn.BatchNorm1d(4)
        self.second.weight = self.first.weight
        self.calls = {"seen": 3}

    def get_extra_state(self):
        return self.calls

    def set_extra_state(self, state):
        self.calls = state


def without(state, ending):
    return {name: each for name, each in state.items() if not name.endswith(ending)}


def under(state, prefix):
    return {f"{prefix}{name}": each for name, each in state.items()}


CHECKPOINTS = {
    "as it is": lambda state: state,
    "of before num_batches_tracked": lambda state: without(state, "num_batches_tracked"),
    "one name of a shared weight": lambda state: without(state, "second.weight"),
    "without an extra state": lambda state: without(state, "_extra_state"),
    "in float64": lambda state: {n: e.double() if isinstance(e, torch.Tensor) else e for n, e in state.items()},
    "of a compiled network": lambda state: under(state, "_orig_mod."),
    "of DataParallel": lambda state: under(state, "module."),
    "of a compiled network in DataParallel": lambda state: under(state, "module._orig_mod."),
    "of Lightning": lambda state: {
        "epoch": 3, "state_dict": under(state, "model.") | {"loss.weight": torch.ones(2)}, "hyper_parameters": {"lr": 1}
    },
    "of a tutorial": lambda state: {"model_state_dict": state, "optimizer_state_dict": {"state": {}, "param_groups": []}},
}  # fmt: skip


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_weights_are_found_in_whatever_form_they_were_saved(kind, tmp_path):
    trained, network = Normalised(), Normalised()
    torch.save(CHECKPOINTS[kind](dict(trained.state_dict())), tmp_path / "weights.pt")
    found = read_weights(tmp_path / "weights.pt", network)
    assert not torch.equal(network.first.weight, trained.first.weight)
    network.load_state_dict(unpacked(found))
    for name, tensor in without(trained.state_dict(), "_extra_state").items():
        assert torch.equal(network.state_dict()[name], tensor)
        assert found[name].dtype == tensor.dtype
    assert network.calls == {"seen": 3}
    assert len(CHECKPOINTS) == 10


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda state: under(state, "model.") | under(state, "ema."), "more than once, under model., ema.; takes"),
        (lambda state: without(under(state, "module."), "first.bias"), "does not fit: first.bias is missing$"),
        (
            lambda state: {"state_dict": under(state | {"first.bias": torch.ones(3)}, "model.")},
            r"does not fit: first.bias has shape \(3,\), takes \(4,\)$",
        ),
        (lambda state: without(state, "first.weight") | {"second.weight": torch.ones(2)}, r"first.weight has shape"),
    ],
)
def test_weights_of_another_network_are_a_sentence_whatever_form_they_have(change, sentence, tmp_path):
    torch.save(change(dict(Normalised().state_dict())), tmp_path / "weights.pt")
    with pytest.raises(SettingsError, match=sentence):
        read_weights(tmp_path / "weights.pt", Normalised())
