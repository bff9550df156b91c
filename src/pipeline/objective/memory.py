"""What a module, its callbacks, optimizers and data remember beside weights: found on one batch, and told of.

Whatever no file of a round holds is lost by a run that dies, and handed from round to round by one that does not.
"""

import hashlib
import io
import random
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from typing import Any

import numpy as np
import pytorch_lightning as lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics import Metric

from pipeline.data.own import has_own
from pipeline.ground.packages import package_of
from pipeline.ground.tensors import update_digest
from pipeline.networks.given import own_parts
from pipeline.training.loaders import FEW, Generators
from pipeline.training.state import unkept

LIBRARY = ("pytorch_lightning.", "lightning.", "pipeline.")
"""Where callbacks come from that remember nothing that counts, or say it in their state dicts."""


def of_module(module: nn.Module) -> dict[str, str]:
    """What a module and its parts hold that no state dict does, by name, as digests; buffers by ``of_buffers``."""
    base = vars(nn.Module()).keys() | {"trainer"}
    if hasattr(module, "configure_optimizers"):
        base |= vars(package_of(module).LightningModule()).keys()
    found = {}
    for place, part in own_parts(module):
        if isinstance(part, Metric) or type(part).get_extra_state is not nn.Module.get_extra_state:
            continue
        for name, value in vars(part).items():
            if name not in base and not isinstance(value, nn.Module) and _may_count(name, value):
                found[f"{place}.{name}".lstrip(".")] = _digest(value)
    return found


def _may_count(name: str, value: Any) -> bool:
    """Of what a library keeps to itself only numbers: the rest is how it works."""
    kinds = (int, float, Tensor, np.ndarray, Generators)
    return not name.startswith("_") or (isinstance(value, kinds) and not isinstance(value, bool | nn.Parameter))


def of_buffers(network: nn.Module) -> dict[str, tuple[object, str]]:
    """The buffers that a state dict leaves out: what has to stay for a file to hold one, and a digest."""
    return {name: ((each.dtype, each.shape), _digest(each)) for name, each in unkept(network).items()}


def of_thing(thing: object) -> dict[str, str]:
    """What a callback or an optimizer holds openly, by name, as digests."""
    known = ("state", "param_groups", "defaults") if isinstance(thing, torch.optim.Optimizer) else ()
    return {
        name: _digest(value) for name, value in vars(thing).items() if not name.startswith("_") and name not in known
    }


def _digest(value: Any) -> str:
    if isinstance(value, np.random.Generator):
        value = value.bit_generator.state
    elif isinstance(value, np.random.RandomState):
        value = value.get_state()
    elif isinstance(value, random.Random):
        value = value.getstate()
    elif isinstance(value, torch.Generator):
        value = value.get_state()
    sha = hashlib.sha256()
    with suppress(Exception):  # RecursionError, of things that hold each other, among them
        update_digest(sha, value)
    return sha.hexdigest()


def changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """The names of what was there and is not the same any more."""
    return [name for name, value in before.items() if after.get(name) != value]


def keepers(trainer: Any) -> list[Any]:
    """The optimizers of a training, and those of its callbacks that keep nothing in a checkpoint."""
    return [*trainer.optimizers, *(each for each in trainer.callbacks if not _says_itself(each))]


def _says_itself(callback: Any) -> bool:
    kind = type(callback)
    *more, base = [each for each in kind.__mro__ if each.__module__.startswith(LIBRARY)]
    return bool(more) or any(
        getattr(kind, hook) is not getattr(base, hook) for hook in ("state_dict", "on_save_checkpoint")
    )


def never_reset(module: nn.Module) -> list[str]:
    """The metrics whose value over all that they saw was asked for, and that go on from there."""
    return [
        name
        for name, each in module.named_modules()
        if isinstance(each, Metric) and each.update_called and each._computed is not None
    ]


def of_data(loaders: Iterable[Any], data: object) -> dict[str, Any]:
    """What loaders, samplers, data sets and a data module hold, by name, at a glance; not of those that are told each
    epoch, nor of a data module with a state dict of its own, which is kept."""
    data = getattr(data, "given", data)
    holders: list[Any] = [data]
    for loader in loaders:
        batches = getattr(loader, "batch_sampler", None)
        holders += [loader, getattr(loader, "sampler", None), batches, getattr(batches, "sampler", None)]
        holders.append(getattr(loader, "dataset", None))
        while (inner := getattr(holders[-1], "dataset", None)) is not None:
            holders.append(inner)
    base = vars(lightning.LightningDataModule()).keys() | {"trainer"}
    return {
        f"{type(holder).__name__}.{name}": seen
        for holder in holders
        if not callable(getattr(holder, "set_epoch", None)) and not (holder is data and has_own(data, "state_dict"))
        for name, value in getattr(holder, "__dict__", {}).items()
        if name not in base
        and not (isinstance(holder, DataLoader) and name in DEALT)
        and (seen := _glimpse(value, 3)) is not None
    }


DEALT = vars(DataLoader([0])).keys()  # type: ignore[arg-type]
"""What every loader of torch has, and changes as it reads."""


def moved(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """The names of data that are not what they were; what was only added to, as a cache is, counts as the same."""
    return [name for name, seen in before.items() if _differs(seen, after.get(name))]


def _glimpse(thing: Any, depth: int) -> Any:
    """The first numbers and texts of something, to hold against a later look; None where it has none."""
    if isinstance(thing, int | float | str | bytes | complex):
        return thing
    if isinstance(thing, Tensor | np.ndarray):
        with suppress(Exception):
            return repr(thing.dtype), np.asarray(thing).reshape(-1)[:FEW].tobytes()
        return None
    if isinstance(thing, Generators | io.IOBase | type):  # the first are seeded for every epoch
        return None
    if isinstance(thing, dict) and depth:
        return {repr(key): _glimpse(each, depth - 1) for key, each in islice(thing.items(), FEW)}
    if isinstance(thing, list | tuple | deque) and depth:
        return [_glimpse(each, depth - 1) for each in islice(thing, FEW)]
    if isinstance(thing, Iterator) and type(thing).__module__ in ("builtins", "itertools"):
        return _Position(thing)
    return None


class _Position:
    """Where a generator or another iterator of Python's stands, which cannot be asked: it is taken to move."""

    def __init__(self, iterator: Iterator[Any]) -> None:
        self.iterator = iterator


def _differs(before: Any, after: Any) -> bool:
    if isinstance(before, _Position):
        return isinstance(after, _Position) and after.iterator is before.iterator
    if before is None or after is None:
        return False
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        return any(_differs(each, after.get(key)) for key, each in before.items())
    if isinstance(before, list) and isinstance(after, list):
        return any(_differs(one, other) for one, other in zip(before, after, strict=False))
    return bool(before != after)
