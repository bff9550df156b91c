"""The tape: every number that round 0's optimizers used, step by step. Rewinding the rate is replaying its end.

A learning rate rewound by t epochs is that of the last t epochs of round 0 (Renda et al. 2020, section 2). The tape
gives it whoever set it: a schedule of any kind, warm-up, groups of their own, a cycled momentum, a step by hand. From
round 1 on nothing else sets a rate.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from pipeline.ground.errors import PipelineError
from pipeline.training.schedule import Rate

Numbers = Mapping[tuple[int, str], float]
"""(parameter group, name of the number) -> the number, such as ``(0, "lr")`` or ``(0, "betas.1")``."""


@dataclass(frozen=True)
class Tape:
    """``numbers`` holds, under "<optimizer>|<group>|<number>", a float64 vector with an entry for each step of round 0,
    or one entry for all. ``starts`` holds for each optimizer, int64 (epochs + 1), how many steps it had made at the
    start of each epoch, and under "all" those that Lightning counts as ``global_step``.
    """

    numbers: Mapping[str, Tensor]
    starts: Mapping[str, Tensor]

    @property
    def optimizers(self) -> int:
        return len(self.starts) - 1

    @property
    def epochs(self) -> int:
        """Epochs of round 0 that are on it."""
        return len(self.starts["all"]) - 1

    def global_step(self, epoch: int) -> int:
        """Steps before an epoch, as Lightning counts them."""
        return int(self.starts["all"][epoch])

    def at(self, optimizer: int, epoch: int, step: int) -> dict[tuple[int, str], float]:
        """The numbers of a step (from 0) of an epoch; an epoch that has more steps now keeps its last."""
        starts = self._lists[f"{optimizer}"]
        position = max(min(starts[epoch] + step, starts[epoch + 1] - 1), 0)
        return {key: values[position] if len(values) > 1 else values[0] for key, values in self._rows[optimizer]}

    @cached_property
    def _lists(self) -> dict[str, list[int]]:
        return {key: each.tolist() for key, each in self.starts.items()}

    @cached_property
    def _rows(self) -> list[list[tuple[tuple[int, str], list[float]]]]:
        rows: list[list[tuple[tuple[int, str], list[float]]]] = [[] for _ in range(self.optimizers)]
        for key, values in self.numbers.items():
            which, group, name = key.split("|")
            rows[int(which)].append(((int(group), name), values.tolist()))
        return rows

    def stretched(self, epochs: int) -> "Tape":
        """The same course of the numbers over so many epochs, each with as many steps as the first."""
        steps = {key: epochs * int(marks[1]) for key, marks in self.starts.items()}
        numbers = {}
        for key, values in self.numbers.items():
            total = steps[key.split("|")[0]]
            at = torch.arange(total) * len(values) // total
            numbers[key] = values[at] if len(values) > 1 else values
        return Tape(numbers, {key: torch.arange(epochs + 1) * int(marks[1]) for key, marks in self.starts.items()})

    def held(self, hold: float | Literal["last"]) -> "Tape":
        """The numbers of the last step throughout; the rate by ``hold``: its last, or a share of its highest."""
        last = {key: values[-1:] for key, values in self.numbers.items()}
        if hold != "last":
            last |= {key: self.numbers[key].max(0, keepdim=True).values * hold for key in self._rates()}
        return Tape(last, self.starts)

    def end_share(self) -> float:
        """The last rate as a share of the highest: of the group that keeps most of it."""
        shares = [float(self.numbers[key][-1] / self.numbers[key].max()) for key in self._rates() if self._moves(key)]
        return max(shares, default=1.0)

    def _moves(self, key: str) -> bool:
        return bool(self.numbers[key].max() > 0)

    def _rates(self) -> Iterable[str]:
        return [key for key in self.numbers if key.endswith("|lr")]

    def tensors(self) -> dict[str, Tensor]:
        """The tape as named tensors."""
        return {f"numbers:{key}": each for key, each in self.numbers.items()} | {
            f"starts:{key}": each for key, each in self.starts.items()
        }

    @staticmethod
    def of(tensors: Mapping[str, Tensor]) -> "Tape":
        """The tape that ``tensors`` gave."""
        parts: dict[str, dict[str, Tensor]] = {"numbers": {}, "starts": {}}
        for key, tensor in tensors.items():
            part, name = key.split(":", 1)
            parts[part][name] = tensor
        return Tape(**parts)


def scheduled_tape(rate: Rate, full_rate: float, steps: Sequence[int], groups: Sequence[Mapping[str, Any]]) -> Tape:
    """The tape of a pure schedule up to ``full_rate``: ``steps`` in each epoch, one optimizer with these ``groups``,
    whose rates are what they have at the full one."""
    total = sum(steps)
    rates = torch.tensor([rate(step) for step in range(total)], dtype=torch.float64)
    numbers = {
        f"0|{group}|{name}": rates * (value / full_rate) if name == "lr" else torch.tensor([value], dtype=torch.float64)
        for (group, name), value in numbers_of(groups).items()
    }
    starts = torch.tensor([0, *steps]).cumsum(0)
    return Tape(numbers, {"0": starts, "all": starts})


class Recorder:
    """A tape that is being recorded, behind what is on it already."""

    def __init__(self, so_far: Tape | None = None) -> None:
        self._before = so_far
        self._columns: list[dict[tuple[int, str], list[float]]] = []
        self._counts: list[int] = []
        self._starts: list[list[int]] = []

    def epoch(self, optimizers: int, global_step: int) -> None:
        """An epoch of so many ``optimizers`` begins, after ``global_step`` steps."""
        while len(self._columns) < optimizers:
            self._columns.append({})
            self._counts.append(0)
        self._starts.append([*self._counts, global_step])

    def step(self, optimizer: int, groups: Sequence[Mapping[str, Any]]) -> None:
        """An optimizer makes a step with the numbers of these groups.

        Raises:
            PipelineError: if a parameter group came or went since the first step.
        """
        columns = self._columns[optimizer]
        numbers = numbers_of(groups)
        if not self._counts[optimizer]:
            columns |= {key: [] for key in numbers}
        if numbers.keys() != columns.keys():
            raise PipelineError(f"optimizer {optimizer} changes its parameter groups within a training")
        for key, number in numbers.items():
            columns[key].append(number)
        self._counts[optimizer] += 1

    def tape(self, global_step: int) -> Tape:
        """All that is recorded, at the end of an epoch after ``global_step`` steps."""
        numbers = {
            f"{index}|{group}|{name}": _shortest(torch.tensor(column, dtype=torch.float64))
            for index, columns in enumerate(self._columns)
            for (group, name), column in columns.items()
        }
        marks = torch.tensor([*self._starts, [*self._counts, global_step]])
        names = [*map(str, range(len(self._columns))), "all"]
        tape = Tape(numbers, {name: marks[:, place].contiguous() for place, name in enumerate(names)})
        return tape if self._before is None else _joined(self._before, tape)


def _shortest(values: Tensor) -> Tensor:
    """One entry where all are equal."""
    return values[:1].clone() if len(values) and bool((values == values[0]).all()) else values


def _joined(before: Tape, after: Tape) -> Tape:
    """One tape after another: a training that was continued."""
    numbers = {}
    for key in before.numbers.keys() | after.numbers.keys():
        index = key.split("|")[0]
        parts = [
            tape.numbers[key].expand(int(tape.starts[index][-1])) for tape in (before, after) if key in tape.numbers
        ]
        numbers[key] = _shortest(torch.cat(parts))
    starts = {
        key: torch.cat([each, after.starts[key][1:] + (0 if key == "all" else each[-1])])
        for key, each in before.starts.items()
    }
    return Tape(dict(sorted(numbers.items())), starts)


def numbers_of(groups: Sequence[Mapping[str, Any]]) -> dict[tuple[int, str], float]:
    """Every number of parameter groups, tuples by place; what is no number (parameters, switches) is left out."""
    found: dict[tuple[int, str], float] = {}
    for group, entries in enumerate(groups):
        for name, value in entries.items():
            if name == "params":
                continue
            if isinstance(value, tuple | list):
                found |= {(group, f"{name}.{i}"): float(each) for i, each in enumerate(value) if _is_number(each)}
            elif _is_number(value):
                found[group, name] = float(value)
    return found


def set_numbers(groups: Sequence[dict[str, Any]], numbers: Numbers) -> None:
    """Gives parameter groups the numbers; what is a tensor there stays one."""
    for (group, name), number in numbers.items():
        if group >= len(groups):
            continue
        entries = groups[group]
        head, _, place = name.rpartition(".")
        if head and isinstance(entries.get(head), tuple | list) and place.isdigit():
            each = list(entries[head])
            each[int(place)] = _like(each[int(place)], number)
            entries[head] = type(entries[head])(each)
        elif name in entries:
            entries[name] = _like(entries[name], number)


def _like(value: Any, number: float) -> Any:
    if isinstance(value, Tensor):
        return value.fill_(number)
    return type(value)(number) if isinstance(value, int) else number


def _is_number(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1 and value.ndim == 0
    return isinstance(value, int | float) and not isinstance(value, bool)
