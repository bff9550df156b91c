"""Layers whose class has a forward of its own: whether it multiplies by zero where the weight is pruned."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from pipeline.ground.errors import SettingsError
from pipeline.networks.zeros import restored
from pipeline.rounds.building import build_job
from tests.conftest import settings

HERE = "tests.networks.test_zeros"


class Standardised(nn.Conv2d):
    def forward(self, inputs):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        weight = weight / (weight.std((1, 2, 3), keepdim=True) + 1e-5)
        return functional.conv2d(inputs, weight, self.bias, self.stride, self.padding)


class StandardisedWithin(nn.Conv1d):
    def _conv_forward(self, inputs, weight, bias):
        return super()._conv_forward(inputs, weight - weight.mean(), bias)


class Centred(nn.ConvTranspose2d):
    def forward(self, inputs):
        return functional.conv_transpose2d(inputs, weight=self.weight - self.weight.mean(), stride=self.stride)


class Squashed(nn.Linear):
    def forward(self, inputs):
        return inputs @ torch.sigmoid(self.weight).T


class Summed(nn.Linear):
    def forward(self, inputs):
        return torch.addmm(self.bias, inputs, (self.weight + 1).t())


class Scaled(nn.Linear):
    def forward(self, inputs):
        return inputs @ (self.weight * 2).t() + self.bias


class Rounded(nn.Conv1d):
    def forward(self, inputs):
        return self._conv_forward(inputs, torch.round(self.weight * 8) / 8, self.bias)


class Padded(nn.Conv2d):
    def forward(self, inputs):
        return super().forward(functional.pad(inputs, (1, 1, 1, 1)))


class OfTwo(nn.Linear):
    def forward(self, inputs, others):
        return super().forward(inputs) + others


class Called(nn.Conv2d):
    pass


RESTORED = [
    Standardised(2, 4, 3),
    StandardisedWithin(2, 3, 3),
    Centred(2, 4, 2),
    Squashed(4, 3),
    Squashed(4, 4),
    Summed(3, 3),
]
ZERO = [Scaled(4, 4), Scaled(4, 3), Rounded(3, 5, 3), Padded(3, 2, 3), OfTwo(3, 3), Called(2, 3, 3), nn.Linear(2, 2)]


@pytest.mark.parametrize("layer", RESTORED + ZERO, ids=repr)
def test_a_layer_is_found_whose_pruned_weights_are_no_zeros(layer):
    before, state = {name: each.clone() for name, each in layer.state_dict().items()}, torch.get_rng_state()
    assert restored(nn.Sequential(layer), ["0.weight"]) == (["0.weight"] if layer in RESTORED else [])
    assert restored(nn.Sequential(layer), []) == []
    assert all(torch.equal(each, before[name]) for name, each in layer.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.output = Standardised(1, 4, 3), nn.Linear(4 * 36, 10)

    def forward(self, images):
        return self.output(self.first(images).relu().flatten(1))


def job(runs, *overrides):
    return build_job(settings("model=custom", f"model.network={HERE}.Net", "deploy.sizes=false", *overrides), runs)


def test_such_a_layer_is_refused_where_single_weights_of_it_would_go(tmp_path):
    sentence = r"model.network: Standardised 'first' computes what it .* or pruning.exclude=\['first'\]$"
    for structure in ("weight", "block"):
        with pytest.raises(SettingsError, match=sentence):
            job(tmp_path, f"pruning.structure={structure}")
    job(tmp_path, "pruning.exclude=[first]")
    job(tmp_path, "pruning=filters")
