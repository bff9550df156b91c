"""From settings to the pruning step that they ask for: which masks a round trains under, from those of the one before.

Steps raise ValueError with a sentence where they cannot do what they are asked for.
"""

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from pipeline.pruning.blocks import Blocks
from pipeline.pruning.channels import ChannelGroup
from pipeline.pruning.criteria import CRITERIA, Scores
from pipeline.pruning.filters import counts, keep_filters, norms, prune_filters
from pipeline.pruning.masks import Masks
from pipeline.pruning.prune import keep, prune, removal_count
from pipeline.pruning.shares import erdos_renyi_kernel
from pipeline.settings.groups import Pruning

Generators = Callable[[str], torch.Generator]
"""A new generator for a layer's name, the same each time."""


def cut_weights(
    pruning: Pruning,
    weights: Mapping[str, Tensor],
    masks: Masks,
    index: int,
    generator: Generators,
    positions: Mapping[str, int],
    stay: Mapping[str, int] | None = None,
) -> dict[str, Tensor]:
    """The masks of round ``index`` where single weights go, from weights and masks at the end of the round before.

    ``positions`` as ``costs.positions`` counts them: the multiply-adds that a weight's removal saves. ``stay`` is how
    many weights of each layer stay, where the settings do not say it.
    """
    scores = Scores(CRITERIA[pruning.criterion], weights, generator, _prices(pruning, positions))
    return _cut(pruning, scores, masks, index, _by_layer(pruning, masks, index) if stay is None else stay)


def cut_blocks(
    pruning: Pruning,
    weights: Mapping[str, Tensor],
    masks: Masks,
    index: int,
    generator: Generators,
    positions: Mapping[str, int],
    blocks: Mapping[str, Blocks],
    stay: Mapping[str, int] | None = None,
) -> dict[str, Tensor]:
    """As ``cut_weights``, where whole blocks go: the fewest that are as many weights as are to go."""
    power = 1 if pruning.norm == "l1" else 2
    norms = {name: blocks[name].norms(weights[name], mask, power) for name, mask in masks.items()}
    scores = Scores(CRITERIA[pruning.criterion], norms, generator, _prices(pruning, positions))
    sizes = {name: blocks[name].sums(torch.ones_like(mask, dtype=torch.int64)) for name, mask in masks.items()}
    alive = {name: blocks[name].sums(mask.long()) > 0 for name, mask in masks.items()}
    stay = _by_layer(pruning, masks, index) if stay is None else stay
    left = _cut(pruning, scores, alive, index, stay, sizes)
    return {name: blocks[name].spread(left[name], mask.shape) & mask for name, mask in masks.items()}


def _prices(pruning: Pruning, positions: Mapping[str, int]) -> dict[str, float] | None:
    """What scores are divided by, for what their weights cost."""
    if pruning.criterion != "magnitude_per_mac":
        return None
    return {name: max(1, uses) ** pruning.mac_strength for name, uses in positions.items()}


def _by_layer(pruning: Pruning, masks: Masks, index: int) -> dict[str, int] | None:
    """How many weights of each layer stay, where that does not follow from their scores."""
    if pruning.shares is not None:
        return shared(pruning, {name: mask.numel() for name, mask in masks.items()}, named, index)
    if pruning.scope != "erk":
        return None
    left = {name: int(mask.sum()) for name, mask in masks.items()}
    shapes = {name: mask.shape for name, mask in masks.items()}
    survivors, size = sum(left.values()), sum(mask.numel() for mask in masks.values())
    total = survivors - removal_count(survivors, size, fraction(pruning, index), pruning.target_density)
    return erdos_renyi_kernel(shapes, left, total)


def _cut(
    pruning: Pruning,
    scores: Scores,
    masks: Masks,
    index: int,
    stay: Mapping[str, int] | None,
    sizes: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """New masks of entries: ``stay`` weights stay by layer, or (None) all compete; ``sizes`` as ``prune``'s."""
    if stay is not None:
        return keep(scores, masks, stay, sizes)
    return prune(
        scores,
        masks,
        fraction=fraction(pruning, index),
        scope=pruning.scope,
        target_density=pruning.target_density,
        keep_share=least_share(pruning),
        sizes=sizes,
    )


def cut_filters(
    pruning: Pruning,
    weights: Mapping[str, Tensor],
    masks: Masks,
    index: int,
    generator: Generators,
    groups: Sequence[ChannelGroup],
    positions: Mapping[str, int],
) -> dict[str, Tensor]:
    """As ``cut_weights``, where whole channels of ``groups`` go."""
    if pruning.criterion == "random":
        scores = {group.name: torch.rand(group.size, generator=generator(group.name)) for group in groups}
    else:
        scores = norms(weights, masks, groups, power=1 if pruning.norm == "l1" else 2)
    if pruning.shares is not None:
        own = {group.name: group for group in groups}
        sizes = {group.name: group.size for group in groups}
        kept = shared(pruning, sizes, lambda name, pattern: own[name].matches(pattern), index)
        return keep_filters(scores, masks, groups, kept)
    assert pruning.fraction is not None
    each = {name: positions[name] if pruning.measure == "macs" else 1 for name in positions if name in masks}

    def cost(masks: Masks) -> int:
        return sum(int(masks[name].sum()) * value for name, value in each.items())

    dense = sum(masks[name].numel() * value for name, value in each.items())
    return prune_filters(
        scores,
        masks,
        groups,
        goal=max((1 - pruning.fraction) * cost(masks), (pruning.target_density or 0) * dense),
        cost=cost,
        scope=pruning.scope,
        keep_share=least_share(pruning),
    )


def shared(
    pruning: Pruning, sizes: Mapping[str, int], matches: Callable[[str, str], bool], index: int
) -> dict[str, int]:
    """How much of each layer (or group) given shares leave after round ``index``: all rounds take the same factor.

    ``matches`` says of a name and a pattern whether the pattern is of that layer.
    """
    assert pruning.shares is not None
    way = min(1.0, index / max(1, pruning.rounds or 1))
    end, now = (
        counts(sizes, {pattern: share**power for pattern, share in pruning.shares.items()}, matches)
        for power in (1, way)
    )
    return {name: max(end[name], now[name]) for name in sizes}


def named(weight: str, pattern: str) -> bool:
    """Whether a pattern, as of file names, is of the layer of a weight."""
    return fnmatchcase(weight.removesuffix(".weight"), pattern)


def fraction(pruning: Pruning, index: int) -> float:
    """The share of what is left that round ``index`` removes: the last on the way to a target all that it leaves to go.

    Rounds of one share are rounded each, and may end a weight or two above the target.
    """
    if pruning.target_density is not None and index == pruning.rounds:
        return 1.0
    assert pruning.fraction is not None
    return pruning.fraction


def least_share(pruning: Pruning) -> float:
    """The share of every layer that stays in any case."""
    return pruning.empty_layer if isinstance(pruning.empty_layer, float) else 0.0
