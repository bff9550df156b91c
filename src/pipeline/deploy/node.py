"""A packed model as one node: its graph is the node's body, and beside it is a program for the sparse engine.

ONNX Runtime that knows nothing of the node runs the body, which is the graph as it was. With the engine's library
registered (``kernels``) it hands the node to that, which reads the same packed weights.
"""

from onnx import FunctionProto, ModelProto, NodeProto, helper

from pipeline.deploy.lowering import Lowering, NotCovered
from pipeline.deploy.program import integers
from pipeline.ground.errors import one_line

DOMAIN, OPERATOR = "rewind.engine", "Net"


def one_node(model: ModelProto) -> tuple[ModelProto, str | None]:
    """The packed model with its network as one node, and why the engine does not cover it (then it is as it was)."""
    try:
        lowered = Lowering(model)
        lowered.lower()
    except NotCovered as reason:
        return model, str(reason)
    except Exception as error:  # a graph as no exporter here has made one; ONNX Runtime computes it
        return model, f"a form of operator that it was not made for ({one_line(error)})"
    result = ModelProto()
    result.CopyFrom(model)
    node = helper.make_node(
        OPERATOR,
        [lowered.boundary, *lowered.inputs],
        [model.graph.output[0].name],
        domain=DOMAIN,
        program=integers(lowered.shapes, lowered.operations),
    )
    del result.graph.node[:]
    result.graph.node.extend([*lowered.before, node])
    result.functions.append(_function(lowered))
    result.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return result, None


def opened(model: ModelProto) -> ModelProto:
    """The packed model that ``one_node`` made a model of; any other model is as it was."""
    if not model.functions or model.functions[-1].domain != DOMAIN:
        return model
    result = ModelProto()
    result.CopyFrom(model)
    body = result.functions.pop()
    for node in body.node:
        for side in (node.input, node.output):
            side[:] = [name.removeprefix("_") for name in side]
    around = [node for node in result.graph.node if node.domain != DOMAIN]
    del result.graph.node[:]
    result.graph.node.extend([*around, *body.node])
    opsets = [each for each in result.opset_import if each.domain != DOMAIN]
    del result.opset_import[:]
    result.opset_import.extend(opsets)
    return result


def _function(lowered: Lowering) -> FunctionProto:
    """The node's body. Its names are in one scope with those around the node, so each has a mark."""
    nodes = []
    for node in (*lowered.constant, *lowered.body):
        copy = NodeProto()
        copy.CopyFrom(node)
        inputs, outputs = ([name and f"_{name}" for name in side] for side in (node.input, node.output))
        del copy.input[:], copy.output[:]
        copy.input.extend(inputs)
        copy.output.extend(outputs)
        nodes.append(copy)
    return helper.make_function(
        DOMAIN,
        OPERATOR,
        [f"_{name}" for name in (lowered.boundary, *lowered.inputs)],
        [f"_{lowered.source.graph.output[0].name}"],
        nodes,
        [each for each in lowered.source.opset_import if each.domain != DOMAIN],
        ["program"],
    )
