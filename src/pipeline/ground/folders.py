"""Where things are: the checkout, and the folders that are written to unless settings name others."""

import os
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
    """Folder of what can be made again at any time, and is better kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rewind-pipeline"
