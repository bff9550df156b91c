"""A packed model with nodes for the sparse engine: each has a part of the graph as its body, and a program beside it.

ONNX Runtime that knows nothing of such a node runs the body, which is the graph as it was. With the engine's library
registered (``kernels``) it hands the node to that, which reads the same packed weights. What the engine does not know
stands between the nodes as it was.
"""

from onnx import ModelProto, NodeProto, helper

from pipeline.deploy.export import WEIGHTED
from pipeline.deploy.lowering import Graph
from pipeline.deploy.program import integers
from pipeline.ground.errors import one_line

DOMAIN, OPERATOR, MOST = "rewind.engine", "Net", 100
"""Of the engine's nodes; they are called Net, Net1, and so on."""


def with_nodes(model: ModelProto) -> tuple[ModelProto, str | None]:
    """The packed model with the engine's nodes, and why there is none (then it is as it was)."""
    try:
        graph = Graph(model)
    except Exception as error:  # a graph as no exporter here has made one; ONNX Runtime computes it
        return model, f"a form of operator that it was not made for ({one_line(error)})"
    segments = graph.segments[:MOST]
    if not segments:
        return model, next(iter(graph.reasons), "a network without layers")
    result = ModelProto()
    result.CopyFrom(model)
    taken = {id(node) for segment in segments for node in segment.nodes}
    left = [node for node in graph.nodes if id(node) not in taken]
    nodes = [*graph.constant_nodes([*left, _reading(graph)]), *left]
    for number, segment in enumerate(segments):
        name = OPERATOR + (str(number) if number else "")
        nodes.append(
            helper.make_node(
                name,
                [*segment.inputs, *segment.used],
                segment.outputs,
                domain=DOMAIN,
                program=integers(segment.shapes, segment.operations),
            )
        )
        result.functions.append(
            helper.make_function(
                DOMAIN,
                name,
                [*segment.inputs, *segment.used],
                segment.outputs,
                [*segment.constant, *segment.nodes],
                model.opset_import,
                ["program"],
            )
        )
    del result.graph.node[:]
    result.graph.node.extend(_in_order(nodes, {each.name for each in (*model.graph.input, *model.graph.initializer)}))
    result.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return result, None


def _reading(graph: Graph) -> NodeProto:
    """A node that reads what the graph answers: its outputs may be constants."""
    return helper.make_node("Identity", [each.name for each in graph.source.graph.output], [])


def _in_order(nodes: list[NodeProto], known: set[str]) -> list[NodeProto]:
    """Nodes, each behind those that make what it reads."""
    waiting, found = list(nodes), []
    while waiting:
        ready = [node for node in waiting if all(name in known or not name for name in node.input)]
        assert ready, "no part of a network waits for itself"
        for node in ready:
            known |= set(node.output)
        found += ready
        waiting = [node for node in waiting if not any(node is each for each in ready)]
    return found


def left_to_onnxruntime(model: ModelProto) -> list[str]:
    """Operators that a model has behind and between the engine's nodes, in order of their first node.

    And those with weights before them; preprocessing is not told.
    """
    behind: set[str] = set()
    running = {each.name for each in model.graph.input}
    found: dict[str, None] = {}
    for node in model.graph.node:
        reads, after = not running.isdisjoint(node.input), not behind.isdisjoint(node.input)
        running |= set(node.output) if reads else set()
        if node.domain == DOMAIN or after:
            behind |= set(node.output)
        if node.domain != DOMAIN and (after or (reads and node.op_type in WEIGHTED)):
            found[node.op_type] = None
    return list(found)


def computed_by_the_engine(model: ModelProto) -> set[str]:
    """Names of the values that the engine's nodes compute."""
    bodies = (function for function in model.functions if function.domain == DOMAIN)
    return {name for body in bodies for node in body.node for name in node.output}


def opened(model: ModelProto) -> ModelProto:
    """The packed model that ``with_nodes`` made a model of; any other model is as it was."""
    bodies = {function.name: function for function in model.functions if function.domain == DOMAIN}
    result = ModelProto()
    result.CopyFrom(model)
    others = [each for each in result.functions if each.domain != DOMAIN]
    del result.functions[:]
    result.functions.extend(others)
    nodes: list[NodeProto] = []
    made: set[str] = set()
    for node in model.graph.node:
        if node.domain != DOMAIN:
            nodes.append(node)
            made.update(node.output)
            continue
        for each in bodies[node.op_type].node:
            if not made.issuperset(each.output):  # constants of two bodies
                nodes.append(each)
                made.update(each.output)
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    opsets = [each for each in result.opset_import if each.domain != DOMAIN]
    del result.opset_import[:]
    result.opset_import.extend(opsets)
    return result
