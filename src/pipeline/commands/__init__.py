"""What can be asked for: a file for each ``task=``, sweeps of them, and the call from Python."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from pipeline.settings.groups import Settings

Command = Callable[[Settings, Path], None]
"""Does a task of the settings; the path is the folder of ledgers and tracking."""


def command(task: str) -> Command:
    """What ``task=`` names; its file, and all that it needs, is loaded now."""
    found: Command = import_module(f"pipeline.commands.{task}").main
    return found
