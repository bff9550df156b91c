"""Training one round with Lightning, and evaluating what came of it.

A round starts from a ``State`` and ends in one; what happens between depends on the state, the span of epochs, the
masks and (seed, round) alone. That is why a round can stop after any epoch and continue from it bit for bit.
"""

import logging
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as lightning
import torch
from pytorch_lightning.strategies import DDPStrategy
from torch import nn

from pipeline.data.dataset import Dataset, Split
from pipeline.data.module import RoundData
from pipeline.ground.errors import PipelineError
from pipeline.ground.randomness import derived_seed
from pipeline.pruning.masks import Masks
from pipeline.settings.groups import Training
from pipeline.training.module import Classifier
from pipeline.training.retraining import Span
from pipeline.training.schedule import Rate
from pipeline.training.state import Epoch, State, capture, masked


@dataclass(frozen=True)
class Trainable:
    """A network with the data and the settings that train it: what every training and evaluation of a run shares.

    ``classes`` is the number of scores that the network gives. The network object survives all of them: they overwrite
    its weights.
    """

    network: nn.Module
    dataset: Dataset
    classes: int
    training: Training


@dataclass(frozen=True)
class RoundPlan:
    """What one round trains: the epochs of ``span``, under ``masks``; its draws follow from (``seed``, ``index``)."""

    span: Span
    masks: Masks
    seed: int
    index: int


def train_round(
    trainable: Trainable,
    plan: RoundPlan,
    start: State,
    *,
    first_epoch: int,
    on_epoch: Callable[[Epoch, State], None],
    on_batch: Callable[[int], None] | None = None,
) -> None:
    """Trains from ``start``, masked first, through the epochs ``first_epoch`` to ``plan.span.last`` (excluded).

    After each epoch ``on_epoch`` gets its figures and the state; the last of these states is the round's result.
    ``on_batch`` gets the number of batches done in the epoch.

    Raises:
        PipelineError: if the loss is not a finite number any more.
    """
    network, training, span = trainable.network, trainable.training, plan.span
    start = masked(start, plan.masks)
    _load(network, start)
    with torch.no_grad():
        for name, mask in plan.masks.items():  # once more: a tied weight has another name in the state dict
            parameter = network.get_parameter(name)
            parameter.masked_fill_(~mask.to(parameter.device), 0)
    callbacks: list[lightning.Callback] = [
        RewindAwareSchedule(span.rate, span.position, first_epoch),
        KeepPruned(network, plan.masks),
        _EpochEnd(span, first_epoch, (plan.seed, plan.index), on_epoch),
    ]
    callbacks += [_EachBatch(on_batch)] if on_batch else []
    callbacks += [_OneSetOfStatistics()] if training.devices * training.nodes > 1 else []
    round_data = RoundData(
        trainable.dataset,
        batch_size=training.batch_size,
        steps={epoch: span.steps(epoch) for epoch in range(first_epoch, span.last)},
        key=(plan.seed, plan.index),
        first_epoch=first_epoch,
    )
    trainer = _trainer(training, callbacks, epochs=span.last - first_epoch)
    trainer.fit(Classifier(network, training, trainable.classes, start.optimizer), datamodule=round_data)


def evaluate(trainable: Trainable, split: Split, state: State) -> dict[str, float]:
    """Loss and accuracies of a state on the validation or the test split."""
    training = trainable.training
    _load(trainable.network, state)
    module = Classifier(trainable.network, training, trainable.classes, {})
    loaders = RoundData(trainable.dataset, batch_size=training.batch_size, steps={}, key=(0, 0), first_epoch=0)
    trainer = _trainer(training, [], epochs=1)
    evaluation = trainer.validate if split == "validation" else trainer.test
    evaluation(module, datamodule=loaders, verbose=False)
    return module.collect(split)


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


class _EpochEnd(lightning.Callback):
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


class _EachBatch(lightning.Callback):
    def __init__(self, report: Callable[[int], None]) -> None:
        self.report = report

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.report(batch_idx + 1)


class _OneSetOfStatistics(lightning.Callback):
    """Validates on every process with the leader's running statistics (of BatchNorm), which are those that are kept."""

    def on_validation_start(self, trainer: Any, module: Any) -> None:
        for buffer in module.network.buffers():
            torch.distributed.broadcast(buffer, src=0)


def _load(network: nn.Module, state: State) -> None:
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    network.load_state_dict(dict(state.network))


def _trainer(training: Training, callbacks: list[lightning.Callback], epochs: int) -> lightning.Trainer:
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="pytorch_lightning|lightning_fabric|torch.utils._pytree")
    return lightning.Trainer(
        accelerator="auto",
        devices=training.devices,
        num_nodes=training.nodes,
        strategy=DDPStrategy() if training.devices * training.nodes > 1 else "auto",
        precision="bf16-mixed" if training.precision == "bfloat16" else "32-true",
        max_epochs=epochs,
        callbacks=callbacks,
        deterministic=True,
        reload_dataloaders_every_n_epochs=1,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
