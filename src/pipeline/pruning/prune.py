"""One pruning step: scores and masks in, new masks out. Exact counts, deterministic ties, nothing else.

Survivors compete in groups: all together (scope global) or layer by layer (scope layer). A group of n survivors
loses exactly round(fraction x n) of them, the lowest scores first and, among equal scores, the lower flat position in
parameter order first. So without ties the masks are those of ``torch.nn.utils.prune``.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.pruning.masks import Masks


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
) -> dict[str, Tensor]:
    """New masks: each a subset of the old one. Nothing that is passed in is changed.

    Args:
        scores: by name, of the masks' shapes; the lowest go. Scores of dead weights are not looked at.
        masks: by name, True = alive.
        fraction: share of a group's survivors to remove.
        scope: "global" for one group, "layer" for a group a tensor.
        target_density: share of a group's weights that stays in any case; the step that meets it meets it exactly.
        keep_share: share of every tensor (at least one weight, if above 0) that stays, its highest scores.

    Raises:
        ValueError: if a score is not a number, or ``keep_share`` leaves too few weights to remove.
    """
    names = list(masks)
    groups = [names] if scope == "global" else [[name] for name in names]
    pruned: dict[str, Tensor] = {}
    for group in groups:
        alive = torch.cat([masks[name].flatten() for name in group])
        flat = torch.cat([scores[name].flatten() for name in group])
        count = removal_count(int(alive.sum()), alive.numel(), fraction, target_density)
        candidates = alive
        if keep_share > 0:
            candidates = torch.cat([_may_go(scores[name], masks[name], keep_share) for name in group])
        if count > int(candidates.sum()):
            raise ValueError(
                f"{count} weights are to go, but only {int(candidates.sum())} may: "
                f"{keep_share:g} of every layer is kept"
            )
        removed = torch.zeros_like(alive)
        removed[candidates] = lowest(flat[candidates], count)
        parts = (alive & ~removed).split([masks[name].numel() for name in group])
        pruned |= {name: part.view(masks[name].shape) for name, part in zip(group, parts, strict=True)}
    return pruned


def lowest(scores: Tensor, count: int) -> Tensor:
    """Marks exactly ``count`` of the scores (N), the lowest; of equal ones the earlier. Needs no sort."""
    if bool(scores.isnan().any()):
        raise ValueError("a weight's score is not a number (NaN): the training has diverged")
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    threshold = scores.kthvalue(count).values
    chosen = scores < threshold
    ties = (scores == threshold).nonzero().flatten()
    chosen[ties[: count - int(chosen.sum())]] = True
    return chosen


def _may_go(scores: Tensor, mask: Tensor, keep_share: float) -> Tensor:
    """A tensor's survivors without its ``keep_share`` highest, flat."""
    alive = mask.flatten().clone()
    floor = max(1, round(keep_share * mask.numel()))
    survivors = scores.flatten()[alive]
    alive[alive.clone()] = lowest(survivors, max(0, len(survivors) - floor))
    return alive


def emptied(before: Masks, after: Masks) -> list[str]:
    """Names of the layers that have lost their last weight."""
    return [name.removesuffix(".weight") for name in after if before[name].any() and not after[name].any()]
