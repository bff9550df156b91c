"""One episode's walk through the layers, as pure functions: what the agent sees, what it may do, what it is worth.

He et al. 2018, section 3. At each step the agent says which share of a layer to keep. The wall (algorithm 1) cuts that
down to what leaves the budget reachable with all later layers at their floors; so every walk ends within the budget.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Cost = Callable[[Sequence[int]], float]
"""What the network costs if step t keeps ``counts[t]``; it never falls when a count rises."""


@dataclass(frozen=True)
class Step:
    """A decision: how many of the ``size`` channels that ``reads`` gets (or of its weights) stay, out of ``choices``.

    ``outputs``, ``inputs``, ``height``, ``width``, ``stride`` and ``kernel`` are those of the first layer that reads
    them, and ``macs`` the multiply-adds of all that do.
    """

    name: str
    size: int
    choices: Sequence[int]
    outputs: int
    inputs: int
    height: int
    width: int
    stride: int
    kernel: int
    macs: int


def choices(size: int, floor: float, multiple: int) -> Sequence[int]:
    """What may stay of ``size``: multiples from the floor (a share) on, and the whole. Rising."""
    least = max(1, math.ceil(floor * size - 1e-9))
    first = -(-least // multiple) * multiple
    return range(first, size + 1) if multiple == 1 else [*range(first, size, multiple), size]


@dataclass(frozen=True)
class Environment:
    """The steps, what they cost, and how much they may cost (None: as much as they like).

    Raises:
        ValueError: if the budget is not even met with all layers at their floors.
    """

    steps: tuple[Step, ...]
    cost: Cost
    budget: float | None

    def __post_init__(self) -> None:
        least = self.cost([step.choices[0] for step in self.steps])
        if self.budget is not None and least > self.budget:
            raise ValueError(
                f"a budget of {self.budget:,.4g} is out of reach: with every layer at its floor {least:,.4g} are left"
            )

    @property
    def whole(self) -> list[int]:
        """Nothing pruned."""
        return [step.size for step in self.steps]

    def taken(self, chosen: Sequence[int], action: float) -> int:
        """The count that an action at step ``len(chosen)`` comes to: rounded up to a choice, and not over the wall."""
        step, rest = self.steps[len(chosen)], self.steps[len(chosen) + 1 :]
        wished = min(bisect_left(step.choices, action * step.size - 1e-9), len(step.choices) - 1)
        if self.budget is None:
            return step.choices[wished]
        budget, floors = self.budget, [each.choices[0] for each in rest]
        fitting = bisect_right(step.choices[: wished + 1], budget, key=lambda c: self.cost([*chosen, c, *floors]))
        return step.choices[fitting - 1]

    def state(self, chosen: Sequence[int]) -> tuple[float, ...]:
        """The eleven features before step ``len(chosen)``, each in [0, 1] (section 3.1).

        Index, outputs, inputs, height, width, stride, kernel, multiply-adds, those saved so far, those still to come,
        and the last action.
        """
        index = len(chosen)
        step, total = self.steps[index], sum(each.macs for each in self.steps)
        static = (
            getattr(step, name) / max(getattr(each, name) for each in self.steps)
            for name in ("outputs", "inputs", "height", "width", "stride", "kernel", "macs")
        )
        saved = sum(s.macs * (1 - count / s.size) for s, count in zip(self.steps, chosen, strict=False))
        to_come = sum(each.macs for each in self.steps[index + 1 :])
        last = chosen[-1] / self.steps[index - 1].size if index else 1.0
        return (index / max(1, len(self.steps) - 1), *static, saved / total, to_come / total, last)


def walk(environment: Environment, act: Callable[[tuple[float, ...]], float]) -> list[int]:
    """An episode: the counts that the actions of ``act``, asked with each state, come to."""
    chosen: list[int] = []
    while len(chosen) < len(environment.steps):
        chosen.append(environment.taken(chosen, act(environment.state(chosen))))
    return chosen


def uniform(environment: Environment) -> list[int]:
    """The largest share for all layers that meets the budget, as counts (each rounded up to a choice)."""
    if environment.budget is None:
        return environment.whole

    def counts(thousandths: int) -> list[int]:
        return [
            step.choices[min(bisect_left(step.choices, thousandths / 1000 * step.size - 1e-9), len(step.choices) - 1)]
            for step in environment.steps
        ]

    fitting = bisect_right(range(1001), environment.budget, key=lambda each: environment.cost(counts(each)))
    return counts(fitting - 1)


def resource_constrained(accuracy: float, cost: float) -> float:
    """Accuracy alone: the wall keeps the budget (section 3.3)."""
    return accuracy


def accuracy_guaranteed(accuracy: float, cost: float) -> float:
    """-error x log(cost): what costs less is worth something as long as it errs little (section 3.3, R_FLOPs)."""
    return -(1 - accuracy) * math.log(cost)


REWARDS: dict[str, Callable[[float, float], float]] = {
    "resource_constrained": resource_constrained,
    "accuracy_guaranteed": accuracy_guaranteed,
}
"""Accuracy in [0, 1], and the cost in multiply-adds (or whatever the budget counts) -> the reward of an episode."""
