"""Training one round with Lightning, and evaluating what came of it.

A round starts from a ``State`` and ends in one; what happens between depends on the state, the span of epochs, the
masks and (seed, round) alone. That is why a round can stop after any epoch and continue from it bit for bit.
"""

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import pytorch_lightning as lightning
import torch
from pytorch_lightning.strategies import DDPStrategy
from torch import nn

from pipeline.data.dataset import Dataset, Split
from pipeline.data.module import RoundData
from pipeline.pruning.masks import Masks
from pipeline.settings.groups import Training
from pipeline.training.callbacks import EachBatch, EpochEnd, KeepPruned, OneSetOfStatistics, RewindAwareSchedule
from pipeline.training.module import Classifier
from pipeline.training.retraining import Span
from pipeline.training.state import Epoch, State, masked


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
        EpochEnd(span, first_epoch, (plan.seed, plan.index), on_epoch),
    ]
    callbacks += [EachBatch(on_batch)] if on_batch else []
    callbacks += [OneSetOfStatistics()] if training.devices * training.nodes > 1 else []
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
