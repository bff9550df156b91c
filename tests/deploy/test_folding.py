"""Affine maps folded into layers, by ONNX Runtime before and after."""

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.deploy.export import exported
from pipeline.deploy.folding import folded
from pipeline.deploy.runtime import answers, operators, session


class Scaled(nn.Module):
    def __init__(self, *layers, factor=1.0, twice=False):
        super().__init__()
        self.layers, self.factor, self.twice = nn.Sequential(*layers), factor, twice

    def forward(self, x):
        x = self.layers(x)
        return (x / 3 + x if self.twice else x * self.factor).flatten(1)


def norm(channels, positive=True):
    layer = nn.BatchNorm2d(channels)
    nn.init.uniform_(layer.weight, 0.5, 2)
    if not positive:
        layer.weight.data[0] *= -1
    for tensor in (layer.bias, layer.running_mean):
        nn.init.normal_(tensor)
    nn.init.uniform_(layer.running_var, 0.2, 3)
    return layer


POOLED = [nn.Conv2d(3, 8, 3, bias=False), nn.MaxPool2d(3, 2)]
CASES = {
    "behind a pooling": (Scaled(*POOLED, norm(8), nn.ReLU()), ["BatchNormalization", "Mul"]),
    "behind a pooling, with a negative scale": (Scaled(*POOLED, norm(8, positive=False), nn.ReLU()), ["Mul"]),
    "behind a layer": (Scaled(nn.Conv2d(3, 8, 3), norm(8)), ["BatchNormalization", "Mul"]),
    "a number behind a linear layer": (
        Scaled(nn.Flatten(), nn.Linear(3 * 12 * 12, 5, bias=False), factor=1 / 9), ["Mul", "Div"],
    ),
    "a number behind an activation": (Scaled(*POOLED, nn.ReLU(), factor=0.5), []),
    "a result that two read": (Scaled(nn.Conv2d(3, 8, 3), twice=True), []),
    "depthwise": (Scaled(nn.Conv2d(3, 6, 3, groups=3), nn.MaxPool2d(2), norm(6)), ["BatchNormalization"]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_folded_model_gives_the_same(case):
    network, gone = CASES[case]
    inputs = torch.randn(4, 3, 12, 12)
    plain = exported(network.eval(), lambda x: x, inputs)
    small = folded(plain)
    assert not set(gone) & set(operators(small))
    before, after = (answers(session(model), {"input": inputs.numpy()})["scores"] for model in (plain, small))
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(after, network(inputs).detach(), rtol=1e-4, atol=1e-5)
    assert len(small.graph.node) <= len(plain.graph.node)
