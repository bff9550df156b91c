"""Preprocessing by the engine: to the bit what PyTorch makes of pixels, and by ONNX Runtime where the engine does not know it."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.data.batches import standardised, standardised_alike
from pipeline.deploy.export import exported, lean
from pipeline.deploy.kernels import library, target_here
from pipeline.deploy.node import with_nodes
from pipeline.deploy.pack import packed
from pipeline.deploy.runtime import answers, operators, session

pytestmark = pytest.mark.skipif(target_here() is None, reason="no library is for this processor")
BY_CHANNEL = torch.tensor([0.49, 0.48, 0.44]).view(3, 1, 1)
BY_PLACE = torch.rand(8, 12, generator=torch.Generator().manual_seed(0))


class Through(nn.Module):
    """What comes in, by a layer that the engine computes."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 1)
        with torch.no_grad():
            self.layer.weight.copy_(torch.eye(3).view(3, 3, 1, 1))
            self.layer.bias.zero_()

    def forward(self, images):
        return self.layer(images)


def images():
    """Random ones, one of one colour, a black, a white one and one of two values."""
    found = np.random.default_rng(0).integers(0, 256, (6, 3, 8, 12), dtype=np.uint8)
    found[1], found[2], found[3] = 7, 0, 255
    found[4] = found[4] > 250
    return found


def model_of(preprocess, network=None):
    """The model with the engine's nodes, and the one without."""
    plain = packed(lean(exported(network or Through(), preprocess, torch.from_numpy(images()[:2]))))[0]
    made, reason = with_nodes(plain)
    assert reason is None
    return made, plain


def by_the_engine(model, inputs):
    (found,) = answers(session(model, library=library(target_here())), {"input": inputs}).values()
    return found


KNOWN = {
    "by image": standardised_alike,
    "by figures": partial(standardised, mean=(0.49, 0.48, 0.44), deviation=(0.2, 0.3, 0.25)),
    "as they are": lambda pixels: pixels.float(),
    "to one": lambda pixels: pixels.float() / 255,
    "around 0": lambda pixels: (pixels.float() / 255 - 0.5) / 0.5,
    "products and sums": lambda pixels: 0.1 + pixels.float() * 0.017 * BY_CHANNEL,
}
UNKNOWN = {
    "from the other side": lambda pixels: 1 - pixels.float() / 255,
    "by place": lambda pixels: pixels.float() * BY_PLACE,
    "read twice": lambda pixels: pixels.float() + pixels.float().mean((2, 3), keepdim=True),
    "features last": lambda pixels: pixels.permute(0, 1, 3, 2).float().permute(0, 1, 3, 2) / 255,
    "by image and channel": lambda pixels: pixels.double() - pixels.double().mean((2, 3), keepdim=True),
}


@pytest.mark.parametrize("name", KNOWN)
def test_pixels_become_to_the_bit_what_pytorch_makes_of_them(name):
    made, _ = model_of(KNOWN[name])
    assert operators(made) == {"Net": 1}
    inputs = images()
    expected = KNOWN[name](torch.from_numpy(inputs)).numpy()
    assert np.array_equal(by_the_engine(made, inputs), expected)
    for place in range(len(inputs)):
        assert np.array_equal(by_the_engine(made, inputs[place : place + 1]), expected[place : place + 1])


@pytest.mark.parametrize("name", UNKNOWN)
def test_other_preprocessing_stays_with_onnxruntime(name):
    made, plain = model_of(lambda pixels: UNKNOWN[name](pixels).float())
    assert "Net" in operators(made)
    assert operators(made).total() > 1
    (expected,) = answers(session(plain), {"input": images()}).values()
    assert np.abs(by_the_engine(made, images()) - expected).max() < 1e-5 * np.abs(expected).max()


class Clamped(Through):
    def forward(self, images):
        return self.layer(images.clamp(0.0, 0.25))


def test_what_follows_pixels_may_clamp_them():
    made, plain = model_of(KNOWN["by figures"], Clamped())
    (expected,) = answers(session(plain), {"input": images()}).values()
    assert np.array_equal(by_the_engine(made, images()), expected)


class Beside(nn.Module):
    """Two images of other sizes."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)

    def forward(self, first, second):
        return self.first(first).mean((2, 3)) + self.second(second).mean((2, 3))


def test_several_inputs_may_be_pixels():
    first, second = (torch.from_numpy(each) for each in (images(), images()[:, :, :5, :7]))
    example = (first[:2], second[:2].contiguous())
    model = exported(Beside(), lambda given: (given[0].float() / 255, standardised_alike(given[1])), example)
    plain = packed(lean(model))[0]
    made, reason = with_nodes(plain)
    assert reason is None
    assert operators(made) == {"Net": 1}
    arrays = (first.numpy(), np.ascontiguousarray(second.numpy()))
    given = dict(zip((each.name for each in made.graph.input), arrays, strict=True))
    (expected,) = answers(session(plain), given).values()
    (found,) = answers(session(made, library=library(target_here())), given).values()
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
