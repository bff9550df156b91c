"""Dead weights stay exactly zero through a training, whatever the optimizer does."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as lightning
import torch
from torch import Tensor, nn

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
    the optimizers of the settings: no gradient, no momentum, and a decay of zero times anything.

    A user's code may set gradients and weights in any hook and in ``forward``, and optimizers may step without a
    gradient. So gradients are filled again just before each step, and weights after it, after every batch and before
    every evaluation.
    """

    def __init__(self, network: nn.Module, masks: Masks) -> None:
        self.network, self.masks = network, masks
        self.dead: dict[nn.Parameter, Tensor] = {}
        self.handles: list[Any] = []

    def now(self, masks: Masks) -> None:
        """Keeps the dead of these masks at zero from here on."""
        parameters = {self.network.get_parameter(name): mask for name, mask in masks.items() if not mask.all()}
        for parameter in (each for each in parameters.keys() - self.dead.keys() if each.requires_grad):
            self.handles.append(parameter.register_post_accumulate_grad_hook(self._fill_gradient))
        self.dead = {parameter: ~mask.to(parameter.device) for parameter, mask in parameters.items()}

    def on_fit_start(self, trainer: Any, module: Any) -> None:
        self.now(self.masks)
        for optimizer in trainer.optimizers:
            self.handles.append(optimizer.register_step_pre_hook(self._fill_gradients))
            self.handles.append(optimizer.register_step_post_hook(self.fill))
        self.fill()

    def on_train_batch_start(self, *_: Any) -> None:
        self.fill()

    def on_train_batch_end(self, *_: Any) -> None:
        self.fill()

    def on_validation_start(self, *_: Any) -> None:
        self.fill()

    def fill(self, *_: Any) -> None:
        """Fills the dead weights with zeros."""
        with torch.no_grad():
            for parameter, dead in self.dead.items():
                parameter.masked_fill_(dead, 0)

    def _fill_gradients(self, *_: Any) -> None:
        for parameter in self.dead:
            self._fill_gradient(parameter)

    def _fill_gradient(self, parameter: Any) -> None:
        if parameter.grad is not None:
            with torch.no_grad():
                parameter.grad.masked_fill_(self.dead[parameter], 0)
