"""What a training does at each step and epoch: the rate of the position, no gradient for dead weights, the report."""

import math
import time
from collections.abc import Callable
from typing import Any

import pytorch_lightning as lightning
import torch
from torch import nn

from pipeline.ground.errors import PipelineError
from pipeline.ground.randomness import derived_seed
from pipeline.pruning.masks import Masks
from pipeline.training.retraining import Span
from pipeline.training.schedule import Rate
from pipeline.training.state import Epoch, State, capture


class RewindAwareSchedule(lightning.Callback):
    """Sets the rate of every step to that of its position in the schedule, wherever the round began."""

    def __init__(self, rate: Rate, position: Callable[[int, int], int], first_epoch: int) -> None:
        """``position`` maps (epoch of round 0, batch) to a step of round 0; training begins at ``first_epoch``."""
        self.rate, self.position, self.first_epoch = rate, position, first_epoch

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        rate = self.rate(self.position(self.first_epoch + trainer.current_epoch, batch_idx))
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = rate


class KeepPruned(lightning.Callback):
    """Takes dead weights out of every gradient, before norms are taken and the optimizer steps.

    Together with a start from a ``masked`` state this keeps them at exactly zero: no gradient, no momentum, and a
    decay of zero times anything.
    """

    def __init__(self, network: nn.Module, masks: Masks) -> None:
        parameters = dict(network.named_parameters())
        self.pairs = [(parameters[name], mask) for name, mask in masks.items() if not mask.all()]

    def on_fit_start(self, trainer: Any, module: Any) -> None:
        self.pairs = [(parameter, mask.to(parameter.device)) for parameter, mask in self.pairs]

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        for parameter, mask in self.pairs:
            if parameter.grad is not None:
                parameter.grad.mul_(mask)


class EpochEnd(lightning.Callback):
    """Seeds each epoch, and reports it when it is done and validated."""

    def __init__(self, span: Span, first_epoch: int, key: tuple[int, int], report: Callable[[Epoch, State], None]):
        self.span, self.first_epoch, self.key, self.report = span, first_epoch, key, report

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        self.started = time.perf_counter()
        self.epoch = self.first_epoch + trainer.current_epoch
        torch.manual_seed(derived_seed(*self.key, self.epoch, "network"))

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        metrics = module.collect("train") | module.collect("validation")
        if not math.isfinite(metrics["train_loss"]):
            raise PipelineError(
                f"round {self.key[1]}, epoch {self.epoch + 1}: the training loss is {metrics['train_loss']}: the "
                "training has diverged; try a lower training.optimizer.rate or a warm-up"
            )
        finished = Epoch(
            number=self.epoch - self.span.first + 1,
            rate=self.span.rate(self.span.position(self.epoch, 0)),
            metrics=metrics,
            seconds=time.perf_counter() - self.started,
            finished_ms=time.time_ns() // 1_000_000,
        )
        self.report(finished, capture(module.network, trainer.optimizers[0]))


class EachBatch(lightning.Callback):
    """Reports every batch."""

    def __init__(self, report: Callable[[int], None]) -> None:
        self.report = report

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.report(batch_idx + 1)


class OneSetOfStatistics(lightning.Callback):
    """Validates on every process with the leader's running statistics (of BatchNorm), which are those that are kept."""

    def on_validation_start(self, trainer: Any, module: Any) -> None:
        for buffer in module.network.buffers():
            torch.distributed.broadcast(buffer, src=0)
