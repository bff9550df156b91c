"""Small forms of the networks that people put on boards: exported, quantised, packed, and computed by the engine."""

import itertools

import numpy as np
import pytest
import torch
from benchmarks.networks import SMALL

from pipeline.data.dataset import Preprocessing
from pipeline.deploy import models
from pipeline.deploy.board.run import difference
from pipeline.deploy.kernels import library, target_here
from pipeline.deploy.models import unrounded
from pipeline.deploy.node import DOMAIN, left_to_onnxruntime
from pipeline.deploy.runtime import answers, arrays, session
from pipeline.deploy.subject import Subject
from pipeline.objective.score import ACCURACY
from tests.conftest import some_fast


class Noise:
    """Random inputs from 0 to 1."""

    classes = ()
    preprocessing = Preprocessing(lambda inputs: inputs, None)

    def __init__(self, shape):
        self.shape = shape

    def raw(self, split):
        draws = torch.Generator().manual_seed(len(split))
        yield torch.rand(8, *self.shape, generator=draws), torch.zeros(8, dtype=torch.int64)


def subject_of(name, density):
    """A network of this name with so many weights left, whose statistics are those of its inputs."""
    make, shape = SMALL[name]
    torch.manual_seed(0)
    network, noise = make(), Noise(shape)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.mul_(torch.rand(parameter.shape) < density)
        ((inputs, _),) = noise.raw("train")
        for _ in range(20):
            network(inputs)
    return Subject(network.eval(), noise, None, ACCURACY)


@pytest.mark.parametrize(
    ("name", "density"),
    some_fast(itertools.product(SMALL, (1.0, 0.5, 0.1, 0.05)), [("DeiT", 0.1), ("M5", 0.1)]),
)
def test_the_networks_of_boards_are_exported_packed_and_computed(name, density):
    subject = subject_of(name, density)
    found = models.models(subject, 8, multiple=1)
    inputs = next(iter(subject.inputs("validation")))
    assert models.check(found, subject, inputs) == []
    assert found.uncovered == {"float32": None, "int8": None}
    for model in (found.float32, found.int8):
        apart = "Softmax" in left_to_onnxruntime(model)
        assert apart == (name == "DeiT")
        if apart:  # beside attention every layer with weights is the engine's
            assert not any(node.op_type in ("Gemm", "Conv") for node in model.graph.node)
            assert sum(node.op_type == "MatMul" for node in model.graph.node) == 2 * 2
            continue
        assert [node.op_type for node in model.graph.node if node.domain == DOMAIN] == ["Net"]
        assert left_to_onnxruntime(model) == []
    if target_here() is None:
        return
    for model in (found.float32, found.int8):
        for count in (1, 3, 8):
            some = {name: each[:count] for name, each in arrays(inputs).items()}
            found_here = answers(session(model, library=library(target_here())), some)
            off = max(1e-5, models.between(model))  # where ONNX Runtime rounds between nodes a last bit may be a step
            assert difference(found_here, unrounded(model, some)) < off
    float32 = models.answers(models.session(found.float32), arrays(inputs))
    int8 = models.answers(models.session(found.int8), arrays(inputs))
    for name, each in float32.items():
        assert np.sqrt(np.mean((int8[name] - each) ** 2)) < 0.2 * np.sqrt(np.mean(each**2))


@pytest.mark.slow
def test_a_library_that_does_not_know_an_operator_leaves_nothing_in_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    models.models(subject_of("YOLO", 0.5), 8, multiple=1)
    assert list(tmp_path.iterdir()) == []
