"""Training one round with Lightning, and evaluating what came of it.

A round starts from a ``State`` and ends in one; what happens between depends on the state, the span of epochs, the
masks, the tape and (seed, round) alone. That is why a round can stop after any epoch and continue from it bit for bit.
"""

import copy
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as lightning
import torch
from torch import Tensor, nn

from pipeline.data.dataset import Split
from pipeline.data.own import has_own
from pipeline.ground.errors import PipelineError
from pipeline.ground.randomness import derived_seed, seed_all
from pipeline.pruning.masks import Masks, kept
from pipeline.training import rest
from pipeline.training.alive import kept_dead
from pipeline.training.average import MovingAverage
from pipeline.training.gradual import Gradual, PruneGradually
from pipeline.training.loaders import cut, loaders, reseed
from pipeline.training.replay import Recording, RewindAwareSchedule
from pipeline.training.retraining import Span
from pipeline.training.state import Epoch, State, UnderWay, capture, load, masked, restore
from pipeline.training.tape import Tape
from pipeline.training.trainer import TrainerSettings, make_trainer


@dataclass(frozen=True)
class Trainable:
    """What is trained, on what and how: all that the trainings and evaluations of a run share.

    ``module`` is the LightningModule and ``network`` the part of it whose state counts (itself, where it is a user's).
    A network with an objective survives all trainings, which overwrite its weights; of a user's own module each gets
    a copy. ``data`` gives the data module of (seed, round) for a span; ``splits`` names those that can be evaluated.
    """

    module: nn.Module
    network: nn.Module
    data: Callable[[tuple[int, int], Span], Any]
    trainer: TrainerSettings
    channels_last: bool = True
    splits: tuple[Split, ...] = ("validation", "test")

    @property
    def own(self) -> bool:
        """Whether the module is a user's own, whose hooks and callbacks may remember anything."""
        return self.module is self.network

    def fresh(self) -> "Trainable":
        """For one training or evaluation: a user's own module is a copy, so that none hands on what it remembers."""
        if not self.own:
            return self
        module = copy.deepcopy(self.module)
        return dataclasses.replace(self, module=module, network=module)


@dataclass(frozen=True)
class RoundPlan:
    """What one round trains: the epochs of ``span``, under ``masks``; its draws follow from (``seed``, ``index``).

    ``tape`` gives every step's rates; None records one, which is what round 0 does. ``gradual`` prunes further within
    the training. ``teacher`` gives the weights of the network whose answers are learned beside the targets.
    """

    span: Span
    masks: Masks
    seed: int
    index: int
    tape: Tape | None = None
    gradual: Gradual | None = None
    teacher: Mapping[str, Tensor] | None = None


def train_round(
    trainable: Trainable,
    plan: RoundPlan,
    start: UnderWay,
    *,
    first_epoch: int,
    on_epoch: Callable[[Epoch, UnderWay], None],
    on_batch: Callable[[int], None] | None = None,
) -> UnderWay:
    """Trains from ``start``, masked first, through the epochs ``first_epoch`` to ``plan.span.last`` (excluded).

    After each epoch ``on_epoch`` gets its figures and what goes on from there; the last of these is returned too: the
    round's result. ``on_batch`` gets the number of batches done in the epoch.

    Raises:
        PipelineError: if the loss is not a finite number any more, or something ends the training early.
    """
    trainable = trainable.fresh()
    module, span = trainable.module, plan.span
    masks = start.masks or plan.masks
    start = dataclasses.replace(start, state=masked(start.state, masks))
    _load(trainable, start.state)
    rates: RewindAwareSchedule | Recording = (
        Recording(start.tape) if plan.tape is None else RewindAwareSchedule(plan.tape)
    )
    with (
        kept_dead(trainable.network, masks) as keep_pruned,
        learning_from(trainable, plan.teacher),
    ):
        ema = trainable.trainer.training.ema
        average = None if ema is None else MovingAverage(trainable.network, ema, start.average)
        pruner = None
        if plan.gradual is not None:
            steps, done = (sum(map(span.steps, range(span.first, last))) for last in (span.last, first_epoch))
            pruner = PruneGradually(
                trainable.network, plan.gradual, kept(plan.masks), masks, keep_pruned, steps, done, average
            )
        epochs = _Epochs(trainable, plan, rates, start, keep_pruned.fill, on_epoch, average, pruner)
        callbacks: list[lightning.Callback] = [epochs, keep_pruned, rates]
        callbacks += [each for each in (pruner, average) if each is not None]
        callbacks += [_EachBatch(on_batch)] if on_batch else []
        callbacks += [_OneSetOfStatistics(trainable.network)] if _processes(trainable) > 1 else []
        trainer = make_trainer(module, trainable.trainer, callbacks, epochs=span.last)
        past = plan.tape or start.tape
        _begin_at(
            trainer, first_epoch, past.global_step(first_epoch) if past else 0, first_epoch * span.steps_per_epoch
        )
        data = trainable.data((plan.seed, plan.index), span)
        seed_all("data module")
        with ExitStack() as once:
            for loader in ("train_dataloader", "val_dataloader"):
                if has_own(data, loader) and not trainer.reload_dataloaders_every_n_epochs:
                    made = _of_epoch(trainer, span.first, getattr(data, loader))
                    once.enter_context(_standing_in(data, loader, made))
            trainer.fit(module, datamodule=data)
        return epochs.finish(trainer)


