"""The sparse engine against ONNX Runtime: whole networks, random ones, wrong files; the model of one node without it."""

import json
import os
import platform
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import settings as checked
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from torch import nn

from pipeline.data.batches import standardised_alike
from pipeline.deploy import arm, kernels
from pipeline.deploy.board.run import difference as differing
from pipeline.deploy.export import exported, lean
from pipeline.deploy.folding import folded
from pipeline.deploy.kernels import TARGETS, Target, build, library, target_here, target_of
from pipeline.deploy.models import engine_fault, unrounded, unrounded_model
from pipeline.deploy.node import DOMAIN, left_to_onnxruntime, opened, with_nodes
from pipeline.deploy.pack import packed
from pipeline.deploy.program import Operation
from pipeline.deploy.quantize import quantised
from pipeline.deploy.runtime import answers, operators, tolerance
from pipeline.ground.environment import CHECKOUT, processor_features
from pipeline.ground.errors import PipelineError
from pipeline.networks import NETWORKS
from pipeline.networks.layers import filters_of
from pipeline.pruning.blocks import Blocks
from pipeline.settings.groups import Deploy
from tests.conftest import some_fast

here = pytest.mark.skipif(target_here() is None, reason="no library is for this processor")
TOLERANCE = 1e-5
"""Relative to the largest score."""


def session(model, *, engine, threads=1, optimised=None):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    if engine:
        options.register_custom_ops_library(str(engine))
    if optimised:
        options.optimized_model_filepath = str(optimised)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def scores(model, inputs, **given):
    return session(model, **given).run(None, {"input": inputs})[0]


def difference(found, expected):
    """Largest difference relative to the largest expected score."""
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / (np.abs(expected).max() + 1e-30))


NETS = {
    "small_cnn": ((1, 8, 8), {}),
    "lenet_300_100": ((1, 28, 28), {}),
    "cifar_resnet": ((3, 32, 32), {"depth": 20}),
    "vgg16": ((3, 32, 32), {}),
    "imagenet_resnet": ((3, 64, 64), {"depth": 18}),
    "bottlenecks": ((3, 64, 64), {"depth": 50}),
    "mobilenet_v1": ((3, 33, 47), {}),
    "mobilenet_v2": ((3, 64, 64), {}),
}
INT8_HEAVY = ("cifar_resnet", "mobilenet_v2")
HEAVY = ("cifar_resnet", "vgg16", "imagenet_resnet", "bottlenecks", "mobilenet_v1", "mobilenet_v2")


@cache
def exported_of(name):
    """A network of the zoo with random weights and statistics, and inputs of it."""
    shape, arguments = NETS[name]
    torch.manual_seed(0)
    made = NETWORKS["imagenet_resnet" if name == "bottlenecks" else name](shape=shape, classes=10, **arguments).eval()
    with torch.no_grad():
        for layer in made.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.normal_(0, 0.1)
                layer.weight.uniform_(0.5, 1.5)
                layer.bias.normal_(0, 0.1)
    model = exported(made, lambda pixels: pixels.float() / 255, torch.zeros(2, *shape, dtype=torch.uint8))
    return model, np.random.default_rng(0).integers(0, 256, (9, *shape), dtype=np.uint8)


def sparse_of(name, density):
    """The model with this share of every layer's weights, at random, and inputs of it."""
    source, inputs = exported_of(name)
    model = onnx.ModelProto()
    model.CopyFrom(source)
    random = np.random.default_rng(1)
    for tensor in model.graph.initializer:
        if len(tensor.dims) in (2, 4) and tensor.data_type == onnx.TensorProto.FLOAT:
            weights = numpy_helper.to_array(tensor) / density**0.5 * (random.random(tensor.dims) < density)
            tensor.CopyFrom(numpy_helper.from_array(weights.astype(np.float32), tensor.name))
    return model, inputs


def packed_of(name, density):
    model, inputs = sparse_of(name, density)
    return packed(lean(model))[0], inputs


def same_nodes(found, model):
    """Whether two models are the same but for the order of their nodes."""
    nodes = [sorted(node.SerializeToString() for node in each.graph.node) for each in (found, model)]
    for each in (found, model):
        copy = onnx.ModelProto()
        copy.CopyFrom(each)
        del copy.graph.node[:]
        nodes.append(copy.SerializeToString(deterministic=True))
    return nodes[0] == nodes[1] and nodes[2] == nodes[3]


def test_bundles_take_the_targets_that_there_are():
    (names, _) = get_args(get_type_hints(Deploy)["kernels"])
    assert set(get_args(names)) == {target.name for target in TARGETS}


@here
@pytest.mark.parametrize("density", [1.0, 0.3, 0.1, 0.02])
@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow if name in HEAVY else ()) for name in NETS])
def test_the_engine_computes_what_the_body_computes_and_the_body_what_it_was_made_of(name, density, tmp_path):
    model, inputs = packed_of(name, density)
    made, reason = with_nodes(model)
    assert reason is None
    assert same_nodes(opened(made), model)
    onnx.checker.check_model(made, full_check=True)
    expected = scores(model, inputs, engine=None, optimised=tmp_path / "before.onnx")
    assert np.array_equal(scores(made, inputs, engine=None, optimised=tmp_path / "body.onnx"), expected)
    before, body = (operators(onnx.load(tmp_path / f"{each}.onnx")) for each in ("before", "body"))
    assert before == body
    engine = library(target_here())
    assert difference(scores(made, inputs, engine=engine, optimised=tmp_path / "engine.onnx"), expected) < TOLERANCE
    assert "Net" in operators(onnx.load(tmp_path / "engine.onnx"))
    for threads, counts in ((1, (1, 3)), (2, (1, 3)), (4, (1, 9))):
        running = session(made, engine=engine, threads=threads)
        for count in counts:
            (found,) = running.run(None, {"input": inputs[:count]})
            assert difference(found, expected[:count]) < TOLERANCE


