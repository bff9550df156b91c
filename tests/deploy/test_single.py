"""Networks in float64 become models in float32, which torch's answers judge."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from pipeline.deploy.export import exported, lean
from pipeline.deploy.node import with_nodes
from pipeline.deploy.pack import packed
from pipeline.deploy.quantize import quantised
from pipeline.deploy.runtime import answers, session
from pipeline.deploy.single import in_float32


class Masked(nn.Module):
    """Attention (N, 6, 8) that may look back alone: its mask holds the smallest number of float64."""

    def __init__(self):
        super().__init__()
        self.queries, self.keys, self.values = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, given):
        scores = self.queries(given) @ self.keys(given).transpose(1, 2)
        later = torch.ones(6, 6, dtype=torch.bool).triu(1)
        return scores.masked_fill(later, torch.finfo(torch.float64).min).softmax(2) @ self.values(given)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.steps = nn.LSTM(8, 12, batch_first=True)

    def forward(self, given):
        return self.steps(given)[0][:, -1]


class Widened(nn.Module):
    """A network that brings its inputs to float64 itself."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))

    def forward(self, given):
        return self.layers(given.double())


CONVOLUTIONS = (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 4))
CASES = {
    "convolutions": (lambda: nn.Sequential(*CONVOLUTIONS), (3, 8, 8), torch.float64),
    "attention": (Masked, (6, 8), torch.float64),
    "recurrent": (Recurrent, (5, 8), torch.float64),
    "widened within": (Widened, (8,), torch.float32),
}


def types(model):
    made = onnx.shape_inference.infer_shapes(model, check_type=True).graph
    tensors = {each.data_type for each in made.initializer}
    return tensors | {each.type.tensor_type.elem_type for each in (*made.value_info, *made.output)}


@pytest.mark.parametrize("case", CASES)
def test_answers_are_those_of_the_network(case):
    make, shape, kind = CASES[case]
    torch.manual_seed(0)
    network, inputs = make().double().eval(), torch.randn(9, *shape, dtype=kind)
    model = exported(network, lambda each: each, inputs)
    onnx.checker.check_model(model, full_check=True)
    assert TensorProto.DOUBLE not in types(model)
    expected = network(inputs).detach().numpy()
    (found,) = answers(session(model), {"input": inputs.numpy()}).values()
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_it_is_packed_quantised_and_computed_as_any_other():
    torch.manual_seed(0)
    network, inputs = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 3)).double(), torch.rand(9, 8).double()
    with torch.no_grad():
        network[0].weight *= torch.rand(64, 8) < 0.1
    model, facts = packed(lean(exported(network.eval(), lambda each: each, inputs)))
    assert facts
    assert with_nodes(model)[1] is None
    int8 = quantised(exported(network, lambda each: each, inputs), [{"input": inputs.numpy()}])
    weights = [each for each in int8.graph.initializer if each.data_type == TensorProto.INT8 and len(each.dims) == 2]
    assert len(weights) == 2


def test_graphs_within_read_the_same_and_infinities_stay():
    """A sum of what is given with numbers that float32 does not hold, in one branch of a condition."""
    large = np.array([1e300, -1e300, np.inf, -np.inf, 1e-3])
    branches = {
        "then_branch": helper.make_graph(
            [helper.make_node("Add", ["input", "large"], ["a"])],
            "then",
            [],
            [helper.make_tensor_value_info("a", TensorProto.DOUBLE, [5])],
            [numpy_helper.from_array(large, "large")],
        ),
        "else_branch": helper.make_graph(
            [helper.make_node("Cast", ["halves"], ["b"], to=TensorProto.DOUBLE)],
            "else",
            [],
            [helper.make_tensor_value_info("b", TensorProto.DOUBLE, [5])],
        ),
    }
    nodes = [
        helper.make_node("Cast", ["input"], ["halves"], to=TensorProto.FLOAT),
        helper.make_node("If", ["which"], ["scores"], **branches),
    ]
    given = [
        helper.make_tensor_value_info("input", TensorProto.DOUBLE, [5]),
        helper.make_tensor_value_info("which", TensorProto.BOOL, []),
    ]
    graph = helper.make_graph(
        nodes, "of conditions", given, [helper.make_tensor_value_info("scores", TensorProto.DOUBLE, [5])]
    )
    model = in_float32(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10))
    onnx.checker.check_model(model, full_check=True)
    assert [each.op_type for each in model.graph.node] == ["Cast", "If"]
    inputs, largest = np.arange(5, dtype=np.float64), np.finfo(np.float32).max
    (found,) = session(model).run(None, {"input": inputs, "which": np.array(True)})
    np.testing.assert_array_equal(found, np.float32([largest, -largest, np.inf, -np.inf, 4.001]))
    (found,) = session(model).run(None, {"input": inputs, "which": np.array(False)})
    np.testing.assert_array_equal(found, np.float32(inputs))
