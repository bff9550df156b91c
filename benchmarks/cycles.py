"""``python -m benchmarks.cycles [NAME ...]``: what an inference takes on Raspberry Pis, foretold, by everything that is
there to compute it. Writes ``docs/benchmarks-cycles.md``.

One input, one thread, random weights with an Erdos-Renyi kernel's densities (``benchmarks/deploy.py``).
"""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks.deploy import network
from benchmarks.tables import table
from pipeline.deploy import arm
from pipeline.deploy.arm.cycles import core_cycles, milliseconds
from pipeline.deploy.batch_first import batch_first
from pipeline.deploy.export import exported, lean
from pipeline.deploy.folding import folded
from pipeline.deploy.kernels import library, target_of
from pipeline.deploy.node import with_nodes
from pipeline.deploy.pack import packed
from pipeline.deploy.quantize import quantised
from pipeline.ground.environment import CHECKOUT

PAGE = CHECKOUT / "docs" / "benchmarks-cycles.md"
CASES = (("ResNet-20, 32x32", 0.055, 1), ("ResNet-20, 32x32", 0.055, 4), ("ResNet-50, 224x224", 0.05, 1))
"""A network, the share of weights that is left, and how many filters' lose them together."""
Row = list[str]


def rows(name: str, density: float, block: int) -> Iterator[Row]:
    """Of each board and way: instructions, cycles of the core, milliseconds."""
    made, image = network(name, density, block)
    images = torch.cat([image, torch.randint_like(image, 256)])
    plain = folded(batch_first(exported(made, lambda pixels: pixels.float() / 255, images)))
    given = {"input": images.numpy()}
    models = {"float": lean(plain), "int8": lean(quantised(plain, [given]))}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        np.savez(folder / "inputs.npz", allow_pickle=False, **{"inputs/input": given["input"]})
        for kind, model in models.items():
            (folder / f"{kind}.onnx").write_bytes(with_nodes(packed(model)[0])[0].SerializeToString())
        for processor in arm.PROCESSORS:
            halves = "fphp" in processor.features
            engine = library(target_of("aarch64-fp16" if halves else "aarch64"))
            ways: dict[str, arm.Way] = {
                f"{by}, {kind}": (folder / f"{kind}.onnx", each)
                for by, each in (("ONNX Runtime", None), ("engine in float16" if halves else "engine", engine))
                for kind in models
            }
            executed = arm.executed(processor, list(ways.values()), folder / "inputs.npz", folder)
            cores = core_cycles([each.blocks for each in executed], processor.model)
            for way, each, core, ms in zip(ways, executed, cores, milliseconds(executed, processor), strict=True):
                for board, (least, most) in ms.items():
                    taken = f"{least:.2f} to {most:.2f}"
                    yield [board, way, f"{each.instructions / 1e6:.2f}", f"{core / 1e6:.2f}", taken]


def main() -> None:
    wanted = sys.argv[1:]
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