@st.composite
def random_models(draw):
    """A random network of convolutions, sums, pools and perhaps a linear layer, and its inputs."""
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    channels, height, width = draw(st.integers(1, 9)), draw(st.integers(1, 19)), draw(st.integers(1, 40))
    batch = draw(st.sampled_from([1, 2, 5]))
    nodes, tensors, name = [], [], "input"
    shape = (channels, height, width)

    def constant(array):
        tensors.append(numpy_helper.from_array(array.astype(np.float32), f"w{len(tensors)}"))
        return tensors[-1].name

    def node(operator, inputs, **attributes):
        nodes.append(helper.make_node(operator, inputs, [f"v{len(nodes)}"], **attributes))
        return nodes[-1].output[0]

    def convolution(source, into, side, stride, groups, density):
        weight = random.normal(size=(into, shape[0] // groups, side, side)) * (random.random(1) + 0.1)
        weight /= np.sqrt(weight[0].size)  # sums of the order of one, like those of trained networks
        weight *= random.random(weight.shape) < density
        bias = [constant(random.normal(size=into))] if random.random() < 0.7 else []
        pads = [side // 2] * 4
        return node("Conv", [source, constant(weight), *bias], pads=pads, strides=[stride] * 2, group=groups)

    for _ in range(draw(st.integers(1, 4))):
        what = draw(st.sampled_from(["convolution"] * 3 + ["depthwise", "residual", "max", "average"]))
        side, stride = draw(st.sampled_from([1, 3, 5, 7])), draw(st.sampled_from([1, 1, 2, 3, 4]))
        density = draw(st.sampled_from([0.0, 0.03, 0.1, 0.4, 1.0]))
        strided = (-(-shape[1] // stride), -(-shape[2] // stride))
        if what in ("max", "average"):
            side = max(side, 2)
            if min(shape[1:]) + 2 * (side // 2) < side:
                continue
            pads = [side // 2 if draw(st.booleans()) else 0] * 4
            plane = [(each + 2 * pads[0] - side) // stride + 1 for each in shape[1:]]
            if min(plane) < 1:
                continue
            counted = {"count_include_pad": int(draw(st.booleans()))} if what == "average" else {}
            operator = "MaxPool" if what == "max" else "AveragePool"
            name = node(operator, [name], kernel_shape=[side] * 2, strides=[stride] * 2, pads=pads, **counted)
            shape = (shape[0], *plane)
        elif what == "residual":
            other = convolution(name, shape[0], side, 1, 1, density)
            name = node("Add", [other, name] if draw(st.booleans()) else [name, other])
        elif what == "depthwise":
            name = convolution(name, shape[0], side, stride, shape[0], max(density, 0.4))
            shape = (shape[0], *strided)
        else:
            into = draw(st.integers(1, 11))
            name = convolution(name, into, side, stride, 1, density)
            shape = (into, *strided)
        bound = draw(st.sampled_from(["none", "relu", "clip"]))
        if bound == "relu":
            name = node("Relu", [name])
        elif bound == "clip":
            name = node("Clip", [name, constant(np.array(0)), constant(np.array(random.random() + 0.1))])
    if not any(each.op_type == "Conv" for each in nodes):
        name = convolution(name, 3, 1, 1, 1, 1.0)
        shape = (3, *shape[1:])
    if draw(st.booleans()):
        name = node("GlobalAveragePool", [name])
        shape = (shape[0], 1, 1)
        for _ in range(draw(st.integers(0, 2))):
            into = draw(st.integers(1, 11))
            name = convolution(name, into, 1, draw(st.sampled_from([1, 2])), 1, draw(st.sampled_from([0.1, 1.0])))
            shape = (into, 1, 1)
            name = node("Relu", [name]) if draw(st.booleans()) else name
        name = node("Flatten", [name])
        features = shape[0]
    else:
        name = node("Flatten", [name])
        features = shape[0] * shape[1] * shape[2]
    if draw(st.booleans()):
        weight = random.normal(size=(draw(st.integers(1, 37)), features)) / np.sqrt(features)
        weight *= random.random(weight.shape) < draw(st.sampled_from([0.05, 0.3, 1.0]))
        name = node("Gemm", [name, constant(weight), constant(random.normal(size=len(weight)))], transB=1)
        features = len(weight)
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("input", 1, ["batch", channels, height, width])],
        [helper.make_tensor_value_info(name, 1, ["batch", features])],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return model, random.normal(size=(batch, channels, height, width)).astype(np.float32)


def agree(case, *engines):
    model, inputs = case
    made, reason = with_nodes(packed(model)[0])
    assert reason is None
    expected = scores(model, inputs, engine=None)
    for engine in engines:
        found = scores(made, inputs, engine=engine, threads=2)
        # scores may cancel to next to nothing: what they are made of is of the order of one
        assert np.abs(found - expected).max() <= 2e-5 * max(1, np.abs(expected).max()), engine


SMALL_CACHE = "-DSECOND_CACHE=12288"
"""For an engine that computes even small planes in bands."""


@pytest.fixture(scope="module")
def in_bands(tmp_path_factory):
    """A library that takes the second cache for a small one."""
    file = tmp_path_factory.mktemp("small") / "engine.so"
    build(target_here(), file, (*kernels.OPTIONS, SMALL_CACHE))
    return file


@here
def test_random_networks(in_bands):
    @checked(max_examples=40, deadline=None)
    @given(random_models())
    def every(case):
        agree(case, library(target_here()), in_bands)

    every()


@here
@pytest.mark.slow
def test_a_thousand_random_networks(in_bands):
    @checked(max_examples=1000, deadline=None, derandomize=True)
    @given(random_models())
    def every(case):
        agree(case, library(target_here()), in_bands)

    every()


COMPARED = """
import json
from pathlib import Path

import numpy as np
import onnxruntime

differences = {}
for model in sorted(Path().glob("*.onnx")):
    found = []
    for engine in ((), ("./engine.so",)):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        for each in engine:
            options.register_custom_ops_library(each)
        inputs = {"input": np.load(model.with_suffix(".npy"))}
        found.append(onnxruntime.InferenceSession(str(model), options).run(None, inputs)[0])
    differences[model.stem] = float(np.abs(found[1] - found[0]).max() / np.abs(found[0]).max())
print(json.dumps(differences))
"""
"""Of the engine's scores from the body's, relative to the largest, by model."""


def said_on_arm(code, processor, target, models, folder):
    """What a program prints there that finds models, by name, with their inputs and the engine beside it."""
    if reason := arm.missing():
        pytest.skip(reason)
    (folder / "engine.so").write_bytes(library(target_of(target)).read_bytes())
    for name, (made, inputs) in models.items():
        (folder / f"{name}.onnx").write_bytes(made.SerializeToString())
        np.save(folder / f"{name}.npy", inputs)
    return arm.emulated(processor, ["-c", code], folder)


@pytest.mark.slow
@pytest.mark.parametrize("processor", arm.PROCESSORS, ids=lambda each: each.name)
def test_the_engine_computes_what_the_body_computes_on_arm(processor, tmp_path):
    model, inputs = packed_of("cifar_resnet", 0.1)
    models = {"resnet20": (with_nodes(model)[0], inputs[:3])}
    assert json.loads(said_on_arm(COMPARED, processor, "aarch64", models, tmp_path))["resnet20"] < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processor", "target", "tolerance"),
    [(arm.CORTEX_A72, "aarch64", TOLERANCE), (arm.CORTEX_A76, "aarch64-fp16", 0.01)],
    ids=["float32", "float16"],
)
def test_layers_that_are_computed_together_give_their_answers_on_arm(processor, target, tolerance, tmp_path):
    models = {case: (made, inputs[:1]) for case in CHAINS for _, made, inputs in [chain(case)]}
    found = json.loads(said_on_arm(COMPARED, processor, target, models, tmp_path))
    assert len(found) == len(models)
    assert max(found.values()) < tolerance, found


SPOILT = """
import numpy as np
import onnxruntime

options = onnxruntime.SessionOptions()
options.register_custom_ops_library("./engine.so")
running = onnxruntime.InferenceSession("torn.onnx", options)
good, bad = np.load("torn.npy")
first, _, last = (running.run(None, {"input": each[None]})[0] for each in (good, bad, good))
assert np.isfinite(first).all() and np.array_equal(first, last), (first, last)
"""


@pytest.mark.slow
@pytest.mark.parametrize("target", ["aarch64", "aarch64-fp16"])
def test_an_image_that_is_no_image_spoils_no_other_on_arm(target, tmp_path):
    made, good, bad = torn()
    said_on_arm(SPOILT, arm.CORTEX_A76, target, {"torn": (made, np.concatenate([good, bad]))}, tmp_path)


@pytest.mark.slow
def test_float16_executes_less(tmp_path):
    if reason := arm.missing():
        pytest.skip(reason)
    model, inputs = packed_of("cifar_resnet", 0.1)
    file, one = tmp_path / "model.onnx", tmp_path / "inputs.npz"
    file.write_bytes(with_nodes(model)[0].SerializeToString())
    np.savez(one, **{"inputs/input": inputs[:1]})
    ways = [(file, library(target_of(name))) for name in ("aarch64-fp16", "aarch64")]
    half, whole = (each.instructions for each in arm.executed(arm.CORTEX_A76, ways, one, tmp_path))
    assert half < 0.7 * whole


@pytest.mark.slow
def test_means_of_large_planes_are_not_summed_in_float16(tmp_path):
    layer = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3))
    made, reason = with_nodes(packed(lean(exported(layer, lambda pixels: pixels, torch.zeros(2, 1, 192, 192))))[0])
    assert reason is None
    models = {"means": (made, np.full((1, 1, 192, 192), 3, np.float32))}
    assert json.loads(said_on_arm(COMPARED, arm.CORTEX_A76, "aarch64-fp16", models, tmp_path))["means"] < 2**-9


@pytest.mark.slow
def test_float16_is_as_near_as_its_eleven_bits_allow(tmp_path):
    models = {}
    for name in ("small_cnn", "lenet_300_100", "cifar_resnet", "vgg16", "mobilenet_v2"):
        for density in (1.0, 0.1):
            model, inputs = packed_of(name, density)
            models[f"{name} at {density}"] = with_nodes(model)[0], inputs[:1]
    found = json.loads(said_on_arm(COMPARED, arm.CORTEX_A76, "aarch64-fp16", models, tmp_path))
    assert found.keys() == models.keys()
    for name, each in found.items():
        assert 2**-13 < each < kernels.TOLERANCE["float16"] / 2, name


@here
@pytest.mark.slow
@pytest.mark.parametrize("version", ["1.20.1", "1.22.1", "1.24.4", "1.27.0"])
def test_older_onnxruntimes_take_the_library_and_compute_the_same(version, tmp_path):
    """Their interface is declared by hand, not by their headers."""
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", tmp_path / "old"]
    subprocess.run([*install, f"onnxruntime=={version}"], check=True)
    model, inputs = sparse_of("cifar_resnet", 0.1)
    (tmp_path / "engine.so").write_bytes(library(target_here()).read_bytes())
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "old")}
    code = f"{COMPARED}\nassert onnxruntime.__version__ == {version!r}"
    for name, kind in (("float32", model), ("int8", quantised(model, [{"input": inputs}]))):
        (tmp_path / f"{name}.onnx").write_bytes(with_nodes(packed(lean(kind))[0])[0].SerializeToString())
        np.save(tmp_path / f"{name}.npy", inputs[:3])
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert 0 < found["float32"] < TOLERANCE
    assert found["int8"] > 0


class OfBlocks(nn.Module):
    """Layers of each kind whose filters' weights are zero together."""

    def __init__(self, length, density):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 64, 3, 2, 1)
        self.larger, self.along, self.last = nn.ConvTranspose2d(64, 32, 2, 2), nn.Linear(32, 64), nn.Linear(64, 16)
        draws = torch.Generator().manual_seed(length)
        with torch.no_grad():
            for layer in self.children():
                axis, filters = filters_of(layer, layer.weight)
                blocks = Blocks(axis, filters, length)
                alive = torch.rand(blocks.sums(layer.weight).shape, generator=draws) < density
                layer.weight.mul_(blocks.spread(alive, layer.weight.shape))

    def forward(self, images):
        made = self.larger(self.second(self.first(images).relu()).relu()).relu()
        return self.last(self.along(made.flatten(2).transpose(1, 2)).relu().mean(1))


@cache
def of_blocks(length, density):
    """Its float model, packed, the codings in it, and inputs."""
    torch.manual_seed(0)
    inputs = torch.rand(3, 3, 16, 16)
    model, facts = packed(lean(exported(OfBlocks(length, density).eval(), lambda given: given, inputs)))
    return model, {fact.coding for fact in facts.values()}, inputs.numpy()


BLOCKS = [(2, 0.5), (4, 0.5), (8, 0.1), (4, 0.1)]


@here
@pytest.mark.parametrize(("length", "density"), BLOCKS)
def test_blocks_of_filters_are_read_as_what_they_are(length, density):
    model, codings, inputs = of_blocks(length, density)
    assert {each.removesuffix("blocks") for each in codings if each.endswith("blocks")}
    made, reason = with_nodes(model)
    assert reason is None
    found = scores(made, inputs, engine=library(target_here()))
    assert difference(found, scores(model, inputs, engine=None)) < TOLERANCE


WAYS = {
    "alone, in chunks": (96, 50, 20, 0.3, 1),
    "alone, short planes": (300, 30, 4, 0.1, 1),
    "alone, the shortest": (200, 17, 1, 0.3, 1),
    "two, in chunks": (96, 51, 20, 0.3, 2),
    "two, short planes": (300, 31, 5, 0.1, 2),
    "four, in chunks": (96, 49, 20, 0.3, 4),
    "four, short planes": (300, 30, 3, 0.1, 4),
    "crosswise, by rows": (64, 50, 8, 1.0, 1),
    "crosswise, in one line": (40, 35, 5, 0.9, 1),
    "crosswise, rows of four": (64, 33, 4, 0.7, 1),
    "crosswise, few places": (70, 40, 2, 1.0, 1),
    "crosswise, one place": (50, 20, 1, 1.0, 1),
}


def one_layer(into, filters, side, density, block):
    """A 3x3 convolution of planes of so many rows with a sum and a Relu, whose filters lose weights so many together."""
    random = np.random.default_rng(0)
    alive = (random.random((-(-filters // block), into, 3, 3)) < density).repeat(block, 0)[:filters]
    weight = (random.normal(size=alive.shape) * alive / np.sqrt(9 * into * density)).astype(np.float32)
    inputs = random.normal(size=(3, into, side, side)).astype(np.float32)
    beside = (random.normal(size=(filters, into, 1, 1)) / np.sqrt(into)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["input", "weight", "bias"], ["convolved"], pads=[1] * 4),
        helper.make_node("Conv", ["input", "beside"], ["short"]),
        helper.make_node("Add", ["convolved", "short"], ["sum"]),
        helper.make_node("Relu", ["sum"], ["output"]),
    ]
    bias = random.normal(size=filters).astype(np.float32)
    tensors = [numpy_helper.from_array(*each) for each in ((weight, "weight"), (bias, "bias"), (beside, "beside"))]
    sides = {"input": ["N", into, side, side], "output": ["N", filters, side, side]}
    ends = [[helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, sides[name])] for name in sides]
    opset = [helper.make_opsetid("", 18)]
    model = helper.make_model(helper.make_graph(nodes, "one", *ends, tensors), opset_imports=opset, ir_version=9)
    return model, inputs


@here
@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_compute_a_layer_gives_its_answers(way):
    model, inputs = one_layer(*WAYS[way])
    made, reason = with_nodes(packed(model)[0])
    assert reason is None
    expected = scores(model, inputs, engine=None)
    for target in (
        each for each in TARGETS if each.machine == platform.machine() and each.features <= processor_features()
    ):
        for count, threads in ((3, 1), (1, 1), (1, 2), (1, 4)):
            found = scores(made, inputs[:count], engine=library(target), threads=threads)
            assert difference(found, expected[:count]) < TOLERANCE


class Summed(nn.Module):
    """What layers make of planes, and the planes."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, planes):
        return planes + self.layers(planes)


def alone(channels, side, stride=1):
    """A convolution of single channels."""
    return nn.Conv2d(channels, channels, side, stride, side // 2, groups=channels)


CHAINS = {
    "widened and narrowed": ((8, 96, 96), [nn.Conv2d(8, 32, 1), nn.ReLU6(), alone(32, 3), nn.ReLU6(), nn.Conv2d(32, 12, 1)]),
    "a stride within": ((8, 97, 95), [nn.Conv2d(8, 32, 3, 1, 1), nn.SiLU(), alone(32, 3, 2), nn.SiLU(), nn.Conv2d(32, 8, 1)]),
    "a stride of five by five": ((24, 81, 77), [alone(24, 5), nn.Conv2d(24, 36, 1), nn.ReLU(), alone(36, 5, 2), nn.Hardswish()]),
    "phases": ((3, 201, 203), [nn.Conv2d(3, 12, 3, 2, 1), nn.ReLU(), nn.Conv2d(12, 12, 3, 1, 1), nn.ReLU(), nn.Conv2d(12, 4, 1)]),
    "phases within": ((3, 160, 150), [nn.Conv2d(3, 8, 1), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 6, 5, 1, 2)]),
    "a sum behind": ((16, 70, 70), [Summed(nn.Conv2d(16, 32, 1), nn.ReLU(), nn.Conv2d(32, 32, 3, 1, 1), nn.ReLU(), nn.Conv2d(32, 16, 1))]),
    "a sum inside": ((16, 90, 90), [nn.Conv2d(16, 24, 1), Summed(alone(24, 3)), nn.ReLU(), nn.Conv2d(24, 16, 1)]),
    "turned": ((8, 60, 61), [nn.Conv2d(8, 48, 1), nn.ConvTranspose2d(48, 4, 4, 2, 1), nn.ReLU(), nn.Conv2d(4, 8, 3, 1, 1)]),
    "long rows": ((2, 3, 5000), [nn.Conv2d(2, 12, 3, 1, 1), nn.ReLU(), nn.Conv2d(12, 4, 3, 1, 1)]),
}  # fmt: skip
"""Planes too large for the second cache, and layers that are computed together."""


@cache
def chain(case):
    """Its model, packed and of the engine, with a quarter of all weights, and three inputs."""
    shape, layers = CHAINS[case]
    torch.manual_seed(0)
    inputs = torch.randn(3, *shape)
    network = nn.Sequential(*layers).eval()
    with torch.no_grad():
        for each in network.modules():
            if isinstance(each, (nn.Conv2d, nn.ConvTranspose2d)) and each.groups == 1:
                each.weight.mul_((torch.rand_like(each.weight) < 0.25) * 2)
    model = packed(lean(folded(exported(network, lambda values: values, inputs))))[0]
    made, reason = with_nodes(model)
    assert reason is None
    return model, made, inputs.numpy()


@here
@pytest.mark.parametrize("case", CHAINS)
def test_layers_that_are_computed_together_give_their_answers_on_any_number_of_threads(case):
    model, made, inputs = chain(case)
    expected = scores(model, inputs, engine=None)
    found = [
        scores(made, inputs[:count], engine=library(target_here()), threads=threads)
        for count, threads in ((3, 1), (1, 1), (1, 2), (1, 4))
    ]
    assert difference(found[0], expected) < TOLERANCE
    for each in found[1:]:
        assert np.array_equal(each, found[0][:1])


def nodes_of(made, inputs):
    """The engine's nodes in a model, each as host.c reads it: its program, constants, inputs and answers."""
    nodes = [node for node in made.graph.node if node.domain == DOMAIN]
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in made.graph.initializer}
    shown = onnx.ModelProto()
    shown.CopyFrom(made)
    names = {name for node in nodes for name in (*node.input, *node.output)} - constants.keys() - {"input"}
    del shown.graph.output[:]
    shown.graph.output.extend(
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in sorted(names)
    )
    values = constants | {"input": inputs} | answers(session(shown, engine=None), {"input": inputs})
    for node in nodes:
        (program,) = (attribute.ints for attribute in node.attribute if attribute.name == "program")
        sides = [len(program), len(node.input), program[2], len(node.output)]
        parts = [np.array([*sides, *program])]
        for name in (*node.input, *node.output):
            value = np.ascontiguousarray(values[name])
            kind = helper.np_dtype_to_tensor_dtype(value.dtype)
            parts += [np.array([kind, value.ndim, *value.shape, *[0] * (8 - value.ndim)]), value]
        yield b"".join(part.tobytes() for part in parts)


def need_sanitizer(name):
    """Skips where there is no gcc, or no such runtime of it."""
    try:
        said = subprocess.run(["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout
    except OSError:
        pytest.skip("no gcc")
    if not Path(said.strip()).is_absolute():
        pytest.skip(f"no {name}")


@here
@pytest.mark.slow
def test_sanitizers_find_nothing(tmp_path):
    """Of right programs, nor of programs that somebody wrote wrong: those are refused, or compute something."""
    for name in ("libasan.so", "libubsan.so"):
        need_sanitizer(name)
    options = ["-std=gnu11", "-O1", "-g", "-march=native", "-ffp-contract=fast", f'-DENGINE="{kernels.SOURCE}"']
    checks = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-pthread"]
    hosts = {tmp_path / "host": [], tmp_path / "in-bands": [SMALL_CACHE]}
    source = str(Path(__file__).with_name("host.c"))
    builds = [
        subprocess.Popen(["gcc", *options, *checks, *size, source, "-o", str(host), "-lm"])
        for host, size in hosts.items()
    ]
    cases = []

    def write(made, inputs):
        for node in nodes_of(made, inputs):
            cases.append(tmp_path / f"{len(cases):03}.case")
            cases[-1].write_bytes(node)

    @checked(max_examples=120, deadline=None, derandomize=True)
    @given(random_models())
    def drawn(case):
        model, inputs = case
        write(with_nodes(packed(model)[0])[0], inputs)

    drawn()
    for case in PARTS:
        models, images = of_parts(case)
        write(with_nodes(models["float32"])[0], images["input"])
    for length, density in BLOCKS:
        model, _, inputs = of_blocks(length, density)
        write(with_nodes(model)[0], inputs)
    for way in WAYS.values():
        model, inputs = one_layer(*way)
        write(with_nodes(packed(model)[0])[0], inputs)
    for case in CHAINS:
        _, made, inputs = chain(case)
        write(made, inputs[:1])
    for preprocess in (standardised_alike, lambda pixels: pixels.float() / 255):
        images = np.random.default_rng(0).integers(0, 256, (2, 1, 8, 8), dtype=np.uint8)
        network = NETWORKS["small_cnn"](shape=(1, 8, 8), classes=10).eval()
        write(with_nodes(packed(lean(exported(network, preprocess, torch.from_numpy(images))))[0])[0], images)
    assert len(cases) > 220
    assert not any(each.wait() for each in builds)
    running = [
        subprocess.Popen([host, "30", *cases], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for host in hosts
    ]
    for each in running:
        said, fault = each.communicate()
        assert each.returncode == 0, fault
        refused, ran = map(int, re.findall(r"\d+", said))
        assert refused + ran == 30 * len(cases)
        assert refused > ran > 0


@here
@pytest.mark.parametrize("name", ["small_cnn", *(pytest.param(name, marks=pytest.mark.slow) for name in INT8_HEAVY)])
def test_an_int8_network_computes_with_its_weights_and_without_rounding_activations(name):
    model, inputs = sparse_of(name, 0.2)
    inputs = inputs[:4]
    int8 = packed(lean(quantised(model, [{"input": inputs}])))[0]
    one, reason = with_nodes(int8)
    assert reason is None
    assert np.array_equal(scores(one, inputs, engine=None), scores(int8, inputs, engine=None))
    weights = unrounded_model(one)
    assert difference(scores(one, inputs, engine=library(target_here())), scores(weights, inputs, engine=None)) < 1e-5


@here
def test_one_session_serves_many_threads_and_leaves_nothing_behind():
    model, inputs = packed_of("small_cnn", 0.1)
    running = session(with_nodes(model)[0], engine=library(target_here()), threads=2)
    expected = [running.run(None, {"input": inputs[i : i + 1]})[0] for i in range(9)]
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda i: running.run(None, {"input": inputs[i % 9 : i % 9 + 1]})[0], range(2000))
        assert all(np.array_equal(each, expected[i % 9]) for i, each in enumerate(found))


@here
@pytest.mark.parametrize("change", ["short", "dense", "program"])
def test_weights_that_do_not_fit_are_refused_when_a_session_is_made(change):
    made, _ = with_nodes(packed_of("small_cnn", 0.1)[0])
    if change == "program":
        program = next(each for each in made.graph.node if each.op_type == "Net").attribute[0]
        program.ints.append(1)
    for tensor in made.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.uint8 and change == "short":
            tensor.CopyFrom(numpy_helper.from_array(array[:1], tensor.name))
        if array.dtype == np.uint8 and change == "dense":
            tensor.CopyFrom(numpy_helper.from_array(np.full_like(array, 255), tensor.name))
    with pytest.raises(Exception, match=r"rewind sparse engine: (weights do not fit|the program is not)"):
        session(made, engine=library(target_here()))


FIELDS = list(Operation.__dataclass_fields__)


def changed(program, kind, **fields):
    """A program whose steps of a kind have other values in these fields."""
    at, found = 4, list(program[:4])
    for number in range(program[0] + program[1]):
        count = 4 if number < program[0] else len(FIELDS)
        present = [place for place in range(count) if program[at] >> place & 1]
        record = dict(zip(present, program[at + 1 : at + 1 + len(present)], strict=True))
        at += 1 + len(present)
        if number >= program[0] and record.get(0, 0) == kind:
            record |= {FIELDS.index(name): value for name, value in fields.items()}
        found += [sum(1 << place for place in record), *(record[place] for place in sorted(record))]
    return found


@here
@pytest.mark.parametrize("fields", [{}, {"pad": 64}, {"stride": 2}, {"groups": 2}, {"kernel_height": 3}])
def test_a_linear_layer_reads_a_vector_and_nothing_before_it(fields):
    made, _ = with_nodes(packed_of("lenet_300_100", 0.1)[0])
    program = next(each for each in made.graph.node if each.op_type == "Net").attribute[0]
    before = list(program.ints)
    program.ints[:] = changed(before, 4, **fields)
    if not fields:
        assert list(program.ints) == before
        session(made, engine=library(target_here()))
        return
    assert list(program.ints) != before
    with pytest.raises(Exception, match="rewind sparse engine: the program is not"):
        session(made, engine=library(target_here()))


def torn():
    """A network whose planes serve turn and turn about, and an image that is no image before a good one."""
    torch.manual_seed(0)
    layers = [nn.MaxPool2d(2)]
    for _ in range(4):
        layers += [nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()]
    layer = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), *layers, nn.Flatten(), nn.Linear(16, 3))
    model = lean(exported(layer, lambda pixels: pixels, torch.zeros(2, 1, 4, 4)))
    good = np.random.default_rng(0).random((1, 1, 4, 4), np.float32)
    return with_nodes(packed(model)[0])[0], good, np.full_like(good, np.nan)


@here
def test_an_image_that_is_no_image_has_no_scores_and_spoils_no_other():
    made, good, bad = torn()
    running = session(made, engine=library(target_here()))
    expected = running.run(None, {"input": good})[0]
    running.run(None, {"input": bad})
    assert np.array_equal(running.run(None, {"input": good})[0], expected)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    made, reason = with_nodes(packed(lean(exported(linear, lambda pixels: pixels, torch.zeros(2, 1, 4, 4))))[0])
    assert reason is None
    assert np.isnan(scores(made, bad, engine=library(target_here()))).all()


@here
@pytest.mark.parametrize("what", ["other processor", "no library", "gone"])
def test_a_file_that_is_no_library_of_this_machine_can_be_caught(what, tmp_path):
    other = next(target for target in TARGETS if target.machine != platform.machine())
    (tmp_path / "no library").write_text("no library")
    if what == "other processor":
        (tmp_path / what).write_bytes(library(other).read_bytes())
    options = onnxruntime.SessionOptions()
    with pytest.raises(Exception, match="Failed to load library"):
        options.register_custom_ops_library(str(tmp_path / what))


MEANS = nn.Conv2d(2, 3, 3, padding=1), nn.AdaptiveAvgPool2d(1)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.Sequential(nn.Conv2d(2, 3, 3, padding=2), nn.Flatten()), "which makes the plane larger"),
        (nn.Sequential(nn.Conv2d(2, 3, 3, dilation=(1, 2), padding=1), nn.Flatten()), "dilations of"),
        (nn.Sequential(nn.ConvTranspose2d(2, 3, 3, 2), nn.Flatten()), "whose planes are no 2 times as large"),
        (
            nn.Sequential(nn.Conv2d(2, 3, 1, stride=4, padding=1), nn.Flatten()),
            "a 1x1 convolution with padding 1 and stride 4",
        ),
    ],
)
def test_what_the_engine_does_not_cover_stays_as_it_is_and_says_why(layer, reason):
    model = lean(exported(layer, lambda pixels: pixels.float(), torch.zeros(2, 2, 6, 6, dtype=torch.uint8)))
    same, why = with_nodes(model)
    assert reason in why
    assert same == model


