"""Networks by name, or any ``torch.nn.Module`` by dotted path; and which of their weights can be pruned."""

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from pipeline.ground.errors import SettingsError, one_line
from pipeline.ground.randomness import derived_seed
from pipeline.networks.lenet import lenet_300_100
from pipeline.networks.mobilenet import mobilenet_v1, mobilenet_v2
from pipeline.networks.resnet import cifar_resnet, imagenet_resnet
from pipeline.networks.small_cnn import small_cnn
from pipeline.networks.vgg import vgg16
from pipeline.settings.dotted import class_at, made
from pipeline.settings.groups import Model

NETWORKS: Mapping[str, Callable[..., nn.Module]] = {
    "cifar_resnet": cifar_resnet,
    "imagenet_resnet": imagenet_resnet,
    "lenet_300_100": lenet_300_100,
    "mobilenet_v1": mobilenet_v1,
    "mobilenet_v2": mobilenet_v2,
    "small_cnn": small_cnn,
    "vgg16": vgg16,
}
"""Each takes the shape of one input (channels, height, width), the number of classes, and its own arguments."""

PRUNABLE = (nn.Linear, nn.modules.conv._ConvNd)
"""Layers whose ``weight`` is pruned: all convolutions and linear layers. Biases and normalisation never are."""

ATTENTION_WEIGHTS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


def build_network(model: Model, example: Tensor, classes: int, seed: int, attempt: int = 0) -> nn.Module:
    """A network with the initial weights of (seed, attempt): the same, bit for bit, each time.

    ``example`` is one input, (1, ...); ``classes`` is 0 where the data do not say how many there are.

    Raises:
        SettingsError: if there is no such network, or it does not take these arguments, or does not turn a batch of
            inputs into one score a class.
    """
    make = _constructor(model.network)
    given = {"shape": tuple(example.shape[1:]), "classes": classes} if model.network in NETWORKS else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(seed, attempt, "initial weights"))
        network = made(make, given, model.arguments, "model.arguments")
        check_scores(
            network, model.network, example, classes
        )  # here, as lazy layers draw their weights when first used
    return network


def _constructor(name: str) -> Callable[..., nn.Module]:
    if name in NETWORKS:
        return NETWORKS[name]
    takes = f"takes one of {', '.join(NETWORKS)}, or"
    return class_at(name, nn.Module, "torch.nn.Module", "model.network", takes)


def check_scores(network: nn.Module, name: str, example: Tensor, classes: int) -> int:
    """The number of scores that a network gives an input.

    Raises:
        SettingsError: if it does not turn a batch of two into (2, classes) scores (``classes`` 0: any number).
    """
    was_training = network.training
    try:
        with torch.no_grad():
            scores = network.eval()(torch.cat([example, example]))
    except Exception as error:
        raise SettingsError(
            [f"model.network: {name!r} fails on inputs of shape {tuple(example.shape[1:])}: {one_line(error)}"]
        ) from error
    finally:
        network.train(was_training)
    got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
    if not isinstance(scores, Tensor) or scores.ndim != 2 or len(scores) != 2 or classes not in (0, scores.shape[1]):
        takes = f"(2, {classes}) scores" if classes else "one row of scores each"
        raise SettingsError([f"model.network: {name!r} turns 2 inputs into {got}, takes one with {takes}"])
    return scores.shape[1]


def weight_layers(network: nn.Module) -> dict[str, nn.Module]:
    """Parameter name -> layer, for the weights of every convolution, linear and attention layer, in parameter order.

    Those of ``nn.MultiheadAttention`` are its projections of queries, keys and values (and, a linear layer of its own,
    of the output).
    """
    layers: dict[str, nn.Module] = {}
    for name, module in network.named_modules():
        if isinstance(module, PRUNABLE):
            layers[f"{name}.weight"] = module
        elif isinstance(module, nn.MultiheadAttention):
            layers |= {f"{name}.{weight}": module for weight in ATTENTION_WEIGHTS}
    return {name: layers[name] for name, _ in network.named_parameters() if name in layers}


def prunable(network: nn.Module, exclude: tuple[str, ...] = ()) -> list[str]:
    """Names of the prunable parameters, in parameter order, without the layers that match a pattern of ``exclude``.

    Raises:
        SettingsError: if a pattern matches no layer, nothing is left to prune, or the weight of a layer is computed.
    """
    names = {weight: weight.removesuffix(".weight") for weight in weight_layers(network)}
    if not names:
        raise SettingsError(["model.network: has no convolution, linear or attention layer, so nothing can be pruned"])
    parameters = {name for name, _ in network.named_parameters(remove_duplicate=False)}
    faults = [
        f"model.network: the weight of layer {name!r} is computed from others (by a parametrization, weight_norm or "
        "torch.nn.utils.prune), which is not pruned here; takes plain layers"
        for name, module in network.named_modules()
        if isinstance(module, PRUNABLE) and f"{name}.weight" not in parameters
    ]
    faults += [
        f"pruning.exclude: got {pattern!r}, which matches no layer; the layers are {', '.join(names.values())}"
        for pattern in exclude
        if not any(fnmatchcase(layer, pattern) for layer in names.values())
    ]
    left = [weight for weight, layer in names.items() if not any(fnmatchcase(layer, p) for p in exclude)]
    if not faults and not left:
        faults = [f"pruning.exclude: got {list(exclude)}, which leaves no layer to prune"]
    if faults:
        raise SettingsError(faults)
    return left
