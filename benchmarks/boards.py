"""``python -m benchmarks.boards [NAME ...]``: networks that people put on boards, at 90 and 95% zeros, in four ways.

Time on this machine, in turns, and executed instructions on an emulated Raspberry Pi 4, of one input on one thread.
Writes ``docs/benchmarks-networks.md``; what was counted before with the same engine and onnxruntime is not counted
again. Weights are random, with an Erdos-Renyi kernel's densities (``benchmarks/deploy.py``).
"""

import hashlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnx import ModelProto
from torch import Tensor, nn

from benchmarks.deploy import thin, timed
from benchmarks.networks import FULL
from benchmarks.ratios import STRETCH, in_turns, ratio, spread
from benchmarks.tables import table
from pipeline.deploy import arm
from pipeline.deploy.batch_first import batch_first
from pipeline.deploy.board.run import difference
from pipeline.deploy.export import exported, lean
from pipeline.deploy.folding import folded
from pipeline.deploy.kernels import SOURCES, library, target_here, target_of
from pipeline.deploy.models import unrounded
from pipeline.deploy.node import left_to_onnxruntime, with_nodes
from pipeline.deploy.pack import packed
from pipeline.deploy.quantize import quantised
from pipeline.deploy.runtime import Arrays, answers, session
from pipeline.ground.environment import CHECKOUT, cache_folder, environment

PAGE = CHECKOUT / "docs" / "benchmarks-networks.md"
DENSITIES = (0.1, 0.05)
TURNS = 9
FLOAT, INT8, SPARSE, SPARSE_INT8 = "ONNX Runtime, float", "ONNX Runtime, int8", "engine, float", "engine, int8"
WAYS = {FLOAT: (FLOAT, False), INT8: (INT8, False), SPARSE: (FLOAT, True), SPARSE_INT8: (INT8, True)}
"""Of each way the model, and whether the sparse engine computes it."""


def forms(name: str, density: float) -> tuple[dict[str, ModelProto], Arrays]:
    """A network with so many weights left, packed, float and int8, with the engine's nodes; and two inputs of it."""
    make, shape = FULL[name]
    torch.manual_seed(0)
    network, inputs = make(), torch.rand(4, *shape)
    thin(network, density)
    with torch.no_grad():
        for _ in range(10):
            network(inputs)
    return built(network.eval(), lambda given: given, inputs), {"input": inputs[:2].numpy()}


def built(network: nn.Module, preprocess: Callable[[Any], Any], inputs: Tensor) -> dict[str, ModelProto]:
    """A network packed, float and int8, with the engine's nodes; the first two inputs calibrate it."""
    plain = folded(batch_first(exported(network, preprocess, inputs)))
    made = {FLOAT: lean(plain), INT8: lean(quantised(plain, [{"input": inputs[:2].numpy()}]))}
    return {kind: with_nodes(packed(model)[0])[0] for kind, model in made.items()}


def executed(
    processor: arm.Processor,
    made: dict[str, ModelProto],
    one: Arrays,
    engine: Path,
    ways: Iterable[str] = WAYS,
    counted: int = 7,
) -> dict[str, arm.Executed]:
    """What one inference of such models executes on an emulated processor, by way, the median of so many."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        named: dict[str, Any] = {f"inputs/{each}": array for each, array in one.items()}
        np.savez(folder / "one.npz", **named)
        for kind, model in made.items():
            (folder / f"{kind}.onnx").write_bytes(model.SerializeToString())
        chosen = {way: WAYS[way] for way in ways}
        files = [(folder / f"{kind}.onnx", engine if sparse else None) for kind, sparse in chosen.values()]
        return dict(zip(chosen, arm.executed(processor, files, folder / "one.npz", folder, counted), strict=True))


def computed_by(engine: Path) -> dict[str, tuple[str, Path | None]]:
    """Of each way the model, and the engine's library if that computes it."""
    return {way: (kind, engine if sparse else None) for way, (kind, sparse) in WAYS.items()}


def kept_once(name: str, facts: Sequence[object], make: Callable[[], object]) -> Any:
    """What ``make`` gives, as JSON: kept in the cache folder under the facts that it depends on."""
    kept = cache_folder() / f"{name}-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]}.json"
    if not kept.exists():
        kept.write_text(json.dumps(make()))
    return json.loads(kept.read_text())


def counts_kept(
    facts: Sequence[object], ways: Sequence[str], count: Callable[[], dict[str, arm.Executed]]
) -> dict[str, arm.Executed]:
    """What ``count`` gives of these ways, kept as by ``kept_once``."""
    kept = kept_once("executed", [*facts, *ways], lambda: {way: vars(each) for way, each in count().items()})
    return {way: arm.Executed(**each) for way, each in kept.items()}