class Branches(nn.Module):
    """Three ways that part and meet, one of which the engine does not know, and answers from two places."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.three = (nn.Conv2d(2, 2, 3, padding=1) for _ in range(3))
        self.last = nn.Linear(2, 3)

    def forward(self, images):
        one = self.one(images).relu()
        two = self.two(one.erf() + one)
        three = self.three(one) + two
        return {"map": three, "scores": self.last(three.mean((2, 3))), "early": one}


def convolution(inputs=4, outputs=4):
    return nn.Conv2d(inputs, outputs, 3, padding=1)


class Made(nn.Module):
    """What a function makes of a convolution's planes, read by another."""

    def __init__(self, make, *, channels=4, seen=None):
        super().__init__()
        self.one = seen or convolution(2)
        self.two = convolution(channels) if isinstance(self.one, nn.Conv2d) else nn.Conv1d(channels, 4, 3, padding=1)
        self.make, self.scale = make, nn.Parameter(torch.rand(4, 1, 1))

    def forward(self, images):
        return self.two(self.make(self.one(images), self.scale))


class Along(nn.Module):
    """What a function makes of places, features last, and of two linear layers, perhaps with its planes behind."""

    def __init__(self, make, *, planes=False, width=4, bias=True):
        super().__init__()
        self.one = nn.Conv2d(2, 4, 3, padding=1) if planes else nn.Conv1d(2, 4, 1)
        self.first, self.second = nn.Linear(width, 6, bias=bias), nn.Linear(6, 4, bias=bias)
        self.make = make

    def forward(self, images):
        return self.make(self.one(images).movedim(1, -1), self.first, self.second)


