"""Linear layers of sequences: where examples come first the same is computed, and the sparse engine takes them."""

from collections import Counter

import onnx
import pytest
import torch
from torch import nn

from pipeline.deploy.batch_first import batch_first
from pipeline.deploy.board.run import difference
from pipeline.deploy.export import exported, lean
from pipeline.deploy.folding import folded
from pipeline.deploy.node import with_nodes
from pipeline.deploy.pack import packed
from pipeline.deploy.runtime import answers, session


class Attending(nn.Module):
    """Attention of a sequence of its own, or of other features of it."""

    def __init__(self, *, features=8, batch_first=True, crossed=False, **told):
        super().__init__()
        self.turns, self.features, self.crossed = not batch_first, features, crossed
        told |= {} if features == 8 else {"kdim": features, "vdim": features}
        self.attention = nn.MultiheadAttention(8, 2, batch_first=batch_first, **told)

    def forward(self, sequence):
        query = sequence.transpose(0, 1) if self.turns else sequence
        other = query[..., : self.features] if self.features < 8 else query
        query = query.tanh() if self.crossed else query
        answer = self.attention(query, other, other)[0]
        return answer.transpose(0, 1) if self.turns else answer


def blocks(**told):
    return nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, **told), 2, enable_nested_tensor=False
    )


CASES = {
    "attention": (Attending(), 2),
    "of another sequence": (Attending(crossed=True), 3),
    "without shifts": (Attending(bias=False), 2),
    "of other features": (Attending(features=6), 4),
    "places first": (Attending(batch_first=False), 2),
    "blocks": (blocks(), 8),
    "blocks, normalised first": (blocks(norm_first=True, activation="gelu"), 8),
    "no sequence": (nn.Sequential(nn.Flatten(), nn.Linear(40, 4)), 1),
}


@pytest.mark.parametrize("case", CASES)
def test_the_same_is_computed_and_the_engine_takes_every_layer_with_weights(case):
    network, layers = CASES[case]
    torch.manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.5)
    sequences = torch.rand(4, 5, 8)
    plain = exported(network.eval(), lambda given: given, sequences)
    made = batch_first(plain)
    onnx.checker.check_model(made, full_check=True)
    for count in (1, 4):
        given = {"input": sequences[:count].numpy()}
        assert difference(answers(session(made), given), answers(session(plain), given)) < 1e-6
    taken = with_nodes(packed(lean(folded(made)))[0])[0]
    found = Counter(node.op_type for body in taken.functions for node in body.node)
    assert found["MatMul"] + found["Gemm"] == layers


def test_the_parts_of_a_parameter_are_constants_and_the_whole_is_gone():
    plain = exported(CASES["of another sequence"][0].eval(), lambda given: given, torch.rand(4, 5, 8))
    constants = {tensor.name: tuple(tensor.dims) for tensor in plain.graph.initializer}
    read = {name for node in plain.graph.node for name in node.input}
    assert constants.keys() <= read
    assert sorted(shape for shape in constants.values() if len(shape) == 2) == [(8, 8), (8, 8), (8, 16)]
    assert not any(read.isdisjoint(node.output) for node in plain.graph.node[:-1])
