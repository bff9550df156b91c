"""Images kept in memory (or on the GPU) as uint8; every batch is made of whole tensors."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from pipeline.data import sources
from pipeline.data.batches import cropped, mirrored, standardised, standardised_alike
from pipeline.data.dataset import AnySplit, Batch, Key, Preprocessing, Shard, Split
from pipeline.data.split import Pool, split
from pipeline.ground.errors import SettingsError
from pipeline.ground.randomness import generator
from pipeline.settings.groups import ImagesInMemory

SOURCES: Mapping[str, Callable[[ImagesInMemory], Pool]] = {
    "cifar10": sources.cifar10,
    "cifar100": sources.cifar100,
    "digits": sources.digits,
    "fashion_mnist": sources.fashion_mnist,
}
EVALUATION_BATCH = 500


@dataclass(frozen=True)
class Images:
    """``pixels`` uint8 (N, channels, height, width) and ``labels`` int64 (N)."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def on(self, device: torch.device) -> "Images":
        """The same images on a device."""
        return Images(self.pixels.to(device), self.labels.to(device))


@dataclass(frozen=True)
class InMemory:
    """A data set whose three splits are in memory."""

    train: Images
    validation: Images
    test: Images
    classes: tuple[str, ...]
    settings: ImagesInMemory
    _on: dict[tuple[str, torch.device], Images] = field(default_factory=dict, repr=False, compare=False)

    @property
    def example(self) -> Tensor:
        return torch.zeros(1, *self.train.pixels.shape[1:])

    @cached_property
    def digest(self) -> str:
        """Over all pixels and labels, split by split."""
        digest = hashlib.sha256("\n".join(self.classes).encode())
        for images in (self.train, self.validation, self.test):
            for tensor in (images.pixels, images.labels):
                digest.update(f"{tuple(tensor.shape)}".encode())
                digest.update(np.ascontiguousarray(tensor.numpy()).data)
        return digest.hexdigest()

    @property
    def examples(self) -> int:
        return len(self.train)

    def steps_per_epoch(self, batch_size: int) -> int:
        return -(-len(self.train) // batch_size)

    def training(self, batch_size: int, steps: int, key: Key, shard: Shard) -> "TrainingBatches":
        return TrainingBatches(self._images("train", shard.device), self.settings, batch_size, steps, key, shard)

    def lengths(self, split: Split) -> list[int]:
        return [len(self.evaluation(split, Shard()))]

    def evaluation(self, split: Split, shard: Shard) -> "EvaluationBatches":
        return EvaluationBatches(self._images(split, shard.device), shard)

    @property
    def preprocessing(self) -> Preprocessing:
        mode = "L" if self.train.pixels.shape[1] == 1 else "RGB"
        return Preprocessing(standardised_alike, {"mode": mode, "shorter_side": None})

    def raw(self, split: AnySplit) -> Iterable[tuple[Tensor, Tensor]]:
        images: Images = getattr(self, split)
        return zip(images.pixels.split(EVALUATION_BATCH), images.labels.split(EVALUATION_BATCH), strict=True)

    def notes(self) -> list[str]:
        return []

    def _images(self, split: str, device: torch.device) -> Images:
        """A split on the device, moved there once."""
        if (split, device) not in self._on:
            self._on[split, device] = getattr(self, split).on(device)
        return self._on[split, device]


def in_memory(settings: ImagesInMemory) -> InMemory:
    """Loads and splits a data set of the table.

    Raises:
        SettingsError: if it cannot be had, or is too small for the split.
    """
    pool = SOURCES[settings.dataset](settings)
    side = min(pool.pixels.shape[2:])
    if settings.crop_fill == "reflect" and settings.crop_padding >= side:
        got = f"got {settings.crop_padding} with data.crop_fill=reflect"
        raise SettingsError([f"data.crop_padding: {got}, takes at most {side - 1} for images of {side} pixels"])
    index = split(pool.sizes, settings)
    train, validation, test = (
        Images(pool.pixels[index[part]], pool.labels[index[part]]) for part in ("train", "validation", "test")
    )
    return InMemory(train, validation, test, pool.classes, settings)


@dataclass(frozen=True)
class TrainingBatches:
    """The augmented batches of one epoch. Draws are made for the whole epoch, and moved to the device once."""

    images: Images
    settings: ImagesInMemory
    batch_size: int
    steps: int
    key: Key
    shard: Shard

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        count, padding = len(self.images), self.settings.crop_padding
        order = torch.randperm(count, generator=generator(*self.key, "order"))
        offsets = torch.randint(2 * padding + 1, (count, 2), generator=generator(*self.key, "crop"))
        flips = self._flips(order)
        moved = (each.to(self.shard.device, non_blocking=True) for each in (order, offsets, flips))
        for rows in islice(zip(*(each.split(self.batch_size) for each in moved), strict=True), self.steps):
            index, offset, flip = (self.shard.of(each) for each in rows)
            pixels = self.images.pixels[index]
            if padding:
                pixels = cropped(pixels, padding, offset, self.settings.crop_fill)
            if self.settings.flip:
                pixels = mirrored(pixels, flip)
            yield Batch(_part(pixels), self.images.labels[index], of=len(rows[0]))

    def _flips(self, order: Tensor) -> Tensor:
        """Which images of an epoch's order are mirrored: a draw for each; alternating, one for all epochs of a round
        (Jordan 2024, section 3.6)."""
        (seed, index, epoch), count = self.key, len(order)
        if self.settings.flip != "alternate":
            return torch.rand(count, generator=generator(*self.key, "flip")) < 0.5
        first = torch.rand(count, generator=generator(seed, index, 0, "flip")) < 0.5
        return (first if epoch % 2 == 0 else ~first)[order]


@dataclass(frozen=True)
class EvaluationBatches:
    """All images of a split, in order, as they are."""

    images: Images
    shard: Shard

    def __len__(self) -> int:
        return -(-len(self.images) // EVALUATION_BATCH)

    def __iter__(self) -> Iterator[Batch]:
        for first in range(0, len(self.images), EVALUATION_BATCH):
            batch = slice(first, first + EVALUATION_BATCH)
            pixels, labels = self.images.pixels[batch], self.images.labels[batch]
            yield Batch(_part(self.shard.of(pixels)), self.shard.of(labels), of=len(labels))


def _part(pixels: Tensor) -> Tensor:
    """This process's part of a batch, standardised; a process may have none."""
    return standardised(pixels) if len(pixels) else pixels.to(torch.float32)
