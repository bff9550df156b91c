"""``python -m benchmarks.cycles [NAME ...]``: what an inference takes on Raspberry Pis, foretold, by everything that is
there to compute it. Writes ``docs/benchmarks-cycles.md``.

One input, one thread, random weights with an Erdos-Renyi kernel's densities (``benchmarks/deploy.py``). What was
counted before of the same models is not counted again.
"""

import sys
from collections.abc import Iterator

import torch

from benchmarks.boards import built, counted_once
from benchmarks.deploy import network
from benchmarks.tables import table
from pipeline.deploy import arm
from pipeline.deploy.arm.cycles import core_cycles, ranges
from pipeline.deploy.kernels import library, target_of
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
        ways = counted_once(processor, models, {"input": image.numpy()}, engine, COUNTED)
        cores = core_cycles([each.blocks for each in ways.values()], processor.model)
        for (way, each), core in zip(ways.items(), cores, strict=True):
            for board, (least, most) in ranges(core, each, processor).items():
                by = way.replace("engine", "engine in float16") if halves else way
                counts = (f"{number / 1e6:.2f}" for number in (each.instructions, core))
                yield [board, by, *counts, f"{least:.2f} to {most:.2f}"]


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
