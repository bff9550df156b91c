"""Inputs of any size: exported, quantised, packed, held against the network at another size, and run from a bundle."""

import json
import subprocess
import sys

import numpy as np
import pytest
import pytorch_lightning as lightning
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from pipeline import prune_by_rewinding
from pipeline.data.dataset import Preprocessing
from pipeline.deploy import models
from pipeline.deploy.node import left_to_onnxruntime
from pipeline.deploy.runtime import answers, session
from pipeline.deploy.subject import Subject
from pipeline.objective.score import ACCURACY
from tests.conftest import arrays


class Halved(nn.Module):
    """Planes at half the size and back, beside those at the whole."""

    def __init__(self, back):
        super().__init__()
        self.whole, self.strided = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, 2, 1)
        self.both, self.back = nn.Conv2d(16, 4, 3, padding=1), back

    def forward(self, images):
        whole = self.whole(images).relu()
        half = self.strided(whole).relu()
        back = F.interpolate(half, whole.shape[2:], mode="bilinear") if self.back is None else self.back(half)
        return self.both(torch.cat([whole, back], 1))


class Words(nn.Module):
    """A transformer over as many tokens as there are."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0, batch_first=True)
        self.embedding, self.encoder, self.head = (
            nn.Embedding(20, 16),
            nn.TransformerEncoder(layer, 2),
            nn.Linear(16, 3),
        )

    def forward(self, tokens):
        return self.head(self.encoder(self.embedding(tokens)).mean(1))


def images():
    return torch.rand(8, 3, 16, 16)


NETWORKS = {
    "transposed": (lambda: Halved(nn.ConvTranspose2d(8, 8, 2, 2)), images, (2, 3), ["Conv", "ConvTranspose"]),
    "nearest": (lambda: Halved(nn.Upsample(scale_factor=2)), images, (2, 3), ["Conv"]),
    "to the size of another": (lambda: Halved(None), images, (2, 3), ["Conv"]),
    "width alone": (lambda: Halved(None), images, (3,), ["Conv"]),
    "means": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)),
        images,
        (2, 3),
        ["Conv"],
    ),
    "sound": (
        lambda: nn.Sequential(nn.Conv1d(1, 8, 9, 4), nn.ReLU(), nn.AdaptiveAvgPool1d(1)),
        lambda: torch.rand(8, 1, 80),
        (2,),
        ["Conv"],
    ),
    "tokens": (Words, lambda: torch.randint(0, 20, (8, 12)), (1,), ["MatMul", "Gemm"]),
}
QUICK = ("transposed", "means")


class Inputs:
    """The same inputs in every split."""

    classes = ()
    preprocessing = Preprocessing(lambda inputs: inputs, None)

    def __init__(self, inputs):
        self.inputs = inputs

    def raw(self, split):
        yield self.inputs, torch.zeros(len(self.inputs), dtype=torch.int64)


@pytest.mark.parametrize(
    "case", [case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in NETWORKS]
)
def test_axes_of_any_size_are_held_against_the_network_and_stay_with_onnxruntime(case):
    make, given, axes, beside = NETWORKS[case]
    torch.manual_seed(0)
    inputs = given()
    subject = Subject(make().eval(), Inputs(inputs), None, ACCURACY)
    found = models.models(subject, 8, 1, None, {"input": axes})
    assert models.check(found, subject, inputs, {"input": axes}) == []
    assert left_to_onnxruntime(found.int8) == beside
    longer = torch.cat([inputs] * 3, axes[-1])
    (expected,) = (each.numpy() for each in [subject.answered(longer)])
    for model, most in ((found.float32, 1e-5), (found.int8, 0.1)):
        (answer,) = answers(session(model), {"input": longer.numpy()}).values()
        assert answer.shape == expected.shape
        assert np.sqrt(np.mean((answer - expected) ** 2)) < most * np.sqrt(np.mean(expected**2))


def test_a_network_of_one_size_is_told_whatever_its_export_says():
    inputs = images()
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4)).eval()
    subject = Subject(network, Inputs(inputs), None, ACCURACY)
    found = models.models(subject, 8, 1, None, {"input": (2, 3)})
    (fault,) = models.check(found, subject, inputs, {"input": (2, 3)})
    assert fault.startswith("deploy.dynamic_axes: got input, but the network takes neither twice nor half that size: ")


class Painter(lightning.LightningModule):
    """Images to images of the same size."""

    def __init__(self):
        super().__init__()
        self.network = Halved(nn.ConvTranspose2d(8, 8, 2, 2))

    def forward(self, given):
        return self.network(given)

    def training_step(self, batch, _):
        return F.mse_loss(self(batch)[:, :3], batch)

    def validation_step(self, batch, _):
        self.log("error", F.mse_loss(self(batch)[:, :3], batch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Photos(lightning.LightningDataModule):
    def _loader(self):
        return DataLoader(torch.rand(8, 3, 16, 12, generator=torch.Generator().manual_seed(0)), batch_size=4)

    train_dataloader = val_dataloader = _loader


@pytest.mark.slow
def test_a_board_takes_images_of_their_own_size(tmp_path):
    settings = (
        "pruning.rounds=1", "training.epochs=1", "training.precision=float32", "deploy.kernels=[]", "deploy.sizes=false",
        "objective.score=error", "objective.better=lower", "deploy.input=image", "deploy.values=float32",
        "deploy.dynamic_axes={input: [2, 3]}", f"runs={tmp_path / 'runs'}",
    )  # fmt: skip
    done = prune_by_rewinding(Painter, Photos(), *settings)
    folder = done.bundle(tmp_path / "bundle")
    (told,) = json.loads((folder / "manifest.json").read_text())["inputs"]
    assert told["shape"] == [None, 3, None, None]
    draws = np.random.default_rng(0)

    def board(height, width):
        pixels = draws.integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "image.png")
        command = [sys.executable, "run.py", "predict", str(tmp_path / "image.png"), "--out", str(tmp_path / "out.npz")]
        return pixels, subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)

    pixels, said = board(24, 40)
    assert said.returncode == 0, said.stderr
    given = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        expected = done.network()(given).numpy()
    assert np.abs(arrays(tmp_path / "out.npz")["scores"] - expected).max() < 1e-5
    _, odd = board(25, 40)
    assert (odd.returncode, odd.stdout) == (1, "")
    assert odd.stderr.splitlines()[-1].startswith("the network cannot compute input of 1 x 3 x 25 x 40: ")
