"""The LightningModule: forward, loss, metrics and optimizer, and no more."""

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, cast

import pytorch_lightning as lightning
import torch
from torch import Tensor, nn
from torch.compiler import set_stance
from torch.nn import functional as F
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from pipeline.data.dataset import Batch
from pipeline.settings.groups import Optimizer, Sgd, Training
from pipeline.training.state import restore

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
