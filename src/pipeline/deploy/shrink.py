"""Channels that pruning has killed, taken out of a network: what is left computes the same with fewer multiply-adds.

A channel is dead if nothing reads it, or if it is zero whatever the input. One that is constant and not zero stays: a
convolution with padding reads it differently at the border. torch-pruning's dependency graph says which layers share a
channel (residual sums, depthwise neighbours) and takes it out of all of them.
"""

import copy
import warnings
from collections.abc import Mapping
from typing import Any

import torch
import torch_pruning
from torch import Tensor, nn

from pipeline.ground.structures import called, first_row, named_tensors
from pipeline.networks.costs import positions
from pipeline.pruning.channels import LAYERS, NORMS, OPERATIONS, dependency_graph, roots

WORTH = 0.01
"""Share of multiply-adds from which channels are taken out."""
TOLERANCE = 1e-5


def macs(network: nn.Module, example: Any) -> int:
    """Multiply-adds of one input (1, ...), of any structure, zeros included."""
    parameters = dict(network.named_parameters())
    return sum(parameters[name].numel() * count for name, count in positions(network, example).items())


def shrunk(network: nn.Module, inputs: Any, multiple: int = 1, block: int = 1) -> nn.Module:
    """The network without its dead channels; the network itself where they are not worth it or cannot be told.

    ``inputs`` (N, ...), of any structure, are some of its own; on them both must answer the same. So many dead channels
    stay that what is left of a layer is a ``multiple``, where it is not whole. Of ``block`` neighbours all go or none,
    so that filters which lose weights together stay together.
    """
    smaller = copy.deepcopy(network).eval()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            while _take_out(smaller, inputs, multiple, block):
                pass
        with torch.no_grad():
            before, after = (named_tensors(called(each.eval(), inputs), "") for each in (network, smaller))
        saved = 1 - macs(smaller, first_row(inputs)) / macs(network, first_row(inputs))
        same = all(_same(each, after[name]) for name, each in before.items())
    except Exception:  # networks of one's own can be anything; then all channels stay
        return network
    return network if saved < WORTH or not same else smaller


def _same(before: Tensor, after: Tensor) -> bool:
    if not before.is_floating_point():
        return torch.equal(before, after)
    largest = max(1.0, float(before.abs().max()))
    return torch.allclose(before, after, rtol=TOLERANCE, atol=TOLERANCE * largest)


def _take_out(network: nn.Module, inputs: Any, multiple: int, block: int) -> bool:
    """Takes out all channels that are dead now; whether there were any."""
    graph = dependency_graph(network, first_row(inputs))
    highest = _highest(network, inputs)
    found = False
    for layer, group in roots(network, graph):
        channels = len(group[0].idxs)
        alone = set(_dead(graph, group, channels, highest))
        blocks = [range(first, min(first + block, channels)) for first in range(0, channels, block)]
        dead = [channel for each in blocks if alone.issuperset(each) for channel in each]
        width = -(-max(1, channels - len(dead)) // multiple) * multiple
        dead = dead[: max(0, channels - width) // block * block]
        if dead:
            chosen = graph.get_pruning_group(layer, graph.get_pruner_of_module(layer).prune_out_channels, idxs=dead)
            if graph.check_pruning_group(chosen):
                chosen.prune()
                found = True
    return found


def _dead(
    graph: torch_pruning.DependencyGraph, group: torch_pruning.Group, channels: int, highest: Mapping[nn.Module, Tensor]
) -> list[int]:
    """Channels of a group's first layer that nothing reads, or that no input gives a value."""
    made, read = (torch.zeros(channels, dtype=torch.bool) for _ in range(2))
    zero = torch.ones(channels, dtype=torch.bool)
    readers = 0
    for item in group:
        module = item.dep.target.module
        places, roots = torch.tensor(item.idxs), torch.tensor(item.root_idxs)
        if isinstance(module, LAYERS):
            if graph.is_out_channel_pruning_fn(item.dep.handler):
                made[roots[module.weight.detach().flatten(1).any(1)[places]]] = True
            else:
                readers += 1
                read[roots[module.weight.detach().transpose(0, 1).flatten(1).any(1)[places]]] = True
                zero[roots[highest[module][places] > 0]] = False
        elif not isinstance(module, NORMS) and item.dep.target.type not in OPERATIONS:
            return []
    if not readers:
        return []
    return torch.nonzero(~read | (~made & zero)).flatten().tolist()


def _highest(network: nn.Module, inputs: Any) -> dict[nn.Module, Tensor]:
    """The largest absolute value that each layer gets by input channel."""
    found: dict[nn.Module, Tensor] = {}

    def look(layer: nn.Module, given: tuple[Tensor, ...]) -> None:
        channels = given[0].movedim(-1 if isinstance(layer, nn.Linear) else 1, 0).flatten(1)
        found[layer] = torch.maximum(channels.abs().amax(1), found.get(layer, torch.zeros(len(channels))))

    hooks = [layer.register_forward_pre_hook(look) for layer in network.modules() if isinstance(layer, LAYERS)]
    try:
        with torch.no_grad():
            called(network, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return found
