"""One pruning step: scores and masks in, new masks out. Exact counts, deterministic ties, nothing else.

Survivors compete in groups: all together (scope global) or layer by layer (scope layer). A group of n survivors
loses exactly round(fraction x n) of them, the lowest scores first and, among equal scores, the lower flat position in
parameter order first. So without ties the masks are those of ``torch.nn.utils.prune``.

The threshold is found by radix selection: histograms of the scores' bits, 16 at a time, from the highest. Nothing is
sorted or concatenated; the work grows linearly with the number of weights, and beside the new masks (a byte a weight)
the step needs the scores of one tensor at a time.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import reduce

import torch
from torch import Tensor

from pipeline.pruning.masks import Masks, kept

CHUNK = 1 << 18
"""Scores that are looked at together."""
DIGIT_BITS = 16


def removal_count(survivors: int, size: int, fraction: float, target_density: float | None = None) -> int:
    """How many of ``survivors`` (of ``size`` weights) one round removes.

    round(fraction x survivors), or fewer where that would go below round(target_density x size).
    """
    count = round(fraction * survivors)
    if target_density is not None:
        count = min(count, max(0, survivors - round(target_density * size)))
    return count


def prune(
    scores: Mapping[str, Tensor],
    masks: Masks,
    *,
    fraction: float,
    scope: str = "global",
    target_density: float | None = None,
    keep_share: float = 0.0,
    sizes: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """New masks: each a subset of the old one. Nothing that is passed in is changed.

    Args:
        scores: by name, of the masks' shapes; the lowest go. Scores of dead weights are not looked at.
        masks: by name, True = alive.
        fraction: share of a group's survivors to remove.
        scope: "global" for one group, "layer" for a group a tensor.
        target_density: share of a group's weights that stays in any case; the step that meets it meets it exactly.
        keep_share: share of every tensor (at least one weight, if above 0) that stays, its highest scores.
        sizes: how many weights each entry stands for, at least one (None: one). Then the fewest entries go that stand
            for as many weights as are to go.

    Raises:
        ValueError: if a score is not a number, or ``keep_share`` leaves too few weights to remove.
    """
    groups = [masks] if scope == "global" else [{name: mask} for name, mask in masks.items()]
    pruned: dict[str, Tensor] = {}
    for group in groups:
        size = sum(mask.numel() if sizes is None else int(sizes[name].sum()) for name, mask in group.items())
        count = removal_count(_weights(group, sizes), size, fraction, target_density)
        candidates = _without_highest(scores, group, keep_share) if keep_share > 0 else group
        if count > (may := _weights(candidates, sizes)):
            raise ValueError(f"{count} weights are to go, but only {may} may: {keep_share:g} of every layer is kept")
        for name, gone in lowest(scores, candidates, count, sizes).items():
            pruned[name] = gone.logical_not_().logical_and_(group[name])
    return pruned


def keep(
    scores: Mapping[str, Tensor], masks: Masks, kept: Mapping[str, int], sizes: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """New masks in which each tensor keeps so many weights, its highest scores; never more than it has.

    ``sizes`` as of ``prune``: then as many as whole entries allow.

    Raises:
        ValueError: if a score is not a number.
    """
    pruned: dict[str, Tensor] = {}
    for name, mask in masks.items():
        count = max(0, _weights({name: mask}, sizes) - kept[name])
        gone = lowest(scores, {name: mask}, count, sizes)[name]
        pruned[name] = gone.logical_not_().logical_and_(mask)
    return pruned


def _weights(masks: Masks, sizes: Mapping[str, Tensor] | None) -> int:
    """How many weights the marked entries stand for."""
    return kept(masks) if sizes is None else sum(int(sizes[name][mask].sum()) for name, mask in masks.items())


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch on one thread: two that meet at each of many small operations crawl where another program runs too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@one_thread()
def lowest(
    scores: Mapping[str, Tensor], among: Masks, count: int, sizes: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Marks exactly ``count`` of the entries that ``among`` marks: the lowest scores, of equal ones the earlier.

    With ``sizes``, the fewest of them that stand for at least ``count`` weights.

    Raises:
        ValueError: if a score among them is not a number.
    """
    if sizes is None:
        return _lowest(scores, among, count)
    largest = max(int(each.max()) for each in sizes.values())
    entries = -(-count // largest)
    while (left := count - _weights(marked := _lowest(scores, among, entries), sizes)) > 0:
        entries += -(-left // largest)
    return marked


def _lowest(scores: Mapping[str, Tensor], among: Masks, count: int) -> dict[str, Tensor]:
    marked = {name: torch.zeros_like(mask, memory_format=torch.contiguous_format) for name, mask in among.items()}
    if count == 0:
        for _ in _keys(scores, among):
            pass
        return marked
    threshold, ties = _select(scores, among, count)
    flat = {name: mask.view(-1) for name, mask in marked.items()}
    for name, first, keys in _keys(scores, among):
        chosen = keys < threshold
        if ties:
            tied = (keys == threshold).nonzero().flatten()[:ties]
            chosen[tied] = True
            ties -= len(tied)
        flat[name][first : first + len(keys)] = chosen
    return marked


def emptied(before: Masks, after: Masks) -> list[str]:
    """Names of the layers that have lost their last weight."""
    return [name.removesuffix(".weight") for name in after if before[name].any() and not after[name].any()]


def _without_highest(scores: Mapping[str, Tensor], masks: Masks, share: float) -> dict[str, Tensor]:
    """Every tensor's survivors without its highest scores, ``share`` of its weights, at least one."""
    allowed: dict[str, Tensor] = {}
    for name, mask in masks.items():
        floor = max(1, round(share * mask.numel()))
        allowed |= lowest(scores, {name: mask}, max(0, int(mask.sum()) - floor))
    return allowed


def _select(scores: Mapping[str, Tensor], among: Masks, count: int) -> tuple[int, int]:
    """Key of the ``count``-th lowest score (from 1), and how many of the entries with this very key are among those."""
    threshold, left = 0, count
    top = _types(scores, among)[1].itemsize * 8 - DIGIT_BITS
    for shift in range(top, -1, -DIGIT_BITS):
        bias = 1 << DIGIT_BITS - 1 if shift == top else 0  # the highest digit has a sign
        histogram = torch.zeros(1 << DIGIT_BITS, dtype=torch.int64)
        for _, _, keys in _keys(scores, among):
            prefixes = keys >> shift
            if shift < top:
                prefixes = prefixes[prefixes >> DIGIT_BITS == threshold]
            digits = prefixes.long() + bias & (1 << DIGIT_BITS) - 1
            histogram += torch.bincount(digits, minlength=len(histogram))
        reached = histogram.cumsum(0)
        digit = int(torch.searchsorted(reached, left))
        left -= int(reached[digit] - histogram[digit])
        threshold = (threshold << DIGIT_BITS) + digit - bias
    return threshold, left


def _keys(scores: Mapping[str, Tensor], among: Masks) -> Iterator[tuple[str, int, Tensor]]:
    """Whole numbers in the order of the scores: (name, flat position, keys of the entries from there on).

    The bits of a floating-point number, read as a whole number, rise with it; those of a negative one fall. Entries
    that are not among the candidates get the highest key of all.
    """
    score_type, key_type = _types(scores, among)
    highest = torch.iinfo(key_type).max
    for name, mask in among.items():
        flat, candidates = scores[name].flatten(), mask.flatten()
        for first in range(0, len(flat), CHUNK):
            values = flat[first : first + CHUNK].to(score_type) + 0.0  # -0.0 becomes 0.0
            no_candidate = ~candidates[first : first + CHUNK]
            if bool((values.isnan() > no_candidate).any()):
                raise ValueError("a weight's score is not a number (NaN): the training has diverged")
            bits = values.view(key_type)
            yield name, first, torch.where(bits < 0, bits ^ highest, bits).masked_fill_(no_candidate, highest)


def _types(scores: Mapping[str, Tensor], among: Masks) -> tuple[torch.dtype, torch.dtype]:
    """The floating-point type that holds all scores, and the whole numbers of its size."""
    score_type = reduce(torch.promote_types, (scores[name].dtype for name in among))
    return score_type, {2: torch.int16, 4: torch.int32, 8: torch.int64}[score_type.itemsize]
