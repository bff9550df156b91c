"""Sparse weights of an ONNX model, packed into standard operators, so that its bytes fall with sparsity.

A packed tensor is its non-zero values, a coding of their positions, and one node: a call of a function that the model
carries with it and that rebuilds the dense tensor. All that the node reads is constant and all shapes are static, so
ONNX Runtime evaluates it once, when a session is made; what runs then is the graph of the dense model.

The codings of positions, in bits a non-zero value:

    mask   one bit a weight
    gaps   one byte, the zeros before the value; after 255 zeros comes a value that is zero itself
    rice   the zeros before the value, their low k bits as they are and the rest in unary (Rice 1979), k by tensor

Each tensor takes the one that is smallest with all that goes with it; one that none makes smaller stays as it is. Where
blocks of neighbouring filters are zero together, a position is that of a block, and its values are a row.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import onnx.parser
from numpy.typing import NDArray
from onnx import FunctionProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

DOMAIN = "rewind"
LONGEST_GAP = 255
RICE_PARAMETERS = range(1, 15)
PACKABLE: Mapping[int, str] = {TensorProto.FLOAT: "Float", TensorProto.INT8: "Int8"}
"""Types of weights, and how the functions that rebuild them end."""

Array = NDArray[np.generic]
Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Coding:
    """How the positions of one tensor's values are written down.

    ``values`` are the tensor's non-zero values and perhaps some zeros, of blocks in rows, ``streams`` what the function
    reads beside them, ``numbers`` its attributes.
    """

    name: str
    values: Array
    streams: tuple[Bytes, ...]
    numbers: Mapping[str, list[int]]

    @property
    def position_bytes(self) -> int:
        """Bytes that are there for the positions alone."""
        rows = self.values.reshape(len(self.values), -1)
        zeros = len(rows) - np.count_nonzero(rows.any(1))
        return sum(stream.nbytes for stream in self.streams) + int(zeros) * rows[:1].nbytes


@dataclass(frozen=True)
class PackedTensor:
    """What packing did to a tensor: ``size`` weights, ``kept`` of them not zero, positions in so many bytes."""

    coding: str
    size: int
    kept: int
    position_bytes: int

    @property
    def entropy_bytes(self) -> float:
        """The fewest bytes for positions of this density (Shannon): size x H(kept / size) / 8."""
        density = self.kept / self.size
        if density in (0.0, 1.0):
            return 0.0
        bits = -density * math.log2(density) - (1 - density) * math.log2(1 - density)
        return self.size * bits / 8


def encode_mask(entries: Array) -> Coding:
    """``values`` begin with the zero that all pruned weights take."""
    alive = _alive(entries)
    values = np.concatenate([np.zeros_like(entries[:1]), entries[alive]])
    return Coding("Mask", values, (np.packbits(alive, bitorder="little"),), {})


def _alive(entries: Array) -> NDArray[np.bool_]:
    """Which weights, or rows of them, are not zero."""
    return np.asarray(entries.reshape(len(entries), -1).any(1))


def _places(entries: Array) -> NDArray[np.int64]:
    """Which entries are written down: those that are not zero, or the first where all are."""
    places = np.flatnonzero(_alive(entries))
    return places if len(places) else np.zeros(1, np.int64)


def encode_gaps(entries: Array) -> Coding:
    filled, left = np.divmod(np.diff(_places(entries), prepend=-1) - 1, LONGEST_GAP + 1)
    gaps = np.full(len(left) + filled.sum(), LONGEST_GAP)
    gaps[np.cumsum(filled + 1) - 1] = left
    return Coding("Gaps", entries[np.cumsum(gaps + 1) - 1], (gaps.astype(np.uint8),), {})


def encode_rice(entries: Array) -> Coding:
    index = _places(entries)
    gaps = np.diff(index, prepend=-1) - 1
    low = min(RICE_PARAMETERS, key=lambda k: int((gaps >> k).sum()) + len(gaps) * (k + 1))
    ends = np.cumsum((gaps >> low) + 1) - 1
    unary = np.zeros(int(ends[-1]) + 1, dtype=bool)
    unary[ends] = True
    remainders = (gaps[:, None] >> np.arange(low)) & 1
    streams = tuple(np.packbits(bits.astype(bool).ravel(), bitorder="little") for bits in (unary, remainders))
    return Coding("Rice", entries[index], streams, {"powers": [2**bit for bit in range(low)]})


ENCODERS: tuple[Callable[[Array], Coding], ...] = (encode_mask, encode_gaps, encode_rice)
BLOCKS, LENGTHS = "Blocks", (8, 4, 2)
"""How the codings of blocks end, and how many filters these have."""
OUTER = [1]
"""How many sides a tensor has down to its filters, of which blocks are made; where others, a coding tells it."""


def codings(tensor: Array, axis: int) -> list[Coding]:
    """All codings of a tensor's positions, of blocks along the ``axis`` of filters too where it has such."""
    found = [encode(tensor.ravel()) for encode in ENCODERS]
    before, filters, behind = math.prod(tensor.shape[:axis]), tensor.shape[axis], math.prod(tensor.shape[axis + 1 :])
    kept = np.count_nonzero(tensor)
    outer = {} if [axis + 1] == OUTER else {"outer": [axis + 1]}
    for length in LENGTHS:
        if filters % length:
            continue
        filters_together = tensor.reshape(before * filters // length, length, behind)
        if 2 * np.count_nonzero(filters_together.any(1)) * length > 3 * kept:
            continue
        rows = filters_together.swapaxes(1, 2).reshape(-1, length)
        for encode in ENCODERS:
            of_rows = encode(rows)
            found.append(replace(of_rows, name=of_rows.name + BLOCKS, numbers={**of_rows.numbers, **outer}))
    return found


def decode(coding: Coding, shape: Sequence[int]) -> Array:
    """The tensor that a coding stands for: in numpy what the model's function does in ONNX."""
    length, behind = math.prod(coding.values.shape[1:]), math.prod(shape[coding.numbers.get("outer", OUTER)[0] :])
    return _entries(coding, math.prod(shape) // length).reshape(-1, behind, length).swapaxes(1, 2).reshape(shape)


def _entries(coding: Coding, size: int) -> Array:
    """All that a coding has places for, in their order: numbers (size), or rows of them (size, length)."""
    name = coding.name.removesuffix(BLOCKS)
    if name == "Mask":
        alive = np.unpackbits(coding.streams[0], bitorder="little")[:size].astype(np.int64)
        return coding.values[np.cumsum(alive) * alive]
    if name == "Gaps":
        gaps = coding.streams[0].astype(np.int64)
    else:
        unary, remainders = (np.unpackbits(stream, bitorder="little") for stream in coding.streams)
        high = np.diff(np.flatnonzero(unary), prepend=-1) - 1
        powers = np.asarray(coding.numbers["powers"])
        low = remainders[: len(high) * len(powers)].reshape(len(high), len(powers)) @ powers
        gaps = high * (powers.sum() + 1) + low
    flat = np.zeros((size, *coding.values.shape[1:]), coding.values.dtype)
    flat[np.cumsum(gaps + 1) - 1] = coding.values
    return flat


def packed(model: ModelProto) -> tuple[ModelProto, dict[str, PackedTensor]]:
    """The model with its sparse weights packed (the original is left unchanged), and what was done to which tensor."""
    choices = _choices(model)
    result = ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    plain = [tensor for tensor in graph.initializer if tensor.name not in choices]
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    shapes = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    del graph.initializer[:]
    graph.initializer.extend(plain)
    nodes = []
    for name, coding in choices.items():
        node, tensors = _written(name, coding, types[name], shapes[name])
        nodes.append(node)
        graph.initializer.extend(tensors)
    others = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *others])
    used = sorted({(coding.name, types[name]) for name, coding in choices.items()})
    result.functions.extend(function(coding, kind, _opset(model)) for coding, kind in used)
    if used:
        result.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    facts = {
        name: PackedTensor(
            coding.name.lower(), math.prod(shapes[name]), int(np.count_nonzero(coding.values)), coding.position_bytes
        )
        for name, coding in choices.items()
    }
    return result, facts


