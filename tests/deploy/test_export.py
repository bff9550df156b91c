"""Any forward as an ONNX model: its inputs and outputs by name, its answers those of PyTorch."""

import re

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from pipeline.deploy.export import attributes, exported, lean
from pipeline.deploy.runtime import answers, session
from pipeline.ground.errors import PipelineError, SettingsError
from pipeline.ground.structures import called, filled, named_tensors


class Tokens(nn.Module):
    """Whole numbers and a mask to what lies in a mapping, some of it deeper."""

    def __init__(self):
        super().__init__()
        self.embedding, self.layer = nn.Embedding(10, 4), nn.Linear(4, 3)

    def forward(self, ids, mask):
        hidden = self.layer(self.embedding(ids) * mask[..., None])
        return {"logits": hidden.mean(1), "all": (hidden, hidden.sum(-1))}


class Scales(nn.Module):
    """An image to what is found at three scales, as a list."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, images):
        found = self.layer(images)
        return [found, found[:, :, ::2, ::2], found.mean((2, 3))]


class Tied(nn.Module):
    """One weight in two layers."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.second.weight = self.first.weight

    def forward(self, inputs):
        return self.second(self.first(inputs).relu())


class Beside(nn.Module):
    """An input and a constant among the answers."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, inputs):
        return {"scores": self.layer(inputs), "same": inputs, "places": torch.arange(6.0).reshape(2, 3)}


TOKENS, MASK = torch.randint(0, 10, (3, 5)), torch.rand(3, 5)
FORWARDS = {
    "inputs by name": (Tokens(), {"ids": TOKENS, "mask": MASK}, ["ids", "mask"], ["logits", "all_0", "all_1"]),
    "several inputs": (Tokens(), (TOKENS, MASK), ["input_0", "input_1"], ["logits", "all_0", "all_1"]),
    "three outputs": (Scales(), torch.rand(3, 3, 8, 8), ["input"], ["scores_0", "scores_1", "scores_2"]),
    "an input as an answer": (Beside(), torch.rand(2, 6), ["input"], ["scores", "same", "places"]),
    "a shared weight": (Tied(), torch.rand(3, 6), ["input"], ["scores"]),
}


@pytest.mark.parametrize("case", FORWARDS)
def test_any_forward_has_its_names_and_answers_in_onnx(case):
    network, inputs, given, made = FORWARDS[case]
    model = lean(exported(network.eval(), lambda inputs: inputs, inputs))
    running = onnxruntime.InferenceSession(model.SerializeToString())
    assert [each.name for each in running.get_inputs()] == given
    assert [each.name for each in running.get_outputs()] == made
    for count in (1, 3):
        tensors = {name: each[:count] for name, each in named_tensors(inputs, "input").items()}
        with torch.no_grad():
            expected = named_tensors(called(network, filled(inputs, tensors.values())), "scores")
        answers = running.run(None, {name: each.numpy() for name, each in tensors.items()})
        for answer, each in zip(answers, expected.values(), strict=True):
            assert np.abs(answer - each.numpy()).max() < 1e-6


class Data(nn.Module):
    """As many steps as a number in the input says."""

    def forward(self, inputs):
        for _ in range(int(inputs.sum())):
            inputs = inputs + 1
        return inputs


def test_what_cannot_be_exported_is_a_sentence():
    with pytest.raises(PipelineError, match=f"the network cannot be exported to ONNX at {__file__}"):
        exported(Data(), lambda inputs: inputs, torch.ones(2, 3))


class Signed(nn.Module):
    """Answers by the sign of a sum."""

    def forward(self, inputs):
        return inputs if inputs.sum() > 0 else -inputs


class Singular(nn.Module):
    """What ONNX has no operator for."""

    def forward(self, inputs):
        return torch.linalg.svd(inputs)[0]


@pytest.mark.parametrize(
    ("layer", "named"),
    [(Signed(), "1.0 (Signed)"), (Singular(), "1.0 (Singular), the operator aten._linalg_svd.default")],
)
def test_what_cannot_be_exported_is_named(layer, named, capfd):
    network = nn.Sequential(nn.Linear(4, 4), nn.Sequential(layer)).eval()
    with pytest.raises(PipelineError, match=re.escape(f"exported to ONNX, for the layer {named}")):
        exported(network, lambda inputs: inputs, torch.ones(2, 4))
    assert capfd.readouterr() == ("", "")


def test_axes_of_any_size_have_names():
    network = nn.Conv2d(3, 4, 3, stride=2)
    model = lean(exported(network.eval(), lambda inputs: inputs, torch.rand(2, 3, 9, 9), {"input": [2, 3]}))
    (given,) = model.graph.input
    sides = [side.dim_param or side.dim_value for side in given.type.tensor_type.shape.dim]
    assert sides == ["batch", 3, "input_2", "input_3"]


@pytest.mark.parametrize(("axes", "got"), [({"input": [4]}, "input: [4]"), ({"image": [2]}, "image: [2]")])
def test_axes_that_are_none_are_a_sentence(axes, got):
    with pytest.raises(SettingsError, match=re.escape(f"deploy.dynamic_axes: got {got}, takes inputs")):
        exported(nn.Conv2d(3, 4, 3).eval(), lambda inputs: inputs, torch.rand(2, 3, 9, 9), axes)


def test_names_tell_the_way_and_none_comes_twice():
    a, b, c, d = (torch.tensor(each) for each in range(4))
    structure = {"x.y": a, "x_y": b, "z": {"k": [c, (d,)]}}
    assert list(named_tensors(structure, "input")) == ["x_y", "x_y_1", "z_k_0", "z_k_1_0"]
    assert list(named_tensors([a, b], "input")) == ["input_0", "input_1"]
    assert list(named_tensors(a, "input")) == ["input"]
    assert filled(structure, [d, c, b, a]) == {"x.y": d, "x_y": c, "z": {"k": [b, (a,)]}}


def test_what_an_export_keeps_changes_neither_the_next_nor_pytorchs_own():
    from torch._export import utils
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    before = vars(ONNXRegistry)["from_torchlib"], utils._materialize_cpp_cia_ops, torch._ops.Callable
    torch.manual_seed(0)
    networks, inputs = (Scales(), Tied()), (torch.rand(2, 3, 8, 8), torch.rand(2, 6))
    first, other, again = (
        lean(exported(networks[place], lambda given: given, inputs[place])).SerializeToString(deterministic=True)
        for place in (0, 1, 0)
    )
    assert first == again != other
    assert (vars(ONNXRegistry)["from_torchlib"], utils._materialize_cpp_cia_ops, torch._ops.Callable) == before


def test_an_lstm_with_a_projection_is_told_of():
    """ONNX has none, and PyTorch writes one that onnxruntime does not run."""

    class Projected(nn.Module):
        def __init__(self):
            super().__init__()
            self.steps = nn.LSTM(8, 12, batch_first=True, proj_size=5)

        def forward(self, given):
            return self.steps(given)[0][:, -1]

    with pytest.raises(
        PipelineError, match=r"for the layer steps \(LSTM\): ONNX has none with a projection \(proj_size=5\)"
    ):
        exported(Projected().eval(), lambda each: each, torch.rand(2, 4, 8))


def test_an_operator_that_was_defined_after_an_export_is_translated_in_the_next():
    class Doubled(nn.Module):
        def forward(self, given):
            return torch.ops.of_a_test.doubled(given) + 1

    given = torch.rand(2, 3)
    exported(nn.Identity(), lambda each: each + 1, given)
    library = torch.library.Library("of_a_test", "DEF")
    library.define("doubled(Tensor given) -> Tensor")
    library.impl("doubled", lambda given: given * 2, "CompositeImplicitAutograd")
    model = exported(Doubled(), lambda each: each, given)
    (found,) = answers(session(model), {"input": given.numpy()}).values()
    assert np.array_equal(found, given.numpy() * 2 + 1)


WINDOWS = {
    "a layer of ones": (nn.Conv2d(3, 4, 3), {}),
    "with padding": (nn.Conv2d(3, 4, 3, padding=1), {"pads": [1, 1, 1, 1]}),
    "one side only": (nn.Conv2d(3, 4, 3, stride=(1, 2), padding=(0, 1)), {"strides": [1, 2], "pads": [0, 1, 0, 1]}),
    "with gaps": (nn.Conv2d(3, 4, 3, dilation=2), {"dilations": [2, 2]}),
    "in groups": (nn.Conv2d(3, 3, 3, groups=3), {"group": 3}),
    "wider": (nn.ConvTranspose2d(3, 4, 2, stride=2), {"strides": [2, 2]}),
    "the largest": (nn.MaxPool2d(2, stride=1), {"kernel_shape": [2, 2]}),
    "the mean": (nn.AvgPool2d(3, stride=2, padding=1), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
}  # fmt: skip


@pytest.mark.parametrize("case", WINDOWS)
def test_a_lean_node_tells_what_is_unusual_and_answers_as_pytorch(case):
    layer, told = WINDOWS[case]
    images = torch.rand(3, 3, 9, 9)
    model = lean(exported(layer.eval(), lambda inputs: inputs, images))
    assert [attributes(node) for node in model.graph.node] == [told]
    answer = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"input": images.numpy()})[0]
    np.testing.assert_allclose(answer, layer(images).detach().numpy(), atol=1e-6)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_weights_in_16_bits_are_told_of_by_name(kind):
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2).to(kind))
    with pytest.raises(PipelineError, match=rf"1\.weight is in {str(kind)[6:]}, .*takes weights in float32"):
        exported(network, lambda each: each, torch.rand(2, 4))
