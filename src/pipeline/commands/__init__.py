"""What can be asked for: a file for each ``task=``, sweeps of them, and the call from Python."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from pipeline.ground.extras import needed
from pipeline.ground.loading import loading
from pipeline.settings.groups import Settings

Command = Callable[[Settings, Path], None]
"""Does a task of the settings; the path is the folder of ledgers and tracking."""


NEEDS = {"bundle": "deploy", "verify": "deploy", "measure": "deploy", "search": "deploy", "compare": "compare"}
"""What a task takes beside the core."""


def command(task: str) -> Command:
    """What ``task=`` names; its file, and all that it needs, is loaded now.

    Raises:
        SettingsError: if that is not installed.
    """
    if task in NEEDS:
        needed(NEEDS[task], f"task={task}")
    with loading():
        found: Command = import_module(f"pipeline.commands.{task}").main
    return found
