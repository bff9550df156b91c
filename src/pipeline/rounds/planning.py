"""How far a run goes, by arithmetic alone."""

import dataclasses
from collections.abc import Sequence

from pipeline.ground.errors import SettingsError
from pipeline.networks.costs import density
from pipeline.pruning.cut import fraction, least_share
from pipeline.pruning.prune import removal_count
from pipeline.rounds.job import Job
from pipeline.settings.groups import Pruning


def planned(job: Job) -> list[float] | None:
    """Density of every round from 0 on, by arithmetic alone; None if nothing but accuracy ends the run.

    A floor on accuracy may end a run before. Filters: of weights or multiply-adds (``pruning.measure``), each round to
    within a filter; there may be fewer rounds, since one never removes less than it should. So with blocks, to one.
    """
    pruning, masks = job.pruning, job.alive()
    if pruning.rounds is None and pruning.target_density is None and pruning.shares is None:
        return None
    if pruning.shares is not None:
        last = 1 if pruning.rounds is None else pruning.rounds
        return [density(job.layers(masks if r == 0 else job.cut_of_zeros(masks, r))) for r in range(last + 1)]
    assert pruning.fraction is not None
    if pruning.structure == "filter":
        densities = [1.0]
        while densities[-1] != pruning.target_density and len(densities) - 1 != pruning.rounds:
            densities.append(max(densities[-1] * (1 - pruning.fraction), pruning.target_density or 0.0))
        return densities
    return planned_densities([mask.numel() for mask in masks.values()], pruning)


def check_end(job: Job) -> None:
    """Holds the end of a run against what must stay of every layer (or group of filters), before anything is trained:
    where all compete with all, so that the rounds to the end remove what one round to it would.

    Raises:
        SettingsError: if the last round would have to remove more than may go, or the first would remove nothing.
    """
    pruning = job.pruning
    if pruning.structure != "filter" and pruning.shares is None and pruning.fraction and pruning.rounds != 0:
        _check_begin([mask.numel() for mask in job.alive().values()], pruning)
    kept = pruning.structure == "filter" or least_share(pruning)
    may_end_before = pruning.max_score_drop is not None
    if not kept or may_end_before or pruning.shares is not None or pruning.scope == "layer":
        return
    densities = planned(job)
    if densities is None or len(densities) == 1:
        return
    at_once = dataclasses.replace(pruning, fraction=1 - densities[-1], target_density=None)
    try:
        dataclasses.replace(job, pruning=at_once).cut_of_zeros(job.alive(), 1)
    except ValueError as error:
        setting = "target_density" if pruning.target_density is not None else "rounds"
        raise SettingsError([f"pruning.{setting}: got {getattr(pruning, setting)}, with which {error}"]) from error


def _check_begin(sizes: Sequence[int], pruning: Pruning) -> None:
    """Raises if round 1 removes nothing of layers of these ``sizes``."""
    most = max(sizes) if pruning.scope == "layer" else sum(sizes)
    if removal_count(most, most, fraction(pruning, 1), pruning.target_density):
        return
    of = f"the {most:,} weights" + (" of the largest layer" if pruning.scope == "layer" else "")
    if removal_count(most, most, fraction(pruning, 1)):
        assert pruning.target_density is not None
        raise SettingsError(
            [f"pruning.target_density: got {pruning.target_density}, at which none of {of} goes; takes less"]
        )
    raise SettingsError([f"pruning.fraction: got {pruning.fraction}, by which none of {of} goes; takes more"])


def planned_densities(sizes: Sequence[int], pruning: Pruning) -> list[float]:
    """Density of every round from 0 on where weights of layers of these ``sizes`` compete, to the weight."""
    assert pruning.fraction is not None
    if pruning.fraction == 0:
        return [1.0] * ((pruning.rounds or 0) + 1)
    groups = [[size, size] for size in sizes] if pruning.scope == "layer" else [[sum(sizes), sum(sizes)]]
    densities = [1.0]
    while pruning.rounds is None or len(densities) <= pruning.rounds:
        removed = 0
        for group in groups:
            count = removal_count(group[1], group[0], fraction(pruning, len(densities)), pruning.target_density)
            group[1] -= count
            removed += count
        if not removed:
            break
        densities.append(sum(alive for _, alive in groups) / sum(sizes))
    return densities


def planned_rounds(job: Job) -> int | None:
    """How many rounds follow round 0; None if nothing but accuracy ends the run."""
    densities = planned(job)
    return None if densities is None else len(densities) - 1
