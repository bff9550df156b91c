"""From a plain mapping to frozen dataclasses, strictly: every fault is a sentence, and all are told at once.

Knows no setting: what a dataclass's annotations say is what its fields take.
"""

import dataclasses
import difflib
import json
import math
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union


@dataclass(frozen=True)
class Takes:
    """What a number must be, as a predicate and in words."""

    words: str
    holds: Callable[[Any], bool]


def built(cls: Any, mapping: Any, path: str, faults: list[str]) -> Any:
    """One dataclass from one mapping; faults are appended, and the value is then not to be used."""
    if not isinstance(mapping, Mapping):
        faults.append(f"{path.rstrip('.') or 'settings'}: got {shown(mapping)}, takes a group of settings")
        return None
    hints = typing.get_type_hints(cls, include_extras=True)
    for key in mapping:
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, n=1)
            hint = f"did you mean {path}{near[0]}?" if near else f"takes {', '.join(sorted(hints))}"
            faults.append(f"{path}{key}: unknown setting; {hint}")
    values = {}
    for key, hint in hints.items():
        if key not in mapping:
            faults.append(f"{path}{key}: missing")
        else:
            values[key] = _value(hint, mapping[key], f"{path}{key}", faults)
    return cls(**values) if len(values) == len(hints) else None


def _value(hint: Any, got: Any, path: str, faults: list[str]) -> Any:
    """``got`` as the type of ``hint``, or a fault."""
    options = typing.get_args(hint) if is_union(hint) else (hint,)
    if all(dataclasses.is_dataclass(option) for option in options):
        return _group(options, got, path, faults)
    for option in options:
        if (value := matched(option, got)) is not NO_MATCH:
            return value
    words = " or ".join(takes(option) for option in options)
    return _fault(
        path, got, words + (", as a number in quotes is" if str in options and _is_number(got) else ""), faults
    )


def is_union(hint: Any) -> bool:
    """Whether a type is one of several."""
    return typing.get_origin(hint) in (Union, types.UnionType)


def _is_number(got: Any) -> bool:
    return isinstance(got, int | float)


def _fault(path: str, got: Any, takes: str, faults: list[str]) -> None:
    faults.append(f"{path}: got {shown(got)}, takes {takes}")


NO_MATCH = object()


def _group(options: tuple[Any, ...], got: Any, path: str, faults: list[str]) -> Any:
    """A nested dataclass; of several, the one whose first field takes what the mapping has under its name."""
    if len(options) == 1:
        return built(options[0], got, f"{path}.", faults)
    tag = dataclasses.fields(options[0])[0].name
    kinds = {kind: option for option in options for kind in typing.get_args(typing.get_type_hints(option)[tag])}
    choose = f"(choose with {path.replace('.', '/')}={_either(kinds)})"
    if not isinstance(got, Mapping):
        return _fault(path, got, f"a group of settings {choose}", faults)
    if not isinstance(got.get(tag), str) or got[tag] not in kinds:
        return _fault(f"{path}.{tag}", got.get(tag), f"{_either(kinds)} {choose}", faults)
    return built(kinds[got[tag]], got, f"{path}.", faults)


def matched(hint: Any, got: Any) -> Any:
    """``got`` as one simple type, or ``NO_MATCH``."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is type(None) or hint is None:
        return None if got is None else NO_MATCH
    if origin is Literal:
        if isinstance(got, bool) and {"on", "off"} <= set(arguments):  # what YAML makes of these words
            return "on" if got else "off"
        return got if isinstance(got, str) and got in arguments else NO_MATCH
    if origin is Annotated:
        value = matched(arguments[0], got)
        return value if value is not NO_MATCH and arguments[1].holds(value) else NO_MATCH
    if origin is tuple:
        if not isinstance(got, list | tuple):
            return NO_MATCH
        values = tuple(matched(arguments[0], item) for item in got)
        return NO_MATCH if NO_MATCH in values else values
    if hint is float:
        return _number(got)
    if origin is not None:
        if not isinstance(got, Mapping):
            return NO_MATCH
        names = {str(key) if type(key) is int else key: value for key, value in got.items()}
        named = {key: value if arguments[1] is Any else matched(arguments[1], value) for key, value in names.items()}
        return NO_MATCH if any(value is NO_MATCH for value in named.values()) else named
    return got if type(got) is hint else NO_MATCH


def _number(got: Any) -> Any:
    """A finite float from a number or a fraction written ``a/b``."""
    try:
        if isinstance(got, str):
            above, below = got.split("/")
            value = float(above) / float(below)
        else:
            value = float(got) if isinstance(got, int | float) and not isinstance(got, bool) else math.nan
    except (ValueError, ZeroDivisionError):
        return NO_MATCH
    return value if math.isfinite(value) else NO_MATCH


def takes(hint: Any) -> str:
    """What one simple type takes, in words."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is type(None):
        return "null"
    if origin is Literal:
        return _either(arguments)
    if origin is Annotated:
        return str(arguments[1].words)
    if origin is tuple:
        return f"a list, each item {takes(arguments[0])}"
    names = {bool: "true or false", str: "text", int: "a whole number", float: "a number"}
    if origin is not None and arguments[1] is not Any:
        return f"a mapping of names, each to {takes(arguments[1])}"
    return names.get(hint, "a mapping of names to values")


def _either(words: Any) -> str:
    return " or ".join(map(str, words))


def shown(got: Any) -> str:
    return json.dumps(got, default=str)
