"""One trace of a network serves all of its weights, and none that is another network."""

import copy
from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import nn

from pipeline.deploy import traced
from pipeline.deploy.export import exported

IMAGES = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)


class Scaled(nn.Module):
    """A convolution, normalised; times a number and a tensor that are no parameters."""

    def __init__(self, number=1.0, tensor=1.0, tied=False, width=4):
        super().__init__()
        self.number, self.tensor = number, torch.full((1,), tensor)
        self.first, self.norm = nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width)
        self.second, self.third = nn.Linear(width, width), nn.Linear(width, width)
        if tied:
            self.third.weight = self.second.weight
        for each in (*self.parameters(), *self.buffers()):
            if each.is_floating_point():
                nn.init.uniform_(each, 0.5, 1.5)

    def forward(self, images):
        return self.third(self.second(self.norm(self.first(images)).relu().mean((2, 3)))) * self.number * self.tensor


FACTOR = 1.0


class ByGlobal(Scaled):
    def forward(self, images):
        return super().forward(images) * FACTOR


def by(divisor):
    return lambda images: images.float() / divisor


def hooked(network):
    network.register_forward_hook(lambda module, given, answer: answer + 1)
    return network


def local(factor):
    class Local(Scaled):
        if factor == 1:

            def forward(self, images):
                return super().forward(images) + 1

    return Local()


def transposed(network):
    network.first.to(memory_format=torch.channels_last)
    return network


def torch_and_onnx(network, preprocess):
    model = exported(network.eval(), preprocess, IMAGES)
    running = onnxruntime.InferenceSession(model.SerializeToString())
    with torch.no_grad():
        return network(preprocess(IMAGES)), torch.from_numpy(running.run(None, {"input": IMAGES.numpy()})[0])


@pytest.fixture
def traces(monkeypatch):
    """Networks that PyTorch has traced in this test, of none before."""
    found, own = [], torch.onnx.export
    traced.graphs.clear()
    monkeypatch.setattr(
        torch.onnx, "export", lambda network, *given, **named: (found.append(network), own(network, *given, **named))[1]
    )
    return found


CASES = {
    "other weights": (Scaled(), Scaled(), by(255), by(255), 1),
    "a copy": (net := Scaled(), copy.deepcopy(net), by(255), by(255), 1),
    "another number": (Scaled(number=1.0), Scaled(number=2.0), by(255), by(255), 2),
    "another tensor that is no parameter": (Scaled(tensor=1.0), Scaled(tensor=2.0), by(255), by(255), 2),
    "a shared weight": (Scaled(tied=True), Scaled(tied=False), by(255), by(255), 2),
    "a weight no longer shared": (Scaled(tied=False), Scaled(tied=True), by(255), by(255), 2),
    "another width": (Scaled(width=4), Scaled(width=5), by(255), by(255), 2),
    "other preprocessing": (Scaled(), Scaled(), by(255), by(128), 2),
    "a hook": (Scaled(), hooked(Scaled()), by(255), by(255), 2),
    "another class of the same name": (local(0), local(1), by(255), by(255), 2),
    "weights that lie another way": (Scaled(), transposed(Scaled()), by(255), by(255), 2),
    "a layer left in training": (Scaled(), (held := Scaled(), held.norm.train())[0], by(255), by(255), 1),
}


@pytest.mark.parametrize("case", CASES)
def test_a_trace_serves_all_weights_of_a_network_and_no_other_network(case, traces):
    first, second, *preprocess, count = CASES[case]
    for network, apply in zip((first, second), preprocess, strict=True):
        expected, answer = torch_and_onnx(network, apply)
        torch.testing.assert_close(answer, expected, rtol=1e-4, atol=1e-5)
    assert len(traces) == count


def test_a_model_of_a_kept_trace_is_the_one_of_its_own(traces):
    first, second = Scaled().eval(), Scaled().eval()
    exported(first, by(255), IMAGES)
    kept = exported(second, by(255), IMAGES)
    traced.graphs.clear()
    assert kept.SerializeToString(deterministic=True) == exported(second, by(255), IMAGES).SerializeToString(
        deterministic=True
    )
    assert len(traces) == 2


def test_what_no_network_tells_of_itself_is_seen_in_the_answers(traces, monkeypatch):
    for factor in (1.0, 3.0):
        monkeypatch.setitem(globals(), "FACTOR", factor)
        expected, answer = torch_and_onnx(ByGlobal(), by(255))
        torch.testing.assert_close(answer, expected, rtol=1e-4, atol=1e-5)
    assert len(traces) == 2


def test_a_network_that_cannot_be_written_is_traced_each_time(traces):
    network = Scaled()
    with Path(__file__).open() as network.file:
        for _ in range(2):
            exported(network.eval(), by(255), IMAGES)
    assert len(traces) == 2


def test_few_graphs_are_kept(traces):
    for width in range(1, traced.KEPT + 3):
        exported(Scaled(width=width).eval(), by(255), IMAGES)
    assert len(traced.graphs) == traced.KEPT
