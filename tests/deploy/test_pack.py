"""Packing against numpy and against what ONNX Runtime makes of it."""

import math

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from pipeline.deploy import pack
from pipeline.deploy.runtime import optimised_operators, session

TYPES = {"float32": TensorProto.FLOAT, "int8": TensorProto.INT8}


def sparse(size, density, dtype="float32", seed=0):
    """Independent draws: each weight is kept with probability ``density``."""
    draws = np.random.default_rng(seed)
    values = (draws.normal(size=size) * 40).clip(-127, 127).astype(dtype)
    values[values == 0] = 1
    values[draws.random(size) >= density] = 0
    return values


def linear(*weights):
    """A chain of matrix products, weights of int8 scaled first as a quantised model does."""
    nodes, value = [], "input"
    tensors = [numpy_helper.from_array(weight, f"w{number}") for number, weight in enumerate(weights)]
    for number, weight in enumerate(weights):
        name = f"w{number}"
        if weight.dtype == np.int8:
            tensors.append(numpy_helper.from_array(np.float32(0.01), f"s{number}"))
            nodes.append(helper.make_node("DequantizeLinear", [name, f"s{number}"], [f"d{number}"]))
            name = f"d{number}"
        nodes.append(helper.make_node("MatMul", [value, name], [f"h{number}"]))
        value = f"h{number}"
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", size])
        for name, size in (("input", len(weights[0])), (value, weights[-1].shape[1]))
    ]
    graph = helper.make_graph(nodes, "graph", ends[:1], ends[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@given(
    size=st.integers(1, 4000), density=st.floats(0, 1), dtype=st.sampled_from(list(TYPES)), seed=st.integers(0, 10**6)
)
@settings(max_examples=150, deadline=None)
def test_every_coding_gives_the_tensor_back_bit_for_bit(size, density, dtype, seed):
    flat = sparse(size, density, dtype, seed)
    for encode in pack.ENCODERS:
        coding = encode(flat)
        back = pack.decode(coding, [size])
        assert back.dtype == flat.dtype
        assert back.tobytes() == flat.tobytes(), coding.name


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("encode", pack.ENCODERS)
@pytest.mark.parametrize("density", [0, 0.0005, 0.01, 0.1, 0.5, 1])
def test_the_models_function_gives_what_numpy_gives(density, encode, dtype):
    flat = sparse(6000, density, dtype)
    flat[-1] = 0
    coding = encode(flat)
    node, tensors = pack._written("w", coding, TYPES[dtype], [20, 300])
    node.output[0] = "dense"
    result = helper.make_tensor_value_info("dense", TYPES[dtype], [20, 300])
    model = helper.make_model(
        helper.make_graph([node], "graph", [], [result], tensors),
        opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid(pack.DOMAIN, 1)],
        functions=[pack.function(coding.name, TYPES[dtype], 18)],
        ir_version=10,
    )
    onnx.checker.check_model(model, full_check=True)
    assert session(model).run(None, {})[0].tobytes() == flat.tobytes()


def in_blocks(shape, axis, length, density, dtype="float32", seed=0):
    """Independent draws by block of ``length`` neighbours along an axis."""
    draws = np.random.default_rng(seed)
    values = sparse(math.prod(shape), 1.0, dtype, seed).reshape(shape)
    short = [side // length if place == axis else side for place, side in enumerate(shape)]
    return np.where(np.repeat(draws.random(short) < density, length, axis), values, np.zeros(1, dtype))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("shape", "axis"), [((24, 5, 3, 3), 0), ((40, 30), 0), ((5, 24, 2, 2), 1), ((30, 40), 1)])
@pytest.mark.parametrize("length", [2, 4, 8])
@pytest.mark.parametrize("density", [0.0, 0.02, 0.2, 0.6])
def test_positions_of_blocks_give_the_tensor_back_in_numpy_and_in_onnx(density, length, shape, axis, dtype):
    tensor = in_blocks(shape, axis, length, density, dtype)
    possible = pack.codings(tensor, axis)
    assert len(possible) > 3
    for coding in possible:
        back = pack.decode(coding, tensor.shape)
        assert back.tobytes() == tensor.tobytes(), coding.name
        node, tensors = pack._written("w", coding, TYPES[dtype], list(shape))
        node.output[0] = "dense"
        model = helper.make_model(
            helper.make_graph(
                [node], "graph", [], [helper.make_tensor_value_info("dense", TYPES[dtype], shape)], tensors
            ),
            opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid(pack.DOMAIN, 1)],
            functions=[pack.function(coding.name, TYPES[dtype], 18)],
            ir_version=10,
        )
        onnx.checker.check_model(model, full_check=True)
        assert session(model).run(None, {})[0].tobytes() == tensor.tobytes()


