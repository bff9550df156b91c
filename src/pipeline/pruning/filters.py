"""One pruning step that takes whole filters: masks and channel groups in, new masks out.

A filter's score is the mean magnitude of the weights that are left in it (norm l1, after Li et al. 2017, section 3.1:
the sum of magnitudes, which ranks the filters of one layer alike) or their root mean square (l2); coupled filters have
one score together. Filters are taken in the order of their scores until what is left costs no more than the goal, so
a goal is met to within one filter. A group never loses its last channel.
"""

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from pipeline.pruning.channels import ChannelGroup, alive, without
from pipeline.pruning.masks import Masks

Scores = Mapping[str, Tensor]
"""By the name of a group: a score for each channel."""


def norms(weights: Mapping[str, Tensor], masks: Masks, groups: Sequence[ChannelGroup], power: int) -> dict[str, Tensor]:
    """The generalised mean of the magnitudes that make each channel: ``power`` 1 for L1, 2 for L2. float64 (size,)."""
    scores = {}
    for group in groups:
        total, count = (torch.zeros(group.size, dtype=torch.float64) for _ in range(2))
        for each in group.makers:
            rows = weights[each.parameter].movedim(each.dimension, 0).flatten(1).double().abs() ** power
            left = masks[each.parameter].movedim(each.dimension, 0).flatten(1)
            total.index_add_(0, each.channels, (rows * left).sum(1)[each.places])
            count.index_add_(0, each.channels, left.sum(1).double()[each.places])
        scores[group.name] = (total / count.clamp(min=1)) ** (1 / power)
    return scores


def prune_filters(
    scores: Scores,
    masks: Masks,
    groups: Sequence[ChannelGroup],
    *,
    goal: float,
    cost: Callable[[Masks], int],
    scope: str = "global",
    keep_share: float = 0.0,
) -> dict[str, Tensor]:
    """New masks, with no more filters dead than it takes for ``cost(masks) <= goal``. Nothing passed in is changed.

    Args:
        scores: the lowest go first; of equal ones the earlier.
        masks: by parameter name, True = alive, for every slice of ``groups``.
        groups: those that may lose channels.
        goal: in the unit of ``cost``, which falls with every filter that goes.
        cost: of the network under masks.
        scope: "global": filters compete over the whole network; "layer": every group loses the same share.
        keep_share: share of every group's channels (at least one) that stays in any case.

    Raises:
        ValueError: if a score is not a number, or what must stay costs more than the goal.
    """
    queue: list[tuple[float, int, int]] = []
    for number, group in enumerate(groups):
        order = _living(scores[group.name], group, masks)
        for place, channel in enumerate(order[: max(0, len(order) - max(1, round(keep_share * group.size)))]):
            rank = float(scores[group.name][channel]) if scope == "global" else (place + 1) / len(order)
            queue.append((rank, number, channel))
    queue.sort(key=lambda entry: entry[:2])

    def after(count: int) -> dict[str, Tensor]:
        dead = {group.name: torch.zeros(group.size, dtype=torch.bool) for group in groups}
        for _, number, channel in queue[:count]:
            dead[groups[number].name][channel] = True
        return without(masks, groups, dead)

    count = bisect_left(range(len(queue) + 1), True, key=lambda count: cost(after(count)) <= goal)
    if count > len(queue):
        raise ValueError(
            f"{goal:,.0f} weights (or multiply-adds) are to be left, and {cost(after(len(queue))):,} are when every "
            "filter that may go is gone"
        )
    return after(count)


def _living(scores: Tensor, group: ChannelGroup, masks: Masks) -> list[int]:
    """The channels of a group that are alive, the lowest score first, of equal ones the earlier."""
    if bool(scores.isnan().any()):
        raise ValueError("a filter's score is not a number (NaN): the training has diverged")
    living = alive(group, masks)
    return [int(channel) for channel in scores.argsort(stable=True) if living[channel]]


def counts(sizes: Mapping[str, int], shares: Mapping[str, float], named: Callable[[str, str], bool]) -> dict[str, int]:
    """How many of each group's channels stay: by the first pattern of ``shares`` that is of the group, or else all.

    A pattern's groups together keep exactly round(share x their channels), each its share to within one channel, the
    larger fractions up; and each at least one.
    """
    left = dict(sizes)
    kept: dict[str, int] = {}
    for pattern, share in shares.items():
        own = [name for name in left if named(name, pattern)]
        exact = {name: share * left.pop(name) for name in own}
        kept |= {name: int(value) for name, value in exact.items()}
        missing = round(sum(exact.values())) - sum(kept[name] for name in own)
        for name in sorted(own, key=lambda name: kept[name] - exact[name])[:missing]:
            kept[name] += 1
    return {name: max(1, kept[name]) if name in kept else left[name] for name in sizes}


def keep_filters(
    scores: Scores, masks: Masks, groups: Sequence[ChannelGroup], kept: Mapping[str, int]
) -> dict[str, Tensor]:
    """New masks in which each group keeps so many channels, its highest scores; never more than it has.

    Raises:
        ValueError: if a score is not a number.
    """
    dead = {}
    for group in groups:
        order = _living(scores[group.name], group, masks)
        dead[group.name] = torch.zeros(group.size, dtype=torch.bool)
        dead[group.name][order[: max(0, len(order) - kept[group.name])]] = True
    return without(masks, groups, dead)
