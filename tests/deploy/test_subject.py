"""Networks of any inputs and outputs on their way to a bundle: judged by their own objective, int8 where it holds."""

import json
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest
import pytorch_lightning as lightning
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from pipeline import prune_by_rewinding
from pipeline.deploy import models
from pipeline.deploy.mixed import within
from pipeline.deploy.subject import Elsewhere
from pipeline.rounds.choice import subject_of
from pipeline.training.train import evaluate
from tests.conftest import arrays

SETTINGS = (
    "pruning.rounds=1", "pruning.fraction=0.5", "training.epochs=1", "deploy.kernels=[]", "training.precision=float32",
    "deploy.sizes=false",
)  # fmt: skip


class Pairs(Dataset):
    """Two tensors by name, and targets of different length, of which a batch is a list."""

    def __init__(self, seed, count=24):
        draws = torch.Generator().manual_seed(seed)
        self.left = torch.randn(count, 3, 8, 8, generator=draws)
        self.right = torch.randn(count, 5, generator=draws)

    def __len__(self):
        return len(self.left)

    def __getitem__(self, index):
        return {"left": self.left[index], "right": self.right[index]}, [float(self.left[index].mean())] * (index % 3)


def together(rows):
    inputs = {name: torch.stack([row[0][name] for row in rows]) for name in ("left", "right")}
    return inputs, [row[1] for row in rows]


