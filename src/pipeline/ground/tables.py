"""Rows as Markdown and in columns for people, and as CSV for programs."""

import csv
import io
import sys
from collections.abc import Collection, Mapping, Sequence


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]], left: Collection[int] = ()) -> str:
    """A Markdown table; columns whose numbers are in ``left`` are set to the left, all others to the right."""
    rule = ["---" if number in left else "---:" for number in range(len(head))]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *rows)) + "\n"


def show(text: str) -> None:
    """Prints Markdown: laid out where a person reads it, as it is where a program may."""
    if not sys.stdout.isatty():
        print(text)
        return
    from rich.console import Console
    from rich.markdown import Markdown

    Console().print(Markdown(text))


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as what is in them, set to the right."""
    widths = [max(map(len, column)) + 2 for column in zip(*rows, strict=True)]
    return "\n".join("".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows)


def short(number: float) -> str:
    """Four digits, and all before the point: 0.1234, 1.234, 123.4, 12345."""
    before = len(str(int(number))) if number >= 1 else 0
    return f"{number:.{max(0, 4 - before)}f}"


def as_csv(rows: Sequence[Mapping[str, object]]) -> str:
    """A column for every key, in the order in which they first come."""
    text = io.StringIO()
    writer = csv.DictWriter(text, dict.fromkeys(name for row in rows for name in row), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
