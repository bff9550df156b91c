"""What a masked network costs, layer by layer: weights and multiply-adds (MACs), dense and kept.

One use of one weight is one MAC, so the MACs of a layer are its kept weights times the positions that it is applied
at. Biases, normalisation and activations are not counted, as in the pruning literature.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import set_stance

from pipeline.ground.structures import called, each_tensor, first_tensor
from pipeline.networks.layers import (
    ATTENTION_WEIGHTS,
    EMBEDDING,
    PRUNABLE,
    in_evaluation,
    layer_name,
    weight_layers,
)


@dataclass(frozen=True)
class LayerCost:
    """Counts of one layer; ``prunable`` is false where a pattern excludes it (then all is kept)."""

    name: str
    prunable: bool
    weights: int
    kept: int
    positions: int

    @property
    def sparsity(self) -> float:
        return 1 - self.kept / self.weights

    @property
    def macs(self) -> int:
        return self.weights * self.positions

    @property
    def macs_kept(self) -> int:
        return self.kept * self.positions


def positions(network: nn.Module, example: Any, include: Sequence[str] = ()) -> dict[str, int]:
    """Parameter name -> how many times one input, ``example`` (1, ...) or a structure of such, uses each weight.

    A convolution uses a weight once for each place of its output map (a transposed one: of its input map), a linear
    layer once for each vector it is applied to, a projection of an attention or a matrix of a recurrent layer once for
    each of its tokens, an embedding never: it is looked up. A layer that is called twice counts twice, and so does a
    weight that two layers share. Other parameters are not counted.
    """
    with in_evaluation(network), counting(network, include) as counts:
        run_on(network, example)
    return counts


@contextmanager
def counting(network: nn.Module, include: Sequence[str] = ()) -> Iterator[dict[str, int]]:
    """Counts the uses of every weight, as ``positions`` does, while the network is called within the block.

    With gradients, compiled code and the branches of ``torch.cond`` are not counted, which they could not be recorded
    with.
    """
    counts = dict.fromkeys(weight_layers(network, include), 0)
    names: dict[Tensor, str] = {network.get_parameter(name): name for name in counts}

    def count(layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        if torch.compiler.is_compiling():
            return
        for own, parameter in layer.named_parameters(recurse=False):
            if parameter in names:
                counts[names[parameter]] += _uses(layer, own, (*inputs, *named.values()), output)

    hooks = [layer.register_forward_hook(count, with_kwargs=True) for layer in network.modules()]
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with nullcontext() if torch.is_grad_enabled() else set_stance("force_eager"):
            yield counts
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for hook in hooks:
            hook.remove()
        for layer in network.modules():  # an attention applies its output layer without calling it
            if isinstance(layer, nn.MultiheadAttention) and layer.out_proj.weight in names:
                own = next(getattr(layer, each) for each in ATTENTION_WEIGHTS if getattr(layer, each, None) in names)
                counts[names[layer.out_proj.weight]] = counts[names[own]]


def run_on(network: nn.Module, example: Any) -> Any:
    """A network called on an example of any structure, on the device and in the precision of its parameters."""
    parameter = next(network.parameters(), None)
    if parameter is None:
        return called(network, example)
    floating = parameter.dtype if parameter.is_floating_point() else None
    return called(
        network,
        each_tensor(example, lambda each: each.to(parameter.device, floating if each.is_floating_point() else None)),
    )


def _uses(layer: nn.Module, weight: str, inputs: tuple[Any, ...], output: Any) -> int:
    """How many times a call of a layer has used each entry of one of its weights."""
    if isinstance(layer, nn.MultiheadAttention):
        tokens = inputs[{"k": 1, "v": 2}.get(weight[0], 0)]
        return int(tokens.numel() // tokens.shape[-1])
    if isinstance(layer, nn.RNNBase | nn.RNNCellBase):
        data = getattr(inputs[0], "data", inputs[0])  # of a PackedSequence, its rows
        return int(data.numel() // data.shape[-1])
    if not isinstance(layer, PRUNABLE) or isinstance(layer, EMBEDDING):
        return 0
    mapped = first_tensor(inputs if getattr(layer, "transposed", False) else output)
    return int(mapped.numel() // layer.weight.shape[0])


def layer_costs(
    sizes: Mapping[str, int], positions: Mapping[str, int], masks: Mapping[str, Tensor]
) -> tuple[LayerCost, ...]:
    """One row a layer; ``sizes`` are numbers of weights by parameter name. A layer without a mask is excluded."""
    return tuple(
        LayerCost(
            name=layer_name(name),
            prunable=name in masks,
            weights=size,
            kept=int(masks[name].sum()) if name in masks else size,
            positions=positions[name],
        )
        for name, size in sizes.items()
    )


def density(layers: Iterable[LayerCost]) -> float:
    """Share of the prunable weights that is kept."""
    rows = [layer for layer in layers if layer.prunable]
    return sum(layer.kept for layer in rows) / sum(layer.weights for layer in rows)
