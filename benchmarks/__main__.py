"""``make bench``: measures all, prints it, and writes ``docs/benchmarks.md`` and ``docs/benchmarks-sweeps.md``."""

import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from benchmarks import commands, data, deploy, pruning, sweeps, training
from benchmarks.ratios import STRETCH, in_turns, ratio, spread
from benchmarks.tables import table
from pipeline.ground.environment import CHECKOUT, environment

PAGE = CHECKOUT / "docs" / "benchmarks.md"
TURNS = 5
BUSY_TURNS = 3
SIZES = (250_000, 2_500_000, 25_000_000, 250_000_000)
ENGINE_TURNS = 15
ENGINE_CASES = [
    (name, density, block)
    for name in deploy.NETS
    for density in ((0.1, 0.05) if "50" in name else (1.0, 0.05))
    for block in ((1,) if density == 1 else (1, 2, 4))
]
PAPERS_STEPS = 11 * 71_108


def page(source: Path) -> Iterator[str]:
    """The page, a paragraph at a time."""
    yield "# Benchmarks"
    yield (
        "Made by `make bench`, which measures on the machine that it runs on and writes this page. Contestants take "
        "turns; a ratio is that of two measurements of the same turn, given as median (least to most)."
    )
    facts = environment()
    yield table(["", ""], [[key, str(value)] for key, value in facts.items()])
    yield from training_speed(source)
    yield from pruning_step()
    yield from whole_jobs(source)
    yield from busy_machine()
    yield from sparse_engine()


def training_speed(source: Path) -> Iterator[str]:
    yield "## Masked retraining, images a second"
    yield (
        f"ResNet-20 at density {training.DENSITY}, images of CIFAR-10's size and number (random ones), batches of 128, "
        f"the last {training.TIMED} of {training.STEPS} steps, {TURNS} turns. Lightning's stock `ModelPruning` is "
        "written as its documentation shows, with a data set that crops, mirrors and standardises an image at a time; "
        "it trains in float32, as by default. The bare loops have the precision, memory layout, optimizer, batches and "
        "memory allocation of this pipeline, but no masks, no Lightning, no metrics."
    )
    with ExitStack() as processes:
        contestants = {
            **{who: training.contestant(who, source, "auto") for who in training.CONTESTANTS},
            "this pipeline in float32": training.contestant("this pipeline", source, "float32"),
        }
        for process in contestants.values():
            processes.enter_context(process)
        rates = in_turns(contestants, TURNS)
    ours = rates["this pipeline"]
    yield f"`training.precision=auto` is here: {contestants['this pipeline'].ready}."
    yield table(
        ["", "images/s", "this pipeline is faster by"],
        [[name, f"{spread(each):.0f}", f"{ratio(ours, each):.2f}"] for name, each in rates.items()],
    )
    faster = max((rates[name] for name in training.BARE.values()), key=lambda each: spread(each).median)
    yield f"This pipeline trains at {ratio(ours, faster):.2f} of the rate of the faster bare loop."
    own = ratio(rates[training.OWN], rates[training.OWN_BARE])
    yield (
        "A LightningModule of one's own, with DataLoaders of its own (images that are ready, float32, not compiled), "
        f"trains under masks at {own:.2f} of its rate in a bare Lightning Trainer."
    )
    best = spread(ours).median
    yield (
        f"The paper's whole ResNet-20 experiment (11 trainings of 71,108 steps) would take "
        f"{PAPERS_STEPS * 128 / best / 3600:.1f} hours at this rate; an epoch of 50,000 images {50_000 / best:.1f} s."
    )


def pruning_step() -> Iterator[str]:
    yield "## One pruning step"
    yield (
        "The lowest 20% of float32 weights in 50 layers, magnitude, global; the peer is "
        "`torch.nn.utils.prune.global_unstructured`. Each measurement is a new process; extra memory is the peak of "
        "the process over what it held before, new masks included."
    )
    rows: list[list[str]] = []
    for weights in SIZES:
        found: dict[str, list[dict[str, float]]] = {"this": [], "torch": []}
        for _ in range(3 if weights < max(SIZES) else 1):
            for who, each in found.items():
                each.append(pruning.measured(who, weights))
        seconds, extra = (
            {who: [one[what] for one in each] for who, each in found.items()} for what in ("seconds", "extra_bytes")
        )
        rows.append(
            [
                f"{weights:,}",
                f"{spread(seconds['this']):.3f} s",
                f"{spread(seconds['torch']):.3f} s",
                f"{ratio(seconds['torch'], seconds['this']):.1f}",
                f"{spread(extra['this']).median / 1e6:.0f} MB",
                f"{spread(extra['torch']).median / 1e6:.0f} MB",
                f"{spread(extra['this']).median / weights:.1f} bytes",
            ]
        )
    billion = pruning.measured("this", 1_000_000_000)
    extra_bytes = billion["extra_bytes"]
    memory = [f"{extra_bytes / 1e6:.0f} MB", "", f"{extra_bytes / 1e9:.1f} bytes"]
    rows.append(["1,000,000,000", f"{billion['seconds']:.1f} s", "", "", *memory])
    heads = ["weights", "here", "torch", "faster by", "extra memory here", "torch", "here, a weight"]
    yield table(heads, rows)


