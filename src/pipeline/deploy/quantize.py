"""int8 by ONNX Runtime: weights per channel and symmetric, activations by the ranges of calibration inputs."""

import logging
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from pipeline.deploy.export import INPUT, WEIGHTED
from pipeline.ground.errors import PipelineError

QUANTISED = (
    *WEIGHTED, "Add", "Mul", "Clip", "Relu", "Concat", "Reshape", "Transpose", "MaxPool", "AveragePool",
    "GlobalAveragePool", "ReduceMean",
)  # fmt: skip
"""Operators that compute in int8; preprocessing is not among them, whatever it is made of."""


class _Inputs(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, batches: Iterable[NDArray[Any]]) -> None:
        self.batches: Iterator[NDArray[Any]] = iter(batches)

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        batch = next(self.batches, None)
        return None if batch is None else {INPUT: batch}


def quantised(model: ModelProto, batches: Iterable[NDArray[Any]]) -> ModelProto:
    """The model with QuantizeLinear and DequantizeLinear around what is to compute in int8 (U8S8).

    ``batches`` are inputs to calibrate with, (N, ...) each.

    Raises:
        PipelineError: if a weight that is 0 does not stay 0, which it does where scales are symmetric.
    """
    for logger in (logging.getLogger(name) for name in ("root", "onnxruntime.quantization")):
        logger.setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        onnx.save(model, folder / "float.onnx")
        quant_pre_process(str(folder / "float.onnx"), str(folder / "prepared.onnx"))
        prepared = onnx.load(folder / "prepared.onnx")
        for number, node in enumerate(prepared.graph.node):
            node.name = f"n{number}"
        onnx.save(prepared, folder / "named.onnx")
        quantize_static(
            str(folder / "named.onnx"),
            str(folder / "int8.onnx"),
            _Inputs(batches),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(QUANTISED),
            nodes_to_exclude=preprocessing(prepared),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={"WeightSymmetric": True},
        )
        int8 = onnx.load(folder / "int8.onnx")
    if changed := zeros_lost(prepared, int8):
        raise PipelineError(f"int8: pruned weights of {', '.join(changed)} are not zero any more")
    return int8


def with_float_activations(model: ModelProto) -> ModelProto:
    """The int8 model with its weights as they are and activations that are not rounded, as the sparse engine computes.

    Quantised and back is a clamp where the range begins at 0, and else nothing.
    """
    result = ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    names: dict[str, str] = {}
    others = []
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        if node.op_type == "QuantizeLinear" and tensors[node.input[2]] == 0:
            high = 255 * tensors[node.input[1]]
            bounds = [numpy_helper.from_array(each, f"{node.output[0]}.{each}") for each in (0 * high, high)]
            graph.initializer.extend(bounds)
            others.append(helper.make_node("Clip", [node.input[0], *(each.name for each in bounds)], [node.output[0]]))
        elif node.op_type in ("QuantizeLinear", "DequantizeLinear") and node.input[0] not in tensors:
            names[node.output[0]] = node.input[0]
        else:
            others.append(node)
    last = graph.output[0].name
    if last in names:
        others.append(helper.make_node("Identity", [names[last]], [last]))
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
