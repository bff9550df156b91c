"""A trained network under a choice of widths: which channels stay, what reads them refit, how accurate it still is.

Channels that stay are those with the largest sums of magnitudes in what reads them. The weights that read them are
then fitted anew, so that each layer's outputs are as near as can be, in least squares, to those that the whole network
has at sampled positions (He, Zhang and Sun 2017, equation 5; He et al. 2018, section 3.4).
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.ground.tensors import unpacked
from pipeline.networks.layers import weight_layers
from pipeline.pruning.channels import ChannelGroup, without
from pipeline.pruning.masks import Masks, ones_like
from pipeline.pruning.prune import keep

IMAGES, POSITIONS = 3000, 10
"""Training images that a refit looks at, and places in the output map of each layer for each (section 4)."""
RIDGE = 1e-7
"""Times the mean of the diagonal: what is added to it, as channels may be zero everywhere."""

Weights = dict[str, Tensor]
Choice = Callable[[Sequence[int]], Weights]
"""What each step keeps -> the network's pruned and refit parameters."""


@dataclass(frozen=True)
class Normal:
    """The normal equations of a layer: X'X (columns x columns) and X'Y (columns x outputs), float64.

    Rows of X are what the layer reads at a position, its columns in the order of the flattened weight; Y are outputs
    without bias.
    """

    gram: Tensor
    cross: Tensor


def importance(weights: Mapping[str, Tensor], group: ChannelGroup) -> Tensor:
    """Of each channel of a group: the sum of magnitudes of the weights that read it, float64 (size,)."""
    total = torch.zeros(group.size, dtype=torch.float64)
    for each in group.readers:
        columns = weights[each.parameter].movedim(each.dimension, 0).flatten(1).double().abs().sum(1)
        total.index_add_(0, each.channels, columns[each.places])
    return total


def refit(weight: Tensor, mask: Tensor, normal: Normal) -> Tensor:
    """A weight whose living columns give least squares' answer for all of its rows; dead entries are zero."""
    columns = mask.any(0).flatten()
    gram = normal.gram[columns][:, columns]
    gram = gram + RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    fitted = torch.zeros(weight.flatten(1).shape, dtype=gram.dtype)
    fitted[:, columns] = torch.linalg.solve(gram, normal.cross[columns]).T
    return fitted.reshape(weight.shape).to(weight.dtype) * mask


def channels(network: nn.Module, groups: Sequence[ChannelGroup], normals: Mapping[str, Normal]) -> Choice:
    """Choices of how many channels each of ``groups`` keeps; what has ``normals`` is refit."""
    weights = {name: parameter.detach() for name, parameter in network.named_parameters()}
    whole = ones_like({each: weights[each] for group in groups for each in {each.parameter for each in group.slices}})
    orders = {group.name: importance(weights, group).argsort(stable=True) for group in groups}

    def chosen(counts: Sequence[int]) -> Weights:
        dead = {group.name: torch.zeros(group.size, dtype=torch.bool) for group in groups}
        for group, count in zip(groups, counts, strict=True):
            dead[group.name][orders[group.name][: group.size - count]] = True
        masks = without(whole, groups, dead)
        return {name: _masked(name, masks) for name in masks if not masks[name].all()}

    def _masked(name: str, masks: Masks) -> Tensor:
        mask, weight = masks[name], weights[name]
        if name in normals and not mask.any(0).all():
            return refit(weight, mask, normals[name])
        return weight * mask

    return chosen


def single_weights(network: nn.Module, names: Sequence[str]) -> Choice:
    """Choices of how many weights each of the parameters ``names`` keeps: those of the largest magnitudes."""
    weights = {name: network.get_parameter(name).detach() for name in names}
    scores = {name: weight.abs() for name, weight in weights.items()}

    def chosen(counts: Sequence[int]) -> Weights:
        masks = keep(scores, ones_like(weights), dict(zip(names, counts, strict=True)))
        return {name: weights[name] * mask for name, mask in masks.items()}

    return chosen


@torch.no_grad()
def normals(
    network: nn.Module, names: Sequence[str], batches: Sequence[Tensor], draws: torch.Generator
) -> dict[str, Normal]:
    """The normal equations of the layers whose weights ``names`` are, on inputs of the network, batch by batch.

    Each batch is looked at in ``POSITIONS`` places of each layer's output map.
    """
    found: dict[str, Normal] = {}
    layers = {name: layer for name, layer in weight_layers(network).items() if name in names}

    def look(name: str, layer: nn.Module, given: Tensor, output: Tensor) -> None:
        read, made = sampled(layer, given, output, draws)
        gram, cross = read.T @ read, read.T @ made
        before = found.get(name)
        found[name] = Normal(gram, cross) if before is None else Normal(before.gram + gram, before.cross + cross)

    hooks = [
        layer.register_forward_hook(lambda m, i, o, name=name: look(name, m, i[0], o))  # type: ignore[misc]
        for name, layer in layers.items()
    ]
    try:
        for batch in batches:
            network(batch)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def sampled(layer: nn.Module, given: Tensor, output: Tensor, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """What a layer reads (samples, columns) and makes without its bias (samples, rows) at random places, float64."""
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    bias = torch.zeros(len(layer.weight)) if layer.bias is None else layer.bias
    if isinstance(layer, nn.Linear):
        return given.flatten(0, -2).double(), (output - bias).flatten(0, -2).double()
    assert isinstance(layer.padding, tuple)
    height, width = output.shape[2:]
    places = torch.randint(height * width, (min(POSITIONS, height * width),), generator=draws)
    ys, xs = places // width, places % width
    padded = F.pad(given, [side for pad in reversed(layer.padding) for side in (pad, pad)])
    pieces = [
        padded[
            :,
            :,
            y * layer.stride[0] : y * layer.stride[0] + layer.dilation[0] * layer.kernel_size[0] : layer.dilation[0],
            x * layer.stride[1] : x * layer.stride[1] + layer.dilation[1] * layer.kernel_size[1] : layer.dilation[1],
        ].flatten(1)
        for y, x in zip(ys.tolist(), xs.tolist(), strict=True)
    ]
    return torch.cat(pieces).double(), output[:, :, ys, xs].permute(2, 0, 1).flatten(0, 1).double() - bias.double()


@torch.no_grad()
def accuracy(
    network: nn.Module, weights: Weights, batches: Sequence[tuple[Tensor, Tensor]], bfloat16: bool = False
) -> float:
    """Share of right answers of the network with some of its parameters replaced; it is left as it was."""
    other = copy.deepcopy(network).eval()
    other.load_state_dict(unpacked(weights), strict=False)
    other.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    right = total = 0
    with torch.autocast("cpu", torch.bfloat16) if bfloat16 else nullcontext():
        for inputs, labels in batches:
            right += int((other(inputs.contiguous(memory_format=torch.channels_last)).argmax(1) == labels).sum())
            total += len(labels)
    return right / total