def evaluate(
    trainable: Trainable,
    split: Split,
    state: State,
    *,
    forward: Callable[..., Any] | None = None,
    rows: int | None = None,
) -> dict[str, float]:
    """What the module logs of a state on the validation or the test split; of validation where it has no test.

    ``forward`` takes the place of the network's own. With ``rows``, of the first examples: of so many where batches can
    be cut, else of whole batches.
    """
    split = split if split in trainable.splits else "validation"
    if split not in trainable.splits:
        return {}
    trainable = trainable.fresh()
    _load(trainable, state)
    again = [_AfterSetup(lambda: _load(trainable, state))] if trainable.own else []
    trainer = make_trainer(trainable.module, trainable.trainer, again, epochs=1)
    evaluation = trainer.validate if split == "validation" else trainer.test
    data = trainable.data((0, 0), Span(0, 0, 0, 0))
    loader = "val_dataloader" if split == "validation" else "test_dataloader"
    whole = getattr(data, loader)
    with (
        _standing_in(trainable.network, "forward", forward and functools.wraps(trainable.network.forward)(forward)),
        _standing_in(data, loader, None if rows is None else lambda: cut(whole(), rows)),
    ):
        seed_all("data module")
        evaluation(trainable.module, datamodule=data, verbose=False)
    return figures(trainer)


def _of_epoch(trainer: Any, epoch: int, make: Callable[[], Any]) -> Callable[[], Any]:
    """Makes loaders as for that epoch, the first of a round: one that goes on later has those that it began with."""

    def made() -> Any:
        current = trainer.fit_loop.epoch_progress.current
        now, current.completed = current.completed, epoch
        try:
            return make()
        finally:
            current.completed = now

    return made


