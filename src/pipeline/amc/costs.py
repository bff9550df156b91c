"""What a choice of widths costs: sums over the weight tensors, each a product of its rows and columns that are left."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from pipeline.pruning.channels import ChannelGroup, Slice


@dataclass(frozen=True)
class Width:
    """``constant`` plus, for each (step, copies), ``copies`` for each channel that the step keeps."""

    constant: int
    terms: tuple[tuple[int, int], ...] = ()

    def of(self, counts: Sequence[int]) -> int:
        """The width under a choice of counts."""
        return self.constant + sum(copies * counts[step] for step, copies in self.terms)


@dataclass(frozen=True)
class Product:
    """A weight tensor: ``rows`` x ``columns`` kernels, each of ``area`` weights that are used ``positions`` times."""

    name: str
    rows: Width
    columns: Width
    area: int
    positions: int


def products(
    weights: Mapping[str, Tensor], groups: Sequence[ChannelGroup], positions: Mapping[str, int]
) -> tuple[Product, ...]:
    """The weight tensors of a network whose step t keeps channels of ``groups[t]``; ``positions`` by name."""
    return tuple(
        Product(
            name,
            _width(len(weights[name]), name, 0, [group.makers for group in groups]),
            _width(weights[name].shape[1], name, 1, [group.readers for group in groups]),
            weights[name][0, 0].numel(),
            count,
        )
        for name, count in positions.items()
    )


def single(positions: Mapping[str, int], names: Sequence[str], sizes: Mapping[str, int]) -> tuple[Product, ...]:
    """The weight tensors of a network whose step t keeps weights of ``names[t]``."""
    steps = {name: index for index, name in enumerate(names)}
    return tuple(
        Product(name, Width(0, ((steps[name], 1),)) if name in steps else Width(sizes[name]), Width(1), 1, count)
        for name, count in positions.items()
    )


def macs(products: Iterable[Product]) -> Callable[[Sequence[int]], int]:
    """Multiply-adds of one input."""
    products = tuple(products)
    return lambda counts: sum(p.rows.of(counts) * p.columns.of(counts) * p.area * p.positions for p in products)


def parameters(products: Iterable[Product]) -> Callable[[Sequence[int]], int]:
    """Number of weights."""
    products = tuple(products)
    return lambda counts: sum(p.rows.of(counts) * p.columns.of(counts) * p.area for p in products)


def _width(size: int, name: str, dimension: int, slices: Sequence[Sequence[Slice]]) -> Width:
    own = [
        (step, each)
        for step, of_step in enumerate(slices)
        for each in of_step
        if (each.parameter, each.dimension) == (name, dimension)
    ]
    terms = tuple((step, len(each.places) // int(each.channels.max() + 1)) for step, each in own)
    return Width(size - sum(len(each.places) for _, each in own), terms)
