"""``python convert.py MODEL.onnx INPUTS.npy FOLDER``, in the peers' environment: a model in other engines' forms.

MODEL.onnx takes one float ``input`` (1, channels, height, width); INPUTS.npy (number, channels, height, width)
calibrates int8. FOLDER receives ``float.param`` and ``float.bin`` (ncnn), ``float.mnn`` (MNN), ``float.tflite`` and
``int8.tflite`` (LiteRT), and ``sparse.tflite``, whose 1x1 convolutions with two thirds of zeros are sparse.
"""

import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import onnx
from ai_edge_litert import schema_py_generated as schema
from onnx import helper, numpy_helper

ZEROS = 2 / 3
"""From this share on XNNPACK takes a convolution for a sparse one."""


def to_ncnn(model: Path, shape: tuple[int, ...], folder: Path) -> None:
    """By pnnx's program; its Python module would need torch."""
    found = find_spec("pnnx")
    assert found is not None
    assert found.origin is not None
    program = Path(found.origin).with_name("pnnx")
    (folder / "ncnn").mkdir()
    shutil.copy(model, folder / "ncnn" / "model.onnx")
    given = f"inputshape={list(shape)}".replace(" ", "")
    subprocess.run([program, "model.onnx", given, "fp16=0"], cwd=folder / "ncnn", check=True)
    for kind in ("param", "bin"):
        (folder / "ncnn" / f"model.ncnn.{kind}").rename(folder / f"float.{kind}")


def to_mnn(model: Path, folder: Path) -> None:
    """By the compiled part of MNN's tools: their commands install packages and report to their maker."""
    import _tools
    import MNN  # noqa: F401 - the tools need it loaded

    given = ["-f", "ONNX", "--modelFile", str(model), "--MNNModel", str(folder / "float.mnn"), "--bizCode", "_"]
    _tools.mnnconvert(["mnnconvert", *given])


def to_litert(model: Path, inputs: Any, folder: Path) -> None:
    """By onnx2tf's writer, which needs no TensorFlow. int8 has a scale a channel, or where the writer makes an invalid
    file of that (depthwise convolutions: 2.6.9) a scale a tensor.
    """
    model = _with_zeros_around(model, folder / "litert.onnx")
    np.save(folder / "calibration.npy", inputs.transpose(0, 2, 3, 1))
    given = ["input", str(folder / "calibration.npy"), "[[[[0,0,0]]]]", "[[[[1,1,1]]]]"]
    for scales in ("per-channel", "per-tensor"):
        place = folder / scales
        command = ["-m", "onnx2tf", "-i", str(model), "-o", str(place), "-oiqt", "-qt", scales, "-cind", *given]
        subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, check=False)
        if (whole := place / f"{model.stem}_integer_quant.tflite").exists():
            shutil.copy(whole, folder / "int8.tflite")
            break
    shutil.copy(place / f"{model.stem}_float32.tflite", folder / "float.tflite")
    if sparse := _sparse((folder / "float.tflite").read_bytes()):
        (folder / "sparse.tflite").write_bytes(sparse)


def _with_zeros_around(model: Path, to: Path) -> Path:
    """A model whose poolings after Relu have zeros around: an int8 file has nothing below its numbers to put there."""
    whole = onnx.load(model)
    graph = whole.graph
    made_by = {output: node.op_type for node in graph.node for output in node.output}
    nodes = []
    for node in graph.node:
        if node.op_type == "MaxPool" and made_by[node.input[0]] == "Relu":
            sides = next(each for each in node.attribute if each.name == "pads")
            wide, (top, left, bottom, right) = f"{node.output[0]}_wide", sides.ints
            by = numpy_helper.from_array(np.array([0, 0, top, left, 0, 0, bottom, right]), f"{wide}_by")
            graph.initializer.append(by)
            nodes.append(helper.make_node("Pad", [node.input[0], by.name], [wide]))
            node.input[0] = wide
            node.attribute.remove(sides)
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.save(onnx.shape_inference.infer_shapes(whole), to)
    return to


