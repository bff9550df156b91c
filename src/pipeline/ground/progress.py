"""A bar for long work on a terminal or in a notebook, with words on both sides of it."""

from datetime import timedelta
from importlib.util import find_spec
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn


class Printer(Console):
    """Prints whole lines. Who reads them may go (``| head``): a BrokenPipeError, where rich would end the process."""

    def __init__(self, **named: Any) -> None:
        super().__init__(soft_wrap=True, highlight=False, markup=False, **named)

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def progress_bar(console: Console) -> Progress:
    """A bar of tasks with a ``description`` and a field ``status``; gone when it is over, nothing where none can be."""
    shown = console.file.isatty() or (console.is_jupyter and find_spec("ipywidgets") is not None)
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=30), TextColumn("{task.fields[status]}"))
    return Progress(*columns, console=console, transient=True, disable=not shown)


def clock(seconds: float) -> str:
    """Such as ``0:01:30``."""
    return str(timedelta(seconds=round(seconds)))


def time_left(seconds: float) -> str:
    """Such as ``0:01:30 left``."""
    return f"{clock(seconds)} left"
