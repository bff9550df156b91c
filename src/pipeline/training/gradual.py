"""Gradual pruning: a round's weights go within its training, many at first and ever fewer (Zhu and Gupta 2017)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as lightning
import torch
from torch import Tensor, nn

from pipeline.pruning.masks import Masks, kept
from pipeline.training.alive import KeepPruned
from pipeline.training.average import MovingAverage

END = 3 / 4
"""Share of the training after which all are gone, so that the last quarter trains what stays."""
TIMES = 50
"""How often weights go until then."""


@dataclass(frozen=True)
class Gradual:
    """A round's pruning within its training: down to ``kept`` weights, by ``cut`` (weights, masks, number to keep).

    A cut of whole blocks may keep fewer, by less than a block.
    """

    kept: int
    cut: Callable[[Mapping[str, Tensor], Masks, int], dict[str, Tensor]]


def to_keep(start: int, end: int, way: float) -> int:
    """How many of ``start`` weights stay when a share ``way`` of the pruning is over, which leaves ``end``.

    The sparsity rises as s_f + (s_i - s_f)(1 - way)^3 (Zhu and Gupta 2017, equation 1).
    """
    return end + round((start - end) * (1 - min(way, 1.0)) ** 3)


class PruneGradually(lightning.Callback):
    """Prunes before batches of the first three quarters of a training, and holds what is dead at zero."""

    def __init__(
        self, network: nn.Module, gradual: Gradual, start: int, masks: Masks, keeper: KeepPruned, steps: int, past: int,
        average: MovingAverage | None,
    ) -> None:  # fmt: skip
        """``start`` weights were there when the training began, ``masks`` are those of now; it has ``steps`` batches,
        of which ``past`` are done."""
        self.network, self.gradual, self.start, self.masks, self.keeper = network, gradual, start, masks, keeper
        self.last, self.step, self.average = max(1, int(END * steps)), past, average
        self.every = max(1, self.last // TIMES)

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if self.step <= self.last and (self.step % self.every == 0 or self.step == self.last):
            self._prune(trainer, to_keep(self.start, self.gradual.kept, self.step / self.last))
        self.step += 1

    def _prune(self, trainer: Any, number: int) -> None:
        at_end = number == self.gradual.kept  # where layers are on their own, one may have some to lose yet
        if number >= kept(self.masks) and not at_end:
            return
        weights = {name: self.network.get_parameter(name).detach().cpu() for name in self.masks}
        self.masks = self.gradual.cut(weights, self.masks, number)
        self.keeper.now(self.masks)
        with torch.no_grad():
            for name, mask in self.masks.items():
                parameter = self.network.get_parameter(name)
                dead = ~mask.to(parameter.device)
                remembered = [
                    entry for optimizer in trainer.optimizers for entry in optimizer.state.get(parameter, {}).values()
                ]
                averaged = None if self.average is None else self.average.average[name]
                for tensor in (parameter, *remembered, averaged):
                    if isinstance(tensor, Tensor) and tensor.shape == dead.shape:
                        tensor.masked_fill_(dead, 0)
