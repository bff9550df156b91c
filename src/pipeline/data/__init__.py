"""Image data: loaded once as whole uint8 tensors, split by a rule that the settings show, digested."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch import Tensor

from pipeline.data.sources import cifar10, digits
from pipeline.data.split import Pool, split
from pipeline.settings import Data

SOURCES: Mapping[str, Callable[[Data], Pool]] = {"cifar10": cifar10, "digits": digits}


@dataclass(frozen=True)
class Images:
    """``pixels`` uint8 (N, channels, height, width) and ``labels`` int64 (N)."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    """Three disjoint splits. ``validation`` decides; ``test`` is read for the report alone."""

    train: Images
    validation: Images
    test: Images
    classes: tuple[str, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Channels, height and width of one image."""
        return tuple(self.train.pixels.shape[1:])

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all pixels and labels, split by split."""
        digest = hashlib.sha256("\n".join(self.classes).encode())
        for images in (self.train, self.validation, self.test):
            for tensor in (images.pixels, images.labels):
                digest.update(f"{tuple(tensor.shape)}".encode())
                digest.update(np.ascontiguousarray(tensor.numpy()).data)
        return digest.hexdigest()


def load(data: Data) -> Dataset:
    """Loads and splits the data set that the settings name.

    Raises:
        SettingsError: if it cannot be had, or is too small for the split.
    """
    pool = SOURCES[data.dataset](data)
    parts = {name: Images(pool.pixels[index], pool.labels[index]) for name, index in split(pool, data).items()}
    return Dataset(**parts, classes=pool.classes)
