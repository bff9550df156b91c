"""Dead weights stay exactly zero through a training, whatever the optimizer does."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as lightning
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pipeline.pruning.masks import Masks


@contextmanager
def kept_dead(network: nn.Module, masks: Masks) -> Iterator["KeepPruned"]:
    """A callback that keeps dead weights at zero, for one training."""
    keeper = KeepPruned(network, masks)
    try:
        yield keeper
    finally:
        for handle in keeper.handles:
            handle.remove()


class KeepPruned(lightning.Callback):
    """Fills the dead part of every gradient with zeros as soon as it is there, before norms are taken and optimizers
    step; an infinite gradient too. Together with a start from a ``masked`` state this keeps dead weights at zero under
    all of torch's optimizers: no gradient, no momentum, and a decay of zero times anything.

    Under others, for which no gradient is not no step, the weights are filled after every step as well.
    """

    def __init__(self, network: nn.Module, masks: Masks) -> None:
        parameters = dict(network.named_parameters())
        self.masks = [(parameters[name], mask) for name, mask in masks.items() if not mask.all()]
        self.dead: list[tuple[nn.Parameter, Tensor]] = []
        self.handles: list[Any] = []

    def on_fit_start(self, trainer: Any, module: Any) -> None:
        self.dead = [(parameter, ~mask.to(parameter.device)) for parameter, mask in self.masks]
        for parameter, dead in self.dead:
            self.handles.append(parameter.register_post_accumulate_grad_hook(_filling(dead)))
        for optimizer in trainer.optimizers:
            if not type(optimizer).__module__.startswith("torch.optim"):
                self.handles.append(optimizer.register_step_post_hook(self._fill_weights))

    def _fill_weights(self, optimizer: Optimizer, *_: Any) -> None:
        with torch.no_grad():
            for parameter, dead in self.dead:
                parameter.masked_fill_(dead, 0)


def _filling(dead: Tensor) -> Any:
    def fill(parameter: Tensor) -> None:
        if parameter.grad is not None:
            with torch.no_grad():
                parameter.grad.masked_fill_(dead, 0)

    return fill
