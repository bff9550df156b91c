"""The LightningDataModule: one round's view of a data set whose images stay in memory from round to round."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytorch_lightning as lightning
from torch import Tensor

from pipeline.data import Dataset, Images
from pipeline.data.batches import epoch_order, random_crop, random_flip, standardised
from pipeline.randomness import generator
from pipeline.settings import Data

Batch = tuple[Tensor, Tensor]
"""Standardised images float32 (N, C, H, W) and labels int64 (N)."""

EVALUATION_BATCH = 500


@dataclass(frozen=True)
class TrainingBatches:
    """The augmented batches of one epoch: the first ``steps`` of the order that ``key`` + "order" draws."""

    images: Images
    data: Data
    batch_size: int
    steps: int
    key: tuple[int, int, int]

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        order = epoch_order(len(self.images), generator(*self.key, "order"))
        crops, flips = generator(*self.key, "crop"), generator(*self.key, "flip")
        for index in order.split(self.batch_size)[: self.steps]:
            pixels = random_crop(self.images.pixels[index], self.data.crop_padding, crops)
            if self.data.flip:
                pixels = random_flip(pixels, flips)
            yield standardised(pixels), self.images.labels[index]


@dataclass(frozen=True)
class EvaluationBatches:
    """All images of a split, in order, as they are."""

    images: Images

    def __len__(self) -> int:
        return -(-len(self.images) // EVALUATION_BATCH)

    def __iter__(self) -> Iterator[Batch]:
        for pixels, labels in zip(
            self.images.pixels.split(EVALUATION_BATCH),
            self.images.labels.split(EVALUATION_BATCH),
            strict=True,
        ):
            yield standardised(pixels), labels


class RoundData(lightning.LightningDataModule):
    """Loaders of one round; the epoch that trains is ``first_epoch`` + the trainer's own count."""

    def __init__(
        self, dataset: Dataset, data: Data, *, batch_size: int, steps: "dict[int, int]", key: tuple[int, int],
        first_epoch: int,
    ) -> None:  # fmt: skip
        """``steps`` holds each epoch's number of batches, ``key`` the seed and the round."""
        super().__init__()
        self.dataset, self.data, self.batch_size = dataset, data, batch_size
        self.steps, self.key, self.first_epoch = steps, key, first_epoch

    def train_dataloader(self) -> TrainingBatches:
        assert self.trainer is not None
        epoch = self.first_epoch + self.trainer.current_epoch
        images = self.dataset.train
        return TrainingBatches(images, self.data, self.batch_size, self.steps[epoch], (*self.key, epoch))

    def val_dataloader(self) -> EvaluationBatches:
        return EvaluationBatches(self.dataset.validation)

    def test_dataloader(self) -> EvaluationBatches:
        return EvaluationBatches(self.dataset.test)
