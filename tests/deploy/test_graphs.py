"""Small forms of the networks that people put on boards: exported, quantised, packed, and computed by the engine."""

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.data.dataset import Preprocessing
from pipeline.deploy import models
from pipeline.deploy.kernels import target_here
from pipeline.deploy.runtime import arrays
from pipeline.deploy.subject import Subject
from pipeline.objective.score import ACCURACY


def block(inputs, outputs, kernel=3, stride=1, groups=1, activation=nn.SiLU):
    layers = [nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)]
    return nn.Sequential(*layers, nn.BatchNorm2d(outputs), activation())


class Gate(nn.Module):
    """Squeeze and excitation (Hu et al. 2018)."""

    def __init__(self, channels, activation, gate):
        super().__init__()
        self.squeeze = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, 4, 1), activation(), nn.Conv2d(4, channels, 1), gate()
        )

    def forward(self, planes):
        return planes * self.squeeze(planes)


class Inverted(nn.Module):
    """An inverted bottleneck with a gate, as in MobileNetV3 and EfficientNet."""

    def __init__(self, channels, kernel, activation, gate):
        super().__init__()
        wide = 3 * channels
        self.body = nn.Sequential(
            block(channels, wide, 1, activation=activation),
            block(wide, wide, kernel, groups=wide, activation=activation),
            Gate(wide, nn.ReLU, gate),
            nn.Conv2d(wide, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, planes):
        return planes + self.body(planes)


def inverted(kernel, activation, gate):
    return nn.Sequential(
        block(3, 8, stride=2, activation=activation),
        Inverted(8, kernel, activation, gate),
        block(8, 16, 1, activation=activation),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 32),
        activation(),
        nn.Linear(32, 10),
    )


class Yolo(nn.Module):
    """SiLU, Concat, Resize by two, MaxPool 5x5, outputs of three scales."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.three = block(3, 8, stride=2), block(8, 16, stride=2), block(16, 16, stride=2)
        self.pooled = nn.ModuleList(nn.MaxPool2d(5, 1, 2) for _ in range(3))
        self.mix = block(64, 16, 1)
        self.up, self.join, self.last = nn.Upsample(scale_factor=2), block(32, 16), block(24, 8)
        self.heads = nn.ModuleList(nn.Conv2d(channels, 7, 1) for channels in (8, 16, 16))

    def forward(self, images):
        one = self.one(images)
        two = self.two(one)
        parts = [self.three(two)]
        for pool in self.pooled:
            parts.append(pool(parts[-1]))
        deep = self.mix(torch.cat(parts, 1))
        middle = self.join(torch.cat([self.up(deep), two], 1))
        fine = self.last(torch.cat([self.up(middle), one], 1))
        return [head(planes).flatten(2) for head, planes in zip(self.heads, (fine, middle, deep), strict=True)]


class Dense(nn.Module):
    """Normalisation before the layer, and all that was before handed on (Huang et al. 2017)."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(8 + 4 * n), nn.ReLU(), nn.Conv2d(8 + 4 * n, 4, 3, padding=1, bias=False))
            for n in range(3)
        )
        self.last = nn.Sequential(
            nn.BatchNorm2d(20), nn.ReLU(), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(20, 10)
        )

    def forward(self, images):
        found = self.first(images)
        for layer in self.layers:
            found = torch.cat([found, layer(found)], 1)
        return self.last(found)


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.deep = block(3, 8, activation=nn.ReLU), block(8, 16, stride=2, activation=nn.ReLU)
        self.up = nn.ConvTranspose2d(16, 8, 2, 2)
        self.join = nn.Sequential(block(16, 8, activation=nn.ReLU), nn.Conv2d(8, 2, 1))

    def forward(self, images):
        fine = self.down(images)
        return self.join(torch.cat([fine, self.up(self.deep(fine))], 1))


def keywords():
    """1-D convolutions over sound, with a stride, dilation and leaky activations."""
    return nn.Sequential(
        nn.Conv1d(1, 16, 9, stride=4, padding=4), nn.BatchNorm1d(16), nn.LeakyReLU(0.1),
        nn.Conv1d(16, 16, 3, padding=2, dilation=2), nn.BatchNorm1d(16), nn.Tanh(),
        nn.MaxPool1d(2), nn.Conv1d(16, 24, 3), nn.GELU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(24, 12),
    )  # fmt: skip


IMAGES = (3, 16, 16)
NETWORKS = {
    "MobileNetV3": (lambda: inverted(5, nn.Hardswish, nn.Hardsigmoid), IMAGES),
    "EfficientNet": (lambda: inverted(3, nn.SiLU, nn.Sigmoid), IMAGES),
    "YOLO": (Yolo, IMAGES),
    "DenseNet": (Dense, IMAGES),
    "U-Net": (UNet, IMAGES),
    "keywords": (keywords, (1, 256)),
}


class Noise:
    """Random inputs from 0 to 1."""

    classes = ()
    preprocessing = Preprocessing(lambda inputs: inputs, None)

    def __init__(self, shape):
        self.shape = shape

    def raw(self, split):
        draws = torch.Generator().manual_seed(len(split))
        yield torch.rand(8, *self.shape, generator=draws), torch.zeros(8, dtype=torch.int64)


def subject_of(name, density):
    """A network of this name with so many weights left, whose statistics are those of its inputs."""
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    network, noise = make(), Noise(shape)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.mul_(torch.rand(parameter.shape) < density)
        ((inputs, _),) = noise.raw("train")
        for _ in range(20):
            network(inputs)
    return Subject(network.eval(), noise, None, ACCURACY)


@pytest.mark.parametrize("density", [1.0, 0.5, 0.1, 0.05])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_networks_of_boards_are_exported_packed_and_computed(name, density):
    subject = subject_of(name, density)
    found = models.models(subject, 8, multiple=1)
    inputs = next(iter(subject.inputs("validation")))
    assert models.check(found, subject, inputs) == []
    assert found.uncovered == {"float32": None, "int8": None}
    if target_here() is None:
        return
    for model in (found.float32, found.int8):
        assert models.engine_fault(model, arrays(inputs)) is None
        assert models.engine_fault(model, {name: each[:1] for name, each in arrays(inputs).items()}) is None
    float32 = models.answers(models.session(found.float32), arrays(inputs))
    int8 = models.answers(models.session(found.int8), arrays(inputs))
    for name, each in float32.items():
        assert np.sqrt(np.mean((int8[name] - each) ** 2)) < 0.2 * np.sqrt(np.mean(each**2))


def test_a_library_that_does_not_know_an_operator_leaves_nothing_in_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    models.models(subject_of("YOLO", 0.5), 8, multiple=1)
    assert list(tmp_path.iterdir()) == []
