"""A rehearsal: one batch of everything, before a training of hours. What cannot work is said now.

The layout in memory, the precision and the determinism of a training are the pipeline's choice, and its risk: where a
network of a user's fails under one of them and runs without, it runs without, and a sentence says so.
"""

import copy
import dataclasses
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import pytorch_lightning as lightning
import torch
from torch import Tensor, nn
from torch.compiler import set_stance

from pipeline.ground.errors import PipelineError, SettingsError, one_line, where
from pipeline.ground.packages import package_of
from pipeline.ground.randomness import seed_all, undisturbed
from pipeline.ground.structures import each_tensor, first_row, given_to, rows_of, uneven
from pipeline.ground.tensors import packed
from pipeline.networks.costs import counting, run_on
from pipeline.networks.given import not_copied
from pipeline.networks.layers import in_evaluation
from pipeline.objective import memory
from pipeline.training.loaders import all_loaders, generators, loaders
from pipeline.training.rest import captured, too_much
from pipeline.training.retraining import Span
from pipeline.training.train import Trainable, figures, validate_training, with_statistics
from pipeline.training.trainer import make_trainer

ONE_BATCH = ("limit_train_batches", "limit_val_batches", "limit_test_batches")


@dataclass(frozen=True)
class Rehearsed:
    """What a rehearsal showed: how the module can be trained, the weights and buffers that its ``setup()`` sets, those
    that change and that its state dict leaves out, what it logs (and in a test alone), what ``forward`` gets of one
    example, how often that uses each weight, and what to tell a person.
    """

    trainable: Trainable
    set_up: Mapping[str, Tensor]
    unkept: tuple[str, ...]
    logged: Mapping[str, float]
    tested: tuple[str, ...]
    example: Any
    positions: Mapping[str, int]
    notes: tuple[str, ...]


def rehearsed(trainable: Trainable, name: str, include: tuple[str, ...], copies: int = 1) -> Rehearsed:
    """Trains, validates and tests a copy on a batch each, under the pipeline's choices or without those that fail.

    Where several ``copies`` are averaged, a batch of training is validated too.

    Raises:
        SettingsError: if it fails in any case, or has a callback with which rounds cannot be of equal length.
    """
    failures: list[Exception] = []
    for told, choice in _choices(trainable):
        try:
            found = _on_one_batch(choice, include, copies)
        except SettingsError:
            raise
        except Exception as error:
            failures.append(error)
            continue
        if told:
            why = f"{told}: else {name} fails ({one_line(failures[0])})"
            found = dataclasses.replace(found, notes=(why, *found.notes))
        return found
    failure = failures[-1]  # of the pipeline's choices those before may tell
    if isinstance(failure, PipelineError):
        raise SettingsError([str(failure)]) from failure
    raise SettingsError([f"{name} fails on its first batch{where(failure)}: {one_line(failure)}"]) from failure


def _choices(trainable: Trainable) -> Iterator[tuple[str, Trainable]]:
    """The trainable as it is, then with each of the pipeline's choices taken back, then with all."""
    yield "", trainable
    trainer = trainable.trainer
    contiguous = dataclasses.replace(trainable, channels_last=False)
    free = dataclasses.replace(trainer, deterministic="warn")
    full = dataclasses.replace(trainer.training, precision="float32")
    if any(parameter.ndim in (4, 5) for parameter in trainable.network.parameters()):
        yield "trains without channels-last memory", contiguous
    yield "trains without deterministic algorithms", dataclasses.replace(trainable, trainer=free)
    if trainer.training.precision != "float32":
        exact = dataclasses.replace(trainer, training=full)
        yield "trains in float32", dataclasses.replace(trainable, trainer=exact)
    plain = dataclasses.replace(free, training=full)
    yield (
        "trains in float32, without channels-last memory or deterministic algorithms",
        dataclasses.replace(contiguous, trainer=plain),
    )


