"""Training one round with Lightning: the module, the rewind-aware schedule, and gradients without dead weights.

A round starts from a ``State`` and ends in one; what happens between depends on the state, the span of epochs, the
masks and the key (seed, round) alone. That is why a round can stop after any epoch and continue from it bit for bit.
"""

import logging
import math
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, cast

import pytorch_lightning as lightning
import torch
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor, nn
from torch.compiler import set_stance
from torch.nn import functional as F
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from pipeline.data.dataset import Batch, Dataset, Split
from pipeline.data.module import RoundData
from pipeline.ground.errors import PipelineError
from pipeline.ground.randomness import derived_seed
from pipeline.pruning.masks import Masks
from pipeline.settings.groups import Optimizer, Sgd, Training
from pipeline.training.retraining import Span
from pipeline.training.schedule import Rate


@dataclass(frozen=True)
class State:
    """All that training changes, as CPU tensors of its own.

    ``network`` is the plain network's state dict. ``optimizer`` maps "<parameter>|<entry>" (such as
    "conv.weight|momentum_buffer") to tensors; it is empty before the first step.
    """

    network: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]


@dataclass(frozen=True)
class Epoch:
    """One finished epoch: ``number`` counts from 1 within the round, ``rate`` is that of its first step."""

    number: int
    rate: float
    metrics: Mapping[str, float]
    seconds: float
    finished_ms: int


def masked(state: State, masks: Masks) -> State:
    """The state with every dead weight, and all that the optimizer remembers of it, exactly zero."""

    def zeroed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        mask_of = {key: masks.get(key.split("|")[0]) for key in tensors}
        return {
            key: tensor if (mask := mask_of[key]) is None or mask.shape != tensor.shape else tensor.where(mask, 0)
            for key, tensor in tensors.items()
        }

    return State(zeroed(state.network), zeroed(state.optimizer))


SPLITS = ("train", "validation", "test")


class Classifier(lightning.LightningModule):
    """Forward, loss, metrics and optimizer of a network that scores classes."""

    def __init__(
        self, network: nn.Module, training: Training, classes: int, optimizer_state: Mapping[str, Tensor]
    ) -> None:
        super().__init__()
        self.network, self.training_settings, self.optimizer_state = network, training, optimizer_state
        self.full_batch: int | None = None
        accuracies: dict[str, Any] = {"accuracy": MulticlassAccuracy(classes, average="micro", validate_args=False)}
        if classes > 10:
            accuracies["top5_accuracy"] = MulticlassAccuracy(classes, top_k=5, average="micro", validate_args=False)
        self.losses = nn.ModuleList(MeanMetric(nan_strategy="disable") for _ in SPLITS)
        self.accuracies = nn.ModuleList(MetricCollection(accuracies).clone() for _ in SPLITS)

    def forward(self, inputs: Tensor) -> Tensor:
        """Scores (N, classes), at least float32. Of a compiled network, only full training batches run compiled."""
        self.full_batch = self.full_batch or len(inputs)
        full = self.training and len(inputs) == self.full_batch
        with nullcontext() if full or self.training_settings.compile == "off" else set_stance("force_eager"):
            scores: Tensor = self.network(inputs)
        return scores.to(torch.promote_types(scores.dtype, torch.float32))

    def training_step(self, batch: Batch, _: int) -> Tensor:
        """Loss of this process's part of a batch, weighted so that the mean over processes is that of the batch."""
        loss = self._loss("train", batch, self.training_settings.label_smoothing)
        return loss if self.trainer.world_size == 1 else loss * (len(batch.labels) * self.trainer.world_size / batch.of)

    def validation_step(self, batch: Batch, _: int) -> None:
        self._loss("validation", batch)

    def test_step(self, batch: Batch, _: int) -> None:
        self._loss("test", batch)

    def _loss(self, split: str, batch: Batch, label_smoothing: float = 0.0) -> Tensor:
        scores = self(batch.inputs)
        loss = F.cross_entropy(scores, batch.labels, label_smoothing=label_smoothing)
        if len(batch.labels):
            mean_loss, accuracies = self._metrics(split)
            mean_loss.update(loss.detach(), loss.new_full((), len(batch.labels)))
            accuracies.update(scores.detach(), batch.labels)
        return loss

    def _metrics(self, split: str) -> tuple[MeanMetric, MetricCollection]:
        index = SPLITS.index(split)
        return cast(MeanMetric, self.losses[index]), cast(MetricCollection, self.accuracies[index])

    def collect(self, split: str) -> dict[str, float]:
        """Loss and accuracies of a split since the last call."""
        mean_loss, accuracies = self._metrics(split)
        values = {"loss": mean_loss.compute(), **accuracies.compute()}
        mean_loss.reset()
        accuracies.reset()
        return {f"{split}_{name}": float(value) for name, value in values.items()}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = make_optimizer(self.network, self.training_settings.optimizer)
        restore(optimizer, self.network, self.optimizer_state)
        return optimizer


