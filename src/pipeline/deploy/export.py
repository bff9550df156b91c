"""A network with its preprocessing as an ONNX model: plain as PyTorch writes it, or lean.

The plain export carries stack traces with the paths of the machine that made it; the lean one has the same operators
and weights, and nothing that says where it comes from.
"""

import contextlib
import functools
import io
import logging
import re
import traceback
import typing
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import count, product
from string import ascii_letters
from typing import Any

import numpy as np
import onnx
import torch
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from pipeline.deploy.board.run import difference
from pipeline.deploy.bodies import as_functions
from pipeline.deploy.runtime import answers, session
from pipeline.deploy.single import in_float32
from pipeline.deploy.subject import INPUT, OUTPUT
from pipeline.deploy.traced import traced
from pipeline.ground.errors import PipelineError, SettingsError, first_cause, one_line, where
from pipeline.ground.structures import called, filled, first_row, named_tensors, rows_of

IR_VERSION = 10
LOUD = ("torch.onnx", "torch.export", "torch.fx.experimental", "torch._dynamo")
"""Loggers that tell at length what ends in a sentence."""
DRAWN = ("Bernoulli", "Multinomial", "RandomNormalLike", "RandomUniformLike")
TOLERANCE = 1e-4
"""Largest difference of a float model's outputs from the network's, relative to the largest."""
FEW = 64
"""Values of a constant that may be larger than what it is made of."""
Axes = Mapping[str, Collection[int]]
"""By the name of an input: which of its axes may have any size."""
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
WINDOWED = ("Conv", "ConvTranspose", "MaxPool", "AveragePool")
UNSAID = {"strides": 1, "dilations": 1, "pads": 0, "output_padding": 0}
"""What ONNX takes for attributes of these along every side, which its schemas do not have as defaults."""


class Whole(nn.Module):
    """Inputs as a user has them to what a network makes of them, tensor by tensor: preprocessing, then the network.

    ``example`` is the structure that the network takes; ``named_tensors`` of it and of the answer are in and out.
    """

    def __init__(self, preprocess: Callable[[Any], Any], network: nn.Module, example: Any) -> None:
        super().__init__()
        self.preprocess, self.network, self.example = preprocess, network, example

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.answers(*tensors).values())

    def answers(self, *tensors: Tensor) -> dict[str, Tensor]:
        """The network's outputs by name."""
        return named_tensors(called(self.network, self.preprocess(filled(self.example, tensors))), OUTPUT)


