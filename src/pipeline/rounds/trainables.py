"""What is trained: a plain network with the settings' objective, or a user's LightningModule as it is."""

import dataclasses

from torch import nn

from pipeline.data import AnyDataset
from pipeline.data.dataset import Split
from pipeline.data.module import data_for
from pipeline.data.own import OwnBatches
from pipeline.ground.errors import SettingsError
from pipeline.ground.packages import package_of
from pipeline.networks import check_scores, tried
from pipeline.objective.supervised import TEACHABLE
from pipeline.objective.supervised import Supervised as SupervisedModule
from pipeline.settings.groups import Settings, Supervised
from pipeline.training.optimizer import make_optimizer
from pipeline.training.retraining import Span
from pipeline.training.schedule import scheduled
from pipeline.training.tape import Tape, scheduled_tape
from pipeline.training.train import Trainable
from pipeline.training.trainer import Factory, TrainerSettings


def with_objective(
    settings: Settings,
    objective: Supervised,
    dataset: AnyDataset,
    network: nn.Module,
    span: Span,
    factory: Factory | None,
    own_network: bool,
) -> Trainable:
    """A plain network, perhaps of the user's own, with the loss and the metrics of the settings.

    Raises:
        SettingsError: if its outputs are not what they take, or it has parameters that the optimizer cannot train.
    """
    training, name = settings.training, str(settings.model.network)
    if not isinstance(dataset, OwnBatches) or dataset.has_labels:
        outputs = check_scores(network, name, dataset.example, len(dataset.classes))
    else:
        shape = tried(network, name, dataset.example).shape
        outputs = shape[1] if len(shape) > 1 else 1
    if any(parameter.requires_grad for parameter in network.parameters()):
        make_optimizer(network, training.optimizer)  # said now, if it cannot be had
    batches = tuple(span.steps(epoch) for epoch in range(span.last))
    own = isinstance(dataset, OwnBatches)
    module = SupervisedModule(network, objective, training, outputs=outputs, batches=batches, some_ignored=own)
    if training.teacher is not None and not isinstance(module.loss, TEACHABLE):
        raise SettingsError(
            [
                f"training.teacher: got {training.teacher} for {type(module.loss).__name__}, takes null, or one of "
                f"{', '.join(loss.__name__ for loss in TEACHABLE)}, which take answers as targets"
            ]
        )
    if training.teacher is not None and getattr(module.loss, "ignore_index", -1) >= 0:
        got = f"got {training.teacher} with objective.loss_arguments={{ignore_index: {module.loss.ignore_index}}}"
        raise SettingsError(
            [f"training.teacher: {got}, which torch takes for labels alone; takes null, or a loss without it"]
        )
    return Trainable(
        module,
        network,
        data_for(module, dataset, training.batch_size),
        _trainer(settings, dataset, factory, own_network),
    )


def as_it_is(settings: Settings, dataset: AnyDataset, module: nn.Module, factory: Factory | None) -> Trainable:
    """A user's LightningModule, evaluated on the splits that it and the data have."""
    base = package_of(module).LightningModule
    known: tuple[Split, ...] = ("validation", "test")
    splits = tuple(
        split
        for split in known
        if getattr(type(module), f"{split}_step") is not getattr(base, f"{split}_step")
        and (not isinstance(dataset, OwnBatches) or dataset.has(split))
    )
    data = data_for(module, dataset, settings.training.batch_size, pairs=True)
    trainer = dataclasses.replace(_trainer(settings, dataset, factory, own_network=True), logger=True)
    return Trainable(module, module, data, trainer, splits=splits)


def schedule_of(settings: Settings, network: nn.Module, span: Span) -> Tape:
    """The tape that the settings' schedule gives."""
    training = settings.training
    every = int(settings.trainer.get("accumulate_grad_batches", 1))
    steps = [-(-span.steps(epoch) // every) for epoch in range(span.last)]
    rate = scheduled(training.schedule, training.optimizer.rate, sum(steps))
    return scheduled_tape(
        rate, training.optimizer.rate, steps, make_optimizer(network, training.optimizer).param_groups
    )


def _trainer(settings: Settings, dataset: AnyDataset, factory: Factory | None, own_network: bool) -> TrainerSettings:
    """The settings' trainer; data of the pipeline's own are dealt out, limited and loaded anew by themselves."""
    arguments, own = settings.trainer, isinstance(dataset, OwnBatches)
    if not own:
        arguments = {name: value for name, value in arguments.items() if name != "limit_train_batches"}
    return TrainerSettings(
        settings.training,
        arguments,
        factory,
        distributed_sampler=own,
        reload_every_epoch=not own,
        may_skip_layers=own_network,
    )
