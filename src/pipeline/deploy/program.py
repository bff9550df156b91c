"""What the sparse engine is told to compute: operations on activations, and the integers that it reads of them.

A program is a list of integers: how many there are of activations, operations, inputs and outputs; the activations'
shapes; then the operations, as the engine declares them. Inputs come first and outputs last, and their ``weights`` says
which they are.
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any

import numpy as np

KINDS = (
    "input", "output", "split", "convolution", "linear", "add", "max_pool", "average_pool", "mean", "move",
    "multiply", "function", "affine", "concat", "resize", "subtract",
)  # fmt: skip
SIDE = 64
"""Inputs, and outputs, that a program has at most."""
FUNCTIONS = ("", "Sigmoid", "SiLU", "HardSigmoid", "HardSwish", "LeakyRelu", "Tanh", "Gelu")
CODINGS = ("", "Mask", "Gaps", "Rice")
MODES = ("half_pixel", "align_corners", "asymmetric", "nearest")
LARGEST = 4096
"""Kernel, stride, padding and spread are at most so large along a side; an activation has so many squared values."""
LOOPS = 6
Loop = tuple[int, int, int]
"""How many times, and how far each time in what is read and in what is written: 3 x places + the axis (channels, rows,
columns)."""


@dataclass(frozen=True)
class Operation:
    """What engine.c's ``step`` is, in its order; activations are numbers, in the order of their shapes."""

    kind: str
    source: int
    to: int
    residual: int | None = None
    kernel_height: int = 1
    kernel_width: int = 1
    stride: int = 1
    pad: int = 0
    groups: int = 1
    count_padding: bool = False
    relu: bool = False
    ceiling: float | None = None
    coding: int = 0
    weights: int = 0
    low_bits: int = 0
    more: int = 0
    is_int8: bool = False
    scale: int = 0
    bias: int = 0
    variance: int = 0
    left: int = 0
    spread: int = 0
    function: int = 0
    first: float | None = None
    second: float | None = None
    mode: int = 0
    wider: int = 0
    transposed: bool = False
    gate: float | None = None
    start: tuple[int, int, int] = (0, 0, 0)
    pixels: int = 0
    loops: tuple[Loop, ...] = ()

    @property
    def integers(self) -> list[int]:
        """The step as the engine reads it."""
        numbers: dict[str, Any] = {
            name: 0 if (value := getattr(self, name)) is None else int(np.float32(value).view(np.uint32))
            for name in ("ceiling", "first", "second", "gate")
        }
        residual = 0 if self.residual is None else self.residual + 1
        own = replace(self, residual=residual, **numbers)
        _, *fields, start, pixels, loops = astuple(own)
        told = [*(int(each) for each in fields), *start, pixels, *(each for loop in loops for each in loop)]
        return [KINDS.index(self.kind), *told, *[0] * (3 * (LOOPS - len(loops)))]

    @property
    def largest(self) -> int:
        """The largest of what is limited by ``LARGEST``."""
        sides = (self.kernel_height, self.kernel_width, self.stride, self.stride + self.wider)
        return max(*sides, self.pad, self.pad + self.left, self.spread, self.reach)

    @property
    def reach(self) -> int:
        """How far a convolution reads beyond a plane, at most."""
        sides = ((self.kernel_height, self.pad, self.stride),
                 (self.kernel_width, self.pad + self.left, self.stride + self.wider))  # fmt: skip
        found = 0
        for side, pad, stride in sides:
            last_tap = (side - 1) * (self.spread + 1) - pad
            back, forth = -(-pad // stride), last_tap // stride
            if self.transposed:
                back, forth = last_tap // stride, (stride - 1 + pad) // stride
            found = max(found, back, forth)
        return found


Shape = tuple[int, int, int]
"""Channels, height and width of an activation; (n, 0, 0) is a plain vector."""


def integers(shapes: Sequence[Shape], steps: Sequence[Operation]) -> list[int]:
    """A program as the engine reads it; activations that do not live at once share a place."""
    sides = [sum(step.kind == kind for step in steps) for kind in ("input", "output")]
    pads: dict[tuple[int, int], int] = {}
    for step in steps:
        if step.kind == "convolution":
            plane = shapes[step.to][1:]
            pads[plane] = max(pads.get(plane, 0), step.reach)
    last = {value: place for place, step in enumerate(steps) for value in (step.source, step.residual)}
    places: dict[int, int] = {}
    found: list[tuple[Shape, bool]] = []
    free: list[int] = []
    for number, step in enumerate(steps):
        if step.kind != "output":
            key = (shapes[step.to], step.kind == "split")
            place = next((each for each in free if found[each] == key and not key[1]), None)
            if place is None:
                found.append(key)
                place = len(found) - 1
            else:
                free.remove(place)
            places[step.to] = place
        free += [places[value] for value in {step.source, step.residual} - {None} if last[value] == number]  # type: ignore[index]
    integers = [len(found), len(steps), *sides]
    for (channels, height, width), _ in found:
        integers += _record([channels, height, width, pads.get((height, width), 0)])
    for step in steps:
        moved = replace(step, source=places[step.source], to=places[step.to])
        moved = replace(moved, residual=None if step.residual is None else places[step.residual])
        integers += _record(moved.integers)
    return integers


def _record(fields: Sequence[int]) -> list[int]:
    """Which fields are not 0, a bit each, and then those: most are 0, and bytes count."""
    return [sum(bool(field) << place for place, field in enumerate(fields)), *filter(None, fields)]
