"""Channels that live and die together: a filter, its normalisation, and all that reads what it makes.

A residual sum, a depthwise convolution or a concatenation ties the channels of several layers to each other;
torch-pruning's dependency graph says which. A channel of a group is dead when all of its weights are masked: the rows
that make it, the normalisation's scale and shift, and the columns that read it. Then a network without it computes the
same.

The graph knows shapes alone: it takes a channel shuffle for a reshape and names the wrong columns. So what it says is
tried on the network, and a group that does not hold is left alone.
"""

import copy
import itertools
import logging
import math
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial, wraps
from typing import Any

import torch
import torch_pruning
from torch import Tensor, nn
from torch.compiler import set_stance
from torch.func import functional_call
from torch_pruning.ops import OPTYPE

from pipeline.ground.structures import arguments_of, called, each_tensor, leaves
from pipeline.networks.layers import weight_layers
from pipeline.pruning.masks import Masks

LAYERS = (nn.Conv2d, nn.Linear)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
OPERATIONS = (OPTYPE.ELEMENTWISE, OPTYPE.RESHAPE, OPTYPE.CONCAT, OPTYPE.SPLIT, OPTYPE.SLICE, OPTYPE.UNBIND)

FLATTENED = 16
"""How many times as many places as the largest value has a layer's channels may have in what is made of them."""
_most: ContextVar[float] = ContextVar("_most", default=math.inf)


class _Graph(torch_pruning.DependencyGraph):  # type: ignore[misc]
    """torch-pruning's graph, which is refused where it follows reshapes round and round, each time with more places, as
    those of a local response normalisation. ``most`` are the places that channels may have.
    """

    most = math.inf

    def get_pruning_group(self, *given: Any, **named: Any) -> torch_pruning.Group:
        before = _most.set(self.most)
        try:
            return super().get_pruning_group(*given, **named)
        finally:
            _most.reset(before)


def _bounded(flattened: Callable[[Any, Any], list[Any]]) -> Callable[[Any, Any], list[Any]]:
    @wraps(flattened)
    def within(self: Any, places: Any) -> list[Any]:
        if not self.reverse and len(places) * self._stride > _most.get():
            raise ValueError("a reshape of channels leads back to itself")
        return flattened(self, places)

    return within


with suppress(ImportError, AttributeError):  # no part of its interface, and elsewhere in another release
    from torch_pruning.dependency.index_mapping import _FlattenIndexMapping

    _FlattenIndexMapping.__call__ = _bounded(_FlattenIndexMapping.__call__)


@dataclass(frozen=True, eq=False)
class Slice:
    """Where channels lie in a parameter: entry ``places[i]`` of ``dimension`` belongs to channel ``channels[i]``."""

    parameter: str
    dimension: int
    places: Tensor
    channels: Tensor

    @property
    def layer(self) -> str:
        """The name of the layer that it is a parameter of."""
        return self.parameter.rpartition(".")[0]


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
        return tuple(each.layer for each in self.makers)

    def matches(self, pattern: str) -> bool:
        """Whether a pattern, as of file names, is of one of the layers."""
        return any(fnmatchcase(layer, pattern) for layer in self.layers)


def channel_groups(network: nn.Module, example: Any) -> tuple[tuple[ChannelGroup, ...], tuple[str, ...]]:
    """The groups of a network whose channels can be taken out, in the order of their first layers; and the layers of
    those that the graph is wrong about.

    Channels that a network's scores are, and those that pass a layer which is not understood (a grouped convolution
    that is not depthwise, an attention, a normalisation over channels), are in neither. ``example`` is one input,
    (1, ...), or several in a structure.

    Raises:
        ValueError: if the network cannot be followed.
    """
    network = copy.deepcopy(network).cpu().eval()
    try:
        groups = tuple(_groups(network, dependency_graph(network, example)))
        wrong = _mistaken(network, example, groups)
    except Exception as error:  # networks of one's own can be anything
        raise ValueError(f"the channels of the network cannot be followed: {error}") from error
    left = tuple(layer for group in groups if group.name in wrong for layer in group.layers)
    return tuple(group for group in groups if group.name not in wrong), left


def dependency_graph(network: nn.Module, example: Any) -> torch_pruning.DependencyGraph:
    """torch-pruning's graph of a network."""
    logging.getLogger("torch_pruning").setLevel(logging.ERROR)
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    with warnings.catch_warnings(), set_stance("force_eager"), torch.enable_grad():
        warnings.simplefilter("ignore")
        arguments, named = arguments_of(network, example)
        graph = _Graph().build_dependency(network, example_inputs=dict(named) or list(arguments))
        graph.most = FLATTENED * _largest(network, example)
        return graph


def _largest(network: nn.Module, example: Any) -> int:
    """How many numbers the largest value has that a part of a network gets or gives."""
    sizes: list[int] = []

    def look(part: nn.Module, given: Any, answer: Any) -> None:
        sizes.extend(each.numel() for each in leaves((given, answer)) if isinstance(each, Tensor))

    hooks = [part.register_forward_hook(look) for part in network.modules()]
    try:
        with torch.no_grad():
            called(network, example)
    finally:
        for hook in hooks:
            hook.remove()
    return max(sizes, default=0)


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
        if f"{names[layer]}.weight" not in known:  # a layer before it has the same
            continue
        parts: dict[str, list[Slice]] = {"makers": [], "readers": [], "vectors": []}

        def add(kind: str, parameter: str, dimension: int, item: object, parts: dict = parts) -> None:  # type: ignore[type-arg]
            if parameter in known:
                places, channels = torch.tensor(item.idxs), torch.tensor(item.root_idxs)  # type: ignore[attr-defined]
                parts[kind].append(Slice(parameter, dimension, places, channels))

        for item in group:
            module = item.dep.target.module
            makes = graph.is_out_channel_pruning_fn(item.dep.handler)
            if isinstance(module, LAYERS) and (getattr(module, "groups", 1) == 1 or _is_depthwise(module)):
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


