"""From a packed model's graph to the engine's program, operator by operator."""

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from pipeline.deploy import pack
from pipeline.deploy.export import WEIGHTED, attributes, windows
from pipeline.deploy.moving import NoLoops, View, is_identity, plane_of, view_of
from pipeline.deploy.pixels import BY_IMAGE, ONE_BY_ONE, Pixels, covered, pixels
from pipeline.deploy.program import CODINGS, FUNCTIONS, LARGEST, MODES, SIDE, Operation, Shape


class NotCovered(Exception):
    """Why the engine cannot compute a network, in a phrase."""


BATCHES = (5, 7)
"""Two numbers of examples: what has as many rows as there are, has a row an example."""


@dataclass(frozen=True)
class Weights:
    """Where a layer's weights come from: names of the model's constants."""

    shape: tuple[int, ...]
    coding: int
    streams: tuple[str, ...]
    low_bits: int
    more: int
    is_int8: bool
    scale: str | None


class Segment:
    """Nodes of a model on their way to a program. Values are numbers, in the order they are made.

    ``inputs`` and ``outputs`` are what they read of others and what others read of them, ``at`` is the node that is
    lowered. A value may lie in two ways, each with a number of its own: its first side as channels, or turned, which is
    its last (a sequence's or an image's features). ``turning`` says how the node that is lowered has its values.
    """

    def __init__(self, graph: "Graph", nodes: Sequence[NodeProto]) -> None:
        self.graph, self.nodes, self.at = graph, nodes, nodes[0]
        self.constants, self.made, self.readers = graph.constants, graph.made, graph.readers
        self.shapes: list[Shape] = []
        self.operations: list[Operation] = []
        self.numbers: dict[tuple[str, bool], int] = {}
        self.turning = False
        made = {name for node in nodes for name in node.output}
        read = dict.fromkeys(name for node in nodes for name in node.input)
        self.inputs = [name for name in read if name in graph.running and name not in made]
        outside = graph.readers - Counter(name for node in nodes for name in node.input)
        self.outputs = [name for node in nodes for name in node.output if outside[name]]
        self.same = {node.output[0]: node.input[0] for node in nodes if node.op_type in CODED}
        self.constant = graph.constant_nodes(nodes)
        used = {name for node in (*self.constant, *nodes) for name in node.input}
        self.used = [name for name in self.constants if name in used]

    @property
    def weighted(self) -> bool:
        """Whether there are weights in it, which is what the engine is for."""
        return any(step.kind in ("convolution", "linear") for step in self.operations)

    def lower(self, *, alone: bool = False) -> None:
        """Makes the operations; ``alone``: as far as the nodes are concerned, whatever is around them.

        Raises:
            NotCovered: if the engine cannot compute the nodes.
        """
        if max(len(self.inputs), len(self.outputs)) > SIDE:
            raise NotCovered(f"{max(len(self.inputs), len(self.outputs))} inputs or outputs")
        seen = covered([self.graph.pixels[name] for name in self.inputs if name in self.graph.pixels])
        for place, name in enumerate(self.inputs):
            prepared = self.graph.pixels.get(name)
            number = self._new(self.graph.shape(prepared.value if prepared else name))
            step = Operation("input", number, number, weights=place)
            self.operations.append(self._prepared(step, prepared) if prepared else step)
            self.numbers[prepared.value if prepared else name, False] = number
        for node in self.nodes:
            if id(node) in seen:
                continue
            self.at = node
            lower = _OPERATORS.get(node.op_type)
            if lower is None or node.domain:
                raise NotCovered(f"the operator {node.op_type}")
            rank = max((len(self.graph.sides(name)) for name in node.input), default=0)
            if rank > 4 and lower not in _OF_ANY_RANK:
                raise NotCovered(f"a {node.op_type} of {rank} dimensions")
            self.turning = lower is Segment.matmul or (lower in _PLACE_BY_PLACE and self._turns(node))
            try:
                lower(self, node)
            except NoLoops:
                raise NotCovered(f"a {node.op_type} that is no nest of a few loops") from None
        results, self.turning = [], False
        for name in self.outputs:
            self.at = self.graph.makers[name]
            number, asked = self._activation(name), self.graph.shape(name)
            if self.shapes[number] == (asked[0], 0, 0) and asked[1:] == (1, 1):
                self.operations.append(self._move(number, view_of(asked[:1]), asked))
                number = self.operations[-1].to
            if self.shapes[number] != asked:
                raise NotCovered(f"a {self.at.op_type} of another form")
            if (rank := len(self.graph.sides(name))) > 4 and not alone:
                raise NotCovered(f"a {self.at.op_type} to {rank} dimensions")
            results.append((number, 3 if rank == 3 else 1))
        for place, (each, rank) in enumerate(results):
            self.operations.append(Operation("output", each, each, weights=place, kernel_height=rank))

    def _prepared(self, step: Operation, made: Pixels) -> Operation:
        if made.least is not None:
            return replace(step, pixels=BY_IMAGE, scale=self._place(made.least))
        loops = tuple((operation, self._place(name), 0) for operation, name in made.steps)
        return replace(step, pixels=ONE_BY_ONE, loops=loops)

    def _turns(self, node: NodeProto) -> bool:
        """Whether a node takes its values turned: one is there so alone, or goes with one number a feature."""
        read = [name for name in node.input if name in self.graph.running]
        only = any((name, False) not in self.numbers for name in read)
        if node.op_type in CODED:
            return only
        sides = {self.graph.sides(name) for name in read}
        along = any(self.constants[name].dims[-1:] > [1] for name in node.input if name in self.constants)
        along |= len(sides) == 2 and any(each[-1] > 1 and math.prod(each) == each[-1] for each in sides)
        return {len(each) for each in sides} in ({3}, {4}) and (only or along)

    def _activation(self, name: str) -> int:
        """A value's number, as the node that is lowered has it."""
        if (name, self.turning) not in self.numbers:
            other, sides = self.numbers[name, not self.turning], self.graph.sides(name)[1:]
            if len(sides) > 3:
                raise NotCovered(f"a {self.at.op_type} along the last of {len(sides) + 1} dimensions")
            if len(sides) > 1:
                turned, (*before, _) = _turned(sides), range(len(sides))
                if self.turning:
                    move = self._move(other, view_of(sides).transposed((-1, *before)), turned)
                else:
                    move = self._move(other, view_of(turned).transposed((*(side + 1 for side in before), 0)), sides)
                self.operations.append(move)
                other = move.to
            self.numbers[name, self.turning] = other
        return self.numbers[name, self.turning]

    def _shape(self, name: str) -> Shape:
        """A value's, as the node that is lowered has it."""
        shape = self.graph.shape(name)
        return plane_of(_turned(self.graph.sides(name)[1:])) if self.turning else shape

    def _new(self, shape: Shape) -> int:
        channels, height, width = shape
        if (size := channels * max(height, 1) * max(width, 1)) > LARGEST**2:
            raise NotCovered(f"a {self.at.op_type} of {size} values")
        self.shapes.append(shape)
        return len(self.shapes) - 1

    def _alone(self, name: str, readers: int = 1) -> bool:
        """Whether a value has so many readers, and what it was before, under another name, has no other."""
        if self.readers[name] != readers:
            return False
        while name in self.same:
            name = self.same[name]
            if self.readers[name] != 1:
                return False
        return True

    def _emit(self, node: NodeProto, step: Operation, output: int = 0) -> None:
        self.operations.append(step)
        self.numbers[node.output[output], self.turning] = step.to

    def coded(self, node: NodeProto) -> None:
        """Quantised and back is the value itself; a range from 0 has taken the place of a Relu."""
        source = self._activation(node.input[0])
        self.numbers[node.output[0], self.turning] = source
        if node.op_type == "QuantizeLinear":
            scale, zero = (numpy_helper.to_array(self.constants[name]) for name in node.input[1:3])
            producer = self._producer(source)
            highest = 255 * float(scale)
            if zero == 0 and zero.dtype == np.uint8 and (producer.ceiling is None or producer.ceiling > highest):
                self._bound(node, highest)

    def _producer(self, value: int) -> Operation:
        return next(step for step in reversed(self.operations) if step.to == value)

    def _bound(self, node: NodeProto, ceiling: float | None) -> None:
        """Clamps a value, in the step that makes it where nothing else reads it."""
        source = self._activation(node.input[0])
        producer = self._producer(source)
        clamping = (
            "input", "convolution", "linear", "add", "max_pool", "average_pool", "mean", "multiply", "function",
            "affine", "subtract",
        )  # fmt: skip
        known = [each for each in (producer.ceiling, ceiling) if each is not None]
        if self._alone(node.input[0]) and producer.kind in clamping:
            bounded = replace(producer, relu=True, ceiling=min(known, default=None))
            self.operations[self.operations.index(producer)] = bounded
            self.numbers[node.output[0], self.turning] = source
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
            numbers = (value - zero) * scale
        elif name in self.constants:
            numbers = numpy_helper.to_array(self.constants[name])
        else:
            raise NotCovered("bounds that are computed")
        if numbers.size != 1:
            raise NotCovered(f"{numbers.size} numbers where one is for all")
        return float(numbers.item())

    def conv(self, node: NodeProto) -> None:
        told = attributes(node)
        weights = self._weights(node.input[1])
        if len(weights.shape) not in (3, 4):
            raise NotCovered(f"a convolution of {len(weights.shape) - 2} dimensions")
        if "auto_pad" in told:
            raise NotCovered("an automatically padded convolution")
        tall, wide = (1, *weights.shape[2:])[-2:]
        window = _Window(told, tall, wide)
        source = self._activation(node.input[0])
        _, height, width = self.shapes[source]
        if not height:
            self._emit(node, self._weighted(node, weights, self._on_means(source, weights, window.top, told)))
            return
        asked = self.graph.shape(node.output[0])
        plane = (math.ceil(height / window.stride), math.ceil(width / window.across))
        if asked[1] > plane[0] or asked[2] > plane[1]:
            raise NotCovered(f"a {tall}x{wide} convolution with padding {window.top}, which makes the plane larger")
        if tall == wide == 1 and (window.top % window.stride or window.left % window.across):
            raise NotCovered(f"a 1x1 convolution with padding {window.top} and stride {window.stride}")
        if window.stride * window.across > 1:
            source = self._split(source, window, alone=tall == wide == 1)
        to, groups = self._new((weights.shape[0], *plane)), told.get("group", 1)
        step = window.of(Operation("convolution", source, to, groups=groups))
        self._emit(node, self._weighted(node, weights, step))
        if asked[1:] != plane:  # less padding than keeps the plane: its first places are right
            self._emit(node, self._cropped(to, asked))

    def _cropped(self, source: int, shape: Shape) -> Operation:
        """The first places of planes."""
        view = view_of(self.shapes[source])
        for side in (1, 2):
            view = view.sliced(side, 0, 1, shape[side])
        return self._move(source, view, shape)

    def _move(self, source: int, view: View, sides: Sequence[int]) -> Operation:
        """A view of an activation as one of its own, of these sides."""
        return Operation("move", source, self._new(plane_of(sides)), start=view.start, loops=view.loops(sides))

    def transposed_conv(self, node: NodeProto) -> None:
        """A convolution that makes a plane for each place of the stride, and these woven into one."""
        told = attributes(node)
        weights = self._weights(node.input[1], rows=1)
        window = _Window(told, *(1, *weights.shape[2:])[-2:])
        source, asked = self._activation(node.input[0]), self.graph.shape(node.output[0])
        height, width = self.shapes[source][1:]
        tall, wide = height * window.stride, width * window.across
        if not height or len(weights.shape) not in (3, 4) or window.spread or "auto_pad" in told:
            raise NotCovered("a ConvTranspose of vectors, or with dilation or auto_pad")
        if asked[1] > tall or asked[2] > wide or window.top >= window.tall or window.left >= window.wide:
            raise NotCovered(f"a ConvTranspose whose planes are no {window.stride} times as large")
        filters = asked[0]
        to = self._new((filters * window.stride * window.across, height, width))
        step = window.of(Operation("convolution", source, to, groups=told.get("group", 1), transposed=True))
        self.operations.append(self._weighted(node, weights, step))
        woven = view_of((filters, window.stride, window.across, height, width)).transposed((0, 3, 1, 4, 2))
        self._emit(node, self._move(to, woven, (filters, tall, wide)))
        if asked[1:] != (tall, wide):
            self._emit(node, self._cropped(self._activation(node.output[0]), asked))

    def _on_means(self, source: int, weights: Weights, pad: int, told: Mapping[str, Any]) -> Operation:
        """A 1x1 convolution of a plane's means, which are a vector: a linear layer."""
        if any(side != 1 for side in weights.shape[2:]) or pad or told.get("group", 1) != 1:
            raise NotCovered("a convolution of means that is no linear layer")
        return Operation("linear", source, self._new((weights.shape[0], 0, 0)))

    def _split(self, source: int, window: "_Window", *, alone: bool) -> int:
        """The planes (row mod stride, column mod stride) of an activation, or the first alone; made once."""
        channels, height, width = self.shapes[source]
        planes = 1 if alone else window.stride * window.across
        shape = (channels * planes, math.ceil(height / window.stride), math.ceil(width / window.across))
        for step in self.operations:
            same = (step.kind, step.source, step.stride, step.stride + step.wider)
            if same == ("split", source, window.stride, window.across) and self.shapes[step.to] == shape:
                return step.to
        wider = window.across - window.stride
        self.operations.append(Operation("split", source, self._new(shape), stride=window.stride, wider=wider))
        return self.operations[-1].to

    def gemm(self, node: NodeProto) -> None:
        told = attributes(node)
        if told.get("transB", 0) != 1 or {"alpha", "beta", "transA"} & set(told):
            raise NotCovered("a Gemm that is not a linear layer")
        weights = self._weights(node.input[1])
        source = self._activation(node.input[0])
        if self.shapes[source] != (weights.shape[1], 0, 0):
            raise NotCovered("a linear layer on planes")
        to = self._new((weights.shape[0], 0, 0))
        self._emit(node, self._weighted(node, weights, Operation("linear", source, to)))

    def matmul(self, node: NodeProto) -> None:
        """A linear layer along the last side: a 1x1 convolution, whose weights have inputs first."""
        if node.input[0] not in self.graph.running or node.input[1] in self.graph.running:
            raise NotCovered("a MatMul of two activations")
        weights, source = self._weights(node.input[1], rows=1), self._activation(node.input[0])
        if len(weights.shape) != 2:
            raise NotCovered(f"a MatMul with weights of {len(weights.shape)} dimensions")
        _, *plane = self.shapes[source]
        to = self._new((weights.shape[1], *plane))  # type: ignore[arg-type]
        kind = "convolution" if plane[0] else "linear"
        self._emit(node, self._weighted(node, weights, Operation(kind, source, to, transposed=True)))

    def _weighted(self, node: NodeProto, weights: Weights, step: Operation) -> Operation:
        bias, first = (*node.input, "")[2], self._place(weights.streams[0])
        if [self._place(name) for name in weights.streams] != list(range(first, first + len(weights.streams))):
            raise NotCovered("weights that are scattered over the file")
        return replace(
            step,
            coding=weights.coding,
            weights=first,
            low_bits=weights.low_bits,
            more=weights.more,
            is_int8=weights.is_int8,
            scale=self._place(weights.scale) if weights.scale else 0,
            bias=self._place(bias) if bias else 0,
        )

    def _weights(self, name: str, rows: int = 0) -> Weights:
        """Those of a name, whose outputs lie along the dimension ``rows``."""
        scale = None
        if name in self.made and self.made[name].op_type == "DequantizeLinear":
            node = self.made[name]
            if (
                attributes(node).get("axis", 1) != rows
                and numpy_helper.to_array(self.constants[node.input[1]]).size > 1
            ):
                raise NotCovered("weights that are quantised along their inputs")
            name, scale, *zero = node.input
            if any(numpy_helper.to_array(self.constants[each]).any() for each in zero):
                raise NotCovered("weights with a zero point")
        if name in self.made and self.made[name].domain == pack.DOMAIN:
            node = self.made[name]
            told = attributes(node)
            coding = CODINGS.index(pack.coding_name(node.op_type).removesuffix(pack.BLOCKS))
            values = self.constants[node.input[0]]
            streams, shape = tuple(node.input), tuple(told["shape"])
            length = math.prod(values.dims[1:])
            if length > 1 and told.get("outer", pack.OUTER) != [rows + 1]:
                raise NotCovered("blocks of weights along their inputs")
            low_bits, is_int8 = len(told.get("powers", [])), values.data_type == TensorProto.INT8
            return Weights(shape, coding, streams, low_bits, length - 1, is_int8, scale)
        if name not in self.constants:
            raise NotCovered("weights that are computed")
        tensor = self.constants[name]
        return Weights(tuple(tensor.dims), 0, (name,), 0, 0, tensor.data_type == TensorProto.INT8, scale)

    def add(self, node: NodeProto) -> None:
        if any(name not in self.graph.running for name in node.input):
            self._scaled(node, "bias")
            return
        pairs = [(name, self._activation(name)) for name in node.input]
        same = self.shapes[pairs[0][1]] == self.shapes[pairs[1][1]] and pairs[0][1] != pairs[1][1]
        for (name, one), (_, other) in (pairs, pairs[::-1]):
            producer = self._producer(one)
            free = producer.kind == "convolution" and not producer.relu and not producer.function
            free = free and producer.residual is None
            if same and free and self._alone(name):
                self.operations.remove(producer)
                self._emit(node, replace(producer, residual=other))
                return
        self._joined(node, "add")

    def multiply(self, node: NodeProto) -> None:
        if any(name not in self.graph.running for name in node.input):
            self._scaled(node, "weights")
            return
        pairs = [(name, self._activation(name)) for name in node.input]
        for (name, one), (_, other) in (pairs, pairs[::-1]):  # x times a function of x
            producer = self._producer(one)
            fused = {"Sigmoid": "SiLU", "HardSigmoid": "HardSwish"}.get(FUNCTIONS[producer.function], "")
            known = fused and producer.kind == "function" and producer.source == other and self._alone(name)
            if known:
                self.operations.remove(producer)
                also = next(each for each, number in pairs if number == other)
                step = replace(producer, relu=False, ceiling=None, gate=producer.ceiling)
                self._function(node, replace(step, function=FUNCTIONS.index(fused)), self._alone(also, 2))
                return
        self._joined(node, "multiply")

    def _joined(self, node: NodeProto, kind: str) -> None:
        """A sum or product place by place, or with one value a channel."""
        one, other = (self._activation(name) for name in node.input)
        if self.shapes[one] != self._shape(node.output[0]):
            one, other = other, one
        large, small = self.shapes[one], self.shapes[other]
        if small != large and not (large[1] and small[0] == large[0] and small[1:] in ((0, 0), (1, 1))):
            raise NotCovered(f"a {node.op_type} of {small} and {large}")
        if one == other:
            raise NotCovered(f"a {node.op_type} of a value with itself")
        self._emit(node, Operation(kind, one, self._new(large), other))

    def subtract(self, node: NodeProto) -> None:
        if any(name not in self.graph.running for name in node.input):
            self._scaled(node, "bias")
        elif self.shapes[self._activation(node.input[0])] != self._shape(node.output[0]):
            raise NotCovered("a Sub that makes its value larger")
        else:
            self._joined(node, "subtract")

    def divide(self, node: NodeProto) -> None:
        number = self._number(node.input[1]) if node.input[1] not in self.graph.running else None
        if not number or node.input[0] not in self.graph.running:
            raise NotCovered("a Div by what is no constant number")
        source = self._activation(node.input[0])
        self._emit(node, Operation("affine", source, self._new(self.shapes[source]), first=1 / number))

    def _scaled(self, node: NodeProto, place: str) -> None:
        """A sum, difference or product with a constant: a number, or one a channel."""
        sources = [name for name in node.input if name in self.graph.running]
        names = [name for name in node.input if name in self.constants]
        if len(sources) != 1 or len(names) != 1 or self.constants[names[0]].data_type != TensorProto.FLOAT:
            raise NotCovered(f"a {node.op_type} with what is no constant float")
        source = self._activation(sources[0])
        shape = self.shapes[source]
        sides = dims = list(self.constants[names[0]].dims)
        if self.turning:
            sides = sides[-1:]
        elif sides[-1:] == [1] and shape[1]:  # behind the channels
            sides = sides[: -2 if len(self.graph.sides(sources[0])) == 4 else -1]
        elif shape[1] and math.prod(sides) > 1:
            raise NotCovered(f"a {node.op_type} with one constant a place")
        if math.prod(sides) not in (1, shape[0]) or math.prod(sides) != math.prod(dims):
            raise NotCovered(f"a {node.op_type} with constants of {dims}")
        if shape != self._shape(node.output[0]):
            raise NotCovered(f"a {node.op_type} that makes its value larger")
        constant, producer = self._place(names[0]), self._producer(source)
        fits = node.op_type == "Add" and producer.kind in ("convolution", "linear") and math.prod(dims) == shape[0]
        if fits and not (producer.bias or producer.relu or producer.function) and self._alone(sources[0]):
            self.operations.remove(producer)
            self._emit(node, replace(producer, bias=constant))
            return
        step = Operation("affine", source, self._new(shape))
        step = replace(step, weights=constant) if place == "weights" else replace(step, bias=constant)
        if node.op_type == "Sub":
            step = replace(step, second=-1.0) if node.input[0] == sources[0] else replace(step, first=-1.0)
        self._emit(node, step)

    def _place(self, name: str) -> int:
        """Which input of the node a constant is."""
        if name not in self.constants:
            raise NotCovered("a constant that is computed")
        return len(self.inputs) + self.used.index(name)

    def normalisation(self, node: NodeProto) -> None:
        source = self._activation(node.input[0])
        scale, shift, mean, variance = (self._place(name) for name in node.input[1:5])
        epsilon = float(attributes(node).get("epsilon", 1e-5))
        step = Operation("affine", source, self._new(self.shapes[source]), weights=scale, scale=mean, bias=shift)
        self._emit(node, replace(step, variance=variance, first=epsilon))

    def function(self, node: NodeProto) -> None:
        told = attributes(node)
        numbers = {
            "HardSigmoid": (told.get("alpha", 0.2), told.get("beta", 0.5)),
            "HardSwish": (1 / 6, 0.5),
            "LeakyRelu": (told.get("alpha", 0.01), None),
        }.get(node.op_type, (None, None))
        if told.get("approximate", b"none") != b"none":
            raise NotCovered(f"a {node.op_type} that is approximated")
        source = self._activation(node.input[0])
        step = Operation("function", source, self._new(self.shapes[source]), function=FUNCTIONS.index(node.op_type))
        self._function(node, replace(step, first=numbers[0], second=numbers[1]), self._alone(node.input[0]))

    def _function(self, node: NodeProto, step: Operation, alone: bool) -> None:
        """A function, in the step that makes its values where nothing else reads these."""
        producer = self._producer(step.source)
        plain = not producer.function and not producer.relu
        if alone and plain and producer.kind in ("convolution", "linear", "add", "multiply", "subtract"):
            self.operations.remove(producer)
            step = replace(producer, function=step.function, first=step.first, second=step.second, gate=step.gate)
        self._emit(node, step)

    def concat(self, node: NodeProto) -> None:
        if any(name not in self.graph.running for name in node.input) or len(node.input) < 2:
            raise NotCovered("a Concat with constants")
        if attributes(node)["axis"] % len(self.graph.sides(node.output[0])) != 1:
            raise NotCovered("a Concat along another dimension than channels")
        first, *others = (self._activation(name) for name in node.input)
        for other in others:
            channels, *plane = self.shapes[first]
            if self.shapes[other][1:] != (*plane,):
                raise NotCovered("a Concat of planes and means")
            to = self._new((channels + self.shapes[other][0], *plane))  # type: ignore[arg-type]
            self._emit(node, Operation("concat", first, to, other))
            first = to

    def resize(self, node: NodeProto) -> None:
        told, source = attributes(node), self._activation(node.input[0])
        before, after = self.shapes[source], self.graph.shape(node.output[0])
        mode, where = (
            told.get(name, default).decode()
            for name, default in (("mode", b"nearest"), ("coordinate_transformation_mode", b"half_pixel"))
        )
        rounding = told.get("nearest_mode", b"round_prefer_floor").decode()
        if not before[1] or before[0] != after[0] or {"antialias", "exclude_outside"} & set(told):
            raise NotCovered(f"a Resize by {mode}, {where}")
        whole = all(more % fewer == 0 for fewer, more in zip(before[1:], after[1:], strict=True))
        nearest = {"asymmetric": ("floor",), "half_pixel": ("round_prefer_floor", "round_prefer_ceil")}
        if mode == "nearest" and whole and rounding in nearest.get(where, ()):
            view = view_of(before)
            for side in (1, 2):
                view = view.repeated(side, after[side] // before[side])
            self._emit(node, self._move(source, view, after))
            return
        kind = "nearest" if (mode, where, rounding) == ("nearest", "asymmetric", "floor") else where
        if (mode != "linear" and kind != "nearest") or kind not in MODES or not self._by_sizes(node, before, after):
            raise NotCovered(f"a Resize by {mode}, {where}")
        self._emit(node, Operation("resize", source, self._new(after), mode=MODES.index(kind)))

    def _by_sizes(self, node: NodeProto, before: Shape, after: Shape) -> bool:
        """Whether the factors of a Resize are those of its sizes: nothing was rounded away."""
        named = self.constants.get((*node.input, "", "")[2])
        if named is None:
            return True
        factors = numpy_helper.to_array(named)[-2:].tolist()
        sides = zip(before[1:][-len(factors) :], after[1:][-len(factors) :], factors, strict=True)
        return all(abs(one * factor - other) < 1e-4 * other for one, other, factor in sides)

    def pool(self, node: NodeProto) -> None:
        told = attributes(node)
        window = _Window(told, *(1, *told["kernel_shape"])[-2:])
        if window.spread or "auto_pad" in told or len(node.output) > 1:
            raise NotCovered(f"a {node.op_type} with dilation, auto_pad or indices")
        source = self._activation(node.input[0])
        channels, height, width = self.shapes[source]
        if not height:
            raise NotCovered(f"a {node.op_type} of a vector")
        asked = self.graph.shape(node.output[0])
        counted = bool(told.get("count_include_pad", 0))
        along = (
            (height, window.top, window.tall, window.stride),
            (width, window.left, window.wide, window.across),
        )
        planes = [tuple(windows(*each, partial=partial) for each in along) for partial in (False, True)]
        if asked[0] != channels or asked[1:] not in planes[: 1 if counted else 2]:
            raise NotCovered(f"a {node.op_type} with other padding on each side")
        kind = "max_pool" if node.op_type == "MaxPool" else "average_pool"
        step = window.of(Operation(kind, source, self._new(asked), count_padding=counted))
        self._emit(node, step)

    def mean(self, node: NodeProto) -> None:
        if node.op_type == "ReduceMean":
            named = self.constants.get((*node.input, "")[1])
            axes = None if named is None else numpy_helper.to_array(named).tolist()
            rank = len(self.graph.sides(node.input[0]))
            over = [] if axes is None else sorted(axis % rank for axis in axes)
            self.turning = over == list(range(1, rank - 1)) and rank > 2
            if over not in ([2, 3], [3]) and (rank != 3 or over != [2]) and not self.turning:
                raise NotCovered(f"a mean over {axes}")
            if over == [3] and self.graph.shape(node.input[0])[1] != 1:
                raise NotCovered("a mean of rows")
        source = self._activation(node.input[0])
        if not self.shapes[source][1]:
            raise NotCovered("a mean of a vector")
        self._emit(node, Operation("mean", source, self._new((self.shapes[source][0], 0, 0))))

    def _moved(self, node: NodeProto, view: View, output: int = 0) -> None:
        """Values that stand elsewhere and are the same: nothing to do where they stay where they are."""
        source, name = self._activation(node.input[0]), node.output[output]
        held, to, sides = self.shapes[source], self.graph.shape(name), self.graph.sides(name)[1:]
        if held in (to, (to[0], 0, 0)) and is_identity(view.loops(sides), view.start):
            self.numbers[name, self.turning] = source
            self.same[name] = node.input[0]
        else:
            self._emit(node, self._move(source, view, sides), output)

    def _view(self, node: NodeProto) -> View:
        return view_of(self.graph.sides(node.input[0])[1:])

    def reshape(self, node: NodeProto) -> None:
        self._moved(node, self._view(node).reshaped(self.graph.sides(node.output[0])[1:]))

    def transpose(self, node: NodeProto) -> None:
        rank = len(self.graph.sides(node.input[0]))
        first, *order = attributes(node).get("perm", range(rank)[::-1])
        if first:
            raise NotCovered("a Transpose of the batch")
        for turned, same in ((True, [*order[1:], order[0]]), (False, [order[-1], *order[:-1]])):
            if rank in (3, 4) and same == sorted(same) and (node.input[0], turned) in self.numbers:
                self.numbers[node.output[0], not turned] = self.numbers[node.input[0], turned]
                self.same[node.output[0]] = node.input[0]
                return
        self._moved(node, self._view(node).transposed([side - 1 for side in order]))

    def slice(self, node: NodeProto) -> None:
        sides = self.graph.sides(node.input[0])
        begins, ends, axes, steps = (self._integers(name) for name in (*node.input[1:], "", "")[:4])
        if begins is None or ends is None:
            raise NotCovered("a Slice whose places are computed")
        view = self._view(node)
        for place, (begin, end) in enumerate(zip(begins, ends, strict=True)):
            axis, step = (axes[place] if axes else place) % len(sides), steps[place] if steps else 1
            if axis == 0 or step < 1:
                raise NotCovered("a Slice of the batch, or backwards")
            places = range(sides[axis])[begin:end:step]
            view = view.sliced(axis - 1, places.start, step, len(places))
        self._moved(node, view)

    def _integers(self, name: str) -> list[int] | None:
        return numpy_helper.to_array(self.constants[name]).tolist() if name in self.constants else None

    def split(self, node: NodeProto) -> None:
        axis = attributes(node).get("axis", 0) % len(self.graph.sides(node.input[0])) - 1
        begin = 0
        for place, name in enumerate(node.output):
            count = self.graph.sides(name)[1:][axis]
            self._moved(node, self._view(node).sliced(axis, begin, 1, count), place)
            begin += count

    def blocks(self, node: NodeProto) -> None:
        """DepthToSpace and SpaceToDepth."""
        told, (channels, height, width) = attributes(node), self.graph.sides(node.input[0])[1:]
        size, to = told["blocksize"], self.graph.sides(node.output[0])[1:]
        if node.op_type == "SpaceToDepth":
            parts, order = (channels, height // size, size, width // size, size), (2, 4, 0, 1, 3)
        elif told.get("mode", b"DCR") == b"CRD":
            parts, order = (channels // size**2, size, size, height, width), (0, 3, 1, 4, 2)
        else:
            parts, order = (size, size, channels // size**2, height, width), (2, 3, 0, 4, 1)
        self._moved(node, self._view(node).reshaped(parts).transposed(order).reshaped(to))


CODED = ("QuantizeLinear", "DequantizeLinear")
_OF_ANY_RANK = (
    Segment.coded, Segment.relu, Segment.clip, Segment.function, Segment.reshape, Segment.transpose, Segment.slice,
    Segment.split,
)  # fmt: skip
"""Those that take values one by one, or know where each lies; others take leading sides for channels."""
_PLACE_BY_PLACE = (
    Segment.coded, Segment.relu, Segment.clip, Segment.function, Segment.add, Segment.multiply, Segment.subtract,
    Segment.divide,
)  # fmt: skip
"""Those that take turned values as well."""
_OPERATORS = {
    "QuantizeLinear": Segment.coded,
    "DequantizeLinear": Segment.coded,
    "Conv": Segment.conv,
    "Gemm": Segment.gemm,
    "MatMul": Segment.matmul,
    "Relu": Segment.relu,
    "Clip": Segment.clip,
    "Add": Segment.add,
    "Mul": Segment.multiply,
    "BatchNormalization": Segment.normalisation,
    "Concat": Segment.concat,
    "Resize": Segment.resize,
    **dict.fromkeys(("Sigmoid", "HardSigmoid", "HardSwish", "LeakyRelu", "Tanh", "Gelu"), Segment.function),
    "MaxPool": Segment.pool,
    "AveragePool": Segment.pool,
    "GlobalAveragePool": Segment.mean,
    "ReduceMean": Segment.mean,
    "ConvTranspose": Segment.transposed_conv,
    "Sub": Segment.subtract,
    "Div": Segment.divide,
    **dict.fromkeys(("Flatten", "Reshape", "Squeeze", "Unsqueeze"), Segment.reshape),
    "Transpose": Segment.transpose,
    "Slice": Segment.slice,
    "Split": Segment.split,
    **dict.fromkeys(("DepthToSpace", "SpaceToDepth"), Segment.blocks),
}


class _Window:
    """What a convolution or pooling looks at from each place: a stride and padding a direction, and one spread."""

    def __init__(self, told: Mapping[str, Any], tall: int, wide: int) -> None:
        self.tall, self.wide = tall, wide
        strides, pads, dilations = (list[int](told.get(name, ())) for name in ("strides", "pads", "dilations"))
        self.stride, self.across = (1, 1, *strides)[-2:]
        self.spread = _even(dilations or [1], "dilations") - 1
        self.top, self.left = (0, *pads[: len(pads) // 2])[-2:] if pads else (0, 0)

    def of(self, step: Operation) -> Operation:
        """A step that looks so."""
        step = replace(step, kernel_height=self.tall, kernel_width=self.wide, stride=self.stride, pad=self.top)
        wider, left = self.across - self.stride, self.left - self.top
        step = replace(step, wider=wider, left=left, spread=self.spread)
        if step.largest > LARGEST:
            raise NotCovered(f"a window of {step.largest} places along a side")
        return step


class Graph:
    """A packed model, and which of its nodes the engine computes: ``segments``, none of which waits for itself.

    ``nodes`` are all that depend on the inputs, ``reasons`` why some are not computed, a phrase each.
    """

    def __init__(self, model: ModelProto) -> None:
        self.source = model
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self.running = {each.name for each in model.graph.input}
        self.nodes: list[NodeProto] = []
        self.made: dict[str, NodeProto] = {}
        for node in model.graph.node:
            if self.running.isdisjoint(node.input):
                self.made |= dict.fromkeys(node.output, node)
            else:
                self.nodes.append(node)
                self.running |= set(node.output)
        self.makers = {name: node for node in self.nodes for name in node.output}
        self.readers = Counter(name for node in self.nodes for name in node.input)
        self.readers.update(output.name for output in model.graph.output)
        self._shapes = _shapes(model)
        found = pixels(_images(model), self.makers, self.readers, self.constants)
        self.pixels = {each.source: each for each in found}
        self.reasons: dict[str, None] = {}
        self.segments = self._segments()

    def shape(self, name: str) -> Shape:
        """Channels, height and width of an activation.

        Raises:
            NotCovered: if it is no batch of planes or of vectors of floats, of a size that is known.
        """
        sides = self._shapes.get(name)
        if sides is None:
            raise NotCovered("a value whose size is not known, or that has no row an example")
        if not sides:
            raise NotCovered("a value of 1 dimension")
        return plane_of(sides)

    def sides(self, name: str) -> tuple[int, ...]:
        """Sides of an activation, the batch's as 1."""
        return (1, *self._shapes.get(name, ()))

    def constant_nodes(self, nodes: Sequence[NodeProto]) -> list[NodeProto]:
        """The nodes that depend on constants alone and that these nodes need, in order."""
        needed: set[int] = set()
        asked = [name for node in nodes for name in node.input]
        while asked:
            node = self.made.get(asked.pop())
            if node is not None and id(node) not in needed:
                needed.add(id(node))
                asked += node.input
        return [node for node in self.source.graph.node if id(node) in needed]

    def _segments(self) -> list[Segment]:
        """Greatest sets of nodes that the engine computes, apart wherever one waits for a node that it does not."""
        first = next((place for place, node in enumerate(self.nodes) if node.op_type in WEIGHTED), None)
        if first is None:
            self.reasons["a network without layers"] = None
            return []
        while first and self.nodes[first - 1].op_type in CODED:
            first -= 1
        known = {id(node) for node in self.nodes[first:] if self._known(node)} | covered(self.pixels.values())
        while True:
            segments = [Segment(self, nodes) for nodes in self._apart(known)]
            refused = [fault for segment in segments if (fault := self._fault(segment)) is not None]
            if not refused:
                return [segment for segment in segments if segment.weighted]
            known -= {id(node) for node in refused}
            partly = {name: each for name, each in self.pixels.items() if not covered([each]) <= known}
            known -= covered(partly.values())
            self.pixels = {name: each for name, each in self.pixels.items() if name not in partly}

    def _apart(self, known: Collection[int]) -> list[list[NodeProto]]:
        """The nodes that are known, apart where one waits for another that is not, or where nothing connects them."""
        levels: dict[str, int] = {}
        by_level: dict[int, list[NodeProto]] = {}
        for node in self.nodes:  # known ones are on odd levels, others on even ones
            level = max((levels.get(name, 0) for name in node.input), default=0)
            level += (level % 2 == 1) != (id(node) in known)
            levels |= dict.fromkeys(node.output, level)
            if id(node) in known:
                by_level.setdefault(level, []).append(node)
        return [part for level in sorted(by_level) for part in _connected(by_level[level])]

    def _fault(self, segment: Segment) -> NodeProto | None:
        """Lowers a segment; the node for which that cannot be."""
        try:
            segment.lower()
        except NotCovered as reason:
            self.reasons[str(reason)] = None
            return segment.at
        return None

    def _known(self, node: NodeProto) -> bool:
        """Whether the engine computes a node, were it alone."""
        try:
            if node.op_type in CODED:  # what is between the two is no float
                self.shape(node.input[0] if node.op_type == "QuantizeLinear" else node.output[0])
                return node.op_type == "QuantizeLinear" or self.makers[node.input[0]].op_type == "QuantizeLinear"
            Segment(self, [node]).lower(alone=True)
        except NotCovered as reason:
            self.reasons[str(reason)] = None
            return False
        return True


def _connected(nodes: Sequence[NodeProto]) -> list[list[NodeProto]]:
    """Nodes in order, apart where no value leads from some to others."""
    groups: list[tuple[set[str], list[int]]] = []
    for place, node in enumerate(nodes):
        touched = [group for group in groups if not group[0].isdisjoint(node.input)]
        names = set(node.output).union(*(made for made, _ in touched))
        before = sorted(each for _, places in touched for each in places)
        groups = [group for group in groups if group not in touched] + [(names, [*before, place])]
    return [[nodes[place] for place in places] for _, places in groups]


def _turned(sides: Sequence[int]) -> tuple[int, ...]:
    """The last side first."""
    return (*sides[-1:], *sides[:-1])


def _even(values: Sequence[int], what: str) -> int:
    """The one value of an attribute that is the same on all sides."""
    if len(set(values)) != 1:
        raise NotCovered(f"{what} of {list(values)}")
    return values[0]


def _images(model: ModelProto) -> dict[str, tuple[int, ...]]:
    """Sides of an example of the inputs that are bytes (N, channels, height, width)."""
    kinds = {each.name: each.type.tensor_type for each in model.graph.input}
    sides = {
        name: tuple(each.dim_value for each in kind.shape.dim[1:])
        for name, kind in kinds.items()
        if kind.elem_type == TensorProto.UINT8
    }
    return {name: each for name, each in sides.items() if len(each) == 3 and all(each)}


def _shapes(model: ModelProto) -> dict[str, tuple[int, ...]]:
    """Sides of an example of the values that are floats, a row an example, and of a size that is known."""
    few, more = (_sides(model, batch) for batch in BATCHES)
    return {
        name: sides[1:]
        for name, sides in few.items()
        if sides[:1] == BATCHES[:1] and more.get(name) == (BATCHES[1], *sides[1:]) and all(sides)
    }


def _sides(model: ModelProto, batch: int) -> dict[str, tuple[int, ...]]:
    """Sides of the values that are floats, for a batch of so many; 0 where they are not known."""
    fixed = pack.unpacked(model)
    for value in (*fixed.graph.input, *fixed.graph.output):
        if (sides := value.type.tensor_type.shape.dim) and not sides[0].HasField("dim_value"):
            sides[0].dim_value = batch
    inferred = onnx.shape_inference.infer_shapes(fixed, data_prop=True).graph
    sides = {
        value.name: tuple(each.dim_value for each in value.type.tensor_type.shape.dim)
        for value in (*inferred.value_info, *inferred.input, *inferred.output)
        if value.type.tensor_type.elem_type == TensorProto.FLOAT
    }
    wrong = _misjudged(fixed, sides)
    return {name: each for name, each in sides.items() if name not in wrong}


def _misjudged(model: ModelProto, sides: Mapping[str, tuple[int, ...]]) -> set[str]:
    """The values behind a Resize of which ONNX's inference rounds down what ONNX Runtime does not (1.4 times 10)."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    found: set[str] = set()
    for node in model.graph.node:
        before, after = (sides.get(name, ()) for name in (node.input[0] if node.input else "", node.output[0]))
        if node.op_type == "Resize" and len(node.input) == 3 and node.input[2] in constants:
            factors = numpy_helper.to_array(constants[node.input[2]])
            if len(factors) == len(before) and (np.floor(factors * np.array(before, np.float32)) != after).any():
                found |= set(node.output)
        if found & set(node.input):
            found |= set(node.output)
    return found
