"""JSON that every reader takes: numbers that JSON has none of stand there by name, as protocol buffers write them."""

import json
import math
from collections.abc import Mapping
from typing import Any


def written(value: Any, indent: int | None = None) -> str:
    """A value as JSON; an infinite number is ``"Infinity"`` or ``"-Infinity"``, and what is none ``"NaN"``."""
    return json.dumps(named(value), indent=indent, allow_nan=False)


def named(value: Any) -> Any:
    """The same value with such numbers by name."""
    if isinstance(value, float) and not math.isfinite(value):
        return json.dumps(value)
    if isinstance(value, Mapping):
        return {key: named(each) for key, each in value.items()}
    return [named(each) for each in value] if isinstance(value, list | tuple) else value


def numbers(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Figures as they were before they were written."""
    return {key: float(each) if isinstance(each, str) else each for key, each in figures.items()}
