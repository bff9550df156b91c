"""The learning rate as a pure function of the position in the schedule.

A position is a count of optimizer steps in ``[0, T)``. Rewinding is an argument: a retraining asks for the rate at the
positions that it replays, or holds one. Milestones and warm-up are shares of T, so a recipe keeps its shape when T does
not keep its length.
"""

import math
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pipeline.settings.groups import Cosine, OneCycle, Schedule, StepDecay

Rate = Callable[[int], float]
"""Learning rate at a position, in steps."""


def scheduled(schedule: Schedule, full_rate: float, total_steps: int) -> Rate:
    """The rate over a training of ``total_steps`` steps (T)."""

    def rate(step: int) -> float:
        if not 0 <= step < total_steps:
            raise ValueError(f"step {step} is outside of the schedule of {total_steps} steps")
        match schedule:
            case StepDecay(milestones=milestones, factor=factor, warmup=warmup):
                passed = sum(step >= round(share * total_steps) for share in milestones)
                return full_rate * _warm(step, round(warmup * total_steps)) * factor**passed
            case Cosine(warmup=warmup):
                rising = round(warmup * total_steps)
                if step < rising:
                    return full_rate * _warm(step, rising)
                return full_rate * (1 + math.cos(math.pi * (step - rising) / (total_steps - rising))) / 2
            case OneCycle(peak=peak):
                top = max(1, round(peak * total_steps))
                return full_rate * (_warm(step, top) if step < top else (total_steps - step) / (total_steps - top + 1))

    return rate


def _warm(step: int, rising_steps: int) -> float:
    """Share of the full rate that a linear warm-up has reached: 1 from its last step on, never 0."""
    return min(1.0, (step + 1) / rising_steps) if rising_steps else 1.0


class Scheduled(LRScheduler):
    """A pure schedule as one of torch's, from ``first_step`` on: every group gets the rate of the position, times what
    its own full rate is of ``full_rate``."""

    def __init__(self, optimizer: Optimizer, rate: Rate, full_rate: float, first_step: int, total_steps: int) -> None:
        self.rate, self.full_rate, self.first_step, self.total_steps = rate, full_rate, first_step, total_steps
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Any]:
        """The rates of the present position; past the end, the last."""
        position = min(self.first_step + self.last_epoch, self.total_steps - 1)
        return [self.rate(position) * (own / self.full_rate) for own in self.base_lrs]