def _sparse(whole: bytes) -> bytes | None:
    """A float model whose 1x1 convolutions are stored as sparse, if any has zeros enough."""
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(whole, 0))
    graph = model.subgraphs[0]
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.DENSIFY
    code.version = 1
    model.operatorCodes.append(code)
    densified = []
    for operator in graph.operators:
        kind = model.operatorCodes[operator.opcodeIndex]
        if max(kind.builtinCode, kind.deprecatedBuiltinCode) != schema.BuiltinOperator.CONV_2D:
            continue
        tensor = graph.tensors[operator.inputs[1]]
        shape = tuple(int(each) for each in tensor.shape)
        weight = np.frombuffer(bytes(model.buffers[tensor.buffer].data), np.float32).reshape(shape)
        if shape[1:3] != (1, 1) or np.mean(weight == 0) < ZEROS:
            continue
        dense, densify = _stored(model, weight)
        operator.inputs = np.array([operator.inputs[0], dense, *operator.inputs[2:]], dtype=np.int32)
        densify.opcodeIndex = len(model.operatorCodes) - 1
        densified.append(densify)
    if not densified:
        return None
    graph.operators = densified + graph.operators
    builder = flatbuffers.Builder(len(whole))
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _stored(model: Any, weight: Any) -> tuple[int, Any]:
    """Adds a sparse weight (outputs, 1, 1, inputs) and its dense form: the latter's number, and what makes it."""
    graph, (outputs, _, _, inputs) = model.subgraphs[0], weight.shape
    matrix = weight.reshape(outputs, inputs)
    rows, columns = np.nonzero(matrix)
    buffer, tensor, dense, sparsity = (
        schema.BufferT(), schema.TensorT(), schema.TensorT(), schema.SparsityParametersT()
    )  # fmt: skip
    buffer.data = np.frombuffer(np.ascontiguousarray(matrix[rows, columns]).tobytes(), np.uint8)
    model.buffers.append(buffer)
    sparsity.traversalOrder = np.arange(4, dtype=np.int32)
    sparsity.dimMetadata = [_dense(outputs), _dense(1), _dense(1), _compressed(rows, columns, outputs)]
    tensor.name, dense.name = (f"{kind}_{len(graph.tensors)}" for kind in ("sparse", "dense"))
    for each in (tensor, dense):
        each.shape = np.array(weight.shape, dtype=np.int32)
        each.type = schema.TensorType.FLOAT32
        each.hasRank = True
    tensor.buffer, tensor.sparsity, dense.buffer = len(model.buffers) - 1, sparsity, 0
    graph.tensors += [tensor, dense]
    densify = schema.OperatorT()
    densify.inputs = np.array([len(graph.tensors) - 2], dtype=np.int32)
    densify.outputs = np.array([len(graph.tensors) - 1], dtype=np.int32)
    densify.builtinOptionsType = schema.BuiltinOptions.DensifyOptions
    densify.builtinOptions = schema.DensifyOptionsT()
    return len(graph.tensors) - 1, densify


def _dense(size: int) -> Any:
    found = schema.DimensionMetadataT()
    found.format, found.denseSize = schema.DimensionType.DENSE, size
    return found


def _compressed(rows: Any, columns: Any, outputs: int) -> Any:
    found = schema.DimensionMetadataT()
    found.format = schema.DimensionType.SPARSE_CSR
    found.arraySegmentsType = found.arrayIndicesType = schema.SparseIndexVector.Int32Vector
    found.arraySegments, found.arrayIndices = schema.Int32VectorT(), schema.Int32VectorT()
    found.arraySegments.values = np.searchsorted(rows, np.arange(outputs + 1)).astype(np.int32)
    found.arrayIndices.values = columns.astype(np.int32)
    return found


def main() -> None:
    model, folder = Path(sys.argv[1]).resolve(), Path(sys.argv[3]).resolve()
    inputs = np.load(sys.argv[2])
    to_ncnn(model, (1, *inputs.shape[1:]), folder)
    to_mnn(model, folder)
    to_litert(model, inputs, folder)


if __name__ == "__main__":
    main()