def whole_jobs(source: Path) -> Iterator[str]:
    yield "## Whole jobs"
    starts = [commands.measured("training.epochs=1", "pruning.rounds=0").to_first_step for _ in range(5)]
    arguments = ["+experiment=resnet20", f"data.source={source}", "training.epochs=2", "pruning.rounds=3"]
    job = commands.measured(*arguments, "deploy.sizes=false")
    yield table(
        ["", ""],
        [
            ["seconds from the command to the first step, digits", f"{spread(starts):.1f}"],
            ["the same, CIFAR-10 (60,000 images to decode)", f"{job.to_first_step:.1f}"],
            ["a CIFAR-10 job of four rounds of two epochs (deploy.sizes=false), seconds in all", f"{job.whole:.0f}"],
            ["its training epochs, validation included", f"{job.epochs / job.whole:.1%}"],
            ["its evaluation on test images", f"{job.tests / job.whole:.1%}"],
            ["its start, to the first step", f"{job.to_first_step / job.whole:.1%}"],
            ["all else: pruning, ledger, tracking", f"{job.share_outside - job.to_first_step / job.whole:.1%}"],
        ],
    )


def busy_machine() -> Iterator[str]:
    yield "## Beside a busy process"
    yield (
        "Seconds of 30 epochs of digits, alone and beside one process that never rests. Threads that wait for each "
        "other spin, and sleep while other processes want the cores (`training/cores.py`). `GOMP_SPINCOUNT=300000` "
        f"keeps them spinning, as OpenMP does by itself. The weights are the same. {BUSY_TURNS} turns."
    )

    def seconds(busy: int, environment: dict[str, str]) -> float:
        arguments = ("training.epochs=30", "pruning.rounds=0", "deploy.sizes=false")
        return commands.measured(*arguments, busy=busy, environment=environment).epochs

    spinning = {"GOMP_SPINCOUNT": "300000"}
    found = in_turns(
        {
            "alone, always spinning": partial(seconds, 0, spinning),
            "alone": partial(seconds, 0, {}),
            "busy, always spinning": partial(seconds, 1, spinning),
            "busy": partial(seconds, 1, {}),
        },
        BUSY_TURNS,
    )
    alone = found["alone, always spinning"]
    rows = [[case, f"{spread(each):.2f}", f"{ratio(each, alone):.2f}"] for case, each in found.items()]
    yield table(["", "seconds", "of alone, always spinning"], rows)


def sparse_engine() -> Iterator[str]:
    yield "## The sparse engine, milliseconds of one image"
    yield (
        "Random weights with an Erdos-Renyi kernel's densities, against the dense network by ONNX Runtime's float on "
        f"one thread; {ENGINE_TURNS} turns of {STRETCH} seconds, of which the second half counts. Filters of a block "
        "have their zeros together."
    )
    heads = ["", "density", "block", "MACs left", "ONNX Runtime", "engine", "faster by", "two threads over one"]
    rows = []
    for name, density, block in ENGINE_CASES:
        found = in_turns(deploy.contestants(name, density, block, (1, 2)), ENGINE_TURNS, STRETCH)
        one, two = found[deploy.engine(1)], found[deploy.engine(2)]
        rows.append(
            [
                name,
                f"{density:g}",
                str(block),
                f"{deploy.macs_left(name, density, block):.3f}",
                f"{spread(found[deploy.FLOAT]):.2f}",
                f"{spread(one):.2f}",
                f"{ratio(found[deploy.FLOAT], one):.2f}",
                f"{ratio(one, two):.2f}",
            ]
        )
    yield table(heads, rows)


def main() -> None:
    begin = time.perf_counter()
    paragraphs = []
    with tempfile.TemporaryDirectory() as folder:
        for paragraph in page(data.write(Path(folder) / "images")):
            print(paragraph, flush=True)
            print()
            paragraphs.append(paragraph)
    PAGE.write_text("\n\n".join(paragraphs) + "\n")
    sweeps.main()
    print(f"{PAGE} written after {(time.perf_counter() - begin) / 60:.0f} minutes")


if __name__ == "__main__":
    main()
