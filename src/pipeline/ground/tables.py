"""Rows as Markdown for people, and as CSV for programs."""

import csv
import io
from collections.abc import Collection, Mapping, Sequence


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]], left: Collection[int] = ()) -> str:
    """A Markdown table; columns whose numbers are in ``left`` are set to the left, all others to the right."""
    rule = ["---" if number in left else "---:" for number in range(len(head))]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *rows)) + "\n"


def as_csv(rows: Sequence[Mapping[str, object]]) -> str:
    """A column for every key, in the order in which they first come."""
    text = io.StringIO()
    writer = csv.DictWriter(text, dict.fromkeys(name for row in rows for name in row), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
