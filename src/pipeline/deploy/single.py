"""A model of a network in float64, in float32: int8 and the sparse engine are made from that."""

import numpy as np
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto, helper, numpy_helper

from pipeline.deploy.bodies import graphs_of

DOUBLE, SINGLE = TensorProto.DOUBLE, TensorProto.FLOAT
KIND_OF_RESULT = ("to", "dtype")
"""Attributes that say the type of what a node makes."""


def in_float32(model: ModelProto) -> ModelProto:
    """The model with every float64 value in float32, but for inputs, which are as they are given; changed in place.

    What is larger than float32 holds, as the finite stand-ins for infinity are, becomes its largest.
    """
    graph = model.graph
    for each in graph.input:
        if each.type.tensor_type.elem_type == DOUBLE:
            name = f"{each.name}_float32"
            _read_instead(graph, each.name, name)
            graph.node.insert(0, helper.make_node("Cast", [each.name], [name], to=SINGLE))
    _narrow(graph)
    _without_idle_casts(graph)
    return model


def _read_instead(graph: GraphProto, name: str, other: str) -> None:
    """Lets the nodes of a graph, and of those within it, read another value instead of one."""
    for node in graph.node:
        node.input[:] = [other if read == name else read for read in node.input]
        for inner in graphs_of(node):
            _read_instead(inner, name, other)


def _narrow(graph: GraphProto) -> None:
    """Types, constants and attributes of a graph and of those within it."""
    for value in (*graph.value_info, *graph.output):
        if value.type.tensor_type.elem_type == DOUBLE:
            value.type.tensor_type.elem_type = SINGLE
    for tensor in graph.initializer:
        _narrow_tensor(tensor)
    for node in graph.node:
        for inner in graphs_of(node):
            _narrow(inner)
        for told in node.attribute:
            if told.type == AttributeProto.TENSOR:
                _narrow_tensor(told.t)
            elif told.name in KIND_OF_RESULT and told.i == DOUBLE:
                told.i = SINGLE


def _narrow_tensor(tensor: TensorProto) -> None:
    if tensor.data_type == DOUBLE:
        values, largest = numpy_helper.to_array(tensor), np.finfo(np.float32).max
        finite = np.where(np.isfinite(values), values.clip(-largest, largest), values)
        tensor.CopyFrom(numpy_helper.from_array(finite.astype(np.float32), tensor.name))


def _without_idle_casts(graph: GraphProto) -> None:
    """Takes casts to float32 of what is in float32 out of a graph."""
    typed = (*graph.value_info, *graph.input)
    single = {each.name for each in typed if each.type.tensor_type.elem_type == SINGLE}
    single |= {tensor.name for tensor in graph.initializer if tensor.data_type == SINGLE}
    answers = {each.name for each in graph.output}
    for node in list(graph.node):
        if node.op_type != "Cast" or not any(told.name == "to" and told.i == SINGLE for told in node.attribute):
            continue
        if node.input[0] in single and node.output[0] not in answers:
            graph.node.remove(node)
            _read_instead(graph, node.output[0], node.input[0])
        single.add(node.output[0])
