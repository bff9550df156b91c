"""``python -m benchmarks.peers [NAME ...]``: networks by the engines of small boards and by this project's."""

import contextlib
import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import ModelProto, helper
from torch import Tensor, nn

from benchmarks.boards import FLOAT, INT8, SPARSE, SPARSE_INT8, WAYS, built, computed_by, counts_kept, executed
from benchmarks.deploy import network, timed
from benchmarks.ratios import STRETCH, in_turns, ratio, spread
from benchmarks.served import Served
from benchmarks.tables import table
from pipeline.deploy import arm
from pipeline.deploy.arm.cycles import milliseconds
from pipeline.deploy.batch_first import batch_first
from pipeline.deploy.board.run import difference
from pipeline.deploy.export import exported, lean
from pipeline.deploy.folding import folded
from pipeline.deploy.kernels import SOURCES, library, target_here, target_of
from pipeline.deploy.runtime import answers, session
from pipeline.ground.environment import CHECKOUT, environment
from pipeline.networks import NETWORKS

PAGE = CHECKOUT / "docs" / "benchmarks-peers.md"
HERE = Path(__file__).parent
PLACE = CHECKOUT / ".venv-peers"
TURNS = 9
PEERS = {
    "ncnn, float": "float.param",
    "MNN, float": "float.mnn",
    "LiteRT, float": "float.tflite",
    "LiteRT, int8": "int8.tflite",
    "LiteRT, sparse float": "sparse.tflite",
}
Made = tuple[nn.Module, Tensor]


def residual(name: str, density: float) -> Made:
    """A network of ``benchmarks/deploy.py`` and four images."""
    made, image = network(name, density, 1)
    return made, torch.rand(4, *image.shape[1:])


def mobilenet_v2() -> Made:
    """MobileNetV2 with 85% zeros, at random, in each of its 1x1 convolutions."""
    torch.manual_seed(0)
    made = NETWORKS["mobilenet_v2"](shape=(3, 224, 224), classes=1000).eval()
    with torch.no_grad():
        for layer in made.modules():
            if isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1):
                layer.weight.mul_(torch.rand_like(layer.weight) < 0.15)
    return made, torch.rand(4, 3, 224, 224)


@dataclass(frozen=True)
class Case:
    """A network with its zeros and four inputs; on emulated boards so many inferences are counted, of these ways."""

    make: Callable[[], Made]
    counted: int
    ways: Collection[str] = (*WAYS, *PEERS)


CASES = {
    "ResNet-20, 94.5% zeros": Case(lambda: residual("ResNet-20, 32x32", 0.055), 7),
    "MobileNetV2, 85% zeros in 1x1 layers": Case(mobilenet_v2, 1),
    "ResNet-50, 95% zeros": Case(
        lambda: residual("ResNet-50, 224x224", 0.05), 1, ways=(INT8, SPARSE, SPARSE_INT8, "LiteRT, int8")
    ),
}


def peer(model: Path, image: Path) -> Served:
    """Measures milliseconds when it is called; ``ready`` is its answer, as JSON."""
    return Served(model.name, [str(PLACE / "bin" / "python"), str(HERE / "infer.py"), "serve", str(model), str(image)])


@dataclass(frozen=True)
class Forms:
    """A network as each engine reads it, and an input (1, channels, height, width)."""

    plain: bytes
    ours: dict[str, ModelProto]
    theirs: dict[str, Path]
    image: Path

    @property
    def input(self) -> NDArray[np.float32]:
        found: NDArray[np.float32] = np.load(self.image)
        return found


def forms(made: nn.Module, inputs: Tensor, folder: Path) -> Forms:
    """Converts a network."""
    plain = lean(folded(batch_first(exported(made, lambda given: given, inputs))))
    model = folder / "model.onnx"
    model.write_bytes(_of_one(plain).SerializeToString(deterministic=True))
    np.save(folder / "inputs.npy", inputs.numpy())
    np.save(folder / "image.npy", inputs[:1].numpy())
    command = [str(PLACE / "bin" / "python"), str(HERE / "convert.py"), "model.onnx", "inputs.npy", "."]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"convert.py: {done.stderr[-2000:]}")
    theirs = {name: folder / file for name, file in PEERS.items() if (folder / file).exists()}
    return Forms(model.read_bytes(), built(made, lambda given: given, inputs), theirs, folder / "image.npy")


def _of_one(model: ModelProto) -> ModelProto:
    """A model for the converters: of one example, so that every shape in it is known, and means of planes as poolings,
    which XNNPACK's sparse path ends with.
    """
    graph = model.graph
    for each in (*graph.input, *graph.output):
        each.type.tensor_type.shape.dim[0].Clear()
        each.type.tensor_type.shape.dim[0].dim_value = 1
    del graph.value_info[:]
    nodes = []
    for node in graph.node:
        if node.op_type == "ReduceMean":
            pooled = f"{node.output[0]}_pooled"
            nodes.append(helper.make_node("GlobalAveragePool", node.input[:1], [pooled]))
            nodes.append(helper.make_node("Flatten", [pooled], node.output))
        else:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    return onnx.shape_inference.infer_shapes(model)


def times(found: Forms) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Milliseconds here by way, in turns; and how far each answer is from ONNX Runtime's float, of the largest."""
    target = target_here()
    assert target is not None, "no library is for this processor"
    given = {"input": found.input}
    ours = computed_by(library(target))
    ways: dict[str, Callable[[], float]] = {
        way: timed(found.ours[kind], found.input, 1, each) for way, (kind, each) in ours.items()
    }
    exact = answers(session(found.ours[FLOAT]), given)
    off = {
        way: difference(answers(session(found.ours[kind], library=each), given), exact)
        for way, (kind, each) in ours.items()
    }
    with ExitStack() as processes:
        for way, model in found.theirs.items():
            process = processes.enter_context(peer(model, found.image))
            ways[way] = process
            answer = np.array(json.loads(process.ready), dtype=np.float32)
            off[way] = difference({"": answer}, {"": np.ravel(next(iter(exact.values())))})
        return in_turns(ways, TURNS, STRETCH), off


