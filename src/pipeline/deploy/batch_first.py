"""Linear layers of sequences whose places come before their examples, moved to where examples come first.

``nn.MultiheadAttention`` projects in that order. What has no row an example stays out of the sparse engine.
"""

from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from pipeline.deploy.export import attributes


def batch_first(model: ModelProto) -> ModelProto:
    """The same model, in which a Transpose that puts examples elsewhere comes behind the linear layers that followed
    it, and one that puts them first comes before the linear layer that was before it.
    """
    result = ModelProto()
    result.CopyFrom(model)
    graph = _Graph(result)
    waiting = [node for node in graph.nodes if node.op_type == "Transpose"]
    while waiting:
        node = waiting.pop()
        perm = list(graph.attribute(node, "perm") or ())
        if perm[-1:] != [len(perm) - 1]:
            continue
        if node.input[0] in graph.batch_first:
            waiting += graph.swapped(node)
        elif node.output[0] in graph.batch_first:
            graph.linear_behind(node)
    del result.graph.node[:]
    result.graph.node.extend(graph.nodes)
    return result


class _Graph:
    """A model on its way to another order: its nodes are a list, its constants grow in place."""

    def __init__(self, model: ModelProto) -> None:
        self.graph, self.nodes = model.graph, list(model.graph.node)
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        infos = (*model.graph.value_info, *model.graph.input, *model.graph.output)
        self.outputs = {each.name for each in model.graph.output}
        firsts = {each.name: each.type.tensor_type.shape.dim[:1] for each in infos}
        batches = {side.dim_param for each in model.graph.input for side in firsts[each.name]} - {""}
        self.batch_first = {name for name, sides in firsts.items() if any(side.dim_param in batches for side in sides)}

    def attribute(self, node: NodeProto, name: str) -> Any:
        return next((helper.get_attribute_value(each) for each in node.attribute if each.name == name), None)

    def readers(self, name: str) -> list[NodeProto]:
        return [node for node in self.nodes if name in node.input]

    def swapped(self, transpose: NodeProto) -> list[NodeProto]:
        """Puts a Transpose behind each node that reads it where that keeps all sides but the last; where it is now."""
        source, made = transpose.input[0], []
        for reader in self.readers(transpose.output[0]):
            if not self.keeps_places(reader, transpose.output[0]):
                continue
            inner, result = self.new(f"{reader.output[0]}_first"), reader.output[0]
            reader.input[:] = [source if name == transpose.output[0] else name for name in reader.input]
            reader.output[0] = inner
            self.batch_first.add(inner)
            behind = helper.make_node("Transpose", [inner], [result], perm=self.attribute(transpose, "perm"))
            self.nodes.insert(self.nodes.index(reader) + 1, behind)
            made.append(behind)
        if not self.readers(transpose.output[0]) and transpose.output[0] not in self.outputs:
            self.nodes.remove(transpose)
        return made

    def keeps_places(self, node: NodeProto, source: str) -> bool:
        """Whether a node is a product with a constant matrix or a sum with a constant vector, along the last side."""
        others = [self.constants.get(name) for name in node.input if name != source]
        if len(others) != 1 or others[0] is None:
            return False
        dims = len(others[0].dims)
        return (node.op_type == "MatMul" and node.input[0] == source and dims == 2) or (
            node.op_type == "Add" and dims <= 1
        )

    def linear_behind(self, transpose: NodeProto) -> None:
        """Puts the linear layer of rows that a Reshape and this Transpose follow behind both."""
        makers = {name: node for node in self.nodes for name in node.output}
        reshape = makers.get(transpose.input[0])
        linear = makers.get(reshape.input[0]) if reshape is not None and reshape.op_type == "Reshape" else None
        if reshape is None or linear is None or linear.op_type != "Gemm" or not self.plain(linear):
            return
        chain = {linear.output[0]: reshape, reshape.output[0]: transpose}
        alone = all(self.readers(name) == [node] for name, node in chain.items()) and self.outputs.isdisjoint(chain)
        sides, weights = self.constants.get(reshape.input[1]), self.constants[linear.input[1]]
        if not alone or sides is None:
            return
        to, matrix = numpy_helper.to_array(sides).copy(), numpy_helper.to_array(weights)
        if to[-1] != len(matrix):
            return
        to[-1] = matrix.shape[1]
        self.forget(reshape.output[0])
        result, moved = transpose.output[0], self.new(f"{transpose.output[0]}_moved")
        reshape.input[:] = [linear.input[0], self.constant(f"{reshape.output[0]}_sides", to)]
        transpose.output[0] = moved
        product = result if len(linear.input) == 2 else self.new(f"{result}_product")
        made = [helper.make_node("MatMul", [moved, self.constant(f"{weights.name}_turned", matrix.T)], [product])]
        if len(linear.input) == 3:
            made.append(helper.make_node("Add", [product, linear.input[2]], [result]))
        self.nodes.remove(linear)
        place = self.nodes.index(transpose) + 1
        self.nodes[place:place] = made

    def plain(self, linear: NodeProto) -> bool:
        told = attributes(linear)
        usual = told.get("transB") == 1 and not told.get("transA") and told.get("alpha", 1) == told.get("beta", 1) == 1
        vectors = all(name in self.constants and len(self.constants[name].dims) == 1 for name in linear.input[2:])
        return usual and linear.input[1] in self.constants and vectors

    def constant(self, name: str, values: Any) -> str:
        if name not in self.constants:
            tensor: TensorProto = numpy_helper.from_array(np.ascontiguousarray(values), name)
            self.graph.initializer.append(tensor)
            self.constants[name] = tensor
        return name

    def new(self, name: str) -> str:
        while any(name in node.output for node in self.nodes):
            name += "_"
        return name

    def forget(self, name: str) -> None:
        """What was known of a value's shape, which is another now."""
        for info in [each for each in self.graph.value_info if each.name == name]:
            self.graph.value_info.remove(info)
