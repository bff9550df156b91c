"""What a masked network costs, layer by layer: weights and multiply-adds (MACs), dense and kept.

One use of one weight is one MAC, so the MACs of a layer are its kept weights times the positions that it is applied
at. Biases, normalisation and activations are not counted, as in the pruning literature.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.networks import weight_layers


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


def positions(network: nn.Module, shape: tuple[int, ...]) -> dict[str, int]:
    """Parameter name -> how many times one input of ``shape`` uses each of its weights.

    A convolution uses a weight once for each place of its output map (a transposed one: of its input map), a linear
    layer once for each vector it is applied to. A layer that is called twice counts twice.
    """
    counts = dict.fromkeys(weight_layers(network), 0)

    def count(name: str, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        mapped = inputs[0] if getattr(layer, "transposed", False) else output
        channels = mapped.shape[-1] if isinstance(layer, nn.Linear) else mapped.shape[1]
        counts[name] += mapped.numel() // channels

    hooks = [
        layer.register_forward_hook(lambda m, i, o, name=name: count(name, m, i, o))  # type: ignore[misc]
        for name, layer in weight_layers(network).items()
    ]
    was_training = network.training
    device = next(network.parameters()).device
    with torch.no_grad():
        network.eval()(torch.zeros(1, *shape, device=device))
    network.train(was_training)
    for hook in hooks:
        hook.remove()
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
