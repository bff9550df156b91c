"""Networks that choose or repeat by their values: graphs within the graph, which read what lies around them."""

import onnx
import pytest
import torch
from torch import nn

from pipeline.deploy import models
from pipeline.deploy.board.run import difference
from pipeline.deploy.kernels import library, target_here
from pipeline.deploy.node import DOMAIN
from pipeline.deploy.runtime import answers, arrays, session
from pipeline.deploy.subject import Subject
from pipeline.ground.errors import PipelineError
from pipeline.objective.score import ACCURACY
from tests.deploy.test_dynamic import Inputs


class Choice(nn.Module):
    """One of two layers, by the mean of what it gets; both read what was made before, and within one is another."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.one, self.other, self.last = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 1), nn.Linear(16, 3)

    def forward(self, image):
        before = self.norm(self.first(image)).relu()
        half = before * 0.5

        def inner(plane, half):
            return torch.cond(plane.mean() > 0.05, lambda a, b: self.other(a) + b, lambda a, b: a - b, (plane, half))

        chosen = torch.cond(before.mean() > 0.2, lambda a, b: self.one(a) - b, inner, (before, half))
        return self.last(chosen.mean((2, 3)))


class Bag(nn.Module):
    """The mean of a text's words, of which PyTorch's exporter makes a loop with choices inside."""

    def __init__(self):
        super().__init__()
        self.words, self.hidden, self.last = nn.EmbeddingBag(50, 16, mode="mean"), nn.Linear(16, 32), nn.Linear(32, 3)

    def forward(self, text):
        return self.last(self.hidden(self.words(text)).relu())


def subject_of(network, inputs):
    torch.manual_seed(0)
    made = network().eval()
    with torch.no_grad():
        for weight in made.parameters():
            if weight.ndim > 1:
                weight[torch.rand_like(weight) < 0.8] = 0
    return Subject(made, Inputs(inputs), None, ACCURACY)


def images(seed):
    return torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("network", "inputs"),
    [
        (Choice, images(0) + 5),
        (Choice, images(0)),
        (Choice, images(0) / 4),
        (Bag, torch.randint(50, (8, 7), generator=torch.Generator())),
    ],
)
def test_graphs_within_a_graph_are_exported_packed_and_computed(network, inputs):
    subject = subject_of(network, inputs)
    found = models.models(subject, 8, multiple=1)
    assert models.check(found, subject, inputs) == []
    expected = {"scores": subject.answered(inputs).numpy()}
    given = arrays(inputs)
    for name, most in (("dense", 1e-5), ("float32", 1e-5), ("int8", 0.05)):
        model = getattr(found, name)
        onnx.checker.check_model(model, full_check=True)
        assert difference(answers(session(model), given), expected) < most, name
    sparse = sum(node.domain == DOMAIN for node in found.float32.graph.node)
    assert sparse == {Choice: 2, Bag: 0}[network]  # before the choice, and behind it
    if sparse and target_here() is not None:
        by_engine = answers(session(found.float32, library=library(target_here())), given)
        assert difference(by_engine, expected) < 1e-5


def test_weights_of_a_graph_within_are_packed():
    subject = subject_of(Choice, images(0))
    found = models.models(subject, 8, multiple=1)
    weights = [layer.weight for layer in (subject.network.one, subject.network.other)]
    packed = {(each.size, each.kept) for each in found.float32_facts.values()}
    assert {(each.numel(), int(each.count_nonzero())) for each in weights} <= packed


def test_inputs_of_other_lengths_in_one_batch_are_a_sentence():
    class Offsets(Bag):
        def forward(self, text, offsets, mode):
            return self.last(self.hidden(self.words(text, offsets)).relu())

    inputs = {"text": torch.arange(20), "offsets": torch.arange(0, 20, 4), "mode": torch.tensor(0)}
    with pytest.raises(PipelineError, match=r"rows in one batch \(text 20, offsets 5, mode none\)"):
        models.models(subject_of(Offsets, inputs), 8, multiple=1)
