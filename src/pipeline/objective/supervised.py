"""A plain network with a loss and torchmetrics, as a LightningModule."""

import inspect
import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, cast

import pytorch_lightning as lightning
import torch
from torch import Tensor, nn
from torch.compiler import set_stance
from torch.utils.data import DistributedSampler
from torchmetrics import MeanMetric, Metric, MetricCollection

from pipeline.data.dataset import Batch, Shard
from pipeline.data.own import inputs_and_targets
from pipeline.ground.errors import PipelineError, SettingsError, one_line
from pipeline.ground.structures import each_tensor, first_tensor
from pipeline.networks.layers import outputs_of
from pipeline.objective.score import Score
from pipeline.settings.dotted import found_at, made
from pipeline.settings.groups import Supervised as Objective
from pipeline.settings.groups import Training
from pipeline.training.optimizer import make_optimizer
from pipeline.training.schedule import Scheduled, scheduled

SPLITS = ("train", "validation", "test")
TAUGHT = 0.5
"""Share of the loss that is against the answers of a teacher."""
TEACHABLE = (nn.CrossEntropyLoss, nn.BCEWithLogitsLoss, nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss)
"""Losses that take another network's answers as targets."""


class Supervised(lightning.LightningModule):
    """Forward, loss, metrics, optimizer and schedule of a network whose outputs are held against targets.

    ``outputs`` is how many numbers it gives at a place (classes, labels), ``batches`` how many each epoch of T has.
    With ``some_ignored`` there may be labels that the loss ignores: metrics that can do so too.
    """

    def __init__(
        self,
        network: nn.Module,
        objective: Objective,
        training: Training,
        *,
        outputs: int,
        batches: Sequence[int],
        some_ignored: bool = False,
    ) -> None:
        super().__init__()
        self.network, self.settings, self.batches, self.outputs = network, training, batches, outputs
        self.full_batch: int | None = None
        self._teacher: tuple[nn.Module, ...] = ()  # in a tuple no part of the module: neither trained nor kept
        self.loss = _loss(objective)
        metrics = _metrics(objective, outputs, getattr(self.loss, "ignore_index", None) if some_ignored else None)
        self.losses = nn.ModuleList(MeanMetric(nan_strategy="disable") for _ in SPLITS)
        self.metrics = nn.ModuleList(MetricCollection(dict(metrics)).clone() for _ in SPLITS)

    def forward(self, inputs: Any) -> Tensor:
        """Outputs, at least float32. Of a compiled network, only full training batches run compiled."""
        size = len(first_tensor(inputs))
        if self.training:  # a run that goes on may begin with an evaluation
            self.full_batch = self.full_batch or size
        full = self.training and size == self.full_batch
        with nullcontext() if full or self.settings.compile == "off" else set_stance("force_eager"):
            outputs = outputs_of(self.network, inputs)
        return outputs.to(torch.promote_types(outputs.dtype, torch.float32))

    def learn_from(self, network: nn.Module | None) -> None:
        """From here on half of the loss is that against the answers of ``network``; None: against the targets alone.

        Distillation (Hinton et al. 2015, section 2, at temperature 1): of a cross-entropy the answers are the
        probabilities that the network gives, of other losses what it gives.
        """
        self._teacher = () if network is None else (network.eval(),)

    def _answers(self, teacher: nn.Module, inputs: Any) -> Tensor:
        """What a teacher makes of inputs, as targets of the loss."""
        with torch.no_grad(), set_stance("force_eager"):
            scores = outputs_of(teacher, inputs)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        match self.loss:
            case nn.CrossEntropyLoss():
                return scores.softmax(1)
            case nn.BCEWithLogitsLoss():
                return scores.sigmoid()
        return scores

    def training_step(self, batch: Any, _: int) -> Tensor:
        """Loss of this process's part of a batch, weighted so that the mean over processes is that of the batch."""
        part = self._part(batch, self.trainer.train_dataloader)
        loss = self._loss("train", part)
        world = self.trainer.world_size
        return loss if world == 1 else loss * (len(part.labels) * world / part.of)

    def validation_step(self, batch: Any, _: int) -> None:
        self._loss("validation", self._part(batch, self.trainer.val_dataloaders))

    def test_step(self, batch: Any, _: int) -> None:
        self._loss("test", self._part(batch, self.trainer.test_dataloaders))

    def on_train_epoch_end(self) -> None:
        done, asked = self.trainer.fit_loop.epoch_loop.batch_progress.current.ready, self.trainer.num_training_batches
        if done == 0:
            raise PipelineError(
                "data: the loader that trains gives no batches any more; takes one that begins anew at every epoch"
            )
        if done < asked < math.inf:
            raise PipelineError(f"data: the loader that trains ends after {done} batches of {asked}")
        self._log("train")

    def on_validation_epoch_end(self) -> None:
        self._log("validation")

    def on_test_epoch_end(self) -> None:
        self._log("test")

    def _part(self, batch: Any, loader: Any) -> Batch:
        """This process's part of a batch: what came as one, or was dealt out to it, or its rows of a whole."""
        if isinstance(batch, Batch):
            return batch
        inputs, targets = inputs_and_targets(batch)
        world = self.trainer.world_size
        if any(isinstance(getattr(each, "sampler", None), DistributedSampler) for each in _samplers(loader)):
            return Batch(inputs, targets, of=len(targets) * world)
        shard = Shard(self.trainer.global_rank, world)
        return Batch(each_tensor(inputs, shard.of), shard.of(targets), of=len(targets))

    def _loss(self, split: str, batch: Batch) -> Tensor:
        if not len(batch.labels) and not self.training:
            return torch.zeros(())
        outputs = self(batch.inputs)
        targets = batch.labels
        if not len(targets):  # the mean of no loss is not a number
            return outputs.sum() * 0
        if outputs.shape != targets.shape and outputs.shape == (*targets.shape, 1):
            outputs = outputs.squeeze(-1)
        if isinstance(self.loss, nn.CrossEntropyLoss | nn.NLLLoss):
            targets = targets if targets.is_floating_point() else targets.long()
        elif not targets.is_floating_point():
            targets = targets.to(outputs.dtype)
        try:
            loss: Tensor = self.loss(outputs, targets)
        except Exception as error:
            raise PipelineError(
                f"objective.loss: {type(self.loss).__name__} fails on outputs {_shown(outputs)} and targets "
                f"{_shown(targets)} of {split}: {one_line(error)}{self._takes(outputs, targets)}"
            ) from error
        for teacher in self._teacher if self.training else ():
            answers = self._answers(teacher, batch.inputs).view_as(outputs)
            loss = loss * (1 - TAUGHT) + self.loss(outputs, answers) * TAUGHT
        mean_loss, metrics = self._of(split)
        mean_loss.update(loss.detach(), loss.new_full((), len(targets)))
        if isinstance(self.loss, nn.CrossEntropyLoss) and targets.is_floating_point() and targets.ndim > 1:
            targets = targets.argmax(dim=1)  # shares of classes (smoothed, mixed); metrics take the largest
        _update(metrics, outputs.detach(), targets)
        return loss

    def _takes(self, outputs: Tensor, targets: Tensor) -> str:
        """What labels the loss takes, where those are not."""
        if not isinstance(self.loss, nn.CrossEntropyLoss | nn.NLLLoss) or targets.is_floating_point():
            return ""
        scores = outputs.shape[min(1, outputs.ndim - 1)]
        known = targets[targets != self.loss.ignore_index]
        fits = not known.numel() or (int(known.min()) >= 0 and int(known.max()) < scores)
        return "" if fits else f"; takes labels from 0 to {scores - 1}, one for each score"

    def check_labels(self, labels: Mapping[int, str]) -> None:
        """Holds labels, each with the place where it stands, against the scores that the network gives.

        Raises:
            SettingsError: if the loss takes a label for each place, and one has no score.
        """
        if not isinstance(self.loss, nn.CrossEntropyLoss | nn.NLLLoss):
            return
        beyond = [each for each in labels if not 0 <= each < self.outputs and each != self.loss.ignore_index]
        if beyond:
            raise SettingsError(
                [
                    f"data: {labels[beyond[0]]} has label {beyond[0]}; takes labels from 0 to {self.outputs - 1}, one "
                    f"for each score of {type(self.network).__name__}"
                ]
            )

    def _of(self, split: str) -> tuple[MeanMetric, MetricCollection]:
        index = SPLITS.index(split)
        return cast(MeanMetric, self.losses[index]), cast(MetricCollection, self.metrics[index])

    def _log(self, split: str) -> None:
        """Logs loss and metrics of a split since the last call."""
        mean_loss, metrics = self._of(split)
        for name, value in {"loss": mean_loss.compute(), **metrics.compute()}.items():
            self.log(f"{split}_{name}", value)
        mean_loss.reset()
        metrics.reset()

    def configure_optimizers(self) -> Any:
        optimizer = make_optimizer(self.network, self.settings.optimizer)
        total_steps = sum(-(-count // self.trainer.accumulate_grad_batches) for count in self.batches)
        full_rate = self.settings.optimizer.rate
        rate = scheduled(self.settings.schedule, full_rate, total_steps)
        scheduler = Scheduled(optimizer, rate, full_rate, self.trainer.global_step, total_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def _samplers(loader: Any) -> tuple[Any, Any]:
    """What of a loader may have a sampler: itself, and what makes its batches."""
    return loader, getattr(loader, "batch_sampler", None)


def _shown(tensor: Tensor) -> str:
    """Type, shape and range of a tensor."""
    low, high = (f"{float(each):g}" for each in tensor.detach().double().aminmax()) if tensor.numel() else ("", "")
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)} from {low} to {high}"


def score_of(objective: Objective) -> Score:
    """The score that the settings name.

    Raises:
        SettingsError: if the metric does not say what is better, and the settings neither.
    """
    name, better, percent = objective.score, objective.better, False
    if name == "loss":
        better = better or "lower"
    else:
        metric = _metric(name, objective, outputs=2)
        higher = metric.higher_is_better
        if better is None and higher is None:
            raise SettingsError([f"objective.better: got null, but {name} does not say; takes higher or lower"])
        better = better or ("higher" if higher else "lower")
        percent = (metric.plot_lower_bound, metric.plot_upper_bound) == (0.0, 1.0)
    return Score(f"validation_{name}", f"test_{name}", better, name.replace("_", " "), percent)


def _loss(objective: Objective) -> nn.Module:
    takes = "takes the dotted path of a loss, such as torch.nn.CrossEntropyLoss"
    make = found_at(objective.loss, "objective.loss", takes)
    arguments = {
        name: torch.tensor(value, dtype=torch.float32) if isinstance(value, list | tuple) else value
        for name, value in objective.loss_arguments.items()
    }
    return cast(nn.Module, made(make, {}, arguments, "objective.loss_arguments"))


def _metrics(objective: Objective, outputs: int, ignored: int | None) -> dict[str, Metric]:
    """The metrics; those over the best k classes where there are more than 2 k."""
    return {
        name: _metric(name, objective, outputs, ignored)
        for name, settings in objective.metrics.items()
        if outputs > 2 * int(settings.get("top_k", 0)) or "top_k" not in settings
    }


def _metric(name: str, objective: Objective, outputs: int, ignored: int | None = None) -> Metric:
    """A metric made with its arguments, and with the number of outputs and the label to ignore where it takes those."""
    setting = f"objective.metrics.{name}"
    arguments = dict(objective.metrics[name])
    make = found_at(arguments.pop("metric"), setting, "takes metric= with the dotted path of a torchmetrics class")
    known = inspect.signature(make).parameters
    given: dict[str, Any] = {
        count: outputs for count in ("num_classes", "num_labels") if count in known and count not in arguments
    }
    if ignored is not None and "ignore_index" in known and "ignore_index" not in arguments:
        given["ignore_index"] = ignored
    if "validate_args" in known and "validate_args" not in arguments:
        given["validate_args"] = False
    metric = made(make, given, arguments, setting)
    if not isinstance(metric, Metric):
        raise SettingsError([f"{setting}: got {objective.metrics[name]['metric']!r}, which is no torchmetrics class"])
    return metric


def _update(metrics: MetricCollection, outputs: Tensor, targets: Tensor) -> None:
    """Those of regression know numbers, and rows of numbers: what has more sides is numbers for them."""
    flat = {name for name, each in metrics.items() if type(each).__module__.startswith("torchmetrics.regression")}
    if outputs.ndim <= 2 or not flat:
        metrics.update(outputs, targets)
        return
    for name, metric in metrics.items():
        metric.update(*((outputs.reshape(-1), targets.reshape(-1)) if name in flat else (outputs, targets)))