class Two(lightning.LightningModule):
    """Two inputs by keyword to three outputs in a structure, one of which are whole numbers."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 8, 3, padding=1)
        self.side = nn.Linear(5, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, left, *, right):
        both = F.silu(self.convolution(left)) + self.side(right)[:, :, None, None]
        scores = self.head(both.mean((2, 3)))
        return {"map": both, "several": (scores, scores.argmax(1))}

    def loss(self, batch):
        inputs, targets = batch
        means = self(inputs["left"], right=inputs["right"])["several"][0].mean(1)
        wanted = torch.tensor([sum(each) for each in targets])
        return F.mse_loss(means, wanted)

    def training_step(self, batch, _):
        return self.loss(batch)

    def validation_step(self, batch, _):
        self.log("error", self.loss(batch), batch_size=len(batch[1]))

    test_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def loaders(count=24):
    return tuple(DataLoader(Pairs(seed, count), batch_size=7, collate_fn=together) for seed in range(3))


def pruned(module, data, tmp_path, *settings):
    return prune_by_rewinding(module, data, *SETTINGS, f"runs={tmp_path / 'runs'}", *settings)


BY_ERROR = ("objective.score=error", "objective.better=lower")


def board(folder, *arguments):
    command = [sys.executable, "run.py", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_inputs_and_outputs_of_any_structure_end_in_a_bundle_that_is_judged_by_the_modules_own_score(tmp_path):
    done = pruned(Two, loaders(), tmp_path, *BY_ERROR)
    folder = done.bundle(tmp_path / "bundle")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert {each["name"]: each["shape"] for each in manifest["inputs"]} == {"left": [None, 3, 8, 8], "right": [None, 5]}
    assert [each["name"] for each in manifest["outputs"]] == ["map", "several_0", "several_1"]
    assert manifest["classes"] is None
    network = done.network()
    given = Pairs(5, 9)
    np.savez(tmp_path / "inputs.npz", left=given.left.numpy(), right=given.right.numpy())
    predicted = board(folder, "predict", str(tmp_path / "inputs.npz"), "--out", str(tmp_path / "out.npz"))
    assert predicted.returncode == 0, predicted.stderr
    assert "several_0: 9 x 4, from" in predicted.stdout
    answered = board(folder, "answer", str(tmp_path / "inputs.npz"), "--out", str(tmp_path / "all.npz"))
    assert "model_fp32.onnx: 9 answers" in answered.stdout
    kept = arrays(tmp_path / "all.npz")
    with torch.no_grad():
        expected = network(given.left, right=given.right)
    assert np.allclose(kept["model_fp32.onnx/map"], expected["map"], atol=1e-5)
    assert np.array_equal(kept["model_fp32.onnx/several_1"], expected["several"][1])
    (score, test) = manifest["score"], manifest["scores"]["test"]
    assert (score["label"], score["better"]) == ("error", "lower")
    assert test["masked"] == pytest.approx(done.rounds[1].test["error"], rel=1e-6)
    assert test["float32"] == pytest.approx(test["masked"], rel=1e-4)
    assert test["int8"] == pytest.approx(test["masked"], rel=0.2)
    assert board(folder, "check").returncode == 0


@pytest.mark.parametrize("rows", [1, 7, 10, None])
def test_the_first_examples_are_evaluated_alone(rows, tmp_path):
    """Batches of seven whose targets are lists: they cannot be cut, so whole ones are taken until there are enough."""
    done = pruned(Two, loaders(20), tmp_path, *BY_ERROR)
    subject, sizes = subject_of(done.job, done.site, 1), []

    def look(inputs):
        sizes.append(len(inputs["left"]))
        return subject.answered(inputs)

    subject.judged(look, "test", rows)
    assert sizes == {1: [7], 7: [7], 10: [7, 7], None: [7, 7, 6]}[rows]
    before = evaluate(done.job.trainable, "test", done.site.ledger.state(1))
    assert before["error"] == pytest.approx(subject.judged(subject.answered, "test")), "all is as it was"


class WithoutForward(Two):
    """A module that evaluates without its forward."""

    def validation_step(self, batch, _):
        inputs, targets = batch
        means = self.head(self.side(inputs["right"])).mean()
        self.log("error", means, batch_size=len(targets))

    test_step = validation_step


def test_a_module_that_does_not_call_its_forward_is_told(tmp_path):
    done = pruned(WithoutForward, loaders(), tmp_path, *BY_ERROR)
    with pytest.raises(Elsewhere, match="its validation step does not call forward"):
        subject_of(done.job, done.site, 1).judged(lambda inputs: inputs, "validation")
    folder = done.bundle(tmp_path / "bundle")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["scores"], manifest["unjudged"]) == ({}, "its validation step does not call forward")
    assert (
        "were compared, not their error: its validation step does not call forward."
        in (folder / "README.md").read_text()
    )
    assert board(folder, "check").returncode == 0


class Outlier(nn.Module):
    """Three layers, of which the third reads values of the second beside one that is ten thousand times as large."""

    def __init__(self):
        super().__init__()
        self.zero, self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(9, 2)

    def forward(self, inputs):
        hidden = torch.relu(self.one(torch.relu(self.zero(inputs))))
        return self.two(torch.cat([10_000 * hidden[:, :1].relu() + 10_000, hidden], 1))


def test_int8_leaves_the_fewest_layers_in_float_that_hold_the_score(tmp_path):
    torch.manual_seed(0)
    draws = torch.randn(3, 200, 8)
    network = Outlier()
    with torch.no_grad():
        network.two.weight[:, 0] = 0
    data = tuple(
        DataLoader([(each, int(label)) for each, label in zip(rows, network(rows).argmax(1), strict=True)], 50)
        for rows in draws
    )
    done = pruned(network, data, tmp_path, "training.optimizer.rate=1e-9", "pruning.fraction=0", "pruning.rounds=1")
    subject = subject_of(done.job, done.site, 0)
    found = models.models(subject, 100, 1)
    reference = subject.judged(models.form(found.float32, subject), "validation")
    assert reference > 0.9
    assert subject.judged(models.form(found.int8, subject), "validation") < reference - 0.1
    held = within(found, subject, reference, 0.02)
    assert {name.split(".")[-2] for name in held.float_layers} == {"one", "two"}
    assert subject.judged(models.form(held.int8, subject), "validation") >= reference - 0.02
    assert held.int8.ByteSize() < held.float32.ByteSize() * 1.5


class Boxes(nn.Module):
    """One box an image, by the standard names."""

    def __init__(self):
        super().__init__()
        self.look = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, images):
        means = self.look(images).mean((2, 3))
        boxes = torch.cat([means * 0 + 2, means * 0 + 9], 1)[:, [0, 1, 4, 5]]
        return {"boxes": boxes[:, None], "scores": means[:, :1].sigmoid(), "labels": (means[:, :1] * 0).long() + 1}


class Detector(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.network = Boxes()

    def forward(self, images):
        return self.network(images)

    def training_step(self, batch, _):
        return self(batch)["scores"].mean()

    def validation_step(self, batch, _):
        self.log("mean", self(batch)["scores"].mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Photos(lightning.LightningDataModule):
    classes = ("cat", "dog")

    def _loader(self):
        return DataLoader(torch.rand(8, 3, 16, 12, generator=torch.Generator().manual_seed(0)), batch_size=4)

    train_dataloader = val_dataloader = _loader


@pytest.mark.slow
def test_boxes_are_listed_by_name_and_drawn(tmp_path):
    done = pruned(Detector, Photos(), tmp_path, "objective.score=mean", "objective.better=lower", "deploy.input=image")
    folder = done.bundle(tmp_path / "bundle")
    image = tmp_path / "image.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 12, 3), dtype=np.uint8)).save(image)
    said = board(folder, "predict", str(image), "--out", str(tmp_path / "drawn.png"))
    assert said.returncode == 0, said.stderr
    assert said.stdout.startswith("dog: ")
    assert "corners 2.0, 2.0, 9.0, 9.0" in said.stdout
    drawn = np.asarray(Image.open(tmp_path / "drawn.png"))
    assert drawn.shape == (16, 12, 3)
    assert (drawn[9, 2:10] == (255, 0, 0)).all()
    board(folder, "predict", str(image), "--out", str(tmp_path / "out.npz"), "--engine", "onnxruntime")
    pixels = np.asarray(Image.open(image)).transpose(2, 0, 1)[None].astype(np.float32) / 255
    (boxes, *_) = onnxruntime.InferenceSession(folder / "model.onnx").run(None, {"input": pixels})
    assert np.array_equal(arrays(tmp_path / "out.npz")["boxes"], boxes)
    wrong = board(folder, "predict", str(tmp_path / "inputs.wav"))
    assert (wrong.returncode, wrong.stderr.count("\n")) == (1, 1)
    assert "takes no sounds, but an image, input: N x 3 x 16 x 12" in wrong.stderr


class Anchored(Two):
    """A constant, a number and an input among the answers."""

    def forward(self, left, *, right):
        found = super().forward(left, right=right)
        return {**found, "anchors": torch.arange(6.0).reshape(2, 3), "largest": found["map"].max(), "same": right}


@pytest.mark.slow
def test_answers_that_have_no_row_an_example_end_in_a_bundle(tmp_path):
    done = pruned(Anchored, loaders(), tmp_path, *BY_ERROR)
    folder = done.bundle(tmp_path / "bundle")
    assert board(folder, "check").returncode == 0
    given = Pairs(5, 9)
    np.savez(tmp_path / "inputs.npz", left=given.left.numpy(), right=given.right.numpy())
    answered = board(folder, "answer", str(tmp_path / "inputs.npz"), "--out", str(tmp_path / "all.npz"))
    assert answered.returncode == 0, answered.stderr
    assert "model_fp32.onnx: 9 answers" in answered.stdout
    with torch.no_grad():
        expected = done.network()(given.left, right=given.right)
    kept = arrays(tmp_path / "all.npz")
    for name in ("anchors", "largest", "same"):
        assert np.allclose(kept[f"model_fp32.onnx/{name}"], expected[name], atol=1e-5)
    predicted = board(folder, "predict", str(tmp_path / "inputs.npz"))
    assert "anchors: 2 x 3, from 0 to 5" in predicted.stdout


class TakesOneMapping(nn.Module):
    """Its forward has one argument, which is a mapping."""

    def __init__(self):
        super().__init__()
        self.left, self.right, self.output = nn.Linear(8, 32), nn.Linear(4, 32), nn.Linear(64, 3)

    def forward(self, given):
        return self.output(torch.cat([self.left(given["x"]).relu(), self.right(given["y"]).relu()], 1))


def in_mappings(rows):
    x, y, labels = zip(*rows, strict=True)
    return {"x": torch.stack(x), "y": torch.stack(y)}, torch.stack(labels)


@pytest.mark.parametrize("structure", [(), ("pruning.structure=filter", "pruning.scope=layer")])
def test_a_network_whose_one_argument_is_a_mapping_is_pruned_and_bundled(structure, tmp_path):
    draws = torch.Generator().manual_seed(0)
    rows = [
        (torch.randn(8, generator=draws), torch.randn(4, generator=draws), torch.tensor(place % 3))
        for place in range(32)
    ]
    data = (DataLoader(rows, 8, collate_fn=in_mappings),) * 3
    runs = [f"runs={tmp_path}/runs", f"tracking.uri=sqlite:///{tmp_path}/mlflow.db"]
    done = prune_by_rewinding(TakesOneMapping, data, *SETTINGS, *structure, *runs)
    folder = done.bundle(tmp_path / "bundle")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert {each["name"] for each in manifest["inputs"]} == {"x", "y"}
    model = onnxruntime.InferenceSession(folder / "model.onnx")
    x, y, _ = rows[0]
    (found,) = model.run(None, {"x": x[None].numpy(), "y": y[None].numpy()})
    with torch.no_grad():
        expected = done.network(1)({"x": x[None], "y": y[None]})
    assert np.abs(found - expected.numpy()).max() < 0.2
