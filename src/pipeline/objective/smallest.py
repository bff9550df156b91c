"""The smallest batches of an epoch: whether the network can do with an example alone, or with none."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.compiler import set_stance
from torch.utils.data import BatchSampler, DataLoader, IterableDataset

from pipeline.data import AnyDataset
from pipeline.data.dataset import AnySplit
from pipeline.data.own import LOADERS, OwnBatches
from pipeline.ground.errors import SettingsError, one_line
from pipeline.ground.randomness import seed_all, undisturbed
from pipeline.ground.structures import rows_of
from pipeline.networks.costs import run_on
from pipeline.settings.groups import Settings

LIMIT_OF: Mapping[AnySplit, str] = {
    "train": "limit_train_batches", "validation": "limit_val_batches", "test": "limit_test_batches"
}  # fmt: skip
LIMITS = dict.fromkeys(LIMIT_OF.values())
"""Settings of a Trainer under which an epoch may not have its last batch; None: there is none."""
FEW = (0, 1)
"""Examples of a batch that layers may fail on; such as normalisation, which takes more than one number a channel."""


def check_smallest(network: nn.Module, dataset: AnyDataset, settings: Settings, steps: int) -> None:
    """Tries the smallest batches that the processes get, where they have an example or none.

    ``steps`` is how many batches an epoch has, where it is not limited.

    Raises:
        SettingsError: if the network fails on them, with the batch size that leads there and one that does not.
    """
    training, limits = settings.training, {**LIMITS, **settings.trainer}
    name = str(settings.model.network or settings.model.module).rpartition(".")[2]
    processes = training.devices * training.nodes
    whole = tuple(split for split in LOADERS if limits[LIMIT_OF[split]] is None)
    if (training.max_steps or steps) < steps:
        whole = tuple(split for split in whole if split != "train")
    if isinstance(dataset, OwnBatches):
        for split, size, count in _last_of_loaders(dataset, whole, processes):
            left, mode = count % size or size, "training" if split == "train" else "evaluation"
            if left in FEW and (fault := _failure(network, dataset.example, left, training=split == "train")):
                raise SettingsError(
                    [f"data: {LOADERS[split]}() of {type(dataset.module).__name__} has batch_size={size}, which leaves "
                     f"{left} of {count} examples for the last batch{_of(processes)}, and {name} fails on {left} in "
                     f"{mode} ({fault}); takes another batch_size{', or drop_last=True' * (split == 'train')}"]
                )  # fmt: skip
    elif "train" in whole:
        count, size = dataset.steps_per_epoch(1), training.batch_size
        for part in sorted(_parts(count, size, processes).intersection(FEW), reverse=True):
            if fault := _failure(network, dataset.example, part, training=True):
                larger = range(size + 1, count + 1)
                fitting = next((each for each in larger if _parts(count, each, processes).isdisjoint(FEW)), count)
                raise SettingsError(
                    [f"training.batch_size: got {size}, which leaves {count % size or size} of {count} training "
                     f"examples for the last batch{_of(processes)}, and {name} fails on {part} in training ({fault}); "
                     f"takes another, such as {fitting}"]
                )  # fmt: skip


def _of(processes: int) -> str:
    return f" of {processes} processes" if processes > 1 else ""


def _parts(count: int, batch_size: int, processes: int) -> set[int]:
    """How many examples of a batch a process may get."""
    batches = {min(batch_size, count), count % batch_size or min(batch_size, count)}
    return {part for batch in batches for part in (batch // processes, -(-batch // processes))}


def _last_of_loaders(
    dataset: OwnBatches, splits: Sequence[AnySplit], processes: int
) -> Iterator[tuple[AnySplit, int, int]]:
    """(split, batch size, examples of a process) of the loaders that say these, and give the rest of them too."""
    for split in splits:
        if not dataset.has(split):
            continue
        with undisturbed():
            seed_all("data module")
            loader = getattr(dataset.module, LOADERS[split])()
        if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
            continue
        batches = loader.batch_sampler
        if type(batches) is BatchSampler and not batches.drop_last:
            yield split, batches.batch_size, -(-len(batches.sampler) // processes)  # type: ignore[arg-type]


def _failure(network: nn.Module, example: Any, count: int, *, training: bool) -> str | None:
    """What a network says of so many examples, if it takes two."""
    trial = copy.deepcopy(network)
    trial = trial if training else trial.eval()
    with undisturbed(), torch.no_grad(), set_stance("force_eager"):
        try:
            run_on(trial, rows_of(example, 2))
        except Exception:
            return None
        try:
            run_on(trial, rows_of(example, count))
        except Exception as error:
            return one_line(error)
    return None
