"""Tables of the pages that the benchmarks write."""

from collections.abc import Sequence

from pipeline.ground.tables import markdown


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A paragraph: a Markdown table, numbers to the right."""
    return markdown(head, rows, left=[0]).rstrip("\n")