def gated(planes):
    """Of means, by two names, one of which is also without what is below 0."""
    means = planes.mean((2, 3), keepdim=True)
    return planes * means + means.flatten(1).relu()[..., None, None]


PARTS = {
    "an unknown function": ([Made(lambda x, _: x.erf()), nn.ReLU(), nn.Flatten()], {"Erf"}, 2),
    "bounds": ([convolution(2), nn.Hardtanh(-1, 1), convolution()], {"Clip"}, 2),
    "by cubes": ([convolution(2), nn.Upsample(scale_factor=2, mode="bicubic"), convolution()], {"Resize"}, 2),
    "nothing behind": ([convolution(2), nn.ReLU(), convolution(), nn.Softmax(1)], {"Softmax"}, 1),
    "of means, planes": ([*MEANS, nn.Conv2d(3, 3, 3, padding=1), nn.Flatten()], {"Conv", "Reshape"}, 1),
    "of means, groups": ([*MEANS, nn.Conv2d(3, 3, 1, groups=3), nn.Flatten()], {"Conv", "Reshape"}, 1),
    "of means, a pooling": ([*MEANS, nn.MaxPool2d(1), nn.Flatten()], {"MaxPool", "Reshape"}, 1),
    "branches": ([Branches()], {"Erf"}, 2),
    "nothing else": ([convolution(2), nn.ReLU(), convolution()], set(), 1),
    "planes of means": ([convolution(2), nn.AdaptiveAvgPool2d(1)], set(), 1),
    "of means, a gate": ([*MEANS, nn.Conv2d(3, 3, 1), nn.Sigmoid()], set(), 1),
    **{
        type(each).__name__: ([convolution(2), each, convolution()], set(), 1)
        for each in (nn.Sigmoid(), nn.SiLU(), nn.Hardsigmoid(), nn.Hardswish(), nn.LeakyReLU(0.3), nn.Tanh(), nn.GELU())
    },
    "no padding": ([convolution(2), nn.Conv2d(4, 4, 3), nn.ReLU(), convolution()], set(), 1),
    "no padding, a stride": ([convolution(2), nn.Conv2d(4, 4, 3, stride=2), nn.ReLU(), convolution()], set(), 1),
    "spread": ([nn.Conv2d(2, 4, 3, padding=2, dilation=2), nn.Conv2d(4, 4, 3, dilation=2)], set(), 1),
    "spread, a stride": ([nn.Conv2d(2, 4, 3, padding=2, dilation=2, stride=2), convolution()], set(), 1),
    "low and wide": ([nn.Conv2d(2, 4, (1, 5), padding=(0, 2)), nn.Conv2d(4, 4, (3, 1), padding=(1, 0))], set(), 1),
    "low and wide, a stride": ([nn.Conv2d(2, 4, (1, 3), padding=(0, 1), stride=2), convolution()], set(), 1),
    "five by three": ([nn.Conv2d(2, 4, (5, 3), padding=(2, 0)), convolution()], set(), 1),
    "a normalisation": ([convolution(2), nn.ReLU(), nn.BatchNorm2d(4), convolution()], set(), 1),
    "a large pooling": ([convolution(2), nn.MaxPool2d(5, 1, 2), convolution()], set(), 1),
    "an average": ([convolution(2), nn.AvgPool2d(3, 2, 1, count_include_pad=False), convolution()], set(), 1),
    "half as large again": ([convolution(2), nn.Upsample(scale_factor=1.5), convolution(), nn.ReLU()], set(), 1),
    "linear": ([convolution(2), nn.Upsample(scale_factor=2, mode="bilinear"), nn.ReLU(), convolution()], set(), 1),
    "linear, odd": ([convolution(2), nn.Upsample((9, 13), mode="bilinear"), convolution()], set(), 1),
    "linear, smaller": ([convolution(2), nn.Upsample((4, 3), mode="bilinear"), convolution()], set(), 1),
    "corners": ([Made(lambda x, _: interpolated(x, (11, 70)))], set(), 1),
    "transposed": ([convolution(2), nn.ConvTranspose2d(4, 6, 2, 2), nn.ReLU(), convolution(6)], set(), 1),
    "transposed, overlapping": ([nn.Conv2d(2, 4, 1), nn.ConvTranspose2d(4, 4, 4, 2, 1), convolution()], set(), 1),
    "transposed, cropped": ([nn.Conv2d(2, 4, 1), nn.ConvTranspose2d(4, 4, 3, 2, 1), convolution()], set(), 1),
    "transposed, padded": ([nn.Conv2d(2, 4, 1), nn.ConvTranspose2d(4, 4, 3, 2, 1, 1), convolution()], set(), 1),
    "transposed, groups": ([nn.Conv2d(2, 4, 1), nn.ConvTranspose2d(4, 4, 4, 2, 1, groups=2), convolution()], set(), 1),
    "transposed, no stride": ([nn.Conv2d(2, 4, 1), nn.ConvTranspose2d(4, 6, 3, 1, 1), convolution(6)], set(), 1),
    "transposed, uneven": (
        [nn.Conv2d(2, 4, 1), nn.ConvTranspose2d(4, 4, (5, 2), (3, 2), (1, 0), bias=False), convolution()], set(), 1
    ),
    "transposed first": ([nn.ConvTranspose2d(2, 4, 2, 2), convolution()], set(), 1),
    "transposed lines": ([nn.Conv1d(2, 4, 1), nn.ConvTranspose1d(4, 4, 4, 2, 1), nn.Conv1d(4, 2, 3)], set(), 1),
    "uneven strides": ([nn.Conv2d(2, 4, 3, (2, 1), 1), nn.Conv2d(4, 4, 3, (1, 3), 1), nn.ReLU()], set(), 1),
    "uneven strides, low": ([nn.Conv2d(2, 4, (3, 1), (1, 2)), nn.MaxPool2d((1, 2), (1, 2)), convolution()], set(), 1),
    "uneven strides, one by one": ([nn.Conv2d(2, 4, 1, (1, 2)), nn.AvgPool2d(3, (2, 1)), convolution()], set(), 1),
    "partial windows": ([convolution(2), nn.MaxPool2d(3, 2, ceil_mode=True), convolution()], set(), 1),
    "partial averages": (
        [convolution(2), nn.AvgPool2d(3, 2, ceil_mode=True, count_include_pad=False), convolution()], set(), 1
    ),
    "windows beyond": ([convolution(2), nn.MaxPool2d(2, 3, ceil_mode=True), convolution(), nn.MaxPool2d(1)], set(), 1),
    "averages beyond": (
        [convolution(2), nn.AvgPool2d(2, 3, ceil_mode=True, count_include_pad=False), convolution()], set(), 1
    ),
    "windows beyond, and partial": ([convolution(2), nn.MaxPool2d((2, 3), (3, 2), ceil_mode=True), convolution()], set(), 1),
    "factors that are no halves": ([convolution(2), nn.Upsample((13, 7)), nn.ReLU(), convolution()], set(), 1),
    "factors that round down": (
        [convolution(2), nn.Upsample((14, 13)), nn.ReLU(), convolution(), nn.AdaptiveAvgPool2d(1)],
        {"Resize", "Relu", "Conv", "ReduceMean"}, 1,
    ),
    "linear, such factors": ([convolution(2), nn.Upsample((14, 10), mode="bilinear"), convolution()], set(), 1),
    "by channels' numbers": ([Made(lambda x, scale: x.tanh() / (scale.abs() + 0.5))], {"Div"}, 2),
    "means beside a plane of one": (
        [Made(lambda x, _: torch.cat([x.mean((2, 3), True), nn.functional.max_pool2d(x, 6)], 1), channels=8)],
        {"Concat"}, 2,
    ),
    "halves": ([Made(lambda x, _: torch.cat(x.chunk(2, 1)[::-1], 1))], set(), 1),
    "unequal parts": ([Made(lambda x, _: x.split([1, 2, 1], 1)[1], channels=2)], set(), 1),
    "some channels": ([Made(lambda x, _: x[:, 1:3], channels=2)], set(), 1),
    "every second place": (
        [Made(lambda x, _: torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2]], 1), channels=8)], set(), 1
    ),
    "the middle": ([Made(lambda x, _: x[..., 1:5, 2:])], set(), 1),
    "channels last": ([Made(lambda x, _: x.permute(0, 2, 3, 1).relu().permute(0, 3, 1, 2))], set(), 1),
    "sides": ([Made(lambda x, _: x.transpose(2, 3).tanh())], set(), 1),
    "shuffled": ([convolution(2), nn.ChannelShuffle(2), convolution()], set(), 1),
    "shuffled places": ([nn.Conv2d(2, 16, 3, padding=1), nn.PixelShuffle(2), convolution()], set(), 1),
    "gathered places": ([convolution(2), nn.PixelUnshuffle(2), convolution(16)], set(), 1),
    "other planes": ([Made(lambda x, _: x.reshape(-1, 8, 6, 3), channels=8)], set(), 1),
    "planes of a vector": (
        [convolution(2), nn.Flatten(), nn.Linear(144, 36), nn.ReLU(), nn.Unflatten(1, (4, 3, 3)), convolution()], set(), 1
    ),
    "pooled in depth": (
        [Made(lambda x, _: nn.functional.max_pool3d(x.view(-1, 2, 2, 6, 6), (3, 1, 1), 1, (1, 0, 0)).flatten(1, 2))],
        {"Reshape", "MaxPool"}, 2,
    ),
    "a mean of inner sides": (
        [Made(lambda x, _: x.view(-1, 2, 2, 6, 6).mean((2, 3)).view(-1, 2, 2, 3), channels=2)], {"Reshape", "ReduceMean"}, 2
    ),
    "minus a number": ([Made(lambda x, _: x.tanh() - 0.3)], set(), 1),
    "a number minus": ([Made(lambda x, _: 1 - x.sigmoid())], set(), 1),
    "minus channels' numbers": ([Made(lambda x, scale: x.tanh() - scale)], set(), 1),
    "minus another": ([Made(lambda x, _: x.tanh() - x.relu())], set(), 1),
    "by a number": ([Made(lambda x, _: x.tanh() / 3)], set(), 1),
    "means of lines": (
        [nn.Conv1d(2, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 3)], set(), 1
    ),
    "twice as large": ([convolution(2), nn.Upsample(scale_factor=2), convolution()], set(), 1),
    "three times as large": ([convolution(2), nn.Upsample(scale_factor=3), nn.ReLU(), convolution()], set(), 1),
    "two in a string": ([Made(lambda x, _: torch.cat([x, x.relu()], 1), channels=8)], set(), 1),
    "four in a string": ([Made(lambda x, _: torch.cat([x, x.tanh(), x, x.relu()], 1), channels=16)], set(), 1),
    "times a number": ([Made(lambda x, _: x.tanh() * 0.3)], set(), 1),
    "times channels' numbers": ([Made(lambda x, scale: x.tanh() * scale)], set(), 1),
    "plus channels' numbers": ([Made(lambda x, scale: x.tanh() + scale)], set(), 1),
    "plus a number a place": ([Made(lambda x, _: x + torch.arange(36.0).view(6, 6) / 9)], {"Add"}, 2),
    "times another": ([Made(lambda x, _: x.tanh() * x.relu())], set(), 1),
    "times a channel": ([Made(lambda x, _: x * x.mean((2, 3), keepdim=True).tanh())], set(), 1),
    "plus a channel": ([Made(lambda x, _: x.mean((2, 3), keepdim=True) + x)], set(), 1),
    "times itself": ([Made(lambda x, _: x * x)], {"Mul"}, 2),
    "lines": ([nn.Conv1d(2, 4, 5, padding=2), nn.Tanh(), nn.Conv1d(4, 4, 3, stride=2, padding=1)], set(), 1),
    "spread lines": ([nn.Conv1d(2, 4, 3, dilation=3), nn.ReLU(), nn.MaxPool1d(3, 2, 1), nn.Conv1d(4, 4, 1)], set(), 1),
    "a value by two names": ([Made(lambda x, _: gated(x - 0.5))], set(), 1),
    "a sequence": ([Along(lambda x, first, second: second(first(x).relu()))], set(), 1),
    "a residual sequence": ([Along(lambda x, first, second: x + second(nn.functional.gelu(first(x))))], set(), 1),
    "without shifts": ([Along(lambda x, first, second: second(first(x).sigmoid()) * 0.5, bias=False)], set(), 1),
    "a mean of a sequence": ([Along(lambda x, first, second: second(first(x).tanh().mean(1)))], set(), 1),
    "a gate of a sequence": (
        [Along(lambda x, first, second: second(first(x) * first(x).mean(1, keepdim=True).sigmoid()))], set(), 1
    ),
    "a matrix of a vector": ([Along(lambda x, first, second: second(x.mean(1) @ first.weight.T))], set(), 1),
    "two ways of a sequence": (
        [Along(lambda x, first, second: (first(x).relu(), second(first(x).relu()), first(x).transpose(1, 2).tanh()))],
        set(), 1,
    ),
    "both sides of a sequence": (
        [Along(lambda x, first, second: second(first(x.relu().transpose(1, 2)).tanh()).transpose(1, 2), width=36)],
        set(), 1,
    ),
    "attention of a sequence": (
        [Along(lambda x, first, second: second(first((x @ x.transpose(1, 2)).softmax(2) @ x)))], {"MatMul", "Softmax"}, 2
    ),
    "planes, features last": (
        [Along(lambda x, first, second: (x + second(first(x).relu())).movedim(-1, 1), planes=True), convolution()], set(), 1
    ),
    "planes to a sequence": (
        [Along(lambda x, first, second: second(first(x.flatten(1, 2)).relu()).mean(1), planes=True)], set(), 1
    ),
    "features, some": ([Along(lambda x, first, second: second(first(x)[:, 3:9].relu()))], set(), 1),
    "lines in a string": (
        [Made(lambda x, _: torch.cat([x, x.relu()], 1), channels=8, seen=nn.Conv1d(2, 4, 3, padding=1))], set(), 1
    ),
}  # fmt: skip


