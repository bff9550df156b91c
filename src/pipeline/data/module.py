"""The LightningDataModule: one round's view of a data set that stays from round to round."""

from collections.abc import Iterable, Mapping

import pytorch_lightning as lightning
import torch

from pipeline.data.dataset import Batch, Dataset, Shard


class RoundData(lightning.LightningDataModule):
    """Loaders of one round; the epoch that trains is ``first_epoch`` + the trainer's own count."""

    def __init__(
        self, dataset: Dataset, *, batch_size: int, steps: Mapping[int, int], key: tuple[int, int], first_epoch: int
    ) -> None:
        """``steps`` holds each epoch's number of batches, ``key`` the seed and the round."""
        super().__init__()
        self.dataset, self.batch_size = dataset, batch_size
        self.steps, self.key, self.first_epoch = steps, key, first_epoch

    def train_dataloader(self) -> Iterable[Batch]:
        assert self.trainer is not None
        epoch = self.first_epoch + self.trainer.current_epoch
        return self.dataset.training(self.batch_size, self.steps[epoch], (*self.key, epoch), self._shard())

    def val_dataloader(self) -> Iterable[Batch]:
        return self.dataset.evaluation("validation", self._shard())

    def test_dataloader(self) -> Iterable[Batch]:
        return self.dataset.evaluation("test", self._shard())

    def _shard(self) -> Shard:
        assert self.trainer is not None
        device: torch.device = self.trainer.strategy.root_device
        return Shard(self.trainer.global_rank, self.trainer.world_size, device)