def exported(
    network: nn.Module,
    preprocess: Callable[[Any], Any],
    inputs: Any,
    dynamic_axes: Axes | None = None,
) -> ModelProto:
    """The plain export of a network in evaluation, of any batch size; one in float64 is exported in float32.

    ``inputs``, tensors (N, ...) in any structure, are a few as the model will get them; ``dynamic_axes`` names further
    axes of them, by the input's name, that may have any size.

    Raises:
        PipelineError: if PyTorch cannot export it, or it has weights in 16 bits.
        SettingsError: if there are no such axes.
    """
    _check_exportable(network)
    example = rows_of(first_row(inputs), 2)
    whole, given = Whole(preprocess, network, example).eval(), named_tensors(example, INPUT)
    free = dynamic_axes or {}
    wide = any(each.dtype == torch.float64 for each in network.parameters())
    _check_axes(free, given)
    batch, any_size = torch.export.Dim("batch"), torch.export.Dim.DYNAMIC
    shapes = (tuple({**dict.fromkeys(free.get(name, ()), any_size), 0: batch} for name in given),)
    for each in LOUD:
        logging.getLogger(each).setLevel(logging.CRITICAL)
    with warnings.catch_warnings(), _silent(), _translations_kept(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            expected = whole.answers(*given.values())
            made, other = traced(whole, given, list(expected), shapes)
            model = _finished(made, free, wide)
            if other and not _gives(model, given, expected):
                made, _ = traced(whole, given, list(expected), shapes, anew=True)
                model = _finished(made, free, wide)
            return model
        except Exception as error:
            cause = first_cause(error)
            raise PipelineError(
                f"the network cannot be exported to ONNX{_blamed(cause, network)}: {one_line(cause)}"
            ) from error


def _check_exportable(network: nn.Module) -> None:
    """Refuses what PyTorch exports to a file that nothing runs."""
    for name, layer in network.named_modules():
        if isinstance(layer, nn.LSTM) and layer.proj_size:
            raise PipelineError(
                f"the network cannot be exported to ONNX, for the layer {name} (LSTM): ONNX has none with a projection "
                f"(proj_size={layer.proj_size})"
            )
    for name, weight in network.named_parameters():
        if weight.dtype in (torch.float16, torch.bfloat16):
            raise PipelineError(
                f"the network cannot be exported to ONNX: {name} is in {str(weight.dtype).removeprefix('torch.')}, in "
                "which processors of boards do not compute; takes weights in float32 (training.precision=bfloat16 "
                "trains such weights in bfloat16)"
            )


def _finished(model: ModelProto, axes: Axes, wide: bool) -> ModelProto:
    named = _with_named_axes(model, axes)
    single = in_float32(named) if wide else named
    return _with_whole_windows(_with_fixed_sizes(_with_known(with_made_answers(as_functions(single)))))


def _gives(model: ModelProto, given: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    """Whether a model gives these answers, as one does whose graph was made for other weights of the same network."""
    try:
        found = answers(session(model), {name: each.numpy() for name, each in given.items()})
    except Exception:  # onnxruntime has no class of its own for what a graph cannot compute
        return False
    return difference(found, {name: each.numpy() for name, each in expected.items()}) <= TOLERANCE


def _blamed(error: BaseException, network: nn.Module) -> str:
    """The layer of a network that an error of its export came through, and the operator, as far as they are known."""
    names = {id(each): name for name, each in network.named_modules() if name}
    layer = operator = ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        of, node = frame.f_locals.get("self"), frame.f_locals.get("node")
        if id(of) in names:
            layer = f"{names[id(of)]} ({type(of).__name__})"
        if isinstance(node, torch.fx.Node):
            operator = str(node.target)
            for path, kind in (node.meta.get("nn_module_stack") or {}).values():
                name = path.removeprefix("network").lstrip(".")
                layer = f"{name} ({str(kind).rpartition('.')[2]})" if name else layer
    said = [f"the layer {layer}" if layer else "", f"the operator {operator}" if operator else ""]
    return "".join(f", for {each}" for each in [", ".join(filter(None, said))] if each) + where(error)


@functools.cache
def _once(made: Callable[..., Any], **given: Any) -> Any:
    return made(**given)


@contextlib.contextmanager
def _translations_kept() -> Iterator[None]:
    """What PyTorch makes anew for each export, most of what one takes, is made once.

    That is its table of its operators in ONNX; its walk through the operators of all libraries, which it makes for each
    of them; and the types in the signatures of 11,000 functions that it registers, which ``typing`` keeps.

    They are no part of PyTorch's interface; where another release has one elsewhere, it is left as it is.
    """
    with contextlib.ExitStack() as undone:

        def instead(owner: Any, name: str, value: Any) -> None:
            undone.callback(setattr, owner, name, vars(owner)[name])
            setattr(owner, name, value)

        with contextlib.suppress(ImportError, AttributeError, KeyError):
            from torch.onnx._internal.exporter._registration import ONNXRegistry as Registry

            instead(Registry, "from_torchlib", staticmethod(functools.partial(_once, Registry.from_torchlib)))
        with contextlib.suppress(ImportError, AttributeError, KeyError):
            from torch._export import utils

            instead(utils, "_materialize_cpp_cia_ops", functools.cache(utils._materialize_cpp_cia_ops))
        with contextlib.suppress(ImportError, AttributeError, KeyError):
            from torch import _ops

            instead(_ops, "Callable", typing.Callable)
        yield


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """PyTorch prints whole graphs where it fails."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def _check_axes(axes: Axes, given: Mapping[str, Tensor]) -> None:
    takes = ", ".join(f"{name} ({each.ndim - 1 or 'none'})" for name, each in given.items())
    faults = [
        f"deploy.dynamic_axes: got {name}: {list(asked)}, takes inputs with numbers of axes behind the first: {takes}"
        for name, asked in axes.items()
        if name not in given or not all(0 < axis < given[name].ndim for axis in asked)
    ]
    if faults:
        raise SettingsError(faults)


def _with_named_axes(model: ModelProto, axes: Axes) -> ModelProto:
    """The model with its free sides called by input and axis, in the place of the exporter's s53."""
    values = [*model.graph.input, *model.graph.output, *model.graph.value_info]
    sides = {each.name: each.type.tensor_type.shape.dim for each in model.graph.input}
    names: dict[str, str] = {}
    for name, asked in axes.items():
        for axis in asked:
            names.setdefault(sides[name][axis].dim_param, f"{name}_{axis}")
    for side in (side for value in values for side in value.type.tensor_type.shape.dim if side.dim_param):
        side.dim_param = re.sub(r"\w+", lambda found: names.get(found[0], found[0]), side.dim_param)
    return model


def with_made_answers(model: ModelProto) -> ModelProto:
    """The model with a node that makes each answer which is a constant, such as a detector's anchors."""
    answers = {each.name for each in model.graph.output}
    for tensor in model.graph.initializer:
        if tensor.name in answers:
            answer, tensor.name = tensor.name, f"{tensor.name}_constant"
            for node in model.graph.node:
                node.input[:] = [tensor.name if name == answer else name for name in node.input]
            model.graph.node.append(helper.make_node("Identity", [tensor.name], [answer]))
    return model


def _with_known(model: ModelProto) -> ModelProto:
    """The model with what is made of constants alone as constants, where they are no larger than what they are made of.

    PyTorch leaves the parts of a parameter to be split at every inference, such as attention's three projections.
    """
    graph = model.graph
    known = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    answers, spent = {each.name for each in graph.output}, set[str]()
    for node in list(graph.node):
        read = [known[name] for name in node.input if name in known]
        constant = len(read) == len([name for name in node.input if name]) > 0
        if not constant or node.op_type in DRAWN or not answers.isdisjoint(node.output):
            continue
        made = helper.make_graph([node], "known", [], [onnx.ValueInfoProto(name=name) for name in node.output])
        try:
            evaluator = ReferenceEvaluator(helper.make_model(made, opset_imports=model.opset_import))
            found = [
                np.asarray(each) for each in evaluator.run(None, {name: known[name] for name in node.input if name})
            ]
        except Exception:  # an operator that onnx's reference does not know, or not so
            continue
        if sum(each.size for each in found) <= max(sum(each.size for each in read), FEW):
            graph.node.remove(node)
            known |= dict(zip(node.output, found, strict=True))
            graph.initializer.extend(map(numpy_helper.from_array, found, node.output))
            spent |= set(node.input)
    spent -= answers.union(*(node.input for node in graph.node))
    for tensor in [each for each in graph.initializer if each.name in spent]:
        graph.initializer.remove(tensor)
    return model


def _with_fixed_sizes(model: ModelProto) -> ModelProto:
    """The model with each Resize to fixed planes told by how much, instead of by sizes of which nodes read the batch's.

    ONNX Runtime 1.32 loses sizes, and takes axes for what they are not, where a Resize stands between quantised values.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    shapes = _sides(model.graph.value_info)
    for node in list(model.graph.node):
        sizes = makers.get((*node.input, "", "", "")[3]) if node.op_type == "Resize" else None
        if sizes is None or sizes.op_type != "Concat" or sizes.input[-1] not in constants:
            continue
        to = numpy_helper.to_array(constants[sizes.input[-1]])
        before = np.array(shapes.get(node.input[0], [])[-len(to) :])
        if len(before) != len(to) or not before.all():
            continue
        factors = (to / before).astype(np.float32)
        nearest = attributes(node).get("mode", b"nearest") == b"nearest"
        may_grow = (np.gcd(to, before) == 1) | (not nearest)  # else other values are nearest
        short = np.floor(factors.astype(np.float64) * before) < to
        must_grow = np.floor(factors * before.astype(np.float32)) < to
        factors = np.where(short & may_grow | must_grow, np.nextafter(factors, np.float32(np.inf)), factors)
        name = f"{node.output[0]}_factors"
        all_factors = np.concatenate([np.ones(len(shapes[node.input[0]]) - len(to)), factors]).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(all_factors, name))
        del node.input[2:]
        node.input.append(name)
        for unread in (sizes, *(makers[each] for each in sizes.input[:-1] if each in makers)):
            if not any(set(each.input) & set(unread.output) for each in model.graph.node):
                model.graph.node.remove(unread)
    return model


def _sides(values: Iterable[ValueInfoProto]) -> dict[str, list[int]]:
    """Sides of values by name, 0 where they are not fixed."""
    return {each.name: [side.dim_value for side in each.type.tensor_type.shape.dim] for each in values}


def windows(side: int, pad: int, length: int, stride: int, partial: bool) -> int:
    """How many windows of a pooling lie along a side; with ``partial``, one that begins on it may end beyond it."""
    count = (side + 2 * pad - length) // stride + 1
    return count + (partial and (count - 1) * stride + length < side + 2 * pad and count * stride < side + pad)


def _with_whole_windows(model: ModelProto) -> ModelProto:
    """The model with each pooling told by its padding how many windows it has, where one would begin beyond the plane.

    PyTorch and ONNX Runtime leave that one out; ONNX's inference of shapes counts it.
    """
    shapes = _sides([*model.graph.value_info, *model.graph.input])
    for node in model.graph.node:
        told = attributes(node)
        if node.op_type not in ("MaxPool", "AveragePool") or not told.get("ceil_mode"):
            continue
        lengths, dimensions = told["kernel_shape"], len(told["kernel_shape"])
        pads, strides, spread = (
            list(told.get(name, [each] * dimensions)) for name, each in (("pads", 0), ("strides", 1), ("dilations", 1))
        )
        plane, pads = shapes.get(node.input[0], [])[2:], (pads * 2)[: 2 * dimensions]
        if len(plane) != dimensions or not all(plane) or pads[:dimensions] != pads[dimensions:]:
            continue
        reach = [(length - 1) * apart + 1 for length, apart in zip(lengths, spread, strict=True)]
        along = list(zip(plane, pads, reach, strides, strict=False))
        right = [windows(*each, partial=True) for each in along]
        counted = [-(-(side + 2 * pad - length) // stride) + 1 for side, pad, length, stride in along]
        ends = [
            max(0, (number - 1) * stride + length - side - pad)
            for number, (side, pad, length, stride) in zip(right, along, strict=True)
        ]
        larger = any(end > pad for end, pad in zip(ends, pads, strict=False))
        if right == counted or (larger and told.get("count_include_pad")):
            continue
        kept = [each for each in node.attribute if each.name not in ("ceil_mode", "pads")]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute("pads", [*pads[:dimensions], *ends])])
    return model


def lean(model: ModelProto, metadata: Mapping[str, str] | None = None) -> ModelProto:
    """The same operators and weights under short names (letters), with these metadata and no others.

    Small constants that are equal, such as zero points of activations, are one.
    """
    result = ModelProto()
    result.CopyFrom(model)
    result.producer_name = result.producer_version = result.doc_string = ""
    result.ir_version = min(result.ir_version, IR_VERSION)
    graph = result.graph
    graph.name, graph.doc_string = "graph", ""
    del graph.value_info[:], graph.metadata_props[:], graph.quantization_annotation[:], result.metadata_props[:]
    for key, value in (metadata or {}).items():
        result.metadata_props.add(key=key, value=value)
    used = {name for node in graph.node for name in node.input}
    tensors = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(tensors)
    fixed = {value.name for value in (*graph.input, *graph.output)}
    short = (name for name in _letters() if name not in fixed)
    names = {name: name for name in fixed} | {"": ""}
    known: dict[tuple[Any, ...], str] = {}
    for tensor in list(graph.initializer):
        content = (tensor.data_type, tuple(tensor.dims), numpy_helper.to_array(tensor).tobytes())
        # not int8: ONNX Runtime's exact sums (runtime.EXACT) replace the zero points of weights, one by one
        if len(tensor.dims) < 2 and tensor.data_type != TensorProto.INT8 and content in known:
            names[tensor.name] = known[content]
            graph.initializer.remove(tensor)
            continue
        names[tensor.name] = known[content] = next(short)
        array = numpy_helper.to_array(tensor)
        if array.dtype.kind == "f":  # -0.0, which a pruned weight is after a negative scale, becomes 0.0
            tensor.CopyFrom(numpy_helper.from_array(array + array.dtype.type(0), tensor.name))
        tensor.name, tensor.doc_string = names[tensor.name], ""
        del tensor.metadata_props[:]
    for value in (*graph.input, *graph.output):
        value.doc_string = ""
        del value.metadata_props[:]
    for node in graph.node:
        for output in node.output:
            if output not in names:
                names[output] = next(short)
    domains = {node.domain for node in graph.node}
    opsets = [each for each in result.opset_import if each.domain in domains]
    del result.opset_import[:]
    result.opset_import.extend(opsets)
    opset = next(each.version for each in result.opset_import if each.domain == "")
    for node in graph.node:
        _strip(node, names, opset)
    return result


def _letters() -> Iterator[str]:
    """a to z, A to Z, aa, ..."""
    return ("".join(name) for length in count(1) for name in product(ascii_letters, repeat=length))


def _strip(node: NodeProto, names: Mapping[str, str], opset: int) -> None:
    """Renames what a node reads and writes; its name and attributes that say what goes without saying are gone."""
    if not node.domain:
        usual = onnx.defs.get_schema(node.op_type, opset).attributes
        told = [each for each in node.attribute if not _unsaid(node.op_type, usual, each)]
        del node.attribute[:]
        node.attribute.extend(told)
    inputs, outputs = ([names[name] for name in side] for side in (node.input, node.output))
    del node.input[:], node.output[:], node.metadata_props[:]
    node.input.extend(inputs)
    node.output.extend(outputs)
    node.ClearField("name")
    node.ClearField("doc_string")


def _unsaid(operator: str, known: Mapping[str, onnx.defs.OpSchema.Attribute], told: AttributeProto) -> bool:
    """Whether ONNX takes an attribute for what it is where a node does not tell it."""
    value, default = helper.get_attribute_value(told), known[told.name].default_value
    if default.name:
        return bool(value == helper.get_attribute_value(default))
    if operator in WINDOWED and told.name in UNSAID:
        return set(value) == {UNSAID[told.name]}
    return operator in WEIGHTED and told.name == "kernel_shape"  # the sides of the weights


def attributes(node: NodeProto) -> dict[str, Any]:
    """What a node is told, by name; what it leaves to ONNX is not there."""
    return {each.name: helper.get_attribute_value(each) for each in node.attribute}