def interpolated(planes, size):
    return nn.functional.interpolate(planes, size, mode="bilinear", align_corners=True)


@cache
def of_parts(case):
    """Packed models of a case of ``PARTS`` with random zeros, by kind, and images."""
    layers, *_ = PARTS[case]
    network = nn.Sequential(*layers) if len(layers) > 1 else layers[0]
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_().mul_(torch.rand(parameter.shape) < (0.4 if parameter.ndim > 1 else 2))
        for name, buffer in network.named_buffers():
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 2)
    plane = (36,) if any(isinstance(each, nn.Conv1d) for each in network.modules()) else (6, 6)
    pixels = torch.randint(0, 256, (4, 2, *plane), dtype=torch.uint8)
    given = {"input": pixels.numpy()}
    model = exported(network.eval(), lambda images: images.float() / 255, pixels)
    few = {"input": given["input"][:1]}  # others are beyond their ranges: what is clamped where shows
    made = {"float32": model, "int8": quantised(model, [few])}
    return {kind: packed(lean(each))[0] for kind, each in made.items()}, given


@here
@pytest.mark.parametrize("case", some_fast(zip(PARTS), [*zip(PARTS)][::3]))
def test_an_operator_that_the_engine_does_not_know_costs_that_operator(case):
    _, left, count = PARTS[case]
    models, given = of_parts(case)
    for kind, model in models.items():
        made, reason = with_nodes(model)
        assert reason is None
        found = set(left_to_onnxruntime(made)) - {"QuantizeLinear", "DequantizeLinear"}
        assert found == left if kind == "float32" else found <= left  # a range may do what a Clip does
        if kind == "float32":
            assert sum(node.domain == DOMAIN for node in made.graph.node) == count
        onnx.checker.check_model(made, full_check=True)
        before, body = (answers(session(each, engine=None), given) for each in (model, made))
        assert all(np.array_equal(before[name], body[name]) for name in before)
        expected = unrounded(made, given)
        for threads in (1, 2):
            running = session(made, threads=threads, engine=library(target_here()))
            for some in (1, 3, 4):
                answer = answers(running, {"input": given["input"][:some]})
                assert differing(answer, {name: each[:some] for name, each in expected.items()}) < 1e-5, kind