def unpacked(model: ModelProto) -> ModelProto:
    """The dense model again, bit for bit: what ``packed`` was given."""
    result = ModelProto()
    result.CopyFrom(model)
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    dense, read = [], set()
    for node in model.graph.node:
        if node.domain != DOMAIN:
            continue
        values, *streams = (tensors[name] for name in node.input)
        numbers = {each.name: list(each.ints) for each in node.attribute}
        shape = numbers.pop("shape")
        coding = Coding(coding_name(node.op_type), values, tuple(streams), numbers)
        dense.append(numpy_helper.from_array(decode(coding, shape), node.output[0]))
        read |= set(node.input)
    plain = [tensor for tensor in model.graph.initializer if tensor.name not in read]
    nodes = [node for node in model.graph.node if node.domain != DOMAIN]
    opsets = [each for each in model.opset_import if each.domain != DOMAIN]
    functions = [each for each in model.functions if each.domain != DOMAIN]
    del result.graph.initializer[:], result.graph.node[:], result.opset_import[:], result.functions[:]
    result.functions.extend(functions)
    result.graph.initializer.extend([*plain, *dense])
    result.graph.node.extend(nodes)
    result.opset_import.extend(opsets)
    return result


def _choices(model: ModelProto) -> dict[str, Coding]:
    """The coding of every tensor that gets smaller by one, in bytes of the file, the functions included."""
    savings: dict[str, dict[str, tuple[int, Coding]]] = {}
    across = _across(model)
    for tensor in model.graph.initializer:
        if tensor.data_type not in PACKABLE or len(tensor.dims) < 2:  # weights, but no biases and scales
            continue
        weights = numpy_helper.to_array(tensor)
        if weights.size < 2 or np.signbit(weights[weights == 0]).any():  # -0.0 is not the zero that comes back
            continue
        possible = codings(weights, 1 if tensor.name in across else 0)
        rising = sorted(((_saved(tensor, each), each) for each in possible), key=lambda fit: fit[0])
        savings[tensor.name] = {coding.name: (saved, coding) for saved, coding in rising}  # of one name the smallest
    kinds = {tensor.data_type for tensor in model.graph.initializer if tensor.name in savings}
    best: dict[str, Coding] = {}
    most = 0
    known = [name for name in FUNCTIONS if any(name in by_coding for by_coding in savings.values())]
    costs = {name: sum(function(name, kind, _opset(model)).ByteSize() for kind in kinds) for name in known}
    for allowed in (names for count in range(len(known) + 1) for names in combinations(known, count)):
        fits = {
            name: max(
                (by_coding[each] for each in allowed if each in by_coding), key=lambda fit: fit[0], default=(0, None)
            )
            for name, by_coding in savings.items()
        }
        chosen = {name: coding for name, (saved, coding) in fits.items() if coding is not None and saved > 0}
        saved = sum(fits[name][0] for name in chosen) - sum(costs[name] for name in allowed)
        if saved > most:
            best, most = chosen, saved
    return best


