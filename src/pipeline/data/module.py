"""What a Trainer gets of a data set in a round: a LightningDataModule."""

import copy
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import pytorch_lightning as lightning
import torch

from pipeline.data import AnyDataset
from pipeline.data.dataset import Batch, Key, Shard, ShippedDataset
from pipeline.data.own import OwnBatches, adopted, has_own
from pipeline.ground.errors import SettingsError, one_line
from pipeline.ground.packages import package_of


class Epochs(Protocol):
    """Says how many batches an epoch has."""

    def steps(self, epoch: int) -> int: ...


def data_for(
    module: Any, dataset: AnyDataset, batch_size: int, *, pairs: bool = False
) -> Callable[[tuple[int, int], Epochs], Any]:
    """What gives the data module of (seed, round) for a LightningModule, of its package; ``pairs``: as RoundPairs.

    A user's own is the same each time, with the state that it has now.

    Raises:
        SettingsError: if that has a state which it cannot tell.
    """
    package = package_of(module)
    first = _state_of(dataset.module) if isinstance(dataset, OwnBatches) else None

    def data(key: tuple[int, int], span: Epochs) -> Any:
        if isinstance(dataset, OwnBatches):
            if first is not None:
                dataset.module.load_state_dict(copy.deepcopy(first))
            return adopted(dataset.module, package)
        kind = RoundPairs if pairs else RoundData
        return adopted(kind(dataset, batch_size=batch_size, steps=span.steps, key=key), package)

    return data


def _state_of(module: Any) -> Any:
    """A copy of what a data module of a user's says that it remembers; None where it says nothing."""
    if not has_own(module, "state_dict"):
        return None
    try:
        return copy.deepcopy(module.state_dict())
    except Exception as error:
        raise SettingsError([f"data: state_dict() of {type(module).__name__} fails: {one_line(error)}"]) from error


class RoundData(lightning.LightningDataModule):
    """Loaders of one round, for the epoch that the trainer counts."""

    def __init__(
        self, dataset: ShippedDataset, *, batch_size: int, steps: Callable[[int], int], key: tuple[int, int]
    ) -> None:
        """``steps`` gives each epoch's number of batches, ``key`` is the seed and the round."""
        super().__init__()
        self.dataset, self.batch_size, self.steps, self.key = dataset, batch_size, steps, key

    def train_dataloader(self) -> Iterable[Any]:
        assert self.trainer is not None
        epoch = self.trainer.current_epoch
        key: Key = (*self.key, epoch)
        return self._given(self.dataset.training(self.batch_size, self.steps(epoch), key, self._shard()))

    def val_dataloader(self) -> Iterable[Any]:
        return self._given(self.dataset.evaluation("validation", self._shard()))

    def test_dataloader(self) -> Iterable[Any]:
        return self._given(self.dataset.evaluation("test", self._shard()))

    def _given(self, batches: Iterable[Batch]) -> Iterable[Any]:
        return batches

    def _shard(self) -> Shard:
        assert self.trainer is not None
        device: torch.device = self.trainer.strategy.root_device
        return Shard(self.trainer.global_rank, self.trainer.world_size, device)


class RoundPairs(RoundData):
    """The same as pairs (inputs, labels), which is what a LightningModule of a user's expects."""

    def _given(self, batches: Iterable[Batch]) -> Iterable[Any]:
        return _Pairs(batches)


class _Pairs:
    def __init__(self, batches: Iterable[Batch]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)  # type: ignore[arg-type]

    def __iter__(self) -> Any:
        return ((batch.inputs, batch.labels) for batch in self.batches)