def counts(found: Forms, processor: arm.Processor, case: Case, folder: Path) -> dict[str, arm.Executed]:
    """What one inference executes on an emulated processor, by way.

    What was counted before, with the same engine and model, is not counted again.
    """
    emulated = [processor.name, case.counted, arm.emulator()]
    models = [_digest(model.SerializeToString(deterministic=True)) for model in found.ours.values()]
    stock = [*emulated, onnxruntime.__version__, *models]
    engine = [*stock, *(each.read_text() for each in SOURCES)]
    names = ("convert.py", "infer.py", "requirements.txt", "requirements-aarch64.txt")
    peers = [*emulated, *((HERE / each).read_text() for each in names), _digest(found.plain)]
    counted: dict[str, arm.Executed] = {}
    for sparse, facts in ((False, stock), (True, engine)):
        ways = [way for way, (_, by_engine) in WAYS.items() if by_engine == sparse and way in case.ways]
        counted |= counts_kept(facts, ways, partial(_by_ours, found, processor, case, ways))
    for way in (each for each in found.theirs if each in case.ways):
        counted |= counts_kept(peers, [way], partial(_by_theirs, found, processor, case, way, folder))
    return counted


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _by_ours(found: Forms, processor: arm.Processor, case: Case, ways: list[str]) -> dict[str, arm.Executed]:
    engine = library(target_of("aarch64-fp16" if "fphp" in processor.features else "aarch64"))
    return executed(processor, found.ours, {"input": found.input}, engine, ways, case.counted)


def _by_theirs(found: Forms, processor: arm.Processor, case: Case, way: str, folder: Path) -> dict[str, arm.Executed]:
    given = ["count", str(found.theirs[way]), str(found.image), str(case.counted), str(PLACE / "aarch64")]
    arm.emulated(processor, [str(HERE / "infer.py"), *given], folder, plugin=folder / "counts")
    return dict(zip([way], arm.inferences(folder / "counts", case.counted), strict=True))


def section(name: str, case: Case) -> Iterator[str]:
    """The paragraphs of a network."""
    yield f"## {name}"
    with tempfile.TemporaryDirectory() as temporary, contextlib.chdir(temporary):
        folder = Path(temporary)
        found = forms(*case.make(), folder)
        yield here(found)
        for processor in arm.PROCESSORS:
            ways = counts(found, processor, case, folder)
            rows = []
            for (way, each), boards in zip(ways.items(), milliseconds(list(ways.values()), processor), strict=True):
                by = f"{way}16" if way == SPARSE and "fphp" in processor.features else way
                ranges = (f"{least:.2f} to {most:.2f}" for least, most in boards.values())
                rows.append([by, f"{each.instructions / 1e6:.2f}", *ranges])
            yield table(["computed by", "instructions, M", *(f"ms, {each}" for each in processor.gigahertz)], rows)


def here(found: Forms) -> str:
    """A table of the times on this machine."""
    taken, off = times(found)
    head = ["computed by", "ms", "times the engine's", "off by"]
    return table(
        head,
        [
            [way, f"{spread(each).median:.2f}", f"{ratio(each, taken[SPARSE]):.2f}", f"{off[way]:.1g}"]
            for way, each in taken.items()
        ],
    )


def page(parts: Mapping[str, list[str]]) -> str:
    """The page, a section a network."""
    packages = (HERE / "requirements.txt").read_text().splitlines()
    versions = [each.replace("==", " ") for each in packages if each.startswith(("ncnn", "mnn", "ai-edge-litert"))]
    return "\n\n".join(
        [
            "# Other engines of small boards",
            "Made by `make bench-peers`. One thread, one input, random weights, nothing prepared (the input is float). "
            "Dense engines compute the zeros too. Times are of this machine, in turns, median of "
            f"{TURNS}; instructions and milliseconds are foretold on emulated boards "
            "([what is assumed](deployment.md#milliseconds-that-are-foretold)). *Off by*: the largest difference from "
            "ONNX Runtime's float answer, of its largest number.",
            f"Versions: {', '.join(versions)}, onnxruntime {onnxruntime.__version__}. Each as it comes, with its "
            "own choice of types: ncnn computes in float16 on a Raspberry Pi 5. int8 of ncnn is not here, as its "
            "quantiser is in none of its wheels; nor is MNN's, whose quantiser aborts, or answers wrongly, and which "
            "computes int8 weights in float. LiteRT takes its sparse path on ARM alone: on x86 it computes those "
            "zeros.",
            table(["", ""], [[key, str(value)] for key, value in environment().items()]),
            *(each for section in parts.values() for each in section),
        ]
    )


def main() -> None:
    wanted = sys.argv[1:] or list(CASES)
    if unknown := [each for each in wanted if each not in CASES]:
        sys.exit(f"got {', '.join(unknown)}, takes {'; '.join(CASES)}")
    if not (PLACE / "complete").exists():
        sys.exit("the other engines are not installed: make bench-peers installs them")
    parts: dict[str, list[str]] = {}
    for name in wanted:
        parts[name] = []
        for part in section(name, CASES[name]):
            print(part, flush=True)
            parts[name].append(part)
    if wanted == list(CASES):
        PAGE.write_text(page(parts) + "\n")


if __name__ == "__main__":
    main()
