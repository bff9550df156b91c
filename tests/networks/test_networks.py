"""Networks against their published sizes."""

import pytest
import torch

from pipeline.ground.errors import SettingsError
from pipeline.networks import build_network
from pipeline.networks.costs import density, layer_costs, positions
from pipeline.networks.layers import prunable, weight_layers
from pipeline.pruning.masks import ones_like
from pipeline.settings.groups import Model

CIFAR = (3, 32, 32)


def weights(network):
    parameters = dict(network.named_parameters())
    return {name: parameters[name] for name in weight_layers(network)}


@pytest.mark.parametrize(
    ("depth", "millions"),
    # He et al. 2015, table 6: parameters in millions, there with shortcuts that have none
    [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)],
)
def test_cifar_resnets_have_the_published_sizes(depth, millions):
    network = build_network(
        Model("cifar_resnet", None, {"depth": depth}, None, None), torch.zeros(1, *CIFAR), 10, seed=0
    )
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count / 1e6 == pytest.approx(millions, rel=0.02)
    assert len([name for name in prunable(network) if "shortcut" not in name]) == depth


@pytest.mark.parametrize(
    ("name", "arguments", "shape", "parameters", "multiply_adds"),
    # torchvision's documentation of its weights (ResNets v1.5, MobileNetV2): parameters, GFLOPS (multiply-adds there);
    # Howard et al. 2017, table 8 (MobileNet): 4.2 M and 569 M; Li et al. 2016, table 1 (VGG-16): 1.5e7 and 3.13e8
    [
        ("imagenet_resnet", {"depth": 18}, (3, 224, 224), 11_689_512, 1.814e9),
        ("imagenet_resnet", {"depth": 34}, (3, 224, 224), 21_797_672, 3.664e9),
        ("imagenet_resnet", {"depth": 50}, (3, 224, 224), 25_557_032, 4.089e9),
        ("mobilenet_v2", {}, (3, 224, 224), 3_504_872, 0.301e9),
        ("mobilenet_v1", {}, (3, 224, 224), 4.2e6, 569e6),
        ("vgg16", {}, CIFAR, 1.5e7, 3.13e8),
    ],
)
def test_networks_have_the_published_sizes(name, arguments, shape, parameters, multiply_adds):
    network = build_network(
        Model(name, None, arguments, None, None), torch.zeros(1, *shape), 10 if shape == CIFAR else 1000, seed=0
    )
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count == (parameters if isinstance(parameters, int) else pytest.approx(parameters, rel=0.02))
    sizes = {name: weight.numel() for name, weight in weights(network).items()}
    layers = layer_costs(sizes, positions(network, torch.zeros(1, *shape)), {})
    assert sum(layer.macs for layer in layers) == pytest.approx(multiply_adds, rel=0.001)


def test_resnet20_has_the_papers_prunable_weights_and_multiply_adds():
    network = build_network(Model("cifar_resnet", None, {"depth": 20}, None, None), torch.zeros(1, *CIFAR), 10, seed=0)
    sizes = {name: weight.numel() for name, weight in weights(network).items()}
    assert sum(sizes.values()) == 270_896
    assert sum(size for name, size in sizes.items() if "shortcut" in name) == 2_560
    assert sizes["output.weight"] == 640
    layers = layer_costs(sizes, positions(network, torch.zeros(1, *CIFAR)), ones_like(weights(network)))
    # by hand: 40,550,400 in 3x3 convolutions, 262,144 in the two projections, 640 in the output
    assert sum(layer.macs for layer in layers) == 40_550_400 + 262_144 + 640


def test_lenet_300_100_has_the_published_size():
    network = build_network(Model("lenet_300_100", None, {}, None, None), torch.zeros(1, *(1, 28, 28)), 10, seed=0)
    assert sum(weight.numel() for weight in weights(network).values()) == 784 * 300 + 300 * 100 + 100 * 10


@pytest.mark.parametrize(
    ("layer", "shape", "uses"),
    [
        (torch.nn.Conv2d(3, 8, 3, padding=1), (3, 10, 12), 120),
        (torch.nn.Conv2d(4, 8, 3, stride=2, groups=2), (4, 9, 9), 16),
        (torch.nn.ConvTranspose2d(3, 5, 2, stride=2), (3, 6, 6), 36),
        (torch.nn.Linear(7, 3), (7,), 1),
        (torch.nn.Linear(7, 3), (5, 7), 5),
        (torch.nn.Conv1d(2, 6, 3), (2, 12), 10),
    ],
)
def test_a_weight_is_used_once_a_position(layer, shape, uses):
    assert positions(torch.nn.Sequential(layer), torch.zeros(1, *shape)) == {"0.weight": uses}


def test_kept_multiply_adds_are_kept_weights_times_positions():
    masks = {"a.weight": torch.tensor([True, False, False, True])}
    first, second = layer_costs({"a.weight": 4, "b.weight": 6}, {"a.weight": 100, "b.weight": 1}, masks)
    assert (first.macs, first.macs_kept, first.prunable, first.sparsity) == (400, 200, True, 0.5)
    assert (second.macs, second.macs_kept, second.prunable) == (6, 6, False)
    assert density([first, second]) == 0.5


def test_initial_weights_follow_from_seed_and_attempt():
    model = Model("small_cnn", None, {"width": 4}, None, None)
    torch.manual_seed(1)
    first = build_network(model, torch.zeros(1, 1, 8, 8), 10, seed=0).state_dict()
    torch.manual_seed(2)
    for seed, attempt, same in ((0, 0, True), (1, 0, False), (0, 1, False)):
        other = build_network(model, torch.zeros(1, 1, 8, 8), 10, seed, attempt).state_dict()
        assert torch.equal(first["output.weight"], other["output.weight"]) is same


def test_normalisation_and_biases_are_never_prunable():
    network = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.LayerNorm(6), torch.nn.Linear(6, 2),
        torch.nn.Embedding(5, 3),
    )  # fmt: skip
    assert prunable(network) == ["0.weight", "3.weight"]
    assert prunable(network, exclude=("0",)) == ["3.weight"]


@pytest.mark.parametrize(
    ("patterns", "sentence"),
    [
        (("conv9",), r"pruning.exclude: got 'conv9', which matches no layer; the layers are 0, 1"),
        (("*",), r"pruning.exclude: got \['\*'\], which leaves no layer to prune"),
    ],
)
def test_patterns_that_make_no_sense(patterns, sentence):
    with pytest.raises(SettingsError, match=sentence):
        prunable(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)), patterns)
