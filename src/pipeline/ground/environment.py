"""Where things are written, and what a recorded number was made with: code, libraries and machine."""

import getpass
import importlib.metadata
import os
import platform
import re
import subprocess
import tempfile
from functools import cache
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[3]
"""The project's folder, where this is a checkout of it."""


def in_checkout() -> bool:
    """Whether the package runs from its checkout (and not from an installed wheel)."""
    return (CHECKOUT / "pyproject.toml").is_file() and (CHECKOUT / "conf").is_dir()


def expanded(path: str) -> Path:
    """The path that a user wrote, ``~`` replaced by the home folder (and left as it is where there is none)."""
    return Path(os.path.expanduser(path))  # noqa: PTH111


def runs_folder(runs: str | None) -> Path:
    """The folder of ledgers and tracking, the same wherever the command is typed in a checkout."""
    return _folder(runs, "runs")


def artifacts_folder(artifacts: str | None) -> Path:
    """The folder of what goes out of the project, the same wherever the command is typed in a checkout."""
    return _folder(artifacts, "artifacts")


def _folder(given: str | None, name: str) -> Path:
    if given is not None:
        return expanded(given)
    return CHECKOUT / name if in_checkout() else Path(name)


def cache_folder() -> Path:
    """Folder of what can be made again and is better kept: a temporary one where no other can be written."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rewind-pipeline"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass
    return _of_a_number()


def name_the_user() -> None:
    """Gives a user whom the system knows by number alone, as in containers, a name and a home; libraries ask."""
    try:
        getpass.getuser()
    except (KeyError, OSError, ImportError):
        os.environ["LOGNAME"] = f"user-{os.getuid()}"
    try:
        Path.home()
    except RuntimeError:
        _of_a_number().mkdir(parents=True, exist_ok=True)
        os.environ["HOME"] = str(_of_a_number())


def _of_a_number() -> Path:
    return Path(tempfile.gettempdir()) / f"rewind-pipeline-{os.getuid()}"


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
    import torch

    names = ("torch", "pytorch-lightning", "torchmetrics", "numpy")
    packages = {**{name: name for name in names}, "mlflow": "mlflow-skinny"}  # which is there without the UI too
    return {
        "git_commit": git_commit(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(distribution) for name, distribution in packages.items()},
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
    return "\n".join([*(f"{key}: {value}" for key, value in environment().items()), "", *_distributions()]) + "\n"


@cache
def _distributions() -> list[str]:
    """Name and version of each, of the heads of their metadata: whole ones, with their READMEs, take long to read."""
    texts = (
        each.read_text("METADATA") or each.read_text("PKG-INFO") or "" for each in importlib.metadata.distributions()
    )
    heads = (text.partition("\n\n")[0] for text in texts)
    return sorted({"==".join(re.findall("^(?:Name|Version): (.*)$", head, re.MULTILINE)) for head in heads})
