"""Images on disk, of any size and number: decoded, cropped and scaled by worker processes, an image at a time.

Every draw follows from (seed, round, epoch, image), so that neither the number of workers nor the moment of a death
changes anything.
"""

import hashlib
import math
import os
import signal
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from pipeline.data import hub
from pipeline.data.batches import standardised
from pipeline.data.dataset import AnySplit, Batch, Key, Preprocessing, Shard, Split
from pipeline.data.folders import listed
from pipeline.data.picture import Unreadable, middle, opened
from pipeline.data.split import split
from pipeline.ground.errors import PipelineError, SettingsError
from pipeline.ground.processes import end_with_parent
from pipeline.ground.randomness import generator
from pipeline.settings.groups import ImagesOnDisk

EVALUATION_BATCH = 250
WIDEST = 4 / 3
"""Ratio of the sides of a random part of an image: from its inverse to this."""
TRIES = 10


Finding = tuple[str, str]
"""What is the matter with an image, ``unreadable`` or ``animated``, and its name."""


@dataclass(frozen=True)
class Decoded:
    """Images of a batch: uint8 (n, 3, size, size), their labels int64 (n), and what was found about them.

    Arrays, no tensors: these go from worker to process through a pipe, those through shared memory, of which a
    container may have next to none.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    found: tuple[Finding, ...]


@dataclass(frozen=True)
class OnDisk:
    """A data set whose images are read when they are needed. ``files`` holds all parts, one after the other."""

    files: Any
    labels: Tensor
    splits: dict[str, Tensor]
    classes: tuple[str, ...]
    settings: ImagesOnDisk
    sentences: tuple[str, ...] = ()
    _found: set[Finding] = field(default_factory=set, repr=False, compare=False)

    @property
    def example(self) -> Tensor:
        return torch.zeros(1, 3, self.settings.size, self.settings.size)

    @cached_property
    def digest(self) -> str:
        """Over names of classes, labels, the split, and the size in bytes of every file: contents are not read."""
        digest = hashlib.sha256("\n".join(self.classes).encode())
        digest.update(np.asarray(_sizes(self.files), dtype=np.int64).tobytes())
        for name, index in self.splits.items():
            digest.update(f"{name} {len(index)}".encode())
            digest.update(torch.stack([index, self.labels[index]]).numpy().tobytes())
        return digest.hexdigest()

    @property
    def examples(self) -> int:
        return len(self.splits["train"])

    def steps_per_epoch(self, batch_size: int) -> int:
        return -(-len(self.splits["train"]) // batch_size)

    def training(self, batch_size: int, steps: int, key: Key, shard: Shard) -> Iterable[Batch]:
        index = self.splits["train"]
        order = index[torch.randperm(len(index), generator=generator(*key, "order"))]
        return _Batches(self, order.split(batch_size)[:steps], partial(_training_view, self.settings, key), shard)

    def lengths(self, split: Split) -> list[int]:
        return [len(self.evaluation(split, Shard()))]

    def evaluation(self, split: Split, shard: Shard) -> "_Batches":
        view = partial(_evaluation_view, self.settings)
        return _Batches(self, self.splits[split].split(EVALUATION_BATCH), view, shard)

    @property
    def preprocessing(self) -> Preprocessing:
        apply = partial(standardised, mean=self.settings.mean, deviation=self.settings.deviation)
        return Preprocessing(apply, {"mode": "RGB", "shorter_side": self.settings.shorter_side})

    def raw(self, split: AnySplit) -> Iterator[tuple[Tensor, Tensor]]:
        view = partial(_evaluation_view, self.settings)
        for decoded in _Batches(self, self.splits[split].split(EVALUATION_BATCH), view, Shard()).decoded():
            self.report(decoded.found)
            yield torch.from_numpy(decoded.pixels), torch.from_numpy(decoded.labels)

    def notes(self) -> list[str]:
        told = list(self.sentences)
        for kind, what in (("unreadable", "cannot be decoded and are left out"), ("animated", "have several frames")):
            if names := sorted(name for each, name in self._found if each == kind):
                first = ", of which the first is used" if kind == "animated" else ""
                told.append(f"warning: {len(names)} images {what}{first}: {listed(names)}")
        return told

    def decoded(self, index: Iterable[int], view: Any) -> Decoded:
        """Some images as ``view`` shows them; what cannot be decoded is left out and named."""
        size = self.settings.size
        pixels, labels, found = [np.empty((0, 3, size, size), dtype=np.uint8)], [], list[Finding]()
        for i in index:
            name = _name(self.files[i]["image"], i)
            try:
                image, animated = opened(hub.content(self.files[i]["image"]), "RGB")
            except Unreadable as error:
                found.append(("unreadable", f"{name} ({error})"))
                continue
            found += [("animated", name)] if animated else []
            pixels.append(np.asarray(view(image, i)).transpose(2, 0, 1)[None])
            labels.append(int(self.labels[i]))
        return Decoded(np.concatenate(pixels), np.array(labels, dtype=np.int64), tuple(found))

    def report(self, found: tuple[Finding, ...]) -> list[str]:
        """Remembers what was found about images, and returns the names of those that could not be decoded.

        Raises:
            PipelineError: if ``data.corrupt`` is error and there is one.
        """
        unreadable = [name for kind, name in found if kind == "unreadable"]
        if unreadable and self.settings.corrupt == "error":
            raise PipelineError(
                f"an image cannot be decoded: {unreadable[0]}; data.corrupt=skip leaves such images out and counts them"
            )
        self._found.update(found)
        return unreadable


def on_disk(settings: ImagesOnDisk) -> OnDisk:
    """Finds the images and their labels; decodes none.

    Raises:
        SettingsError: if there are none, or too few for the split.
    """
    source = hub.read(settings.source, settings.dataset)
    import datasets

    if len(source.classes) < 2:
        names = ", ".join(source.classes)
        raise SettingsError([f"data.source: got {settings.source!r}, which has one class ({names}); takes two or more"])
    files = datasets.concatenate_datasets(list(source.parts.values()))
    labels = torch.from_numpy(np.array(files.with_format("numpy", columns=["label"])[:]["label"], dtype=np.int64))
    splits = split({name: len(part) for name, part in source.parts.items()}, settings)
    return OnDisk(files.select_columns(["image"]), labels, splits, source.classes, settings, source.notes)


class _Batches:
    """Batches decoded by worker processes, in order."""

    def __init__(self, data: OnDisk, batches: Any, view: Any, shard: Shard) -> None:
        self.data, self.batches, self.view, self.shard = data, batches, view, shard

    def __len__(self) -> int:
        return len(self.batches)

    def decoded(self) -> Iterable[Decoded]:
        """This process's part of every batch."""
        mine = [self.shard.of(batch.tolist()) for batch in self.batches]
        wanted = self.data.settings.workers
        cores = len(os.sched_getaffinity(0)) // self.shard.world if wanted is None else wanted
        warnings.filterwarnings("ignore", message="This DataLoader will create")  # more workers than cores
        return DataLoader(
            _Reader(self.data, mine, self.view),
            batch_size=None,
            num_workers=min(cores, len(mine)),
            collate_fn=_as_it_is,
            worker_init_fn=_start_worker,
            generator=generator("workers"),
        )

    def __iter__(self) -> Iterator[Batch]:
        settings = self.data.settings
        for batch, decoded in zip(self.batches, self.decoded(), strict=True):
            unreadable = self.data.report(self.shard.of_all(decoded.found))
            if len(unreadable) == len(batch):
                raise PipelineError(f"none of a batch's images can be decoded: {unreadable[0]} and the others")
            pixels, labels = (torch.from_numpy(each) for each in (decoded.pixels, decoded.labels))
            yield Batch(
                standardised(pixels.to(self.shard.device), settings.mean, settings.deviation),
                labels.to(self.shard.device),
                of=len(batch) - len(unreadable),
            )