def _is_depthwise(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels == layer.out_channels > 1


def _mistaken(network: nn.Module, example: Any, groups: Sequence[ChannelGroup]) -> set[str]:
    """The names of groups that do not hold: where a dead channel is said to be read, something else is.

    In each run a quarter of all groups' channels is dead and everything else is loud; at the places of the dead ones
    must be what is there when all is silent. The runs go by the digits of the channels' numbers to the base 4: of any
    two channels, each is once dead while the other is not. They are of both signs, as a ReLU hides one. What is not
    seen is a weight that is used outside its layer too.
    """
    known = dict(network.named_parameters())
    wrong = {
        group.name
        for group in groups
        if any((each.places >= known[each.parameter].shape[each.dimension]).any() for each in group.slices)
    }
    groups = [group for group in groups if group.name not in wrong]
    makers = [replace(group, readers=()) for group in groups]
    weights = _open(known)
    sizes = [group.size for group in groups]
    numbers = torch.arange(sum(sizes))

    def without_makers(dead: Sequence[Tensor]) -> dict[str, Tensor]:
        return without(weights, makers, {group.name: gone for group, gone in zip(groups, dead, strict=True)})

    everything = torch.ones(len(numbers), dtype=torch.bool).split(sizes)
    silent = _given(network, example, without_makers(everything), 0.0)
    digits = [numbers // 4**place % 4 for place in range((len(numbers).bit_length() + 1) // 2)]
    for digit, value in itertools.product(digits, range(4)):
        dead = (digit == value).split(sizes)
        some = without_makers(dead)
        for given in (_given(network, example, some, level) for level in (-1.0, 1.0)):
            wrong |= {
                group.name
                for group, gone in zip(groups, dead, strict=True)
                for each in group.slices
                if _is_read(network, each)
                and not _agree(given[each.parameter], silent[each.parameter], each.places[gone[each.channels]])
            }
    return wrong


def _open(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters that let all inputs through: a row's are positive and sum up to less than one, biases are zero."""
    draws = torch.Generator().manual_seed(0)
    return {
        name: torch.zeros_like(each)
        if name.endswith("bias")
        else torch.empty_like(each).uniform_(0.5, 1, generator=draws) / math.prod(each.shape[1:])
        for name, each in parameters.items()
        if each.is_floating_point()
    }


@torch.no_grad()
def _given(network: nn.Module, example: Any, weights: Mapping[str, Tensor], level: float) -> dict[str, list[Tensor]]:
    """What each layer and normalisation is given, channels first, call by call under the name of its weight.

    It takes noise of a level in its place, so that what it makes depends on nothing before it; so does the network.
    """
    names: dict[Tensor, str] = {parameter: name for name, parameter in network.named_parameters()}
    draws = torch.Generator().manual_seed(1)
    found: dict[str, list[Tensor]] = defaultdict(list)

    def noise(like: Tensor) -> Tensor:
        if not like.is_floating_point():
            return like
        return torch.empty_like(like).uniform_(0.5, 1, generator=draws) * level

    def look(name: str, layer: nn.Module, args: tuple[Tensor, ...], named: dict[str, Tensor]) -> Any:
        given = args[0] if args else named["input"]
        dimension = -1 if isinstance(layer, nn.Linear) else 1 if isinstance(layer, nn.BatchNorm1d) else -3
        found[name].append(given.movedim(dimension, 0).clone())
        return (noise(given), *args[1:]), {key: value for key, value in named.items() if key != "input"}

    hooks = [
        layer.register_forward_pre_hook(partial(look, names[layer.weight]), with_kwargs=True)
        for layer in network.modules()
        if isinstance(layer, LAYERS + NORMS) and layer.weight in names
    ]
    statistics = {
        name: torch.full_like(each, name.endswith("var"))
        for name, each in network.named_buffers()
        if name.endswith(("running_mean", "running_var"))
    }

    @wraps(network.forward)
    def with_values(*args: Any, **named: Any) -> Any:
        return functional_call(network, {**weights, **statistics}, args, named)

    try:
        with set_stance("force_eager"):
            called(with_values, each_tensor(example, noise))
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _is_read(network: nn.Module, part: Slice) -> bool:
    """Whether the places of a slice are those of its layer's input: columns, depthwise kernels, normalisations."""
    layer = network.get_submodule(part.layer)
    aligned = isinstance(layer, NORMS) or _is_depthwise(layer)
    return part.dimension == 1 or (aligned and part.parameter.endswith("weight"))


def _agree(some: Sequence[Tensor], others: Sequence[Tensor], places: Tensor) -> bool:
    return len(some) == len(others) and all(
        torch.equal(one[places], other[places]) for one, other in zip(some, others, strict=True)
    )


def alive(group: ChannelGroup, masks: Masks) -> Tensor:
    """Which channels of a group are alive: bool (size,)."""
    first = group.makers[0]
    return masks[first.parameter].movedim(first.dimension, 0).flatten(1).any(1)[first.places[first.channels.argsort()]]


def without(masks: Masks, groups: Sequence[ChannelGroup], dead: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The masks, or weights, with more channels dead: ``dead`` marks them by the group's name, bool (size,)."""
    changed = dict(masks)
    for group in groups:
        if group.name not in dead or not dead[group.name].any():
            continue
        for each in group.slices:
            gone = each.places[dead[group.name][each.channels]]
            changed[each.parameter] = changed[each.parameter].index_fill(each.dimension, gone, False)
    return changed