def _across(model: ModelProto) -> set[str]:
    """Names of the weights whose filters lie along their second axis."""
    sources = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    read = {node.input[1] for node in model.graph.node if node.op_type in ("ConvTranspose", "MatMul")}
    return {sources.get(name, name) for name in read}


def _opset(model: ModelProto) -> int:
    return next(each.version for each in model.opset_import if each.domain == "")


def _saved(tensor: TensorProto, coding: Coding) -> int:
    node, tensors = _written(tensor.name, coding, tensor.data_type, list(tensor.dims))
    return tensor.ByteSize() - node.ByteSize() - sum(each.ByteSize() + 3 for each in tensors)


def _written(name: str, coding: Coding, kind: int, shape: list[int]) -> tuple[NodeProto, list[TensorProto]]:
    """The node that rebuilds a tensor, and the tensors that it reads."""
    parts = (coding.values, *coding.streams)
    tensors = [numpy_helper.from_array(part, f"{name}{number}") for number, part in enumerate(parts)]
    numbers = {"shape": shape, **coding.numbers}
    node = helper.make_node(coding.name + PACKABLE[kind], [tensor.name for tensor in tensors], [name], domain=DOMAIN)
    node.attribute.extend(helper.make_attribute(key, value) for key, value in numbers.items())
    return node, tensors


def coding_name(operator: str) -> str:
    """The coding that a function of the model decodes."""
    return next(operator.removesuffix(end) for end in PACKABLE.values() if operator.endswith(end))


def function(coding: str, kind: int, opset: int) -> FunctionProto:
    """The model-local function that rebuilds tensors of a type from a coding; ``opset`` is the model's, 18 or later."""
    zero = f"{PACKABLE[kind].lower()}[1] {{0}}"
    found = onnx.parser.parse_function(
        f'<domain: "{DOMAIN}", opset_import: ["" : {opset}]>\n'
        + FUNCTIONS[coding].replace("NAME", coding + PACKABLE[kind]).replace("ZERO", zero)
    )
    read = set(found.output)
    for node in reversed(list(found.node)):  # constants of other codings are read by none
        if read.isdisjoint(node.output):
            found.node.remove(node)
        else:
            read.update(node.input)
    short = {name: name for name in (*found.input, *found.output)}
    for node in found.node:
        inputs = [short[name] for name in node.input]
        outputs = [short.setdefault(name, f"{len(short):x}") for name in node.output]
        del node.input[:], node.output[:]
        node.input.extend(inputs)
        node.output.extend(outputs)
    return found