FAR = [0.0, -0.0, 1e-6, -1e-3, 0.3, -2.5, 2.9, 10, -17.5, 86.5, -87.5, 89, -1000, 1e30, np.inf, -np.inf, np.nan]


@here
@pytest.mark.parametrize(
    "function", [nn.Sigmoid, nn.SiLU, nn.Hardsigmoid, nn.Hardswish, nn.LeakyReLU, nn.Tanh, nn.GELU]
)
def test_functions_are_those_of_torch_far_out_too(function):
    network = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), function())
    with torch.no_grad():
        network[0].weight.fill_(1)
    values = torch.cat([torch.tensor(FAR), torch.linspace(-12, 12, 303)]).view(1, 1, 16, 20)
    model = lean(exported(network.eval(), lambda each: each, values))
    made, reason = with_nodes(model)
    assert reason is None
    assert left_to_onnxruntime(made) == []
    found = torch.from_numpy(scores(made, values.numpy(), engine=library(target_here())))
    with torch.no_grad():
        expected = network.double()(values.double())
    close = torch.isclose(found.double(), expected, rtol=2e-6, atol=3e-7, equal_nan=True)
    if function in (nn.SiLU, nn.Hardswish, nn.GELU):  # at minus infinity they are 0 times infinity
        close |= values == -np.inf
    assert close.all(), (values[~close], found[~close], expected[~close])