def make_optimizer(network: nn.Module, settings: Optimizer) -> torch.optim.Optimizer:
    """SGD or AdamW over all trainable parameters, in one group that decays and one that does not."""
    groups: dict[float, list[nn.Parameter]] = {}
    for parameter in network.parameters():
        if parameter.requires_grad:
            decays = settings.decay_norm_and_bias or parameter.ndim > 1
            groups.setdefault(settings.weight_decay if decays else 0.0, []).append(parameter)
    parameters = [{"params": group, "weight_decay": decay} for decay, group in groups.items()]
    if isinstance(settings, Sgd):
        return torch.optim.SGD(parameters, settings.rate, settings.momentum, nesterov=settings.nesterov, fused=True)
    return torch.optim.AdamW(parameters, settings.rate, (settings.beta1, settings.beta2), fused=True)


def capture(network: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> State:
    """A copy of all that training changes."""
    entries = {} if optimizer is None else {
        f"{name}|{entry}": value
        for name, parameter in network.named_parameters()
        for entry, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }  # fmt: skip
    return State(_copied(network.state_dict()), _copied(entries))


def _copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }


def restore(optimizer: torch.optim.Optimizer, network: nn.Module, entries: Mapping[str, Tensor]) -> None:
    """Gives a new optimizer the entries of ``State.optimizer``, laid out in memory as their parameters are."""
    parameters = dict(network.named_parameters())
    for key, value in entries.items():
        name, entry = key.rsplit("|", 1)
        parameter = parameters[name]
        like = torch.empty_like(parameter) if value.shape == parameter.shape and value.ndim else value.clone()
        optimizer.state[parameter][entry] = like.copy_(value)


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


def train_round(
    network: nn.Module,
    dataset: Dataset,
    *,
    classes: int,
    training: Training,
    span: Span,
    masks: Masks,
    key: tuple[int, int],
    start: State,
    first_epoch: int,
    on_epoch: Callable[[Epoch, State], None],
    on_batch: Callable[[int], None] | None = None,
) -> None:
    """Trains ``network`` from ``start`` through the epochs ``first_epoch`` to ``span.last`` (excluded) of ``span``.

    The network object survives: its weights are overwritten by ``start``, which is masked first. After each epoch
    ``on_epoch`` gets its figures and the state; the last of these states is the round's result. ``classes`` is the
    number of scores that the network gives, ``key`` is (seed, round), and ``on_batch`` gets the number of batches done
    in the epoch.

    Raises:
        PipelineError: if the loss is not a finite number any more.
    """
    start = masked(start, masks)
    _load(network, start)
    with torch.no_grad():
        for name, mask in masks.items():  # once more: a tied weight has another name in the state dict
            parameter = network.get_parameter(name)
            parameter.masked_fill_(~mask.to(parameter.device), 0)
    module = Classifier(network, training, classes, start.optimizer)
    callbacks: list[lightning.Callback] = [
        RewindAwareSchedule(span.rate, span.position, first_epoch),
        KeepPruned(network, masks),
        _EpochEnd(span, first_epoch, key, on_epoch),
    ]
    callbacks += [_EachBatch(on_batch)] if on_batch else []
    callbacks += [_OneSetOfStatistics()] if training.devices * training.nodes > 1 else []
    steps = {epoch: span.steps(epoch) for epoch in range(first_epoch, span.last)}
    round_data = RoundData(dataset, batch_size=training.batch_size, steps=steps, key=key, first_epoch=first_epoch)
    trainer = _trainer(training, callbacks, epochs=span.last - first_epoch)
    trainer.fit(module, datamodule=round_data)


def evaluate(
    network: nn.Module, dataset: Dataset, *, classes: int, split: Split, training: Training, state: State
) -> dict[str, float]:
    """Loss and accuracies of a state on the validation or the test split."""
    _load(network, state)
    module = Classifier(network, training, classes, {})
    loaders = RoundData(dataset, batch_size=training.batch_size, steps={}, key=(0, 0), first_epoch=0)
    trainer = _trainer(training, [], epochs=1)
    evaluation = trainer.validate if split == "validation" else trainer.test
    evaluation(module, datamodule=loaders, verbose=False)
    return module.collect(split)


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
