"""What a test set leaves open: how many examples it has, and how far they alone may move a score."""

import math
from collections.abc import Iterable

import numpy as np

MOST = 100_000
"""Test sets beyond so many examples are not told from shares in float32."""


def standard_error(share: float, examples: int) -> float:
    """One standard error of a share that was counted on independent examples: sqrt(p (1 - p) / n), the binomial's."""
    return math.sqrt(share * (1 - share) / examples)


def examples_behind(shares: Iterable[float]) -> int | None:
    """How many examples shares were counted on: the smallest number of which each is a whole count, in float32.

    Records hold accuracies and not the number of test examples, but float32 keeps counts of up to 100,000 apart. None
    if fewer than three shares between 0 and 1 differ, or no number fits: then they are no counts (means over batches or
    classes, say).
    """
    known = {share for share in shares if 0 < share < 1}
    if len(known) < 3:
        return None
    numbers = np.arange(1, MOST + 1)
    for share in known:
        counts = np.rint(numbers * share)
        numbers = numbers[counts.astype(np.float32) / numbers.astype(np.float32) == np.float32(share)]
    return int(numbers[0]) if len(numbers) else None