def counted_once(
    processor: arm.Processor, made: dict[str, ModelProto], one: Arrays, engine: Path, counted: int = 7
) -> dict[str, arm.Executed]:
    """As ``executed`` in every way, kept for these models, this engine and onnxruntime."""
    facts = [arm.emulator(), processor.model, onnxruntime.__version__, counted, *(each.read_text() for each in SOURCES)]
    facts += [hashlib.sha256(each.SerializeToString(deterministic=True)).hexdigest() for each in made.values()]
    return counts_kept(facts, list(WAYS), partial(executed, processor, made, one, engine, counted=counted))


@dataclass(frozen=True)
class Figures:
    """Milliseconds and millions of instructions by way, gains by pair of ways, how far the engine is from the body.

    ``off`` is that of the float and of the int8 model, ``rounds`` whether ONNX Runtime rounds between its nodes.
    """

    milliseconds: dict[str, float]
    gains: tuple[str, str]
    off: tuple[float, float]
    rounds: bool
    instructions: dict[str, float]


def measured(name: str, density: float) -> Figures:
    """All figures of one network at one density."""
    made, given = forms(name, density)
    one = {each: array[:1] for each, array in given.items()}
    target = target_here()
    assert target is not None, "no library is for this processor"
    engine = library(target)
    ways = computed_by(engine)
    off = tuple(
        difference(answers(session(made[kind], library=engine), given), unrounded(made[kind], given))
        for kind in (FLOAT, INT8)
    )
    rounds = "QuantizeLinear" in left_to_onnxruntime(made[INT8])
    contestants = {way: timed(made[kind], one["input"], 1, each) for way, (kind, each) in ways.items()}
    found = in_turns(contestants, TURNS, STRETCH)
    times = {way: spread(each).median for way, each in found.items()}
    gains = tuple(f"{ratio(found[stock], found[SPARSE]):.2f}" for stock in (FLOAT, INT8))
    return Figures(times, (gains[0], gains[1]), (off[0], off[1]), rounds, counted(made, one))


def counted(made: dict[str, ModelProto], one: Arrays) -> dict[str, float]:
    """Millions of instructions on a Raspberry Pi 4, emulated."""
    if arm.missing():
        return {}
    counts = counted_once(arm.CORTEX_A72, made, one, library(target_of("aarch64")))
    return {way: each.instructions / 1e6 for way, each in counts.items()}


def page(found: dict[tuple[str, float], Figures]) -> str:
    """The tables."""
    ways = tuple(WAYS)
    times, counts = [], []
    for (name, density), each in found.items():
        case = [name, f"{1 - density:.0%}"]
        times.append([*case, *(f"{each.milliseconds[way]:.2f}" for way in ways), *each.gains])
        if each.instructions:
            sparse = min(each.instructions[SPARSE], each.instructions[SPARSE_INT8])
            shares = [f"{each.instructions[way] / sparse:.2f}" for way in (FLOAT, INT8)]
            counts.append([*case, *(f"{each.instructions[way]:.1f}" for way in ways), *shares])
    heads = ["", "zeros", *ways, "engine over float", "over int8"]
    off = max(max(each.off[: 1 if each.rounds else 2]) for each in found.values())
    rounded = max((each.off[1] for each in found.values() if each.rounds), default=0)
    paragraphs = [
        "# Networks of small boards, by ONNX Runtime and by the engine",
        "Made by `python -m benchmarks.boards`. One input, one thread. Weights are random, with an Erdos-Renyi "
        "kernel's densities; every network but the transformer is one node of the engine, float and int8. "
        f"The engine's answers differ from its body's by at most {off:.1g} of the largest; by {rounded:.1g} where ONNX "
        "Runtime rounds to int8 between the engine's nodes, so that a last bit may become a step (int8 of the "
        "transformer).",
        table(["", ""], [[key, str(value)] for key, value in environment().items()]),
        f"Milliseconds here (medians of {TURNS} turns); gains are of the same turn, median (least to most):",
        table(heads, times),
        "Executed instructions on an emulated Raspberry Pi 4, in millions:",
        table(heads, counts),
    ]
    return "\n\n".join(paragraphs) + "\n"


def main() -> None:
    found = {}
    for name in sys.argv[1:] or FULL:
        for density in DENSITIES:
            found[name, density] = measured(name, density)
            print(name, density, found[name, density], flush=True)
    text = page(found)
    print(text)
    if not sys.argv[1:]:
        PAGE.write_text(text)


if __name__ == "__main__":
    main()
