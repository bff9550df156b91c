"""int8 against the float network that it is made of."""

import numpy as np
import pytest
import torch
from onnx import ModelProto, helper, numpy_helper
from torch import nn

from pipeline.deploy.board.run import EXACT, VNNI, features, loaded, options
from pipeline.deploy.export import exported
from pipeline.deploy.quantize import quantised
from pipeline.deploy.runtime import answers, optimised_operators, session


@pytest.mark.parametrize("dead", [[1], [0, 2], [0, 1, 2]])
@pytest.mark.parametrize("kind", ["convolution", "linear"])
def test_a_filter_without_weights_keeps_its_bias(kind, dead):
    """Global pruning empties whole filters; their biases, and what normalisation adds to them, are constants that count."""
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 3, 3, padding=1) if kind == "convolution" else nn.Linear(4, 3)
    inputs = 300 * torch.rand(16, 4, *([5, 5] if kind == "convolution" else []))
    with torch.no_grad():
        layer.weight[dead] = 0
        layer.bias.copy_(torch.tensor([0.11, -0.07, 0.4]))
        expected = layer(inputs).numpy()
    given = {"input": inputs.numpy()}
    int8 = quantised(exported(layer.eval(), lambda each: each, inputs), [given])
    found = answers(session(int8), given)["scores"]
    step = (expected.max() - min(expected.min(), 0)) / 255
    assert np.abs(found - expected)[:, dead].max() <= 0.51 * step


def spelled_out(model):
    """The same with every bias in int32, by a scale of its own."""
    result = ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    made = {node.output[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}
    for node in [node for node in graph.node if node.op_type in ("Conv", "Gemm")]:
        source, weights = made[node.input[0]], made[node.input[1]]
        scales = tensors[source.input[1]] * tensors[weights.input[1]]
        biases = np.rint(tensors[node.input[2]].astype(np.float64) / scales.astype(np.float64)).astype(np.int32)
        for name, content in (("whole", biases), ("scales", scales)):
            graph.initializer.append(numpy_helper.from_array(content, f"{node.name}_{name}"))
        read = [f"{node.name}_{name}" for name in ("whole", "scales")]
        graph.node.insert(0, helper.make_node("DequantizeLinear", read, [f"{node.name}_bias"], axis=0))
        node.input[2] = f"{node.name}_bias"
    return result


def test_what_goes_without_saying_is_not_said():
    """Biases are floats: ONNX Runtime makes the same operators of them as of int32, with the same answers to the bit."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 12, 3, groups=12), nn.ReLU(), nn.Conv2d(12, 1, 1),
        nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 1),
    )  # fmt: skip
    with torch.no_grad():
        network[0].weight.abs_()  # sums of large bytes: exact in more than 16 bits alone
        network[2].weight[4] = 0
        network[0].bias[2] = 1e6  # more steps than 32 bits hold
    inputs = torch.rand(16, 3, 10, 10)
    given = {"input": inputs.numpy()}
    int8 = quantised(exported(network.eval(), lambda each: each, inputs), [given])
    assert int8.ByteSize() < spelled_out(int8).ByteSize() - 9 * (12 + 12 + 1)
    assert optimised_operators(int8) == optimised_operators(spelled_out(int8))
    assert {"QLinearConv": 3, "QGemm": 2}.items() <= optimised_operators(int8).items()
    found, expected = (answers(session(each), given)["scores"] for each in (int8, spelled_out(int8)))
    np.testing.assert_array_equal(found, expected)


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.output = nn.Linear(16, 24), nn.Linear(24, 24), nn.Linear(24, 10)
        self.third = nn.Linear(24, 24)
        self.third.weight = self.second.weight

    def forward(self, inputs):
        return self.output(self.third(self.second(self.first(inputs).relu()).relu()).relu())


def test_a_graph_whose_sums_cannot_be_made_exact_is_computed_as_it_is_written_and_nothing_is_printed(tmp_path, capfd):
    """As its bundle does it too, from a file."""
    torch.manual_seed(0)
    inputs = torch.randn(64, 16)
    network = Tied().eval()
    model = quantised(exported(network, lambda each: each, inputs), [{"input": inputs.numpy()}])
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    expected = network(inputs).detach().numpy()
    for content in (model.SerializeToString(), str(tmp_path / "model.onnx")):
        chosen = options(1, None)
        for key, value in ({} if VNNI.isdisjoint(features()) else EXACT).items():  # as where a processor has none
            chosen.add_session_config_entry(key, value)
        (found,) = answers(loaded(content, chosen), {"input": inputs.numpy()}).values()
        assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()
    assert "".join(capfd.readouterr()) == ""


def test_of_a_network_in_float64_nothing_is_said_past_python(capfd):
    class Double(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)).double()

        def forward(self, given):
            return self.layers(given.double())

    inputs = torch.rand(16, 8)
    model = quantised(exported(Double().eval(), lambda each: each, inputs), [{"input": inputs.numpy()}])
    assert any(node.op_type == "QuantizeLinear" for node in model.graph.node)
    assert capfd.readouterr().err == ""
