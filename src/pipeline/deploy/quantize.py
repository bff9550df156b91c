"""int8 by ONNX Runtime: weights per channel and symmetric, activations by the ranges of calibration inputs."""

import logging
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from pipeline.deploy.bodies import as_functions
from pipeline.deploy.export import WEIGHTED, with_made_answers
from pipeline.ground.errors import PipelineError

QUANTISED = (
    *WEIGHTED, "Add", "Mul", "Clip", "Relu", "Concat", "Reshape", "Transpose", "MaxPool", "AveragePool",
    "GlobalAveragePool", "ReduceMean",
)  # fmt: skip
"""Operators that compute in int8; preprocessing is not among them, whatever it is made of."""


@contextmanager
def _silent() -> Iterator[None]:
    """Within it no session of ONNX Runtime's own tools tells, past Python, of what it finds to simplify."""
    onnxruntime.set_default_logger_severity(4)
    try:
        yield
    finally:
        onnxruntime.set_default_logger_severity(2)


class _Inputs(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, batches: Iterable[Mapping[str, NDArray[Any]]]) -> None:
        self.batches: Iterator[Mapping[str, NDArray[Any]]] = iter(batches)

    def get_next(self) -> Mapping[str, NDArray[Any]] | None:
        return next(self.batches, None)


class Calibrated:
    """A float model as ONNX Runtime prepares it for int8, and the ranges that its values take, which are found once.

    ``batches`` are inputs (N, ...) by name to calibrate with.
    """

    def __init__(self, model: ModelProto, batches: Iterable[Mapping[str, NDArray[Any]]]) -> None:
        for logger in (logging.getLogger(name) for name in ("root", "onnxruntime.quantization")):
            logger.setLevel(logging.CRITICAL)
        self._batches = _Inputs(batches)
        self._ranges: str | None = None
        with tempfile.TemporaryDirectory() as name:
            source, prepared = (str(Path(name) / file) for file in ("float.onnx", "prepared.onnx"))
            onnx.save(model, source)
            # onnx infers shapes too; symbolically fewer operators are known, and what fails leaves files in the folder
            with _silent():
                quant_pre_process(source, prepared, skip_symbolic_shape=True)
            self.model = with_made_answers(as_functions(onnx.load(prepared)))
        for number, node in enumerate(self.model.graph.node):
            node.name = f"n{number}"

    @property
    def layers(self) -> dict[str, list[str]]:
        """By name of its weights, each layer's nodes: that with the weights, and those that follow up to the next."""
        found: dict[str, list[str]] = {}
        constants = {tensor.name for tensor in self.model.graph.initializer}
        nodes: list[str] = []
        for node in self.model.graph.node:
            if node.op_type in WEIGHTED and node.input[1] in constants:
                nodes = found.setdefault(node.input[1], [])
            nodes.append(node.name)
        return found

    def quantised(self, float_layers: Collection[str] = ()) -> ModelProto:
        """The model with QuantizeLinear and DequantizeLinear around what is to compute in int8 (U8S8), which
        those of ``float_layers`` are not.

        Raises:
            PipelineError: if a weight that is 0 does not stay 0, which it does where scales are symmetric.
        """
        layers = self.layers
        excluded = [
            *preprocessing(self.model),
            *_kept_float(self.model),
            *(node for each in float_layers for node in layers[each]),
        ]
        with tempfile.TemporaryDirectory() as name:
            source, made, ranges = (Path(name) / file for file in ("prepared.onnx", "int8.onnx", "ranges.json"))
            onnx.save(self.model, source)
            if self._ranges is not None:
                ranges.write_text(self._ranges)
            with _silent():
                quantize_static(
                    str(source),
                    str(made),
                    self._batches,
                    quant_format=QuantFormat.QDQ,
                    op_types_to_quantize=list(QUANTISED),
                    nodes_to_exclude=excluded,
                    per_channel=True,
                    activation_type=QuantType.QUInt8,
                    weight_type=QuantType.QInt8,
                    calibration_cache_path=ranges,
                    extra_options={"WeightSymmetric": True, "QuantizeBias": False},
                )
            self._ranges = ranges.read_text()
            int8 = onnx.load(made)
        _scale_dead_filters(int8)
        if changed := zeros_lost(self.model, int8):
            raise PipelineError(f"int8: pruned weights of {', '.join(changed)} are not zero any more")
        return int8


