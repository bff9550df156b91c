"""Affine maps of channels that follow a layer, made part of its weights: normalisation, and scaling by a number.

What PyTorch's exporter leaves of these are such behind a pooling, or behind a linear layer.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, numpy_helper

from pipeline.deploy.export import attributes

Array = NDArray[Any]


def folded(model: ModelProto) -> ModelProto:
    """The same model with every ``scale x + shift`` of channels that follows a convolution or linear layer in its
    weights, also one behind a max pooling in between, which it commutes with where all scales are positive.
    """
    result = ModelProto()
    result.CopyFrom(model)
    while _fold_one(result):
        pass
    used = {name for node in result.graph.node for name in node.input}
    kept = [tensor for tensor in result.graph.initializer if tensor.name in used]
    del result.graph.initializer[:]
    result.graph.initializer.extend(kept)
    return result


def _fold_one(model: ModelProto) -> bool:
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}
    uses = Counter(name for node in graph.node for name in node.input) + Counter(each.name for each in graph.output)
    for node in graph.node:
        found = _affine(node, constants)
        if found is None:
            continue
        source, scale, shift = found
        layer, pooled = makers.get(source), False
        if layer is not None and layer.op_type == "MaxPool" and uses[source] == 1 and (scale > 0).all():
            layer, pooled = makers.get(layer.input[0]), True
        if layer is None or not _takes(layer, constants, uses) or (uses[source] > 1 and not pooled):
            continue
        weight = numpy_helper.to_array(constants[layer.input[1]])
        bias = numpy_helper.to_array(constants[layer.input[2]]) if len(layer.input) > 2 else np.zeros(1)
        if scale.size not in (1, len(weight)):
            continue
        by_filter = np.broadcast_to(scale, (len(weight),)).reshape(-1, *[1] * (weight.ndim - 1))
        _replace(model, layer, 1, (weight * by_filter).astype(weight.dtype))
        _replace(model, layer, 2, np.broadcast_to(bias * scale + shift, (len(weight),)).astype(weight.dtype))
        _pass_by(model, node, source)
        return True
    return False


def _affine(node: NodeProto, constants: Mapping[str, Any]) -> tuple[str, Array, Array] | None:
    """Input, scales and shifts, float64, of a node that is ``scale x + shift`` of channels or of all."""
    if node.op_type == "BatchNormalization" and all(name in constants for name in node.input[1:]):
        values = [numpy_helper.to_array(constants[name]).astype(np.float64) for name in node.input[1:]]
        scale, shift, mean, variance = values
        epsilon = next((each.f for each in node.attribute if each.name == "epsilon"), 1e-5)
        factor = scale / np.sqrt(variance + epsilon)
        return node.input[0], factor, shift - mean * factor
    if node.op_type in ("Mul", "Div") and len(node.input) == 2:
        sources, numbers = (
            [name for name in node.input if (name in constants) is is_constant] for is_constant in (False, True)
        )
        if len(numbers) == 1 and (node.op_type == "Mul" or node.input[1] == numbers[0]):
            number = numpy_helper.to_array(constants[numbers[0]]).astype(np.float64)
            if number.size == 1 and number.all():
                return sources[0], (number if node.op_type == "Mul" else 1 / number).reshape(1), np.zeros(1)
    return None


def _takes(layer: NodeProto, constants: Mapping[str, Any], uses: Mapping[str, int]) -> bool:
    """Whether a node is a layer with weights of its own, a row a filter, whose result nothing else reads."""
    told = attributes(layer)
    rows = layer.op_type == "Conv" or (
        layer.op_type == "Gemm" and told.get("transB") == 1 and told.get("alpha", 1) == 1 and told.get("beta", 1) == 1
    )
    own = all(name in constants and uses[name] == 1 for name in layer.input[1:])
    return rows and own and uses[layer.output[0]] == 1


def _replace(model: ModelProto, layer: NodeProto, place: int, values: Array) -> None:
    """Gives a layer other constants at a place, which may be its first bias."""
    if place == len(layer.input):
        taken = {tensor.name for tensor in model.graph.initializer}
        name = f"{layer.input[1]}_shift"
        while name in taken:
            name += "_"
        layer.input.append(name)
        model.graph.initializer.append(numpy_helper.from_array(values, name))
        return
    for tensor in model.graph.initializer:
        if tensor.name == layer.input[place]:
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def _pass_by(model: ModelProto, node: NodeProto, source: str) -> None:
    """Takes out a node of one result, which is ``source`` now."""
    result = node.output[0]
    model.graph.node.remove(node)
    ends = {each.name for each in model.graph.output}
    old, new = (source, result) if result in ends else (result, source)
    for each in model.graph.node:
        for names in (each.input, each.output):
            for place, name in enumerate(names):
                if name == old:
                    names[place] = new
    kept = [info for info in model.graph.value_info if info.name != old]
    del model.graph.value_info[:]
    model.graph.value_info.extend(kept)
