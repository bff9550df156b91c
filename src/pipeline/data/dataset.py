"""What the rounds ask of a data set, wherever its examples lie."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

Split = Literal["validation", "test"]
AnySplit = Literal["train", "validation", "test"]
Key = tuple[int, int, int]
"""(seed, round, epoch): all that an epoch's order and draws follow from."""
CPU = torch.device("cpu")
Rows = TypeVar("Rows", Tensor, list[int])
Found = TypeVar("Found")


class Batch(NamedTuple):
    """Inputs (N, ...) and labels int64 (N): one process's part of a batch of ``of`` examples."""

    inputs: Tensor
    labels: Tensor
    of: int


@dataclass(frozen=True)
class Shard:
    """Which examples of every batch are this process's: number ``rank``, ``rank + world`` and so on."""

    rank: int = 0
    world: int = 1
    device: torch.device = CPU
    """Where the batches are made, if they are made of whole tensors."""

    def of(self, rows: Rows) -> Rows:
        """This process's rows of a batch."""
        return rows[self.rank :: self.world] if self.world > 1 else rows

    def of_all(self, found: tuple[Found, ...]) -> tuple[Found, ...]:
        """What all processes have found, on each of them, where they are connected."""
        if not torch.distributed.is_initialized():
            return found
        every: list[tuple[Found, ...]] = [()] * self.world
        torch.distributed.all_gather_object(every, found)
        return tuple(one for each in every for one in each)


@dataclass(frozen=True)
class Preprocessing:
    """What makes of inputs as a user has them what the network gets; a deployed model does it itself."""

    apply: Callable[[Tensor], Tensor]
    """Inputs of ``Dataset.raw`` (N, ...) to inputs of the network."""
    image: Mapping[str, Any] | None
    """How an image file becomes such an input: its ``mode``, and the ``shorter_side`` that it is scaled to before the
    middle is taken (None: it is scaled to the input's size). None where inputs are no images."""


def unchanged(inputs: Any) -> Any:
    """Inputs that a user has as the network gets them."""
    return inputs


class Dataset(Protocol):
    """Three disjoint splits. ``validation`` decides; ``test`` is read for the report alone."""

    @property
    def classes(self) -> Sequence[str]:
        """Names of the classes, in the order of the scores; empty if they have none."""

    @property
    def example(self) -> Any:
        """One input as the network gets it, (1, ...); of own data, any structure of such."""

    @property
    def digest(self) -> str:
        """SHA-256 that is another for other data."""

    def steps_per_epoch(self, batch_size: int) -> int:
        """How many batches show every training example once."""

    def lengths(self, split: Split) -> list[int]:
        """How many batches each loader of a split has, where it knows it."""

    def evaluation(self, split: Split, shard: Shard) -> Iterable[Batch]:
        """All examples of a split, in order, as they are."""

    @property
    def preprocessing(self) -> Preprocessing:
        """What happens to an input of ``raw`` before the network gets it."""

    def raw(self, split: AnySplit) -> Iterable[tuple[Tensor, Tensor]]:
        """Inputs (N, ...) of a split as a user has them, none augmented, and labels int64 (N), batch by batch."""

    def notes(self) -> list[str]:
        """Sentences on what has been found wrong with the data so far."""


class ShippedDataset(Dataset, Protocol):
    """A data set whose batches the pipeline makes."""

    @property
    def examples(self) -> int:
        """How many training examples there are."""

    def training(self, batch_size: int, steps: int, key: Key, shard: Shard) -> Iterable[Batch]:
        """The first ``steps`` batches of an epoch."""