@contextmanager
def _standing_in(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Has an object another attribute within the block; None for its own."""
    before = dict(vars(owner))
    if value is not None:
        setattr(owner, name, value)
    try:
        yield
    finally:
        if value is not None:
            delattr(owner, name)
            vars(owner).update({name: before[name]} if name in before else {})


def renewed(trainable: Trainable, plan: RoundPlan, state: State) -> State:
    """The state with running statistics taken anew, where it has such: the mean over an epoch of training batches, as
    averaged weights need (Izmailov et al. 2018, section 3.2). The batches go through ``validation_step``."""
    trainable = trainable.fresh()
    _load(trainable, state)
    if not (layers := with_statistics(trainable.network)):
        return state
    momenta = [layer.momentum for layer in layers]
    again = [_AfterSetup(lambda: _load(trainable, state))] if trainable.own else []
    trainer = make_trainer(trainable.module, trainable.trainer, [*again, _TakesStatistics(layers)], epochs=1)
    data = trainable.data((plan.seed, plan.index), plan.span)
    try:
        validate_training(trainer, trainable.module, data)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
    return State(capture(trainable.network).network, state.optimizer)


def validate_training(trainer: Any, module: nn.Module, data: Any) -> None:
    """Validates a module on the batches that it trains on."""
    with _standing_in(data, "val_dataloader", data.train_dataloader):
        seed_all("data module")
        trainer.validate(module, datamodule=data, verbose=False)


def with_statistics(network: nn.Module) -> list[Any]:
    """The layers that take running statistics in training."""
    return [
        module
        for module in network.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats and module.training
    ]


class _TakesStatistics(lightning.Callback):
    """Has normalisation layers average over all batches of an evaluation."""

    def __init__(self, layers: Sequence[Any]) -> None:
        self.layers = layers

    def on_validation_epoch_start(self, trainer: Any, module: Any) -> None:
        for layer in self.layers:
            layer.reset_running_stats()
            layer.momentum = None
            layer.train()


@contextmanager
def learning_from(trainable: Trainable, teacher: Mapping[str, Tensor] | None) -> Iterator[None]:
    """Has a network with an objective learn from the answers of one with the weights ``teacher``, within the block."""
    if teacher is None:
        yield
        return
    network = copy.deepcopy(trainable.network).requires_grad_(False)
    load(network, teacher)
    module: Any = trainable.module
    module.learn_from(network)
    try:
        yield
    finally:
        module.learn_from(None)


class _Epochs(lightning.Callback):
    """Begins where the round was left, seeds each epoch, and reports it when all that belongs to it is done.

    That is at the start of the next, or after the last: schedulers that step after an epoch, and averages that become
    the weights at the end, have done so then.
    """

    def __init__(
        self,
        trainable: Trainable,
        plan: RoundPlan,
        rates: RewindAwareSchedule | Recording,
        start: UnderWay,
        fill: Callable[[], None],
        report: Callable[[Epoch, UnderWay], None],
        average: MovingAverage | None,
        pruner: PruneGradually | None,
    ) -> None:
        self.trainable, self.plan, self.rates, self.start = trainable, plan, rates, start
        self.fill, self.report, self.average, self.pruner = fill, report, average, pruner
        self.ended: tuple[int, float, int] | None = None
        self.logged_before: Mapping[str, Any] = {}

    def on_fit_start(self, trainer: Any, module: Any) -> None:
        if self.trainable.own:  # whose setup() may have loaded or drawn weights
            _load(self.trainable, self.start.state)
        self.parameters = dict(self.trainable.network.named_parameters())
        restore(trainer.optimizers, self.trainable.network, self.start.state.optimizer)
        if self.start.rest:
            rest.give_back(trainer, module, self.start.rest)

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        self._report(trainer)
        self.logged_before = dict(trainer.callback_metrics)
        self.epoch, self.started = trainer.current_epoch, time.perf_counter()
        key = (self.plan.seed, self.plan.index, self.epoch)
        for loader in loaders(trainer):
            reseed(loader, derived_seed(*key, "loader"))
        seed_all(*key, "network")
        if (steps := self.plan.span.steps(self.epoch)) < self.plan.span.steps_per_epoch:
            trainer.fit_loop.max_batches = trainer.val_check_batch = steps
        if self.epoch == 0 and not self.trainable.trainer.reload_every_epoch:
            iter(trainer.fit_loop._data_fetcher)  # its first iterator was made before anything was seeded

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0 and trainer.global_rank:  # dropout of its own; what deals out batches has drawn its order
            seed_all(self.plan.seed, self.plan.index, self.epoch, "network", trainer.global_rank)

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        self.ended = self.epoch, time.perf_counter() - self.started, time.time_ns() // 1_000_000

    def finish(self, trainer: Any) -> UnderWay:
        """Reports the last epoch.

        Raises:
            PipelineError: if it is not the last of the span.
        """
        if self.ended is None or self.ended[0] != self.plan.span.last - 1:
            done = 0 if self.ended is None else self.ended[0] + 1
            raise PipelineError(
                f"round {self.plan.index} was stopped after epoch {done} of {self.plan.span.last} by a callback or the "
                "module (trainer.should_stop); takes a training of full length, for which rates can be replayed"
            )
        return self._report(trainer)

    def _report(self, trainer: Any) -> UnderWay:
        if self.ended is None:
            return self.start
        epoch, seconds, finished_ms = self.ended
        self.ended = None
        before = self.logged_before
        anew = {name for name, value in trainer.callback_metrics.items() if value is not before.get(name)}
        metrics = {name: value for name, value in figures(trainer).items() if name in anew}
        losses = sorted((name for name in metrics if "loss" in name), key=lambda name: not name.startswith("train"))
        lost = [name for name in losses if math.isnan(metrics[name])]
        lost += [name for name in losses if name.startswith("train") and math.isinf(metrics[name])]
        lost += [name for name, each in self.trainable.network.named_parameters() if not bool(each.isfinite().all())]
        if lost:
            raise PipelineError(
                f"round {self.plan.index}, epoch {epoch + 1}: {lost[0]} is no finite number any more: the training has "
                "diverged, or its inputs hold such numbers; try a lower learning rate or a warm-up"
            )
        now = dict(self.trainable.network.named_parameters())
        if replaced := [name for name, each in self.parameters.items() if now.get(name) is not each]:
            raise PipelineError(
                f"round {self.plan.index}, epoch {epoch + 1}: {replaced[0]} was made anew in training, and a mask is "
                "of the parameter that was there; takes a module that changes its parameters in place"
            )
        self.fill()
        tape = self.rates.recorder.tape(trainer.global_step) if isinstance(self.rates, Recording) else None
        if self.average is not None and epoch == self.plan.span.last - 1:
            self.average.become(self.average.average)
        reached = UnderWay(
            capture(self.trainable.network, trainer.optimizers),
            tape,
            rest.captured(trainer, all_of_it=self.trainable.own),
            {} if self.pruner is None else self.pruner.masks,
            {} if self.average is None else self.average.kept(),
        )
        used = tape or self.plan.tape
        assert used is not None
        rate = used.at(0, epoch, 0).get((0, "lr"), 0.0) if used.optimizers else 0.0
        self.report(Epoch(epoch - self.plan.span.first + 1, rate, metrics, seconds, finished_ms), reached)
        return reached


class _AfterSetup(lightning.Callback):
    """Does something once a module's own ``setup()`` is over, before it is evaluated."""

    def __init__(self, action: Callable[[], None]) -> None:
        self.action = action

    def on_validation_start(self, trainer: Any, module: Any) -> None:
        self.action()

    def on_test_start(self, trainer: Any, module: Any) -> None:
        self.action()


class _EachBatch(lightning.Callback):
    def __init__(self, report: Callable[[int], None]) -> None:
        self.report = report

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.report(batch_idx + 1)


class _OneSetOfStatistics(lightning.Callback):
    """Validates on every process with the leader's running statistics (of BatchNorm), which are those that are kept."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def on_validation_start(self, trainer: Any, module: Any) -> None:
        for buffer in self.network.buffers():
            torch.distributed.broadcast(buffer, src=0)


def _processes(trainable: Trainable) -> int:
    return trainable.trainer.training.devices * trainable.trainer.training.nodes


def _load(trainable: Trainable, state: State) -> None:
    network = trainable.network
    if trainable.channels_last:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    load(network, state.network)


def figures(trainer: Any) -> dict[str, float]:
    """What was logged, by name: numbers alone."""
    return {
        name: float(value)
        for name, value in trainer.callback_metrics.items()
        if not isinstance(value, Tensor) or value.numel() == 1
    }


def _begin_at(trainer: Any, epoch: int, global_step: int, batches: int) -> None:
    """Has a new Trainer count from there, so that whatever a module reads of it is as it was in round 0."""
    loop = trainer.fit_loop.epoch_loop
    for counts in (trainer.fit_loop.epoch_progress.total, trainer.fit_loop.epoch_progress.current):
        counts.ready = counts.started = counts.processed = counts.completed = epoch
    for counts in (
        loop.automatic_optimization.optim_progress.optimizer.step.total,
        loop.manual_optimization.optim_step_progress.total,
    ):
        counts.ready = counts.completed = global_step
    counts = loop.batch_progress.total
    counts.ready = counts.started = counts.processed = counts.completed = batches
    loop._batches_that_stepped = global_step