@dataclass(frozen=True)
class _Reader(torch.utils.data.Dataset[Decoded]):
    """What a worker process looks up: batch number -> its images."""

    data: OnDisk
    batches: list[list[int]]
    view: Any

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> Decoded:
        return self.data.decoded(self.batches[number], self.view)


def _as_it_is(decoded: Any) -> Any:
    return decoded


def _start_worker(_: int) -> None:
    """A worker leaves Ctrl-C to its parent, takes SIGTERM as any program does, and ends with its parent: alone, workers
    would keep each other waiting.
    """
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _training_view(settings: ImagesOnDisk, key: Key, image: Image.Image, index: int) -> Image.Image:
    """A random part of an image, scaled to the size of the network (Szegedy et al. 2014), perhaps mirrored."""
    draws = generator(*key, "view", index)
    box = random_box(image.size, settings.smallest_crop, draws)
    view = image.resize((settings.size, settings.size), Image.Resampling.BILINEAR, box)
    if settings.flip and float(torch.rand((), generator=draws)) < 0.5:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return view


def random_box(size: tuple[int, int], smallest: float, draws: torch.Generator) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a random part of an image of width and height ``size``.

    Its area is uniform from the share ``smallest`` to all, the logarithm of its ratio of sides uniform from that of 3/4
    to that of 4/3; what does not fit is drawn again, and after ten tries the middle is taken.
    """
    width, height = size
    for _ in range(TRIES):
        area, ratio, across, down = torch.rand(4, generator=draws, dtype=torch.float64).tolist()
        pixels = width * height * (smallest + (1 - smallest) * area)
        sides = math.exp(math.log(WIDEST) * (2 * ratio - 1))
        w, h = round(math.sqrt(pixels * sides)), round(math.sqrt(pixels / sides))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(across * (width - w + 1)), int(down * (height - h + 1))
            return left, top, left + w, top + h
    w, h = min(width, max(1, round(height * WIDEST))), min(height, max(1, round(width * WIDEST)))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def _evaluation_view(settings: ImagesOnDisk, image: Image.Image, index: int) -> Image.Image:
    """The middle of an image whose shorter side is scaled to ``shorter_side``."""
    return middle(image, settings.shorter_side, (settings.size, settings.size))


def _name(entry: dict[str, Any], index: int) -> str:
    return entry["path"] or f"number {index}"


def _sizes(files: Any) -> list[int]:
    """Bytes of every image."""
    from pyarrow import compute

    column = files.data.column("image")
    inside = compute.binary_length(compute.struct_field(column, "bytes")).to_pylist()
    paths = compute.struct_field(column, "path").to_pylist()
    return [Path(path).stat().st_size if size is None else size for size, path in zip(inside, paths, strict=True)]
