"""Batches of your own: any ``LightningDataModule`` that gives inputs and labels."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import pytorch_lightning as lightning
import torch
from torch import Tensor

from pipeline.data.dataset import AnySplit, Batch, Key, Preprocessing, Shard, Split
from pipeline.ground.errors import PipelineError, SettingsError, one_line
from pipeline.ground.randomness import derived_seed
from pipeline.settings.dotted import class_at, made
from pipeline.settings.groups import OwnData

LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")


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
        inputs, _ = next(_pairs(self.module, "val_dataloader"))
        return inputs[:1]

    @cached_property
    def digest(self) -> str:
        """Over all validation and test batches, and the number of training batches."""
        digest = hashlib.sha256(str(len(self.module.train_dataloader())).encode())
        for loader in ("val_dataloader", "test_dataloader"):
            for pair in _pairs(self.module, loader):
                for tensor in pair:
                    digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
                    digest.update(tensor.contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def steps_per_epoch(self, batch_size: int) -> int:
        """Batches of the module, which has its own batch size."""
        return len(self.module.train_dataloader())

    def training(self, batch_size: int, steps: int, key: Key, shard: Shard) -> "_Batches":
        return _Batches(self.module, "train_dataloader", steps, shard, derived_seed(*key, "batches"))

    def evaluation(self, split: Split, shard: Shard) -> "_Batches":
        loader = "val_dataloader" if split == "validation" else "test_dataloader"
        return _Batches(self.module, loader, len(getattr(self.module, loader)()), shard, 0)

    @property
    def preprocessing(self) -> Preprocessing:
        return Preprocessing(lambda inputs: inputs, None)

    def raw(self, split: AnySplit) -> Iterator[tuple[Tensor, Tensor]]:
        """The module's own batches, and what it does to those of training."""
        torch.manual_seed(0)
        return _pairs(
            self.module, {"train": "train_dataloader", "validation": "val_dataloader"}.get(split, "test_dataloader")
        )

    def notes(self) -> list[str]:
        return []


def own_module(data: OwnData) -> lightning.LightningDataModule:
    """The data module that a dotted path names.

    Raises:
        SettingsError: if there is none, or it does not take these arguments.
    """
    found = class_at(data.module, lightning.LightningDataModule, "LightningDataModule", "data.module")
    return made(found, {}, data.arguments, "data.arguments")


def own_batches(module: lightning.LightningDataModule) -> OwnBatches:
    """Sets a data module up and looks at its first batches.

    Raises:
        SettingsError: if a loader is missing, has no length or no batches, or gives anything but (inputs, labels).
    """
    name = type(module).__name__
    try:
        module.prepare_data()
        for stage in ("fit", "test"):
            module.setup(stage)
        tuple(getattr(module, "classes", ()))
    except (Exception, SystemExit) as error:
        raise SettingsError([f"data: {name} cannot be set up: {one_line(error)}"]) from error
    faults = []
    for loader in LOADERS:
        try:
            if next(_pairs(module, loader), None) is None:
                faults.append(f"data: {loader}() of {name} gives no batches")
            len(getattr(module, loader)())
        except PipelineError as error:
            faults.append(str(error))
        except Exception as error:
            faults.append(f"data: {loader}() of {name} fails: {one_line(error)}")
    if faults:
        raise SettingsError(faults)
    return OwnBatches(module)


def _pairs(module: lightning.LightningDataModule, loader: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs (N, ...) and labels int64 (N), batch by batch.

    Raises:
        PipelineError: if a batch is anything else.
    """
    for number, batch in enumerate(getattr(module, loader)(), start=1):
        pair = tuple(batch) if isinstance(batch, list | tuple) else ()
        if len(pair) != 2 or not all(isinstance(each, Tensor) and each.layout is torch.strided for each in pair):
            got = "a pair of something else" if len(pair) == 2 else f"a {type(batch).__name__} of another form"
        elif pair[1].dtype != torch.int64 or pair[1].ndim != 1 or len(pair[0]) != len(pair[1]):
            shapes = " and ".join(f"{tuple(each.shape)} {each.dtype}".replace("torch.", "") for each in pair)
            got = f"tensors of {shapes}"
        elif len(pair[1]) and int(pair[1].min()) < 0:
            got = f"a label {int(pair[1].min())}"
        else:
            yield pair
            continue
        raise PipelineError(
            f"data: batch {number} of {loader}() of {type(module).__name__} is {got}; takes (inputs, labels), two "
            "tensors of equal length, the labels whole numbers from 0 (int64)"
        )


@dataclass(frozen=True)
class _Batches:
    module: lightning.LightningDataModule
    loader: str
    steps: int
    shard: Shard
    seed: int

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        torch.manual_seed(self.seed)
        given = 0
        for inputs, labels in islice(_pairs(self.module, self.loader), self.steps):
            yield Batch(self.shard.of(inputs), self.shard.of(labels), of=len(labels))
            given += 1
        if given < self.steps:
            name = type(self.module).__name__
            raise PipelineError(f"data: {self.loader}() of {name} ends after {given} batches of {self.steps}")
