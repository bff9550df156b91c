"""Networks by name, or any ``torch.nn.Module`` by dotted path."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.ground.errors import SettingsError, one_line
from pipeline.ground.randomness import seed_all, undisturbed
from pipeline.ground.structures import rows_of
from pipeline.networks.fast_cnn import fast_cnn
from pipeline.networks.given import unwrapped
from pipeline.networks.layers import begin_training, in_evaluation, outputs_of
from pipeline.networks.lenet import lenet_300_100
from pipeline.networks.mobilenet import mobilenet_v1, mobilenet_v2
from pipeline.networks.resnet import cifar_resnet, imagenet_resnet
from pipeline.networks.small_cnn import small_cnn
from pipeline.networks.vgg import vgg16
from pipeline.settings.dotted import found_at, made
from pipeline.settings.groups import Model

Make = Callable[..., nn.Module]

NETWORKS: Mapping[str, Make] = {
    "cifar_resnet": cifar_resnet,
    "fast_cnn": fast_cnn,
    "imagenet_resnet": imagenet_resnet,
    "lenet_300_100": lenet_300_100,
    "mobilenet_v1": mobilenet_v1,
    "mobilenet_v2": mobilenet_v2,
    "small_cnn": small_cnn,
    "vgg16": vgg16,
}
"""Each takes the shape of one input (channels, height, width), the number of classes, and its own arguments."""


def build_network(
    model: Model, example: Any, classes: int, seed: int, attempt: int = 0, make: Make | None = None
) -> nn.Module:
    """A network with the initial weights of (seed, attempt): the same, bit for bit, each time.

    ``example`` is one input, (1, ...), or several in a structure; ``classes`` is 0 where the data do not say how many.
    ``make`` takes the place of what ``model`` names.

    Raises:
        SettingsError: if there is no such network, it does not take these arguments, or fails on inputs.
    """
    assert model.network is not None
    make = make or _constructor(model.network)
    given: dict[str, Any] = {}
    if model.network in NETWORKS:
        if not isinstance(example, Tensor):
            raise SettingsError([f"model.network: got {model.network}, which takes images; the data give others"])
        if not classes:
            raise SettingsError(
                [f"model.network: got {model.network}, which takes the number of classes; the data module takes an "
                 "attribute classes, their names"]
            )  # fmt: skip
        given = {"shape": tuple(example.shape[1:]), "classes": classes}
    with torch.random.fork_rng(devices=[]):
        seed_all(seed, attempt, "initial weights")
        network = unwrapped(made(make, given, model.arguments, "model.arguments"))
        if not isinstance(network, nn.Module):
            raise SettingsError([f"model.network: {model.network!r} makes a {type(network).__name__}, {TAKES}"])
        tried(network, model.network, example)  # here, as lazy layers draw their weights when first used
    return begin_training(network)


def build_module(model: Model, seed: int, attempt: int = 0, make: Make | None = None) -> nn.Module:
    """A LightningModule of the user's with the initial weights of (seed, attempt); ``make`` as for a network.

    Raises:
        SettingsError: if there is none, or it does not take these arguments.
    """
    assert model.module is not None
    make = make or found_at(model.module, "model.module", "takes the dotted path of a LightningModule class")
    with torch.random.fork_rng(devices=[]):
        seed_all(seed, attempt, "initial weights")
        module = unwrapped(made(make, {}, model.arguments, "model.arguments"))
        if not isinstance(module, nn.Module) or not hasattr(module, "configure_optimizers"):
            raise SettingsError(
                [f"model.module: got {model.module!r}, which makes a {type(module).__name__}, takes a LightningModule"]
            )
        configure = getattr(module, "configure_model", None)
        if callable(configure):
            configure()
    return begin_training(module)


TAKES = f"takes one of {', '.join(NETWORKS)}, or the dotted path of what makes a torch.nn.Module"


def _constructor(name: str) -> Make:
    return NETWORKS[name] if name in NETWORKS else found_at(name, "model.network", TAKES)


def tried(network: nn.Module, name: str, example: Any) -> Tensor:
    """What a network makes of two inputs.

    Raises:
        SettingsError: if it fails, or does not give a tensor with a row for each.
    """
    try:
        with in_evaluation(network), undisturbed():
            outputs = outputs_of(network, rows_of(example, 2))
    except Exception as error:
        shape = f" of shape {tuple(example.shape[1:])}" if isinstance(example, Tensor) else ""
        raise SettingsError([f"model.network: {name!r} fails on inputs{shape}: {one_line(error)}"]) from error
    if not outputs.ndim or len(outputs) != 2:
        raise SettingsError(
            [f"model.network: {name!r} turns 2 inputs into {tuple(outputs.shape)}, takes one with a row for each"]
        )
    return outputs


def check_scores(network: nn.Module, name: str, example: Any, classes: int) -> int:
    """The number of scores that a network gives an input.

    Raises:
        SettingsError: if it does not turn a batch of two into (2, classes) scores (``classes`` 0: any number).
    """
    outputs = tried(network, name, example)
    if outputs.ndim != 2 or classes not in (0, outputs.shape[1]):
        takes = f"(2, {classes}) scores" if classes else "one row of scores each"
        raise SettingsError(
            [f"model.network: {name!r} turns 2 inputs into {tuple(outputs.shape)}, takes one with {takes}"]
        )
    return outputs.shape[1]
