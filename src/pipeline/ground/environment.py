"""What a recorded number was made with: code, libraries and machine."""

import importlib.metadata
import os
import platform
import re
import subprocess
from functools import cache
from pathlib import Path

import torch

from pipeline.ground.folders import CHECKOUT, in_checkout


@cache
def git_commit() -> str:
    """Commit of the checkout, with "+changes" if files differ from it; "unknown" outside of a checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(CHECKOUT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if not in_checkout():
            return "unknown"
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


@cache
def environment() -> dict[str, str | int]:
    """Versions, commit and machine, as every round's record holds them."""
    packages = ("torch", "pytorch-lightning", "torchmetrics", "mlflow", "numpy")
    return {
        "git_commit": git_commit(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
        "platform": platform.platform(),
        "processor": torch.backends.cpu.get_cpu_capability(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "host_cores": os.cpu_count() or 0,
    }


def processor_features() -> frozenset[str]:
    """What this processor can do, in the words of ``/proc/cpuinfo``; empty where a system has no such file."""
    told = Path("/proc/cpuinfo")
    lines = re.findall(r"^(?:flags|Features)\s*:(.*)$", told.read_text() if told.exists() else "", re.MULTILINE)
    return frozenset(lines[0].split() if lines else ())


def describe_environment() -> str:
    """The environment and every installed distribution, a line each."""
    packages = {f"{each.name}=={each.version}" for each in importlib.metadata.distributions()}
    return "\n".join([*(f"{key}: {value}" for key, value in environment().items()), "", *sorted(packages)]) + "\n"