def _bits(stream: str, bits: str) -> str:
    """Lines of a function: the bits of bytes, the lowest of each first, as int32 (8 n)."""
    return f"""
    {bits}_column = Unsqueeze ({stream}, one)
    {bits}_shifted = BitShift <direction = "RIGHT"> ({bits}_column, shifts)
    {bits}_rows = BitwiseAnd ({bits}_shifted, lowest)
    {bits}_wide = Cast <to = 6> ({bits}_rows)
    {bits} = Reshape ({bits}_wide, everything)"""


_CONSTANTS = """
    axis = Constant <value_int = 0> ()
    zero = Constant <value_ints = [0]> ()
    one = Constant <value_ints = [1]> ()
    everything = Constant <value_ints = [-1]> ()
    unit = Constant <value = int32[1] {1}> ()
    shifts = Constant <value = uint8[8] {0, 1, 2, 3, 4, 5, 6, 7}> ()
    lowest = Constant <value = uint8[1] {1}> ()
    shape = Constant <value_ints: ints = @shape> ()
    size = ReduceProd (shape)"""

_SCATTERED = """
    zeros = ConstantOfShape <value = ZERO> (size)
    flat = ScatterElements (zeros, places, values)"""

_DENSE = """
    dense = Reshape (flat, shape)"""

_BLOCKS = {
    "<shape": f"<shape, outer: ints = {OUTER}",
    "size = ReduceProd (shape)": """all = ReduceProd (shape)
    outer = Constant <value_ints: ints = @outer> ()
    outer_sides = Slice (shape, zero, outer)
    filters = ReduceProd (outer_sides)
    behind = Div (all, filters)
    length = Shape <start = 1> (values)
    size = Div (all, length)
    entries = Concat <axis = 0> (size, length)
    sides = Concat <axis = 0> (everything, behind, length)""",
    "count = Shape (values)": "count = Shape <end = 1> (values)",
    _SCATTERED: """
    zeros = ConstantOfShape <value = ZERO> (entries)
    column = Unsqueeze (places, one)
    wide = Cast <to = 7> (column)
    flat = ScatterND (zeros, wide, values)""",
    _DENSE: """
    rows = Reshape (flat, sides)
    turned = Transpose <perm = [0, 2, 1]> (rows)
    dense = Reshape (turned, shape)""",
}
"""What a function for rows of values has in the place of one for single values."""


def _of_blocks(function: str) -> str:
    for single, rows in _BLOCKS.items():
        function = function.replace(single, rows)
    return function


_OF_WEIGHTS = {
    "Mask": f"""NAME <shape> (values, mask) => (dense) {{{_CONSTANTS}{_bits("mask", "alive")}
    rank = CumSum (alive, axis)
    index = Mul (rank, alive)
    padded = Gather (values, index)
    flat = Slice (padded, zero, size){_DENSE}
}}""",
    "Gaps": f"""NAME <shape> (values, gaps) => (dense) {{{_CONSTANTS}
    skipped = Cast <to = 6> (gaps)
    steps = Add (skipped, unit)
    ends = CumSum (steps, axis)
    places = Sub (ends, unit){_SCATTERED}{_DENSE}
}}""",
    "Rice": f"""NAME <shape, powers> (values, unary, low) => (dense) {{{_CONSTANTS}
    powers = Constant <value_ints: ints = @powers> ()
    weights = Cast <to = 6> (powers)
    largest = ReduceSum (weights)
    scale = Add (largest, unit)
    count = Shape (values)
    width = Shape (powers)
    bits = Mul (count, width)
    table = Concat <axis = 0> (count, width){_bits("unary", "end")}{_bits("low", "low_bit")}
    order = CumSum (end, axis)
    slot = Mul (order, end)
    each = Max (end, unit)
    nth = CumSum (each, axis)
    slots = Add (count, one)
    unfilled = ConstantOfShape <value = int32[1] {{0}}> (slots)
    filled = ScatterElements (unfilled, slot, nth)
    used = Slice (filled, one, slots)
    number = Slice (nth, zero, count)
    high = Sub (used, number)
    low_bits = Slice (low_bit, zero, bits)
    low_rows = Reshape (low_bits, table)
    weighted = Mul (low_rows, weights)
    lows = ReduceSum <keepdims = 0> (weighted, one)
    skipped = CumSum (lows, axis)
    high_skipped = Mul (high, scale)
    both = Add (high_skipped, skipped)
    ends = Add (both, number)
    places = Sub (ends, unit){_SCATTERED}{_DENSE}
}}""",
}

FUNCTIONS = _OF_WEIGHTS | {name + BLOCKS: _of_blocks(each) for name, each in _OF_WEIGHTS.items()}
