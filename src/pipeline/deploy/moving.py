"""Values that change places and nothing else, as loops: how far each goes in what is read and in what is written.

A view says of each side of a tensor (without the batch's) which digits its index has, outermost first, and how far each
of them goes along the channels, rows or columns of the activation that the tensor is read from.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.deploy.program import LOOPS, Loop, Shape

CHANNELS, ROWS, COLUMNS = range(3)


class NoLoops(Exception):
    """A change of places that is no nest of a few loops."""


@dataclass(frozen=True)
class Digit:
    """From 0 to ``count``, each ``step`` places along an ``axis`` (0 channels, 1 rows, 2 columns)."""

    count: int
    axis: int
    step: int

    def split(self, inner: int) -> tuple["Digit", "Digit"]:
        """Two digits for one, the inner with so many."""
        if self.count % inner:
            raise NoLoops
        return Digit(self.count // inner, self.axis, self.step * inner), Digit(inner, self.axis, self.step)


@dataclass(frozen=True)
class View:
    """Where a tensor's values lie; ``start`` is the place (channel, row, column) of the first."""

    sides: tuple[tuple[Digit, ...], ...]
    start: tuple[int, int, int] = (0, 0, 0)

    def reshaped(self, sides: Sequence[int]) -> "View":
        """The same values in the same order, with other sides."""
        left = self._digits()
        found: list[tuple[Digit, ...]] = []
        for side in reversed(sides):
            group: list[Digit] = []
            while side > 1:
                digit = left.pop()
                if side % digit.count:
                    outer, digit = digit.split(side)
                    left.append(outer)
                group.insert(0, digit)
                side //= digit.count
            found.insert(0, tuple(group))
        return View(tuple(found), self.start)

    def transposed(self, order: Sequence[int]) -> "View":
        """Sides in another order."""
        return View(tuple(self.sides[side] for side in order), self.start)

    def sliced(self, side: int, begin: int, step: int, count: int) -> "View":
        """So many of a side from ``begin`` on, each ``step``-th."""
        digits = self.sides[side]
        if math.prod(digit.count for digit in digits) == count:
            return self
        if len(digits) != 1:
            raise NoLoops
        (digit,) = digits
        start = tuple(each + begin * digit.step * (axis == digit.axis) for axis, each in enumerate(self.start))
        cut = Digit(count, digit.axis, digit.step * step)
        return View((*self.sides[:side], (cut,), *self.sides[side + 1 :]), start)  # type: ignore[arg-type]

    def repeated(self, side: int, times: int) -> "View":
        """Each place of a side so many times."""
        again = (*self.sides[side], Digit(times, CHANNELS, 0))
        return View((*self.sides[:side], again, *self.sides[side + 1 :]), self.start)

    def loops(self, sides: Sequence[int]) -> tuple[Loop, ...]:
        """What writes the view to an activation whose sides these are, the innermost loop last, which is the longest.

        Raises:
            NoLoops: if it takes more than the engine has.
        """
        read, written = self._digits(), view_of(sides)._digits()
        pairs: list[tuple[Digit, Digit]] = []
        while read:
            one, other = read.pop(), written.pop()
            if one.count > other.count:
                outer, one = one.split(other.count)
                read.append(outer)
            elif other.count > one.count:
                outer, other = other.split(one.count)
                written.append(outer)
            if pairs and all(_continues(*each) for each in zip((one, other), pairs[0], strict=True)):
                count = one.count * pairs[0][0].count
                one, other = (Digit(count, each.axis, each.step) for each in pairs.pop(0))
            pairs.insert(0, (one, other))
        if len(pairs) > LOOPS:
            raise NoLoops
        pairs[1:] = sorted(pairs[1:], key=lambda pair: pair[0].count)  # long ones inside: they may go in any order
        found = tuple((one.count, 3 * one.step + one.axis, 3 * other.step + other.axis) for one, other in pairs)
        return found or ((1, 0, 0),)

    def _digits(self) -> list[Digit]:
        return [digit for side in self.sides for digit in side if digit.count > 1]


def _continues(outer: Digit, inner: Digit) -> bool:
    """Whether an outer digit goes on where an inner one ends."""
    return outer.axis == inner.axis and outer.step == inner.step * inner.count


def plane_of(sides: Sequence[int]) -> Shape:
    """Channels, height and width of the activation that a tensor of these sides is; a vector's height is 0."""
    match sides:
        case (channels,):
            return channels, 0, 0
        case (channels, width):
            return channels, 1, width
        case (*channels, height, width):
            return math.prod(channels), height, width
    raise NoLoops


def view_of(sides: Sequence[int]) -> View:
    """A tensor as it lies."""
    planes = min(2, len(sides) - 1)
    axes = [*[CHANNELS] * (len(sides) - planes), *(ROWS, COLUMNS)[2 - planes :]]
    steps = [
        math.prod(size for size, other in list(zip(sides, axes, strict=True))[place + 1 :] if other == axis)
        for place, axis in enumerate(axes)
    ]
    return View(tuple((Digit(*each),) for each in zip(sides, axes, steps, strict=True)))


def is_identity(loops: Sequence[Loop], start: Sequence[int]) -> bool:
    """Whether all stays where it is, between activations of one shape."""
    return not any(start) and all(read == written for _, read, written in loops)
