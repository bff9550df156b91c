"""Batches and inputs of any structure: tensors, alone or in sequences and mappings."""

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor


def each_tensor(structure: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same structure with every tensor changed."""
    return apply_to_collection(structure, Tensor, change)


def first_row(structure: Any) -> Any:
    """The same structure with one example."""
    return each_tensor(structure, lambda tensor: tensor[:1])


def rows_of(example: Any, count: int) -> Any:
    """The same structure with an example (1, ...) so many times."""
    return each_tensor(example, lambda tensor: tensor.repeat_interleave(count, dim=0))


def first_tensor(structure: Any) -> Tensor:
    """The first tensor of a structure."""
    while not isinstance(structure, Tensor):
        parts: Iterable[Any] = structure.values() if isinstance(structure, Mapping) else structure
        structure = next(iter(parts))
    return structure


def leaves(structure: Any) -> Iterator[Any]:
    """All that a structure of sequences and mappings holds, tensors and others."""
    if isinstance(structure, Mapping):
        structure = list(structure.values())
    if isinstance(structure, list | tuple):
        for each in structure:
            yield from leaves(each)
    else:
        yield structure


def rows_in(structure: Any) -> int:
    """How many examples a structure has."""
    return len(first_tensor(structure))


def uneven(inputs: Any) -> str | None:
    """In a phrase, that inputs do not have one row an example in each of their tensors; None where they have."""
    rows = {name: str(len(each)) if each.ndim else "none" for name, each in named_tensors(inputs, "input").items()}
    if len(set(rows.values())) <= 1:
        return None
    told = ", ".join(f"{name} {count}" for name, count in rows.items())
    return f"its inputs have other numbers of rows in one batch ({told}), takes one row an example in each"


def pieces(structure: Any, size: int) -> list[Any]:
    """The same structure with at most so many examples, and again, to the last of them."""
    return [
        each_tensor(structure, lambda tensor, first=first: tensor[first : first + size])  # type: ignore[misc]
        for first in range(0, rows_in(structure), size)
    ]


def called(network: Callable[..., Any], inputs: Any) -> Any:
    """What something answers to inputs: one, several in a sequence, or by name (all at once, if it takes them so)."""
    arguments, named = arguments_of(network, inputs)
    return network(*arguments, **named)


def arguments_of(network: Callable[..., Any], inputs: Any) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """The inputs as arguments of a call, and as those by name."""
    if isinstance(inputs, Mapping) and _takes_names(network, inputs):
        return (), inputs
    return (inputs if isinstance(inputs, list | tuple) else (inputs,)), {}


def given_to(function: Callable[..., Any], arguments: Sequence[Any], named: Mapping[str, Any]) -> Any:
    """The arguments of a call as one structure, of which ``called`` makes the same call."""
    if named:
        return dict(inspect.signature(function).bind(*arguments, **named).arguments)
    only = arguments[0] if len(arguments) == 1 else arguments
    if isinstance(only, Mapping) and not _takes_names(function, only):
        return only
    return tuple(arguments) if isinstance(only, list | tuple | Mapping) else only


def _takes_names(network: Callable[..., Any], inputs: Mapping[str, Any]) -> bool:
    """Whether the names of inputs are those of parameters, and not the keys of a mapping that is taken whole."""
    signature = inspect.signature(getattr(network, "forward", network))
    for arguments, named in (((), inputs), ((inputs,), {})):
        with suppress(TypeError):
            signature.bind(*arguments, **named)
            return not arguments
    return True


def named_tensors(structure: Any, single: str) -> dict[str, Tensor]:
    """The tensors of a structure by names: of keys and places on the way to each, ``single`` where there is no way.

    A mapping's tensor has its key's name, that of a sequence the sequence's name (or ``single``) and its place.
    """
    found: dict[str, Tensor] = {}

    def walk(part: Any, way: tuple[str, ...]) -> None:
        if isinstance(part, Tensor):
            name = re.sub(r"\W", "_", "_".join(way)) or single
            found[name if name not in found else f"{name}_{len(found)}"] = part
        elif isinstance(part, Mapping):
            for key, each in part.items():
                walk(each, (*way, str(key)))
        elif isinstance(part, list | tuple):
            for place, each in enumerate(part):
                walk(each, (*(way or (single,)), str(place)))

    walk(structure, ())
    return found


def filled(structure: Any, tensors: Iterable[Tensor]) -> Any:
    """The same structure with these tensors, in the order of ``named_tensors``."""
    following = iter(tensors)
    return each_tensor(structure, lambda _: next(following))
