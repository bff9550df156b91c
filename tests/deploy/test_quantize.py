"""int8 against the float network that it is made of."""

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.deploy.export import exported
from pipeline.deploy.quantize import quantised
from pipeline.deploy.runtime import answers, session


@pytest.mark.parametrize("dead", [[1], [0, 2], [0, 1, 2]])
@pytest.mark.parametrize("kind", ["convolution", "linear"])
def test_a_filter_without_weights_keeps_its_bias(kind, dead):
    """Global pruning empties whole filters; their biases, and what normalisation adds to them, are constants that count."""
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 3, 3, padding=1) if kind == "convolution" else nn.Linear(4, 3)
    inputs = 300 * torch.rand(16, 4, *([5, 5] if kind == "convolution" else []))
    with torch.no_grad():
        layer.weight[dead] = 0
        layer.bias.copy_(torch.tensor([0.11, -0.07, 0.4]))
        expected = layer(inputs).numpy()
    given = {"input": inputs.numpy()}
    int8 = quantised(exported(layer.eval(), lambda each: each, inputs), [given])
    found = answers(session(int8), given)["scores"]
    step = (expected.max() - min(expected.min(), 0)) / 255
    assert np.abs(found - expected)[:, dead].max() <= 0.51 * step
