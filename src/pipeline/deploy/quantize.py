"""int8 by ONNX Runtime: weights per channel and symmetric, activations by the ranges of calibration inputs."""

import logging
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from pipeline.deploy.export import INPUT, WEIGHTED

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

    ``batches`` are inputs to calibrate with, (N, ...) each. A weight of 0 stays 0: its scale is symmetric.
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
        return onnx.load(folder / "int8.onnx")


def preprocessing(model: ModelProto) -> list[str]:
    """Names of the nodes before the first that has weights: what makes the network's input."""
    names = []
    for node in model.graph.node:
        if node.op_type in WEIGHTED:
            break
        names.append(node.name)
    return names


def weights(model: ModelProto) -> list[NDArray[Any]]:
    """The weights of a float or int8 model that its convolutions and linear layers multiply with, in their order."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    sources = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    found = []
    for node in model.graph.node:
        if node.op_type in WEIGHTED:
            name = sources.get(node.input[1], node.input[1])
            if name in tensors:
                found.append(numpy_helper.to_array(tensors[name]))
    return found


def zeros_stay_zero(plain: ModelProto, int8: ModelProto) -> bool:
    """Whether every weight that is zero in the float model is zero in the int8 model."""
    pairs = zip(weights(plain), weights(int8), strict=True)
    return all(np.all(quantised[exact == 0] == 0) for exact, quantised in pairs)