@here
def test_a_tanh_has_all_its_digits_near_zero():
    network = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.Tanh())
    with torch.no_grad():
        network[0].weight.fill_(1)
    values = torch.cat([torch.logspace(-8, 0.5, 150), -torch.logspace(-8, 0.5, 150)]).view(1, 1, 15, 20)
    made, _ = with_nodes(lean(exported(network.eval(), lambda each: each, values)))
    found = torch.from_numpy(scores(made, values.numpy(), engine=library(target_here())))
    assert torch.allclose(found.double(), values.double().tanh(), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [("lenet_300_100", "int8", 0), ("lenet_300_100", "float32", 1e-4), ("small_cnn", "int8", 0.02)],
)
def test_other_machines_give_the_same_bits_where_every_operator_is_exact(name, kind, expected):
    """The mean of small_cnn's planes is added in float."""
    model, inputs = sparse_of(name, 0.3)
    assert (
        tolerance(lean(quantised(folded(model), [{"input": inputs[:8]}])) if kind == "int8" else model, kind)
        == expected
    )


def a_mean(axes):
    """A network with a mean over ``axes``: the name of a constant, or of what a node makes."""
    nodes = [
        helper.make_node("Conv", ["input", "w"], ["c"], pads=[1] * 4),
        helper.make_node("Constant", [], ["made"], value=numpy_helper.from_array(np.array([2, 3]), "made")),
        helper.make_node("ReduceMean", ["c", axes], ["m"], keepdims=0),
        helper.make_node("Gemm", ["m", "v"], ["scores"], transB=1),
    ]
    random = np.random.default_rng(0)
    arrays = {"w": random.normal(size=(3, 2, 3, 3)), "v": random.normal(size=(4, 3))}
    tensors = [numpy_helper.from_array(each.astype(np.float32), name) for name, each in arrays.items()]
    tensors.append(numpy_helper.from_array(np.array([2, 3]), "named"))
    values = [helper.make_tensor_value_info(*each) for each in (("input", 1, ["b", 2, 6, 6]), ("scores", 1, ["b", 4]))]
    graph = helper.make_graph(nodes, "graph", values[:1], values[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.mark.parametrize(("axes", "left"), [("named", []), ("made", ["ReduceMean"])])
def test_what_stands_elsewhere_than_usual_is_not_covered(axes, left):
    assert left_to_onnxruntime(with_nodes(a_mean(axes))[0]) == left


FAULTY = {
    "it refuses": ("library", lambda _: CHECKOUT / "README.md", "Failed to load library"),
    "it computes something else": ("TOLERANCE", {"float32": -1.0}, "computes something else: its outputs differ by"),
}


@here
@pytest.mark.parametrize("fault", FAULTY)
def test_a_model_that_the_library_does_not_compute_here_is_told_with_its_reason(fault, monkeypatch):
    model, inputs = packed_of("small_cnn", 0.3)
    made, _ = with_nodes(model)
    assert engine_fault(made, {"input": inputs[:2]}) is None
    name, value, reason = FAULTY[fault]
    monkeypatch.setattr(kernels, name, value)
    assert reason in engine_fault(made, {"input": inputs[:2]})


@pytest.mark.slow
@pytest.mark.parametrize("target", ["aarch64", "aarch64-fp16"])
def test_a_library_has_the_same_bytes_whoever_builds_it(target, tmp_path, monkeypatch):
    for name in ("one", "two"):
        monkeypatch.setenv("ZIG_GLOBAL_CACHE_DIR", str(tmp_path / "cache"))
        build(target_of(target), tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes() == library(target_of(target)).read_bytes()
    assert str(kernels.SOURCE.parent).encode() not in (tmp_path / "one").read_bytes()


def test_errors_of_building_are_sentences(tmp_path):
    with pytest.raises(PipelineError, match="kernels: got 'riscv', takes x86_64-avx512, "):
        target_of("riscv")
    with pytest.raises(PipelineError, match="cannot be built for toaster: "):
        build(Target("toaster", "x86_64", "toaster"), tmp_path / "toaster.so")


def test_the_program_and_the_source_name_the_same_fields():
    source = kernels.SOURCE.with_name("program.h").read_text()
    declared = source[source.index("int64_t kind, from, to") : source.index("} step;")]
    names = [
        name.strip()
        for line in declared.splitlines()
        for name in re.sub("int64_t|loop ", "", line.split("/*")[0]).replace(";", ",").split(",")
        if name.strip()
    ]
    own = {"source": ["from"], "start": ["channel", "row", "column"], "loops": ["loops[LOOPS]"]}
    assert names == [name for field in Operation.__dataclass_fields__ for name in own.get(field, [field])]
