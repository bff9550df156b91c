"""The loaders of a training: seeded anew each epoch, with all that they draw from, and cut to their first examples."""

import random
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from types import CellType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from pipeline.data.dataset import Batch
from pipeline.ground.structures import each_tensor, leaves, rows_in


def loaders(trainer: Any) -> Sequence[Any]:
    """The DataLoaders of a training, wherever they stand in what the data module gave."""
    return [each for each in all_loaders(trainer) if isinstance(each, DataLoader)]


def all_loaders(trainer: Any) -> Sequence[Any]:
    """Those, and whatever else gives the batches of a training."""
    found: list[Any] = []

    def look(thing: Any) -> None:
        if isinstance(thing, Mapping):
            for each in thing.values():
                look(each)
        elif isinstance(thing, list | tuple):
            for each in thing:
                look(each)
        else:
            found.append(thing)

    look(trainer.train_dataloader)
    look(trainer.val_dataloaders)
    return found


Generators = torch.Generator | np.random.Generator | np.random.RandomState | random.Random


def generators(loader: "DataLoader[Any]") -> list[Generators]:
    """The generators that a loader, its samplers, its data and what these are made of bring with them."""
    found: list[Generators] = []
    seen, ahead = set[int](), deque[tuple[Any, int]]([(loader, 0)])
    while ahead:
        thing, depth = ahead.popleft()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, Generators):
            found.append(thing)
        elif depth < DEPTH and len(seen) < PARTS:
            ahead.extend((each, depth + 1) for each in _made_of(thing))
    return found


DEPTH, PARTS = 8, 10_000
"""How deep, and among how many parts, generators are looked for."""


def _made_of(thing: Any) -> list[Any]:
    """What a loader, a sampler, a data set or a transform is made of: no examples, of which there are many."""
    if isinstance(thing, type | ModuleType | Tensor | np.ndarray):
        return []
    if isinstance(thing, Mapping | list | tuple):
        held = thing.values() if isinstance(thing, Mapping) else thing
        return [*(held if len(thing) <= FEW else ()), *getattr(thing, "__dict__", {}).values()]
    if isinstance(thing, partial):
        return [thing.func, *thing.args, *thing.keywords.values()]
    if isinstance(thing, MethodType):
        return [thing.__self__]
    if isinstance(thing, FunctionType):
        return [each.cell_contents for each in thing.__closure__ or () if each != CellType()]
    return [each for name, each in getattr(thing, "__dict__", {}).items() if name != "_iterator"]


FEW = 100
"""Longer collections are of examples."""


def reseed(loader: "DataLoader[Any]", seed: int) -> None:
    """Has a loader's next pass follow from the seed: generators of its own, and workers that outlive an epoch."""
    for generator in generators(loader):
        if isinstance(generator, torch.Generator):
            generator.manual_seed(seed)
        elif isinstance(generator, np.random.Generator):
            generator.bit_generator.state = type(generator.bit_generator)(seed).state
        else:
            generator.seed(seed % 2**32)
    if loader.persistent_workers:
        loader._iterator = None


def cut(loaders: Any, rows: int) -> Any:
    """Loaders that give the first examples; what else combines several gives all."""
    if isinstance(loaders, list | tuple):
        return [cut(each, rows) for each in loaders]
    if isinstance(loaders, Mapping):
        return {name: cut(each, rows) for name, each in loaders.items()}
    return loaders if type(loaders).__name__ == "CombinedLoader" else _FirstRows(loaders, rows)


class _FirstRows:
    """A loader's first examples, in any number of goes."""

    def __init__(self, loader: Any, rows: int) -> None:
        self.loader, self.rows = loader, rows

    def __iter__(self) -> Iterator[Any]:
        return _first_rows(self.loader, self.rows)


def _first_rows(batches: Iterable[Any], rows: int) -> Iterator[Any]:
    """The first batches, until they have so many examples; the last is cut where all of it has a row an example."""
    left = rows
    for batch in batches:
        size = rows_in(batch)
        parts = batch[:2] if isinstance(batch, Batch) else batch
        if size > left and {
            len(each) if isinstance(each, Tensor) and each.ndim else None for each in leaves(parts)
        } == {size}:
            cut = each_tensor(parts, lambda tensor, left=left: tensor[:left])  # type: ignore[misc]
            batch = Batch(cut[0], cut[1], of=left) if isinstance(batch, Batch) else cut
        yield batch
        left -= size
        if left <= 0:
            return
