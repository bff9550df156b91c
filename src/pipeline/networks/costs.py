"""What a masked network costs, layer by layer: weights and multiply-adds (MACs), dense and kept.

One use of one weight is one MAC, so the MACs of a layer are its kept weights times the positions that it is applied
at. Biases, normalisation and activations are not counted, as in the pruning literature.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import set_stance

from pipeline.networks import ATTENTION_WEIGHTS, weight_layers


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


def positions(network: nn.Module, example: Tensor) -> dict[str, int]:
    """Parameter name -> how many times one input, ``example`` (1, ...), uses each of its weights.

    A convolution uses a weight once for each place of its output map (a transposed one: of its input map), a linear
    layer once for each vector it is applied to, a projection of an attention once for each of its tokens. A layer that
    is called twice counts twice.
    """
    layers = weight_layers(network)
    counts = dict.fromkeys(layers, 0)

    def count(name: str, layer: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Any], output: Any) -> None:
        if isinstance(layer, nn.MultiheadAttention):
            which = {"k": 1, "v": 2}.get(name.rsplit(".", 1)[-1][0], 0)
            tokens = (*inputs, *named.values())[which]
            counts[name] += tokens.numel() // tokens.shape[-1]
            return
        mapped = inputs[0] if getattr(layer, "transposed", False) else output
        channels = mapped.shape[-1] if isinstance(layer, nn.Linear) else mapped.shape[1]
        counts[name] += mapped.numel() // channels

    hooks = [
        layer.register_forward_hook(lambda m, i, n, o, name=name: count(name, m, i, n, o), with_kwargs=True)  # type: ignore[misc]
        for name, layer in layers.items()
    ]
    was_training, fast = network.training, torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    with torch.no_grad(), set_stance("force_eager"):
        network.eval()(example.to(next(network.parameters()).device))
    torch.backends.mha.set_fastpath_enabled(fast)
    network.train(was_training)
    for hook in hooks:
        hook.remove()
    for name, layer in network.named_modules():  # an attention applies its output layer without calling it
        if isinstance(layer, nn.MultiheadAttention) and f"{name}.out_proj.weight" in counts:
            own = next(f"{name}.{weight}" for weight in ATTENTION_WEIGHTS if f"{name}.{weight}" in counts)
            counts[f"{name}.out_proj.weight"] = counts[own]
    return counts


def layer_costs(
    sizes: Mapping[str, int], positions: Mapping[str, int], masks: Mapping[str, Tensor]
) -> tuple[LayerCost, ...]:
    """One row a layer; ``sizes`` are numbers of weights by parameter name. A layer without a mask is excluded."""
    return tuple(
        LayerCost(
            name=name.removesuffix(".weight"),
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
