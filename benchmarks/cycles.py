"""``python -m benchmarks.cycles [NAME ...]``: what an inference takes on Raspberry Pis, foretold, by everything that is
there to compute it. Writes ``docs/benchmarks-cycles.md``.

One input, one thread, random weights with an Erdos-Renyi kernel's densities (``benchmarks/deploy.py``). What was
counted before of the same models is not counted again.
"""

import hashlib
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import onnxruntime
import torch
from onnx import ModelProto
from torch import Tensor

from benchmarks.boards import WAYS, built, counts_kept, executed
from benchmarks.deploy import network
from benchmarks.tables import table
from pipeline.deploy import arm
from pipeline.deploy.arm.cycles import core_cycles, ranges
from pipeline.deploy.kernels import SOURCES, library, target_of
from pipeline.ground.environment import CHECKOUT

PAGE = CHECKOUT / "docs" / "benchmarks-cycles.md"
CASES = (("ResNet-20, 32x32", 0.055, 1), ("ResNet-20, 32x32", 0.055, 4), ("ResNet-50, 224x224", 0.05, 1))
"""A network, the share of weights that is left, and how many filters' lose them together."""
COUNTED = 3
"""Inferences of each, of which the median counts."""
Row = list[str]


def rows(name: str, density: float, block: int) -> Iterator[Row]:
    """Of each board and way: instructions, cycles of the core, milliseconds."""
    made, image = network(name, density, block)
    images = torch.cat([image, torch.randint_like(image, 256)])
    models = built(made, lambda pixels: pixels.float() / 255, images)
    for processor in arm.PROCESSORS:
        halves = "fphp" in processor.features
        engine = library(target_of("aarch64-fp16" if halves else "aarch64"))
        ways = counted(processor, models, image, engine)
        cores = core_cycles([each.blocks for each in ways.values()], processor.model)
        for (way, each), core in zip(ways.items(), cores, strict=True):
            for board, (least, most) in ranges(core, each, processor).items():
                by = way.replace("engine", "engine in float16") if halves else way
                counts = (f"{number / 1e6:.2f}" for number in (each.instructions, core))
                yield [board, by, *counts, f"{least:.2f} to {most:.2f}"]


def counted(
    processor: arm.Processor, models: dict[str, ModelProto], image: Tensor, engine: Path
) -> dict[str, arm.Executed]:
    """What an inference executes, by way."""
    facts = [arm.emulator(), processor.model, onnxruntime.__version__, COUNTED, *(each.read_text() for each in SOURCES)]
    facts += [hashlib.sha256(each.SerializeToString(deterministic=True)).hexdigest() for each in models.values()]
    one = {"input": image.numpy()}
    return counts_kept(facts, list(WAYS), partial(executed, processor, models, one, engine, counted=COUNTED))


def main() -> None:
    wanted = sys.argv[1:]
    names = dict.fromkeys(name for name, _, _ in CASES)
    if unknown := [each for each in wanted if each not in names]:
        sys.exit(f"got {', '.join(unknown)}, takes {'; '.join(names)}")
    parts = [
        "# Milliseconds on Raspberry Pis, foretold",
        "Made by `python -m benchmarks.cycles`. One input, one thread; millions of instructions and of the core's "
        "cycles, milliseconds from the least to the most: "
        "[what is assumed](deployment.md#milliseconds-that-are-foretold). Weights are random, with an Erdos-Renyi "
        "kernel's densities.",
    ]
    for name, density, block in CASES:
        if wanted and name not in wanted:
            continue
        together = "" if block == 1 else f", blocks of {block}"
        head = ["board", "computed by", "instructions, M", "cycles, M", "ms"]
        found = table(head, list(rows(name, density, block)))
        print(name, found, sep="\n", flush=True)
        parts += [f"{name}, {1 - density:.1%} zeros{together}:", found]
    if not wanted:
        PAGE.write_text("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
