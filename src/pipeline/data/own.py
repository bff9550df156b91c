"""Batches of your own: any ``LightningDataModule`` that gives inputs and labels."""

import hashlib
import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pytorch_lightning as lightning
import torch
from torch import Tensor

from pipeline.data.dataset import Batch, Key, Part, Split
from pipeline.errors import SettingsError
from pipeline.randomness import derived_seed
from pipeline.settings import OwnData


@dataclass(frozen=True)
class OwnBatches:
    """A data module, set up. An epoch's draws follow from PyTorch's own generator, seeded by (seed, round, epoch).

    With several processes each makes every batch and takes its rows of it.
    """

    module: lightning.LightningDataModule

    @property
    def classes(self) -> Sequence[str]:
        return tuple(getattr(self.module, "classes", ()))

    @cached_property
    def example(self) -> Tensor:
        inputs, _ = next(iter(self.module.val_dataloader()))
        return inputs[:1]

    @cached_property
    def digest(self) -> str:
        """Over all validation and test batches, and the number of training batches."""
        digest = hashlib.sha256(str(len(self.module.train_dataloader())).encode())
        for loader in (self.module.val_dataloader(), self.module.test_dataloader()):
            for batch in loader:
                for tensor in batch:
                    digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
                    digest.update(tensor.contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def steps_per_epoch(self, batch_size: int) -> int:
        """Batches of the module, which has its own batch size."""
        return len(self.module.train_dataloader())

    def training(self, batch_size: int, steps: int, key: Key, part: Part) -> "_Batches":
        return _Batches(self.module.train_dataloader, steps, part, derived_seed(*key, "batches"))

    def evaluation(self, split: Split, part: Part) -> "_Batches":
        loader = self.module.val_dataloader if split == "validation" else self.module.test_dataloader
        return _Batches(loader, len(loader()), part, 0)

    def notes(self) -> list[str]:
        return []


def own_module(data: OwnData) -> lightning.LightningDataModule:
    """The data module that a dotted path names.

    Raises:
        SettingsError: if there is none, or it does not take these arguments.
    """
    path, _, name = data.module.rpartition(".")
    takes = "takes the dotted path of a LightningDataModule class"
    try:
        found = getattr(importlib.import_module(path), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise SettingsError([f"data.module: got {data.module!r}, but {error}; {takes}"]) from error
    if not (isinstance(found, type) and issubclass(found, lightning.LightningDataModule)):
        raise SettingsError([f"data.module: got {data.module!r}, which is none; {takes}"])
    try:
        return found(**data.arguments)
    except (TypeError, ValueError) as error:
        raise SettingsError([f"data.arguments: got {dict(data.arguments)}, but {error}"]) from error


def own_batches(module: lightning.LightningDataModule) -> OwnBatches:
    """Sets a data module up and looks at its first batches.

    Raises:
        SettingsError: if a loader is missing, has no length or no batches, or gives anything but (inputs, labels).
    """
    module.prepare_data()
    for stage in ("fit", "test"):
        module.setup(stage)
    faults = []
    for name in ("train_dataloader", "val_dataloader", "test_dataloader"):
        try:
            loader = getattr(module, name)()
            inputs, labels = next(iter(loader)) if len(loader) else (None, None)
        except Exception as error:
            faults.append(f"data: {name}() of {type(module).__name__} fails: {' '.join(str(error).split())}")
            continue
        if not (isinstance(inputs, Tensor) and isinstance(labels, Tensor) and labels.dtype == torch.int64):
            faults.append(
                f"data: {name}() of {type(module).__name__} gives no batches of (inputs, labels), "
                "two tensors of which the second holds whole numbers (int64)"
            )
    if faults:
        raise SettingsError(faults)
    return OwnBatches(module)


@dataclass(frozen=True)
class _Batches:
    loader: Callable[[], Any]
    steps: int
    part: Part
    seed: int

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        torch.manual_seed(self.seed)
        for inputs, labels in self.loader():
            yield Batch(self.part.of(inputs), self.part.of(labels), of=len(labels))