@pytest.mark.parametrize("length", [2, 4, 8])
def test_blocks_take_fewer_bytes_than_their_weights_one_by_one(length, monkeypatch):
    model = linear(in_blocks((256, 384), 1, length, 0.1), in_blocks((384, 256), 1, length, 0.1, seed=1))
    packed, facts = pack.packed(model)
    assert all(fact.coding.endswith("blocks") for fact in facts.values())
    assert all(fact.position_bytes < fact.entropy_bytes / (length / 2) for fact in facts.values())
    assert pack.unpacked(packed).graph.initializer == model.graph.initializer
    monkeypatch.setattr(pack, "LENGTHS", ())
    singly, _ = pack.packed(model)
    assert packed.ByteSize() < 0.95 * singly.ByteSize()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("density", [0.002, 0.02, 0.1, 0.3, 0.6])
def test_a_packed_model_is_smaller_equal_and_runs_the_dense_graph(density, dtype):
    weights = [sparse(shape, density, dtype, seed) for seed, shape in enumerate([(64, 200), (200, 300), (300, 10)])]
    model = linear(*weights)
    packed, facts = pack.packed(model)
    assert packed.ByteSize() < model.ByteSize()
    assert facts
    assert all(fact.kept == np.count_nonzero(weights[int(name[1:])]) for name, fact in facts.items())
    unpacked = {tensor.name: numpy_helper.to_array(tensor) for tensor in pack.unpacked(packed).graph.initializer}
    assert all(unpacked[f"w{n}"].tobytes() == weight.tobytes() for n, weight in enumerate(weights))
    inputs = {"input": np.random.default_rng(1).normal(size=(5, 64)).astype(np.float32)}
    assert np.array_equal(*(session(each).run(None, inputs)[0] for each in (model, packed)))
    assert optimised_operators(packed) == optimised_operators(model)


def test_no_other_choice_of_codings_is_smaller(monkeypatch):
    weights = [sparse(shape, d, "float32", 3) for d, shape in ((0.01, (300, 300)), (0.4, (300, 200)), (0.9, (200, 50)))]
    best, facts = pack.packed(linear(*weights))
    assert len({fact.coding for fact in facts.values()}) > 1
    for encode in pack.ENCODERS:
        monkeypatch.setattr(pack, "ENCODERS", (encode,))
        name = encode(weights[0].ravel()).name
        monkeypatch.setattr(pack, "FUNCTIONS", {name: pack.FUNCTIONS[name]})
        only, _ = pack.packed(linear(*weights))
        assert best.ByteSize() <= only.ByteSize()
        monkeypatch.undo()


def test_what_is_not_sparse_stays_plain():
    model = linear(sparse((64, 100), 1.0), sparse((100, 10), 0.99))
    packed, facts = pack.packed(model)
    assert facts == {}
    assert packed == model


@pytest.mark.parametrize("density", [0.01, 0.055, 0.107, 0.2])
def test_rice_is_within_a_tenth_of_the_entropy_bound(density):
    flat = sparse(100_000, density)
    kept = np.count_nonzero(flat)
    share = kept / flat.size
    bound = -flat.size * (share * math.log2(share) + (1 - share) * math.log2(1 - share)) / 8
    fact = pack.PackedTensor("rice", flat.size, kept, pack.encode_rice(flat).position_bytes)
    assert fact.entropy_bytes == pytest.approx(bound)
    assert bound <= fact.position_bytes <= 1.1 * bound
