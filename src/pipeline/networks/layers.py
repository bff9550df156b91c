"""Which weights of a network can be pruned, and which are: those of any module, tied, frozen and recurrent ones too."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from pipeline.ground.errors import SettingsError
from pipeline.ground.structures import called

PRUNABLE = (nn.Linear, nn.modules.conv._ConvNd)
"""Layers whose ``weight`` is pruned: all convolutions and linear layers. Biases and normalisation never are."""
RECURRENT = (nn.RNNBase, nn.RNNCellBase)
EMBEDDING = (nn.Embedding, nn.EmbeddingBag)
ATTENTION_WEIGHTS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
OFFERED = {RECURRENT: "recurrent", EMBEDDING: "embedding"}
"""Layers whose weights are pruned where ``pruning.include`` names them."""


def weight_layers(network: nn.Module, include: Sequence[str] = ()) -> dict[str, nn.Module]:
    """Parameter name -> layer, for the weights that could be pruned, in parameter order.

    They are those of convolutions, linear and attention layers (the projections of queries, keys and values), of
    recurrent layers and embeddings, and other parameters that a pattern of ``include`` names. A weight that several
    layers share stands under its first name, with the layer that multiplies by it.
    """
    owners: dict[nn.Parameter, nn.Module] = {}
    for name, module in network.named_modules():
        for own, parameter in module.named_parameters(recurse=False):
            full = f"{name}.{own}" if name else own
            known = _is_weight(module, own) or (parameter.ndim > 1 and _matches(full, include))
            if known and (parameter not in owners or isinstance(module, PRUNABLE)):
                owners[parameter] = module
    return {name: owners[parameter] for name, parameter in network.named_parameters() if parameter in owners}


def filters_of(layer: nn.Module, weight: Tensor) -> tuple[int, int]:
    """The axis of a weight that has the layer's outputs, and how many neighbours there read the same inputs."""
    if isinstance(layer, (nn.modules.conv._ConvTransposeNd, *EMBEDDING)):
        return 1, weight.shape[1]
    parts = 1
    if isinstance(layer, nn.modules.conv._ConvNd):
        parts = layer.groups
    elif isinstance(layer, RECURRENT) and weight.shape[0] % layer.hidden_size == 0:
        parts = weight.shape[0] // layer.hidden_size  # its gates
    elif isinstance(layer, nn.MultiheadAttention):
        parts = weight.shape[0] // layer.embed_dim  # queries, keys, values
    return 0, weight.shape[0] // parts


def _is_weight(module: nn.Module, name: str) -> bool:
    if isinstance(module, (*PRUNABLE, *EMBEDDING)):
        return name == "weight"
    if isinstance(module, nn.MultiheadAttention):
        return name in ATTENTION_WEIGHTS
    return isinstance(module, RECURRENT) and name.startswith("weight")


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(each, pattern) for each in (name, layer_name(name)) for pattern in patterns)


def layer_name(weight: str) -> str:
    """What a weight is called in tables and patterns."""
    return weight.removesuffix(".weight")


def prunable(network: nn.Module, exclude: Sequence[str] = (), include: Sequence[str] = ()) -> list[str]:
    """Names of the parameters that are pruned, in parameter order: weights of convolutions, linear and attention layers
    and those that ``include`` names, without the frozen and those of layers that match a pattern of ``exclude``.

    Raises:
        SettingsError: if a pattern matches nothing, nothing is left to prune, or the weight of a layer is computed.
    """
    layers = weight_layers(network, include)
    names = [name for name, layer in layers.items() if _is_offered(layer) is None or _matches(name, include)]
    trained = [name for name in names if network.get_parameter(name).requires_grad]
    if not names:
        raise SettingsError(["model.network: has no convolution, linear or attention layer, so nothing can be pruned"])
    parameters = {name for name, _ in network.named_parameters(remove_duplicate=False)}
    faults = [
        f"model.network: the weight of layer {name!r} is computed from others (by a parametrization, weight_norm or "
        "torch.nn.utils.prune), which is not pruned here; takes plain layers"
        for name, module in network.named_modules()
        if (
            isinstance(module, PRUNABLE)
            and "weight" not in module._buffers
            and f"{name}.weight".lstrip(".") not in parameters
        )
        or (isinstance(module, RECURRENT) and is_parametrized(module))
    ]
    faults += [
        f"pruning.{setting}: got {pattern!r}, which matches no layer; the layers are "
        f"{', '.join(map(layer_name, known))}"
        for setting, patterns, known in (("exclude", exclude, names), ("include", include, list(layers)))
        for pattern in patterns
        if not any(_matches(name, [pattern]) for name in known)
    ]
    left = [name for name in trained if not _matches(name, exclude)]
    if not faults and not left:
        faults = [
            f"pruning.exclude: got {list(exclude)}, which leaves no layer to prune"
            if trained
            else "model.network: every weight is frozen (requires_grad is false), so nothing can be pruned"
        ]
    if faults:
        raise SettingsError(faults)
    return left


def left_out(network: nn.Module, exclude: Sequence[str], include: Sequence[str]) -> list[str]:
    """A sentence for each kind of weight that is not pruned without having been excluded by name."""
    pruned = set(prunable(network, exclude, include))
    kinds: dict[str, list[str]] = {}
    for name, layer in weight_layers(network, ["*"]).items():
        own = name.rpartition(".")[2]
        if name in pruned or _matches(name, exclude) or own.startswith("bias"):
            continue
        offered = (_is_offered(layer) or "other") if _is_weight(layer, own) else "other"
        kinds.setdefault(offered if network.get_parameter(name).requires_grad else "frozen", []).append(name)
    constant = [
        f"{name}.weight".lstrip(".")
        for name, layer in network.named_modules()
        if isinstance(layer, PRUNABLE) and "weight" in layer._buffers
    ]
    kinds |= {"constant": constant} if constant else {}
    remedies = {"frozen": "requires_grad is false at the start", "constant": "they are buffers"}
    return [
        f"left out of pruning: {kind} weights {', '.join(map(layer_name, names))} "
        f"({remedies.get(kind, f'pruning.include=[{layer_name(names[0])!r}] prunes such weights too')})"
        for kind, names in kinds.items()
    ]


def _is_offered(layer: nn.Module) -> str | None:
    """The kind of a layer that is pruned where it is asked for; None for one that always is."""
    if isinstance(layer, (*PRUNABLE, nn.MultiheadAttention)):
        return None
    return next((word for kinds, word in OFFERED.items() if isinstance(layer, kinds)), "other")


def outputs_of(network: nn.Module, inputs: Any) -> Tensor:
    """What a network makes of inputs: a tensor, several in a sequence, or by name; of an output with ``logits``, these.

    Raises:
        TypeError: if it is no tensor.
    """
    found = called(network, inputs)
    found = getattr(found, "logits", found)
    if not isinstance(found, Tensor):
        mode = "training" if network.training else "evaluation"
        raise TypeError(
            f"gives a {type(found).__name__} in {mode}, takes a network that gives a tensor, or an output with logits; "
            "or a LightningModule, which makes a loss of anything"
        )
    return found


@contextmanager
def in_evaluation(network: nn.Module) -> Iterator[nn.Module]:
    """The network in evaluation and without gradients; each of its modules is as it was afterwards."""
    training = [module for module in network.modules() if module.training]
    with torch.no_grad():
        try:
            yield network.eval()
        finally:
            for module in training:
                module.training = True


def begin_training(network: nn.Module) -> nn.Module:
    """The network in training, where all of it was given in evaluation; modules that alone are in evaluation stay."""
    return network if any(module.training for module in network.modules()) else network.train()
