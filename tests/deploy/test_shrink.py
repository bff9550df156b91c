"""Taking dead channels out changes no score, and takes nothing that is alive."""

import copy

import pytest
import torch
from torch import nn

from pipeline.deploy.shrink import macs, shrunk
from pipeline.networks import build_network
from pipeline.networks.layers import prunable
from pipeline.pruning.channels import channel_groups
from tests.conftest import settings

KINDS = {
    "resnet20": (3, 32, 0.02),
    "vgg16": (3, 32, 0.005),
    "mobilenet_v1": (3, 32, 0.05),
    "mobilenet_v2": (3, 32, 0.1),
    "resnet50": (3, 64, 0.01),
    "digits_cnn": (1, 8, 0.02),
    "lenet_300_100": (1, 28, 0.02),
}


def pruned(name, channels, size, density):
    """A network with random weights, statistics of its own, and the smallest weights at zero."""
    network = build_network(settings(f"model={name}").model, torch.zeros(1, channels, size, size), 10, 0)
    draws = torch.Generator().manual_seed(0)
    network.train()(torch.randn(16, channels, size, size, generator=draws))
    parameters = dict(network.named_parameters())
    weights = [parameters[each] for each in prunable(network)]
    every = torch.cat([weight.detach().abs().flatten() for weight in weights])
    threshold = every.kthvalue(int(len(every) * (1 - density))).values
    with torch.no_grad():
        for weight in weights:
            weight[weight.abs() <= threshold] = 0
    return network.eval(), torch.randn(4, channels, size, size, generator=draws)


@pytest.mark.parametrize("name", KINDS)
def test_scores_are_the_same_with_fewer_multiply_adds(name):
    network, inputs = pruned(name, *KINDS[name])
    weights = copy.deepcopy(network.state_dict())
    smaller = shrunk(network, inputs)
    assert macs(smaller, inputs[:1]) < 0.99 * macs(network, inputs[:1])
    others = torch.randn(8, *inputs.shape[1:], generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.allclose(smaller(others), network(others), atol=1e-5)
    assert all(torch.equal(network.state_dict()[key], weight) for key, weight in weights.items()), "left unchanged"


def test_a_network_with_nothing_dead_stays_as_it_is():
    network, inputs = pruned("resnet20", 3, 32, 0.5)
    assert shrunk(network, inputs) is network


def chain(bias):
    """Two convolutions; of the four channels between them the first has no weights and the given bias."""
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 3, padding=1), nn.Flatten())
    with torch.no_grad():
        network[0].weight[0] = 0
        network[0].bias[0] = bias
    return network.eval(), torch.randn(3, 1, 6, 6)


@pytest.mark.parametrize(("bias", "left"), [(-1.0, 3), (0.0, 3), (1.0, 4)])
def test_a_constant_channel_goes_only_if_it_is_zero_for_at_the_border_it_is_no_bias(bias, left):
    network, inputs = chain(bias)
    assert shrunk(network, inputs)[0].out_channels == left


def test_a_channel_that_nothing_reads_goes_whatever_it_holds():
    network, inputs = chain(1.0)
    with torch.no_grad():
        network[2].weight[:, 2] = 0
    smaller = shrunk(network, inputs)
    assert smaller[0].out_channels == 3
    assert torch.allclose(smaller(inputs), network(inputs), atol=1e-6)


def test_a_network_that_the_graph_does_not_know_stays_as_it_is():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.inside = nn.Conv2d(1, 4, 3)
            self.norm = nn.GroupNorm(2, 4)
            self.output = nn.Linear(4, 2)

        def forward(self, x):
            return self.output(self.norm(self.inside(x)).mean((2, 3)))

    network = Odd().eval()
    with torch.no_grad():
        network.output.weight[:, 0] = 0
    assert shrunk(network, torch.randn(2, 1, 5, 5)) is network


def test_a_network_whose_reshapes_are_followed_round_and_round_stays_as_it_is():
    network = nn.Sequential(nn.Conv2d(3, 16, 3), nn.LocalResponseNorm(3), nn.Flatten(), nn.Linear(576, 3)).eval()
    with torch.no_grad():
        network[0].weight[:4] = 0
        network[0].bias[:4] = 0
    inputs = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert shrunk(network, inputs) is network
    with pytest.raises(ValueError, match="the channels of the network cannot be followed: a reshape of channels leads"):
        channel_groups(network, inputs[:1])


@pytest.mark.parametrize(("block", "left"), [(1, 6), (2, 8), (4, 8), (8, 12)])
def test_filters_that_lose_weights_together_go_together(block, left):
    """Nothing reads channels 1, 4 to 7 and 10 of twelve."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 12, 3), nn.ReLU(), nn.Conv2d(12, 4, 3), nn.Flatten()).eval()
    with torch.no_grad():
        network[2].weight[:, [1, 4, 5, 6, 7, 10]] = 0
    inputs = torch.randn(2, 1, 8, 8)
    smaller = shrunk(network, inputs, block=block)
    assert smaller[0].out_channels == left
    with torch.no_grad():
        assert torch.allclose(smaller(inputs), network(inputs), atol=1e-6)
