"""What workers and the comparison cost: ``python -m benchmarks.sweeps [STORE]`` writes a page of docs/."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from benchmarks import report
from benchmarks.ratios import in_turns, ratio, spread
from benchmarks.tables import table
from pipeline.ground.environment import CHECKOUT, environment

PAGE = CHECKOUT / "docs" / "benchmarks-sweeps.md"
TURNS = 2
METHODS = "lr_rewinding,weight_rewinding,lottery_ticket,fine_tuning,reinitialisation,random_pruning"
PARENTS, ROUNDS = 1000, 10


def swept(workers: int) -> float:
    """Seconds of the digits sweep, six methods with one seed, in a folder of its own."""
    with tempfile.TemporaryDirectory() as runs:
        begin = time.perf_counter()
        command = [
            sys.executable,
            "-m",
            "pipeline",
            "-m",
            f"+method={METHODS}",
            "seed=0",
            f"runs={runs}",
            "pruning.rounds=7",
        ]
        command += ["hydra/launcher=joblib", f"hydra.launcher.n_jobs={workers}"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - begin


def page(store: Path) -> Iterator[str]:
    """The page, a paragraph at a time. The store of many runs is written to a folder, or found there."""
    yield "# Benchmarks of sweeps and comparisons"
    facts = environment()
    yield (
        f"Made by `python -m benchmarks.sweeps` (a part of `make bench`) at commit {facts['git_commit']}, with torch "
        f"{facts['torch']} and mlflow {facts['mlflow']} on {facts['host_cores']} cores; contestants take turns."
    )
    seconds = in_turns({f"{n} workers": partial(swept, n) for n in (1, 2)}, TURNS)
    faster = ratio(seconds["1 workers"], seconds["2 workers"])
    yield (
        f"The digits sweep of six methods with one seed (7 rounds a job, with bytes), {TURNS} turns; "
        "one worker has both cores."
    )
    yield table(
        ["", "seconds"],
        [
            ["one worker", f"{spread(seconds['1 workers']):.0f}"],
            ["two workers", f"{spread(seconds['2 workers']):.0f}"],
            ["two are faster by", f"{faster:.2f}"],
        ],
    )
    if not store.exists():
        report.write(store, PARENTS, ROUNDS)
    took = [report.seconds(store) for _ in range(3)]
    yield (
        f"`task=compare` over {PARENTS:,} parent runs of {ROUNDS} rounds each (and round 0), the whole command, "
        f"SQLite: {spread(took):.1f} s."
    )


def main() -> None:
    paragraphs = []
    with tempfile.TemporaryDirectory() as folder:
        for paragraph in page(Path(*sys.argv[1:] or [folder, "store"])):
            print(paragraph, flush=True)
            print()
            paragraphs.append(paragraph)
    PAGE.write_text("\n\n".join(paragraphs) + "\n")


if __name__ == "__main__":
    main()
