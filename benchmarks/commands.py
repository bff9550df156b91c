"""Whole commands: seconds from typing to the first training step, and the share of a job outside of training."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Job:
    """Seconds of one command: to the first step, in training epochs (validation included), in tests, in all."""

    to_first_step: float
    epochs: float
    tests: float
    whole: float

    @property
    def share_outside(self) -> float:
        return 1 - (self.epochs + self.tests) / self.whole


def measured(*arguments: str, busy: int = 0, environment: Mapping[str, str] | None = None) -> Job:
    """Runs ``python -m pipeline`` with these arguments into a new folder, beside ``busy`` processes that never rest."""
    with tempfile.TemporaryDirectory() as folder:
        runs, file = Path(folder) / "runs", Path(folder) / "observed.json"
        begin = time.time()
        command = [sys.executable, "-m", "benchmarks.observed", str(file), *arguments, f"runs={runs}"]
        others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
        try:
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, **(environment or {})})
        finally:
            for other in others:
                other.kill()
                other.wait()
        whole = time.time() - begin
        seen = json.loads(file.read_text())
        records = [json.loads(path.read_text()) for path in runs.glob("*/*/**/round.json")]
    epochs = sum(epoch["seconds"] for record in records for epoch in record["history"])
    return Job(seen["first_step"] - begin, epochs, seen["evaluation"], whole)
