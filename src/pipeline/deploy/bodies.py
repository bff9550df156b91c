"""Nodes with graphs of their own (If, Loop, Scan) as functions of the model, which read all that they need by name.

A graph inside another reads what lies around it without saying so. A function cannot: what is read inside is an input
of the node that calls it. So whatever renames, folds or leaves out a value has only nodes and their inputs to look at.
"""

from collections.abc import Iterator

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, helper

DOMAIN = "rewind.body"
"""Of the nodes that call them."""


def as_functions(model: ModelProto) -> ModelProto:
    """The model with each node that has a graph inside as a function and a call of it; changed in place."""
    count = sum(each.domain == DOMAIN for each in model.functions)
    for node in model.graph.node:
        if not any(graphs_of(node)):
            continue
        reads, makes = list(dict.fromkeys(_reads(node))), [name for name in node.output if name]
        name = f"{node.op_type}{count}"
        count += 1
        opsets = [each for each in model.opset_import if each.domain != DOMAIN]
        model.functions.append(helper.make_function(DOMAIN, name, reads, makes, [node], opsets))
        node.CopyFrom(helper.make_node(name, reads, makes, node.name, domain=DOMAIN))
    if count and all(each.domain != DOMAIN for each in model.opset_import):
        model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return model


def graphs_of(node: NodeProto) -> Iterator[GraphProto]:
    """The graphs inside of a node."""
    for told in node.attribute:
        if told.type == AttributeProto.GRAPH:
            yield told.g
        yield from told.graphs


def _reads(node: NodeProto) -> Iterator[str]:
    """Names of what a node reads, and what the graphs inside of it read of what is around them."""
    yield from filter(None, node.input)
    for graph in graphs_of(node):
        own = {each.name for each in (*graph.input, *graph.initializer)}
        own |= {name for each in graph.node for name in each.output}
        read = (*(name for each in graph.node for name in _reads(each)), *(each.name for each in graph.output))
        yield from (name for name in read if name not in own)
