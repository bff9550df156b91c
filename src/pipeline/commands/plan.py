"""``task=plan``: what a run would do, how long it would take, what would come out. Trains nothing that is kept."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.ground.errors import stoppable
from pipeline.ground.extras import missing
from pipeline.networks.layers import prunable
from pipeline.rounds.building import build_job
from pipeline.rounds.job import Job
from pipeline.rounds.planning import planned
from pipeline.settings.groups import Settings
from pipeline.training.cores import shared_cores
from pipeline.training.ranks import together
from pipeline.training.state import Epoch, State, UnderWay
from pipeline.training.train import RoundPlan, train_round


def main(settings: Settings, runs: Path) -> None:
    """Does the task."""
    job, _ = build_job(settings, runs)
    with shared_cores(), together(job.training.devices, job.training.nodes) as ranks, stoppable():
        for line in plan(job):
            if ranks.leads:
                print(line)
        known = planned(job)
        if settings.deploy.sizes and ranks.leads and known is not None and not missing("deploy"):
            from pipeline.report.forecast import told

            for line in told(job, settings.deploy, len(known) - 1):
                print(line)


def plan(job: Job) -> Iterator[str]:
    """Lines for a person: rounds with densities, epochs and steps, and the time by a timed epoch."""
    excluded = job.pruning.exclude if job.pruning.structure != "filter" else ()
    parameters = dict(job.network.named_parameters())
    names = prunable(job.network, excluded, job.pruning.include)
    spared = [name for name in prunable(job.network, (), job.pruning.include) if name not in names]
    weights = sum(parameters[name].numel() for name in names)
    first = job.dense_span if job.trained is None else dataclasses.replace(job.dense_span, first=job.dense_span.last)
    known = planned(job)
    densities = known or [1.0]
    by_macs = job.pruning.measure == "macs" and job.pruning.shares is None

    yield f"{'round':>8}{'MACs' if by_macs else 'density':>10}{'weights':>14}{'epochs':>8}{'steps':>10}"
    steps = epochs = 0
    for index, density in enumerate(densities):
        span, copies = (job.span, job.retraining.copies) if index else (first, 1)
        in_round = copies * max(0, span.total_steps - span.first * span.steps_per_epoch)
        steps += in_round
        epochs += copies * span.epochs
        left = f"{round(density * weights):,}" if not by_macs or density == 1 else "?"
        yield f"{index:>8}{density:>10.4f}{left:>14}{copies * span.epochs:>8}{in_round:>10,}"
    if known is None:
        yield "further rounds follow until the validation score falls by pruning.max_score_drop"
    per_step, seconds = timed_epoch(job)
    yield f"{len(densities)} rounds, {epochs:,} epochs, {steps:,} steps"
    total = _duration(per_step * steps)
    yield f"one epoch took {seconds:.1f} s here: about {total} in all, less what is complete already"
    yield f"pruned: {_listed(names)}" + (f"; spared: {_listed(spared)}" if spared else "")


def _listed(names: Sequence[str], most: int = 6) -> str:
    """The first names, and how many there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"


def timed_epoch(job: Job) -> tuple[float, float]:
    """Seconds of a step and of the whole second epoch of round 0 (of the first, if T has one), trained and thrown away.

    The first epoch pays for what is done once: memory, kernels, workers.
    """
    seconds: list[float] = []
    span = dataclasses.replace(job.dense_span, last=min(2, job.dense_span.last))

    def on_epoch(epoch: Epoch, _: UnderWay) -> None:
        seconds.append(epoch.seconds)

    one = RoundPlan(span, {}, job.seed, 0)
    train_round(job.trainable, one, UnderWay(State(job.initial(0), {})), first_epoch=0, on_epoch=on_epoch)
    return seconds[-1] / span.steps(span.last - 1), seconds[-1]


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"
