"""From a packed model's graph to the engine's program, operator by operator."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from pipeline.deploy import pack
from pipeline.deploy.export import WEIGHTED
from pipeline.deploy.program import CODINGS, Operation, Shape


class NotCovered(Exception):
    """Why the engine cannot compute a network, in a phrase."""


@dataclass(frozen=True)
class Weights:
    """Where a layer's weights come from: names of the model's constants."""

    shape: tuple[int, ...]
    coding: int
    streams: tuple[str, ...]
    low_bits: int
    is_int8: bool
    scale: str | None


class Lowering:
    """One model on its way to a program. Values are numbers, in the order they are made."""

    def __init__(self, model: ModelProto) -> None:
        self.source = model
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self.known = _known_shapes(model)
        self.shapes: list[Shape] = []
        self.operations: list[Operation] = []
        self.numbers: dict[str, int] = {}
        self.before, self.constant, self.body = _parts(model)
        self.boundary = self.body[0].input[0]
        self.made = {name: node for node in self.constant for name in node.output}
        self.coders = {node.output[0]: node.input[0] for node in self.body if node.op_type in _CODED}
        self.readers = Counter(name for node in self.body for name in node.input)
        self.readers.update(output.name for output in model.graph.output)
        used = {name for node in (*self.constant, *self.body) for name in node.input}
        self.inputs = [name for name in self.constants if name in used]

    def lower(self) -> None:
        """Makes the steps.

        Raises:
            NotCovered: if the engine cannot compute the network.
        """
        shape = self.known.get(self.boundary, [])
        if len(shape) not in (2, 4):
            raise NotCovered(f"an input of {len(shape)} dimensions")
        channels, *plane = shape[1:]
        first = self._new((channels, *plane) if plane else (channels, 0, 0))  # type: ignore[arg-type]
        self.operations.append(Operation("input", first, first))
        self.numbers[self.boundary] = first
        for node in self.body:
            lower = _OPERATORS.get(node.op_type)
            if lower is None:
                raise NotCovered(f"the operator {node.op_type}")
            lower(self, node)
        result = self.source.graph.output[0]
        last = self.numbers[result.name]
        if self.shapes[last][1] or len(result.type.tensor_type.shape.dim) != 2:
            raise NotCovered("a result that is not a vector")
        self.operations.append(Operation("output", last, last))

    def _new(self, shape: Shape) -> int:
        self.shapes.append(shape)
        return len(self.shapes) - 1

    def _alone(self, name: str) -> bool:
        """Whether a value has one reader, and what it was before quantisation has no other either."""
        while self.readers[name] == 1 and name in self.coders:
            name = self.coders[name]
        return self.readers[name] == 1

    def _emit(self, node: NodeProto, step: Operation) -> None:
        self.operations.append(step)
        self.numbers[node.output[0]] = step.to

    def coded(self, node: NodeProto) -> None:
        """Quantised and back is the value itself; a range from 0 has taken the place of a Relu."""
        source = self.numbers[node.input[0]]
        self.numbers[node.output[0]] = source
        if node.op_type == "QuantizeLinear":
            scale, zero = (numpy_helper.to_array(self.constants[name]) for name in node.input[1:3])
            producer = self._producer(source)
            if zero == 0 and zero.dtype == np.uint8 and not producer.relu and producer.kind != "input":
                self._bound(node, 255 * float(scale))

    def _producer(self, value: int) -> Operation:
        return next(step for step in reversed(self.operations) if step.to == value)

    def _bound(self, node: NodeProto, ceiling: float | None) -> None:
        """Clamps a value, in the step that makes it where nothing else reads it."""
        source = self.numbers[node.input[0]]
        producer = self._producer(source)
        clamping = ("convolution", "linear", "add", "max_pool", "average_pool", "mean")
        if self._alone(node.input[0]) and producer.kind in clamping and producer.ceiling is None:
            self.operations[self.operations.index(producer)] = replace(producer, relu=True, ceiling=ceiling)
            self.numbers[node.output[0]] = source
        else:
            self._emit(node, Operation("add", source, self._new(self.shapes[source]), relu=True, ceiling=ceiling))

    def relu(self, node: NodeProto) -> None:
        self._bound(node, None)

    def clip(self, node: NodeProto) -> None:
        low, high = (self._number(name) for name in (*node.input[1:], "", "")[:2])
        if low != 0 or (high is not None and high <= 0):
            raise NotCovered(f"a Clip from {low} to {high}")
        self._bound(node, high)

    def _number(self, name: str) -> float | None:
        """A constant of one element, quantised or not."""
        if not name:
            return None
        if name in self.made:
            value, scale, zero = (
                numpy_helper.to_array(self.constants[each]).astype(np.float64) for each in self.made[name].input
            )
            return float((value - zero) * scale)
        if name not in self.constants:
            raise NotCovered("bounds that are computed")
        return float(numpy_helper.to_array(self.constants[name]))

    def conv(self, node: NodeProto) -> None:
        told = _attributes(node)
        weights = self._weights(node.input[1])
        if len(weights.shape) != 4:
            raise NotCovered(f"a convolution of {len(weights.shape) - 2} dimensions")
        tall, wide = weights.shape[2:]
        stride, pad = _even(told.get("strides", [1, 1]), "strides"), _even(told.get("pads", [0] * 4), "pads")
        if _even(told.get("dilations", [1, 1]), "dilations") != 1 or "auto_pad" in told:
            raise NotCovered("a dilated or automatically padded convolution")
        source = self.numbers[node.input[0]]
        _, height, width = self.shapes[source]
        if not height:
            self._emit(node, self._weighted(node, weights, self._on_means(source, weights, pad, told)))
            return
        plane = ((height + 2 * pad - tall) // stride + 1, (width + 2 * pad - wide) // stride + 1)
        if plane != (math.ceil(height / stride), math.ceil(width / stride)):
            raise NotCovered(f"a {tall}x{wide} convolution with padding {pad}, which changes the plane")
        if tall == wide == 1 and pad % stride:
            raise NotCovered(f"a 1x1 convolution with padding {pad} and stride {stride}")
        if stride > 1:
            source = self._split(source, stride, 1 if tall == wide == 1 else stride**2)
        to, groups = self._new((weights.shape[0], *plane)), told.get("group", 1)
        step = Operation("convolution", source, to, None, tall, wide, stride, pad, groups)
        self._emit(node, self._weighted(node, weights, step))

    def _on_means(self, source: int, weights: Weights, pad: int, told: Mapping[str, Any]) -> Operation:
        """A 1x1 convolution of a plane's means, which are a vector: a linear layer."""
        if weights.shape[2:] != (1, 1) or pad or told.get("group", 1) != 1:
            raise NotCovered("a convolution of means that is no linear layer")
        return Operation("linear", source, self._new((weights.shape[0], 0, 0)))

    def _split(self, source: int, stride: int, phases: int) -> int:
        """The planes (row mod stride, column mod stride) of an activation, made once."""
        channels, height, width = self.shapes[source]
        shape = (channels * phases, math.ceil(height / stride), math.ceil(width / stride))
        for step in self.operations:
            if (step.kind, step.source, step.stride) == ("split", source, stride) and self.shapes[step.to] == shape:
                return step.to
        self.operations.append(Operation("split", source, self._new(shape), stride=stride))
        return self.operations[-1].to

    def gemm(self, node: NodeProto) -> None:
        told = _attributes(node)
        if told.get("transB", 0) != 1 or {"alpha", "beta", "transA"} & set(told):
            raise NotCovered("a Gemm that is not a linear layer")
        weights = self._weights(node.input[1])
        source = self.numbers[node.input[0]]
        if self.shapes[source] != (weights.shape[1], 0, 0):
            raise NotCovered("a linear layer on planes")
        to = self._new((weights.shape[0], 0, 0))
        self._emit(node, self._weighted(node, weights, Operation("linear", source, to)))

    def _weighted(self, node: NodeProto, weights: Weights, step: Operation) -> Operation:
        bias, bias_scale = (*node.input, "")[2], None
        if bias in self.made:
            bias, bias_scale, *_ = self.made[bias].input
        places = {name: place + 1 for place, name in enumerate(self.inputs)}
        if [places[name] - places[weights.streams[0]] for name in weights.streams] != list(range(len(weights.streams))):
            raise NotCovered("weights that are scattered over the file")
        return replace(
            step,
            coding=weights.coding,
            weights=places[weights.streams[0]],
            low_bits=weights.low_bits,
            is_int8=weights.is_int8,
            scale=places[weights.scale] if weights.scale else 0,
            bias=places[bias] if bias else 0,
            bias_scale=places[bias_scale] if bias_scale else 0,
        )

    def _weights(self, name: str) -> Weights:
        scale = None
        if name in self.made and self.made[name].op_type == "DequantizeLinear":
            node = self.made[name]
            if _attributes(node).get("axis", 1) != 0 and numpy_helper.to_array(self.constants[node.input[1]]).size > 1:
                raise NotCovered("weights that are quantised along their inputs")
            name, scale, *zero = node.input
            if any(numpy_helper.to_array(self.constants[each]).any() for each in zero):
                raise NotCovered("weights with a zero point")
        if name in self.made and self.made[name].domain == pack.DOMAIN:
            node = self.made[name]
            told = _attributes(node)
            coding = CODINGS.index(pack.coding_name(node.op_type))
            kind = self.constants[node.input[0]].data_type
            streams, shape = tuple(node.input), tuple(told["shape"])
            return Weights(shape, coding, streams, len(told.get("powers", [])), kind == TensorProto.INT8, scale)
        if name not in self.constants:
            raise NotCovered("weights that are computed")
        tensor = self.constants[name]
        return Weights(tuple(tensor.dims), 0, (name,), 0, tensor.data_type == TensorProto.INT8, scale)

    def add(self, node: NodeProto) -> None:
        if any(name not in self.numbers for name in node.input):
            raise NotCovered("the sum of an activation and a constant")
        pairs = [(name, self.numbers[name]) for name in node.input]
        if self.shapes[pairs[0][1]] != self.shapes[pairs[1][1]] or pairs[0][1] == pairs[1][1]:
            raise NotCovered("a sum of different shapes")
        for (name, one), (_, other) in (pairs, pairs[::-1]):
            producer = self._producer(one)
            free = producer.kind == "convolution" and not producer.relu and producer.residual is None
            if free and self._alone(name):
                self.operations.remove(producer)
                self._emit(node, replace(producer, residual=other))
                return
        self._emit(node, Operation("add", pairs[0][1], self._new(self.shapes[pairs[0][1]]), pairs[1][1]))

    def pool(self, node: NodeProto) -> None:
        told = _attributes(node)
        stride, pad = _even(told.get("strides", [1, 1]), "strides"), _even(told.get("pads", [0] * 4), "pads")
        if _even(told.get("dilations", [1, 1]), "dilations") != 1 or told.get("ceil_mode", 0) or "auto_pad" in told:
            raise NotCovered(f"a {node.op_type} with dilation, ceil_mode or auto_pad")
        source, (tall, wide) = self.numbers[node.input[0]], told["kernel_shape"]
        channels, height, width = self.shapes[source]
        if not height:
            raise NotCovered(f"a {node.op_type} of a vector")
        plane = ((height + 2 * pad - tall) // stride + 1, (width + 2 * pad - wide) // stride + 1)
        kind = "max_pool" if node.op_type == "MaxPool" else "average_pool"
        counted = bool(told.get("count_include_pad", 0))
        self._emit(
            node, Operation(kind, source, self._new((channels, *plane)), None, tall, wide, stride, pad, 1, counted)
        )

    def mean(self, node: NodeProto) -> None:
        source = self.numbers[node.input[0]]
        if node.op_type == "ReduceMean":
            named = self.constants.get((*node.input, "")[1])
            axes = None if named is None else numpy_helper.to_array(named).tolist()
            if axes is None or sorted(axis % 4 for axis in axes) != [2, 3]:
                raise NotCovered(f"a mean over {axes}")
        if not self.shapes[source][1]:
            raise NotCovered("a mean of a vector")
        self._emit(node, Operation("mean", source, self._new((self.shapes[source][0], 0, 0))))

    def flatten(self, node: NodeProto) -> None:
        source = self.numbers[node.input[0]]
        channels, height, width = self.shapes[source]
        if _attributes(node).get("axis", 1) != 1 or len(self.known.get(node.output[0], [])) != 2:
            raise NotCovered(f"a {node.op_type} that does not make a vector")
        if height:
            self._emit(node, Operation("flatten", source, self._new((channels * height * width, 0, 0))))
        else:
            self.numbers[node.output[0]] = source


_CODED = ("QuantizeLinear", "DequantizeLinear")
_OPERATORS = {
    "QuantizeLinear": Lowering.coded,
    "DequantizeLinear": Lowering.coded,
    "Conv": Lowering.conv,
    "Gemm": Lowering.gemm,
    "Relu": Lowering.relu,
    "Clip": Lowering.clip,
    "Add": Lowering.add,
    "MaxPool": Lowering.pool,
    "AveragePool": Lowering.pool,
    "GlobalAveragePool": Lowering.mean,
    "ReduceMean": Lowering.mean,
    "Flatten": Lowering.flatten,
    "Reshape": Lowering.flatten,
}


def _parts(model: ModelProto) -> tuple[list[NodeProto], list[NodeProto], list[NodeProto]]:
    """Nodes of the preprocessing, those that depend on constants alone, and the network itself."""
    running = {model.graph.input[0].name}
    constant, dynamic = [], []
    for node in model.graph.node:
        if running.isdisjoint(node.input):
            constant.append(node)
        else:
            dynamic.append(node)
            running |= set(node.output)
    first = next((place for place, node in enumerate(dynamic) if node.op_type in WEIGHTED), None)
    if first is None:
        raise NotCovered("a network without layers")
    while first and dynamic[first - 1].op_type in _CODED:
        first -= 1
    before, body = dynamic[:first], dynamic[first:]
    made = {name for node in before for name in node.output} | {model.graph.input[0].name}
    if {name for node in body for name in node.input} & made != {body[0].input[0]} or len(model.graph.output) != 1:
        raise NotCovered("a network of several inputs or outputs")
    needed = {name for node in before for name in node.input}
    if any(needed & set(node.output) for node in constant):
        raise NotCovered("preprocessing with packed constants")
    return before, constant, body


def _attributes(node: NodeProto) -> Mapping[str, Any]:
    return {each.name: helper.get_attribute_value(each) for each in node.attribute}


def _even(values: Sequence[int], what: str) -> int:
    """The one value of an attribute that is the same on all sides."""
    if len(set(values)) != 1:
        raise NotCovered(f"{what} of {list(values)}")
    return values[0]


def _known_shapes(model: ModelProto) -> dict[str, list[int]]:
    """Shapes of values by name; the batch and what is not known are 0."""
    inferred = onnx.shape_inference.infer_shapes(pack.unpacked(model)).graph
    return {
        value.name: [each.dim_value for each in value.type.tensor_type.shape.dim]
        for value in (*inferred.value_info, *inferred.input, *inferred.output)
    }
