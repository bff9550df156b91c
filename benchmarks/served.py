"""Contestants in processes of their own, so that none has the memory settings or libraries of another."""

import subprocess
import tempfile
from collections.abc import Sequence


class Served:
    """A process that says a line when it is ready, and measures once for every line that comes in."""

    def __init__(self, who: str, command: Sequence[str]) -> None:
        self.who, self.said = who, tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed where the process ends
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.said, text=True
        )
        self.ready = self._answer()

    def __call__(self) -> float:
        """What it measures now."""
        assert self.process.stdin is not None
        print(file=self.process.stdin, flush=True)
        return float(self._answer())

    def _answer(self) -> str:
        assert self.process.stdout is not None
        if answer := self.process.stdout.readline().strip():
            return answer
        self.said.seek(0)
        raise RuntimeError(f"{self.who} ended with status {self.process.wait()}: {self.said.read()[-2000:]}")

    def __enter__(self) -> "Served":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self.said.close()
