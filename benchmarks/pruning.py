"""One pruning step, here and by ``torch.nn.utils.prune``: seconds and extra memory, each in a process of its own.

python -m benchmarks.pruning this 25000000      one measurement, as JSON
"""

import json
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import torch

LAYERS = 50


def measured(who: str, weights: int) -> dict[str, float]:
    """Seconds and extra bytes of one step on so many weights, in a new process."""
    command = [sys.executable, "-m", "benchmarks.pruning", who, str(weights)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def tensors(weights: int) -> list[torch.Tensor]:
    """Normal random weights in ``LAYERS`` layers, each larger than the one before."""
    torch.manual_seed(0)
    total = LAYERS * (LAYERS + 1) // 2
    ends = [weights * n * (n + 1) // 2 // total for n in range(LAYERS + 1)]
    return [torch.randn(end - begin) for begin, end in pairwise(ends)]


def prune_here(parts: list[torch.Tensor]) -> "Watched":
    from pipeline.pruning.criteria import CRITERIA, Scores
    from pipeline.pruning.masks import kept, ones_like
    from pipeline.pruning.prune import prune
    from pipeline.training.speed import keep_freed_memory

    keep_freed_memory()  # as a job does
    named = {f"{number}.weight": part for number, part in enumerate(parts)}
    scores = Scores(CRITERIA["magnitude"], named, lambda _: torch.Generator())
    old = ones_like(named)
    with Watched() as watched:
        masks = prune(scores, old, fraction=0.2)
    assert kept(masks) == kept(old) - round(0.2 * kept(old))
    return watched


def prune_by_torch(parts: list[torch.Tensor]) -> "Watched":
    from torch import nn
    from torch.nn.utils import prune

    layers = []
    for part in parts:
        layer = nn.Module()
        layer.weight = nn.Parameter(part)
        layers.append((layer, "weight"))
    with Watched() as watched:
        prune.global_unstructured(layers, prune.L1Unstructured, amount=0.2)
    return watched


class Watched:
    """Seconds of a block, and by how much the process's memory was larger at the most than before it."""

    def __enter__(self) -> "Watched":
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        self.before = memory("VmRSS")
        self.begin = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self.begin
        self.extra_bytes = memory("VmHWM") - self.before


def memory(what: str) -> int:
    """Bytes that Linux tells of this process: VmRSS at present, VmHWM at the most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(what))


if __name__ == "__main__":
    contestant = {"this": prune_here, "torch": prune_by_torch}[sys.argv[1]]
    result = contestant(tensors(int(sys.argv[2])))
    print(json.dumps({"seconds": result.seconds, "extra_bytes": result.extra_bytes}))