class _Onlooker(lightning.Callback):
    """Sees the loaders, the callbacks, and what the forward of a validation gets."""

    def __init__(self, network: nn.Module, include: tuple[str, ...]) -> None:
        self.network, self.include = network, include
        self.made = _parts(network)
        self.before = _values(network)
        self.set_up: dict[str, Tensor] = {}
        self.moved = False
        self.example: Any = None
        self.uneven: str | None = None
        self.watching = ExitStack()
        self.generators = False
        self.examples = 1
        self.counts: Mapping[str, int] = {}
        self.held: Mapping[str, Any] = {}
        self.counted: list[str] = []
        self.forgotten: list[str] = []

    def on_fit_start(self, trainer: Any, module: Any) -> None:
        kinds = [kind.__name__ for callback in trainer.callbacks for kind in type(callback).__mro__]
        if faults := [f"trainer: {name} {REFUSED[name]}" for name in kinds if name in REFUSED]:
            raise SettingsError(faults)
        self._check_layers()
        self.begun = _values(self.network)
        self.set_up = {name: each for name, each in self.begun.items() if not _same(each, self.before[name])}

    def _check_layers(self) -> None:
        """Raises where parameters are not those any more that the module was made with."""
        if changed := sorted(name for name, _ in self.made.items() ^ _parts(self.network).items()):
            name = type(self.network).__name__
            raise SettingsError(
                [
                    f"{name} makes {changed[0]} anew when a training starts, so that no round goes on from the one "
                    "before; takes a module that makes its layers once: in __init__(), or in setup() or "
                    "configure_model() only if they are not there yet (to compile it: module.compile())"
                ]
            )

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        iter(trainer.fit_loop._data_fetcher)  # as a training does, whose first iterator was made before any seeding
        self.generators = any(generators(each) for each in loaders(trainer))
        self.examples = 1

    def on_train_start(self, trainer: Any, module: Any) -> None:
        self.held = memory.of_data(all_loaders(trainer), trainer.datamodule)
        self.keepers = [(each, memory.of_thing(each)) for each in memory.keepers(trainer) if each is not self]

    def on_train_end(self, trainer: Any, module: Any) -> None:
        self.counted = memory.moved(self.held, memory.of_data(all_loaders(trainer), trainer.datamodule))
        for keeper, before in self.keepers:
            names = memory.changed(before, memory.of_thing(keeper))
            self.forgotten += [f"{name} of {type(keeper).__name__}" for name in names]

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        self._check_layers()
        self.moved = any(not _same(each, self.begun[name]) for name, each in _values(self.network).items())
        self._watch(batch)

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._watched()

    def on_validation_batch_start(
        self, trainer: Any, module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._watch(batch)

    def on_validation_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._watched()

    def _watch(self, batch: Any) -> None:
        self.examples = _examples(batch)
        self.live = self.watching.enter_context(counting(self.network, self.include))
        hook = self.network.register_forward_pre_hook(self._forward, with_kwargs=True)
        self.watching.callback(hook.remove)

    def _watched(self) -> None:
        self.watching.close()
        self.counts = {name: count // self.examples for name, count in self.live.items()}

    def _forward(self, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        given = given_to(self.network.forward, inputs, named)
        self.example, self.uneven = first_row(given), uneven(given)


def _on_one_batch(trainable: Trainable, include: tuple[str, ...], copies: int) -> Rehearsed:
    try:
        module = copy.deepcopy(trainable.module)
    except Exception as error:
        raise SettingsError([f"model.network: {not_copied(trainable.network, error)}"]) from error
    network = module if trainable.own else module.get_submodule("network")
    if trainable.channels_last:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    onlooker = _Onlooker(network, include)
    span = Span(0, 1, 1, 1)
    logged: dict[str, float] = {}
    tested: tuple[str, ...] = ()
    one_process = dataclasses.replace(trainable.trainer.training, devices=1, nodes=1)
    with undisturbed(), onlooker.watching:
        settings = dataclasses.replace(trainable.trainer, training=one_process)
        trainer = make_trainer(module, settings, [onlooker], epochs=1)
        for limit in ONE_BATCH:
            setattr(trainer, limit, 1)
        dummy = import_module(f"{package_of(module).__name__}.loggers.logger").DummyLogger
        trainer.loggers = [dummy() for _ in trainer.loggers]
        seed_all("data module")
        before, buffers = memory.of_module(network), memory.of_buffers(network)
        trainer.fit(module, datamodule=trainable.data((0, 0), span))
        logged |= figures(trainer)
        _check_remembered(trainer)
        notes = tuple(_notes(type(network).__name__, trainer, onlooker))
        if told := too_much(captured(trainer, all_of_it=trainable.own)):
            notes = (*notes, f"warning: {told}: a round that dies cannot go on from its last epoch")
        if "test" in trainable.splits:
            seed_all("data module")
            trainer.test(module, datamodule=trainable.data((0, 0), span), verbose=False)
            tested = tuple(name for name in figures(trainer) if name not in logged)
            logged |= figures(trainer)
        unkept, forgotten = _changed(network, before, buffers)
        notes = (*notes, *_forgotten(network, unkept, forgotten, own=trainable.own))
        if copies > 1 and with_statistics(network):
            _check_renewed(trainer, module, trainable.data((0, 0), span), copies)
        given = getattr(module, "example_input_array", None)
        example = onlooker.example if given is None else given
        if given is None and onlooker.uneven:
            notes = (*notes, f"warning: {type(network).__name__} cannot be deployed: {onlooker.uneven}")
        if told := _depends_on(network, first_row(example)):
            notes = (*notes, f"warning: {type(network).__name__} {told}")
    return Rehearsed(trainable, onlooker.set_up, unkept, logged, tested, example, onlooker.counts, notes)


def _check_renewed(trainer: Any, module: Any, data: Any, copies: int) -> None:
    """The mean of copies takes its running statistics anew, from training batches that are validated.

    Raises:
        SettingsError: if the module cannot validate them.
    """
    try:
        validate_training(trainer, module, data)
    except Exception as error:
        name = type(module).__name__
        raise SettingsError(
            [
                f"retraining.copies: got {copies}, whose mean takes its running statistics anew from training batches, "
                f"but validation_step() of {name} fails on one{where(error)}: {one_line(error)}; takes 1, or batches "
                "of training and validation that are alike"
            ]
        ) from error


def _parts(network: nn.Module) -> dict[str, int | None]:
    """The names in a network's state dict, with what each parameter is."""
    return {**dict.fromkeys(network.state_dict()), **{name: id(each) for name, each in network.named_parameters()}}


def _values(network: nn.Module) -> dict[str, Tensor]:
    """A copy of what a network's state dict holds."""
    return {name: each.detach().cpu().clone() for name, each in packed(network.state_dict()).items()}


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether numbers are the same. An extra state, as bytes, may change its length: that is not looked at."""
    return (
        one.shape != other.shape
        or torch.equal(one, other)
        or bool((one.isnan() & other.isnan() | (one == other)).all())
    )


REFUSED = {
    "EarlyStopping": "ends a training before its time, and a rewound rate needs rounds of one length; takes a fixed "
    "training.epochs, without it",
    "StochasticWeightAveraging": "sets rates of its own and adds to the end of a training; takes EMAWeightAveraging or "
    "WeightAveraging in its place",
    "BaseFinetuning": "changes within a training what is trained, which no later round could replay; takes a module "
    "whose parameters are frozen or not from the start",
    "ModelPruning": "prunes beside the pipeline; takes a module without it",
    "LearningRateFinder": "tries rates out before every round; takes the rate that it finds, without it",
    "BatchSizeFinder": "tries sizes out before every round; takes the size that it finds, without it",
}
"""Callbacks of Lightning with which rounds could not be rewound, and what to do."""


def _check_remembered(trainer: Any) -> None:
    """An optimizer must remember tensors and numbers alone: all else is lost between epochs that a kill divides.

    Raises:
        SettingsError: if one remembers more.
    """
    for optimizer in trainer.optimizers:
        for entries in optimizer.state.values():
            more = [name for name, value in entries.items() if isinstance(value, list | tuple | dict)]
            if more:
                raise SettingsError(
                    [f"{type(optimizer).__name__} remembers more than tensors and numbers ({', '.join(more)}), with "
                     "which no round could begin; takes an optimizer such as SGD or AdamW"]
                )  # fmt: skip


def _notes(name: str, trainer: Any, onlooker: _Onlooker) -> Iterator[str]:
    """What a person should know of a module and its data, after a batch."""
    if onlooker.generators:
        yield (
            "the data have a generator of their own: it is seeded anew for every epoch, from seed, round and epoch, so "
            "that a run can continue"
        )
    if not trainer.global_step:
        yield f"warning: {name} made no step of an optimizer on its first batch"
    if onlooker.counted:
        yield (
            f"warning: the data change {', '.join(onlooker.counted)}, which is kept nowhere: a run that dies or is "
            "taken further goes on without; a generator of their own, set_epoch() of a sampler, or state_dict() and "
            "load_state_dict() of a data module would be given what belongs to the epoch"
        )
    if onlooker.forgotten:
        yield (
            f"warning: training changes {', '.join(onlooker.forgotten)}, which is kept nowhere: a run that dies within "
            "a round goes on without; a callback's state_dict() and load_state_dict() would keep it, and what an "
            "optimizer has in its state or its groups"
        )
    if onlooker.moved:
        yield (
            f"warning: {name} changes weights when a training starts, after setup(): every round starts with that "
            "change"
        )


def _changed(
    network: nn.Module, before: Mapping[str, str], buffers: Mapping[str, tuple[object, str]]
) -> tuple[tuple[str, ...], list[str]]:
    """What training has changed that no state dict holds: buffers that one could hold, and all else."""
    after = memory.of_buffers(network)
    changed = memory.changed(buffers, after)
    unkept = tuple(name for name in changed if name in after and after[name][0] == buffers[name][0])
    others = [name for name in changed if name not in unkept]
    return unkept, [*others, *memory.changed(before, memory.of_module(network))]


def _forgotten(network: nn.Module, unkept: Collection[str], forgotten: list[str], *, own: bool) -> Iterator[str]:
    """What to tell of what no state dict holds."""
    name = type(network).__name__
    if unkept:
        yield (
            f"training changes {', '.join(unkept)}, which {name} leaves out of its state dict (persistent=False): kept "
            "with every round, as other buffers are"
        )
    hook = getattr(type(network), "on_save_checkpoint", None)
    if forgotten and not own:
        yield (
            f"warning: {name} changes {', '.join(forgotten)}, which no state dict holds: a run that dies or is taken "
            "further goes on without, else each round with what the last one left; a buffer would be kept, or "
            "get_extra_state() and set_extra_state()"
        )
    elif forgotten and getattr(hook, "__module__", "").startswith(memory.LIBRARY):
        yield (
            f"warning: {name} changes {', '.join(forgotten)}, which no state dict holds: a run that dies within a "
            "round goes on without; on_save_checkpoint() and on_load_checkpoint() would keep them"
        )
    if metrics := memory.never_reset(network) if own else []:
        yield (
            f"warning: {name} never resets {', '.join(metrics)}: what an epoch logs of it counts those before, and a "
            "run that dies within a round goes on without them; reset() at the end of an epoch, or self.log() of the "
            "metric itself, would start it anew"
        )


def _depends_on(network: nn.Module, example: Any) -> str | None:
    """What an answer in evaluation depends on beside its input (1, ...): on chance, or on the rest of the batch."""
    with in_evaluation(network), set_stance("force_eager"), suppress(Exception):
        twice = rows_of(example, 2)
        first, again = _rows(run_on(network, twice)), _rows(run_on(network, twice))
        if not _alike(first, again):
            return "answers differently to the same input twice in evaluation: its scores are random"
        beside = each_tensor(example, lambda tensor: torch.cat([tensor, torch.zeros_like(tensor)]))
        if not _alike([each[:1] for each in first], [each[:1] for each in _rows(run_on(network, beside))]):
            return (
                "answers an input in evaluation by what else is in its batch, as a normalisation in training does: its "
                "scores depend on how examples are batched"
            )
    return None


def _rows(answer: Any) -> list[Tensor]:
    """The numbers of an answer to two inputs that have a row for each."""
    found: list[Tensor] = []

    def take(tensor: Tensor) -> Tensor:
        if tensor.ndim and len(tensor) == 2 and not tensor.is_complex():
            found.append(tensor.double())
        return tensor

    each_tensor(answer, take)
    return found


def _alike(left: list[Tensor], right: list[Tensor]) -> bool:
    """Whether numbers are the same, but for rounding."""
    return len(left) == len(right) and all(
        one.shape == other.shape and torch.allclose(one, other, 1e-3, 1e-3 * float(one.abs().amax()), equal_nan=True)
        for one, other in zip(left, right, strict=True)
        if one.numel()
    )


def _examples(batch: Any) -> int:
    """How many examples a batch has: the length of its first part."""
    while isinstance(batch, Mapping | tuple) or (isinstance(batch, list) and len(batch) == 2):
        batch = next(iter(batch.values() if isinstance(batch, Mapping) else batch))
    return max(1, len(batch)) if isinstance(batch, list) or getattr(batch, "ndim", 0) > 0 else 1