def quantised(model: ModelProto, batches: Iterable[Mapping[str, NDArray[Any]]]) -> ModelProto:
    """The whole model in int8; ``batches`` are inputs (N, ...) by name to calibrate with.

    Raises:
        PipelineError: as ``Calibrated.quantised``.
    """
    return Calibrated(model, batches).quantised()


def _scale_dead_filters(int8: ModelProto) -> None:
    """Gives filters without weights a scale of their layer's order: with 1, which they get, no bias would be left.

    ONNX Runtime rounds a bias to whole steps of its layer's input times the scale of its filter, in 32 bits.
    """
    tensors = {tensor.name: tensor for tensor in int8.graph.initializer}
    made = {node.output[0]: node for node in int8.graph.node if node.op_type == "DequantizeLinear"}
    for node in int8.graph.node:
        bias = (*node.input, "", "", "")[2]
        if node.op_type not in WEIGHTED or bias not in tensors or not {*node.input[:2]} <= made.keys():
            continue
        (_, step, *_), (weight, scale, *_) = (made[name].input for name in node.input[:2])
        if weight not in tensors:
            continue
        values, scales, biases = (numpy_helper.to_array(tensors[name]) for name in (weight, scale, bias))
        filters = np.moveaxis(values, 1, 0) if node.op_type == "ConvTranspose" else values
        dead = ~filters.reshape(len(filters), -1).any(1)
        if not dead.shape == scales.shape == biases.shape or not dead.any():
            continue
        least = np.abs(biases[dead]).max() / (float(numpy_helper.to_array(tensors[step])) * 2**30)
        usual = scales[~dead].min() if not dead.all() else least * 2**15
        scales = np.where(dead, np.float32(max(usual, least) or 1), scales)
        tensors[scale].CopyFrom(numpy_helper.from_array(scales, scale))


def with_float_activations(model: ModelProto, names: Collection[str]) -> ModelProto:
    """The int8 model with its weights as they are and activations of these names not rounded, as the sparse engine
    computes them.

    Quantised and back is a clamp where the range begins at 0, and else nothing.
    """
    result = ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    sources: dict[str, str] = {}
    others = []
    for node in graph.node:
        node.input[:] = [sources.get(name, name) for name in node.input]
        if not set(node.output) <= set(names):
            others.append(node)
        elif node.op_type == "QuantizeLinear" and tensors[node.input[2]] == 0:
            high = 255 * tensors[node.input[1]]
            bounds = [numpy_helper.from_array(each, f"{node.output[0]}.{each}") for each in (0 * high, high)]
            graph.initializer.extend(bounds)
            others.append(helper.make_node("Clip", [node.input[0], *(each.name for each in bounds)], [node.output[0]]))
        elif node.op_type in ("QuantizeLinear", "DequantizeLinear") and node.input[0] not in tensors:
            sources[node.output[0]] = node.input[0]
        else:
            others.append(node)
    others += [
        helper.make_node("Identity", [sources[each.name]], [each.name]) for each in graph.output if each.name in sources
    ]
    del graph.node[:]
    graph.node.extend(others)
    return result


def preprocessing(model: ModelProto) -> list[str]:
    """Names of the nodes before the first that has weights: what makes the network's input."""
    names = []
    for node in model.graph.node:
        if node.op_type in WEIGHTED:
            break
        names.append(node.name)
    return names


def _kept_float(model: ModelProto) -> list[str]:
    """Names of the nodes not to quantise: transposed convolutions in groups, which ONNX Runtime's tools do not know how
    to, and sums and products with constants, which would get one scale for all channels.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    return [
        node.name
        for node in model.graph.node
        if (node.op_type == "ConvTranspose" and any(each.name == "group" and each.i > 1 for each in node.attribute))
        or (node.op_type in ("Add", "Mul") and not constants.isdisjoint(node.input))
    ]


def zeros_lost(plain: ModelProto, int8: ModelProto) -> list[str]:
    """Names of the weights with a zero of the float model that is not zero in the int8 model."""
    exact = {tensor.name: tensor for tensor in plain.graph.initializer}
    lost = []
    for tensor in int8.graph.initializer:
        name = tensor.name.removesuffix("_quantized")
        if tensor.data_type == TensorProto.INT8 and name in exact:
            zero = numpy_helper.to_array(exact[name]) == 0
            if np.any(numpy_helper.to_array(tensor)[zero]):
                lost.append(name)
    return lost
