"""Channels that live and die together: a filter, its normalisation, and all that reads what it makes.

A residual sum, a depthwise convolution or a concatenation ties the channels of several layers to each other;
torch-pruning's dependency graph says which. A channel of a group is dead when all of its weights are masked: the rows
that make it, the normalisation's scale and shift, and the columns that read it. Then it is zero wherever it goes, and
a network without it computes the same.
"""

import copy
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
import torch_pruning
from torch import Tensor, nn
from torch.compiler import set_stance
from torch_pruning.ops import OPTYPE

from pipeline.networks.layers import weight_layers
from pipeline.pruning.masks import Masks

LAYERS = (nn.Conv2d, nn.Linear)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
OPERATIONS = (OPTYPE.ELEMENTWISE, OPTYPE.RESHAPE, OPTYPE.CONCAT, OPTYPE.SPLIT, OPTYPE.SLICE, OPTYPE.UNBIND)


@dataclass(frozen=True, eq=False)
class Slice:
    """Where channels lie in a parameter: entry ``places[i]`` of ``dimension`` belongs to channel ``channels[i]``."""

    parameter: str
    dimension: int
    places: Tensor
    channels: Tensor


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """``size`` channels; the slices of weights that make them, that read them, and of biases and normalisation."""

    name: str
    size: int
    makers: tuple[Slice, ...]
    readers: tuple[Slice, ...]
    vectors: tuple[Slice, ...]

    @property
    def slices(self) -> tuple[Slice, ...]:
        """All slices of a channel's."""
        return self.makers + self.readers + self.vectors

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers whose filters these are."""
        return tuple(each.parameter.removesuffix(".weight") for each in self.makers)

    def matches(self, pattern: str) -> bool:
        """Whether a pattern, as of file names, is of one of the layers."""
        return any(fnmatchcase(layer, pattern) for layer in self.layers)


def channel_groups(network: nn.Module, example: Tensor) -> tuple[ChannelGroup, ...]:
    """The groups of a network whose channels can be taken out, in the order of their first layers.

    Those that a network's scores are, and those that pass a layer which is not understood (a grouped convolution that
    is not depthwise, an attention, a normalisation over channels), are none. ``example`` is one input, (1, ...).

    Raises:
        ValueError: if the network cannot be followed.
    """
    network = copy.deepcopy(network).cpu().eval()
    try:
        graph = dependency_graph(network, example)
        return tuple(_groups(network, graph))
    except Exception as error:  # networks of one's own can be anything
        raise ValueError(f"the channels of the network cannot be followed: {error}") from error


def dependency_graph(network: nn.Module, example: Tensor) -> torch_pruning.DependencyGraph:
    """torch-pruning's graph of a network."""
    logging.getLogger("torch_pruning").setLevel(logging.ERROR)
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    with warnings.catch_warnings(), set_stance("force_eager"), torch.enable_grad():
        warnings.simplefilter("ignore")
        return torch_pruning.DependencyGraph().build_dependency(network, example_inputs=example)


def coupled(graph: torch_pruning.DependencyGraph, layer: nn.Module) -> torch_pruning.Group:
    """All that shares the output channels of a layer."""
    take = graph.get_pruner_of_module(layer).prune_out_channels
    return graph.get_pruning_group(layer, take, idxs=list(range(len(layer.weight))))  # type: ignore[arg-type]


def roots(network: nn.Module, graph: torch_pruning.DependencyGraph) -> Iterator[tuple[nn.Module, torch_pruning.Group]]:
    """One layer of each group of coupled layers, and the group."""
    seen: set[nn.Module] = set()
    for layer in weight_layers(network).values():
        if not isinstance(layer, LAYERS) or layer in seen or getattr(layer, "groups", 1) != 1:
            continue
        group = coupled(graph, layer)
        seen |= {item.dep.target.module for item in group if graph.is_out_channel_pruning_fn(item.dep.handler)}
        yield layer, group


def _groups(network: nn.Module, graph: torch_pruning.DependencyGraph) -> Iterator[ChannelGroup]:
    names = {module: name for name, module in network.named_modules()}
    known = dict(network.named_parameters())
    for layer, group in roots(network, graph):
        parts: dict[str, list[Slice]] = {"makers": [], "readers": [], "vectors": []}

        def add(kind: str, parameter: str, dimension: int, item: object, parts: dict = parts) -> None:  # type: ignore[type-arg]
            if parameter in known:
                places, channels = torch.tensor(item.idxs), torch.tensor(item.root_idxs)  # type: ignore[attr-defined]
                parts[kind].append(Slice(parameter, dimension, places, channels))

        for item in group:
            module = item.dep.target.module
            makes = graph.is_out_channel_pruning_fn(item.dep.handler)
            if isinstance(module, LAYERS) and getattr(module, "groups", 1) in (1, module.weight.shape[0]):
                add("makers" if makes else "readers", f"{names[module]}.weight", 0 if makes else 1, item)
                if makes:
                    add("vectors", f"{names[module]}.bias", 0, item)
            elif isinstance(module, NORMS):
                add("vectors", f"{names[module]}.weight", 0, item)
                add("vectors", f"{names[module]}.bias", 0, item)
            elif item.dep.target.type not in OPERATIONS:
                break
        else:
            if parts["readers"]:
                found = {kind: tuple(slices) for kind, slices in parts.items()}
                yield ChannelGroup(names[layer], len(group[0].idxs), **found)


def alive(group: ChannelGroup, masks: Masks) -> Tensor:
    """Which channels of a group are alive: bool (size,)."""
    first = group.makers[0]
    return masks[first.parameter].movedim(first.dimension, 0).flatten(1).any(1)[first.places[first.channels.argsort()]]


def without(masks: Masks, groups: Sequence[ChannelGroup], dead: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The masks with more channels dead: ``dead`` marks them by the group's name, bool (size,)."""
    changed = dict(masks)
    for group in groups:
        if group.name not in dead or not dead[group.name].any():
            continue
        for each in group.slices:
            gone = each.places[dead[group.name][each.channels]]
            changed[each.parameter] = changed[each.parameter].index_fill(each.dimension, gone, False)
    return changed
