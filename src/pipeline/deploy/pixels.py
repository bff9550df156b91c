"""Preprocessing of pixels as the engine takes it: arithmetic of each value, or of an image by its own figures."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, numpy_helper

from pipeline.deploy.export import attributes
from pipeline.deploy.program import LOOPS

ONE_BY_ONE, BY_IMAGE = 1, 2
_ARITHMETIC = {"Add": 1, "Sub": 2, "Mul": 3, "Div": 4}
Pattern = str | tuple[Any, ...]
_MEAN: Pattern = ("Div", ("ReduceSum", "exact", "sides"), "count")
_SQUARES: Pattern = ("Div", ("ReduceSum", ("Mul", "exact", "exact"), "sides"), "count")
_VARIANCE: Pattern = ("Clip", ("Sub", _SQUARES, ("Mul", _MEAN, _MEAN)), "nothing")
_OWN: Pattern = ("Cast", ("Div", ("Sub", "exact", _MEAN), ("Clip", ("Sqrt", _VARIANCE), "least")))
"""``data.batches.standardised_alike``, operator by operator: names stand for values."""


@dataclass(frozen=True)
class Pixels:
    """Nodes that make one value of floats from an input of bytes (N, channels, height, width).

    ``steps`` are operations and the constants that they have as their other number, in order; ``least`` is the constant
    that an image's deviation is at least.
    """

    source: str
    value: str
    nodes: tuple[NodeProto, ...]
    steps: tuple[tuple[int, str], ...] = ()
    least: str | None = None


def pixels(
    inputs: Mapping[str, tuple[int, ...]],
    makers: Mapping[str, NodeProto],
    readers: Mapping[str, int],
    constants: Mapping[str, TensorProto],
) -> list[Pixels]:
    """The preprocessing of each input of bytes, whose sides after the batch these are, that the engine can do.

    ``readers`` says how many read a value, nodes and outputs of the graph.
    """
    found = []
    for node in makers.values():
        if node.op_type == "Cast" and _type(node) == TensorProto.FLOAT:
            bound: dict[str, str] = {}
            nodes: list[NodeProto] = []
            if node.input[0] in inputs and readers[node.input[0]] == 1:
                found.append(_one_by_one(node, inputs[node.input[0]][0], makers, readers, constants))
            elif _matches(_OWN, node.output[0], bound, nodes, makers):
                found += _by_image(node, bound, nodes, inputs, makers, readers, constants)
    return found


def _one_by_one(
    cast: NodeProto,
    channels: int,
    makers: Mapping[str, NodeProto],
    readers: Mapping[str, int],
    constants: Mapping[str, TensorProto],
) -> Pixels:
    nodes = [cast]
    steps: list[tuple[int, str]] = []
    while len(steps) < LOOPS and readers[nodes[-1].output[0]] == 1:
        value = nodes[-1].output[0]
        after = next((node for node in makers.values() if value in node.input), None)
        if after is None or after.op_type not in _ARITHMETIC:
            break
        other = after.input[1 - list(after.input).index(value)]
        turned = after.input[1] == value and after.op_type in ("Sub", "Div")
        if turned or other not in constants or not _by_channel(constants[other], channels):
            break
        nodes.append(after)
        steps.append((_ARITHMETIC[after.op_type], other))
    return Pixels(cast.input[0], nodes[-1].output[0], tuple(nodes), tuple(steps))


def _by_channel(constant: TensorProto, channels: int) -> bool:
    """Whether it is a float, or one a channel of (N, channels, height, width)."""
    sides = (1, 1, 1, 1, *constant.dims)[-4:]
    known = ((1, 1, 1, 1), (1, channels, 1, 1))
    return constant.data_type == TensorProto.FLOAT and len(constant.dims) <= 4 and tuple(sides) in known


def _by_image(
    cast: NodeProto,
    bound: Mapping[str, str],
    nodes: list[NodeProto],
    inputs: Mapping[str, tuple[int, ...]],
    makers: Mapping[str, NodeProto],
    readers: Mapping[str, int],
    constants: Mapping[str, TensorProto],
) -> list[Pixels]:
    first = makers.get(bound["exact"])
    if first is None or first.op_type != "Cast" or first.input[0] not in inputs:
        return []
    given = {name: numpy_helper.to_array(constants[each]) for name, each in bound.items() if each in constants}
    sums = [node for node in nodes if node.op_type == "ReduceSum"]
    nodes = [first, *nodes]
    inner = {name for node in nodes for name in node.output} - {cast.output[0]}
    own = sum(name in inner for node in nodes for name in node.input)
    fits = (
        _type(first) == TensorProto.DOUBLE
        and {"sides", "count", "nothing", "least"} <= given.keys()
        and sorted(given["sides"].ravel().tolist()) == [1, 2, 3]
        and given["count"].size == given["least"].size == 1
        and float(given["count"]) == math.prod(inputs[first.input[0]])
        and not given["nothing"].any()
        and given["least"].dtype == np.float64
        and all(attributes(node).get("keepdims", 1) == 1 for node in sums)
        and sum(readers[name] for name in inner) == own
        and readers[first.input[0]] == 1
    )
    return [Pixels(first.input[0], cast.output[0], tuple(nodes), least=bound["least"])] if fits else []


def _matches(
    pattern: Pattern, value: str, bound: dict[str, str], nodes: list[NodeProto], makers: Mapping[str, NodeProto]
) -> bool:
    """Whether a value is made as a pattern says; fills what its names stand for, and the nodes that make it."""
    if isinstance(pattern, str):
        return bound.setdefault(pattern, value) == value
    node, (operator, *parts) = makers.get(value), pattern
    if node is None or node.op_type != operator:
        return False
    read = [name for name in node.input if name]
    if len(read) != len(parts):
        return False
    if not any(node is each for each in nodes):
        nodes.append(node)
    return all(_matches(part, name, bound, nodes, makers) for part, name in zip(parts, read, strict=True))


def covered(found: Collection[Pixels]) -> set[int]:
    """Identities of the nodes in them."""
    return {id(node) for each in found for node in each.nodes}


def _type(node: NodeProto) -> int:
    return int(attributes(node)["to"])
