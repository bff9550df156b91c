"""Data of your own: any ``LightningDataModule``, with all its hooks, or DataLoaders, as they are."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any

import pytorch_lightning as lightning
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from pipeline.data.dataset import CPU, AnySplit, Batch, Preprocessing, Shard, Split, unchanged
from pipeline.ground.errors import PipelineError, SettingsError, one_line
from pipeline.ground.packages import is_data_module, package_of, quiet
from pipeline.ground.randomness import seed_all, undisturbed
from pipeline.ground.structures import first_row, first_tensor, leaves
from pipeline.ground.tensors import update_digest
from pipeline.settings.dotted import found_at, made
from pipeline.settings.groups import OwnData

LOADERS: Mapping[AnySplit, str] = {
    "train": "train_dataloader",
    "validation": "val_dataloader",
    "test": "test_dataloader",
}
WITHOUT_LENGTH = 100_000
"""Batches after which a loader without a length counts as one that never ends."""
LOOKED_AT = 4
"""Training batches that tell one data module from another."""


@dataclass(frozen=True)
class Use:
    """What a data module is for: ``labels`` says that batches are inputs and targets, for a network with a loss,
    ``at_most`` how many batches an epoch trains on, where they are limited, and ``processes`` how many share them.
    """

    labels: bool = True
    at_most: int | None = None
    processes: int = 1


A_LOSS = Use()
"""One process, a network with a loss."""


@dataclass(frozen=True)
class OwnBatches:
    """A data module, set up, and what it is used for.

    Its loaders draw from the generators of Python, NumPy and torch, which are seeded by (seed, round, epoch).
    """

    module: Any
    use: Use
    given: Any = field(default=None, compare=False)
    """One input of the network, where the module says it."""

    @property
    def classes(self) -> Sequence[str]:
        return tuple(getattr(self.module, "classes", ()))

    @cached_property
    def first(self) -> Any:
        """The first batch of validation (else of training), as the network's module gets it."""
        with undisturbed():
            seed_all("data module")
            split: AnySplit = "validation" if self.has("validation") else "train"
            return transferred(self.module, next(batches(self.module, split)))

    @cached_property
    def example(self) -> Any:
        if self.given is not None:
            return self.given
        return first_row(inputs_and_targets(self.first)[0] if self.use.labels else inputs_of(self.first))

    @property
    def has_labels(self) -> bool:
        """Whether targets are class labels, one for each example."""
        targets = inputs_and_targets(self.first)[1]
        return targets.ndim == 1 and not targets.is_floating_point() and not targets.is_complex()

    def has(self, split: AnySplit) -> bool:
        """Whether the module has a loader for a split."""
        return has_own(self.module, LOADERS[split])

    @property
    def digest(self) -> str:
        """Over all validation and test batches, the first of training under a fixed seed, and the number of these."""
        return self._looked_at[0]

    @property
    def labels(self) -> Mapping[int, str]:
        """Every whole number that stands in the targets of those batches, and where it does first."""
        return self._looked_at[1]

    @cached_property
    def _looked_at(self) -> tuple[str, Mapping[int, str]]:
        digest, labels = hashlib.sha256(str(self.steps_per_epoch(0)).encode()), dict[int, str]()
        with undisturbed():
            for split in LOADERS:
                if self.has(split):
                    seed_all("data module")
                    looked_at = LOOKED_AT if split == "train" else WITHOUT_LENGTH
                    for number, batch in enumerate(islice(batches(self.module, split), looked_at), start=1):
                        if self.use.labels:
                            place = f"batch {number} of {LOADERS[split]}() of {type(self.module).__name__}"
                            targets = _checked_pair(place, transferred(self.module, batch))[1]
                            if not targets.is_floating_point() and not targets.is_complex():
                                for each in targets.unique().tolist():
                                    labels.setdefault(each, place)
                        update_digest(digest, batch)
        return digest.hexdigest(), labels

    def steps_per_epoch(self, batch_size: int) -> int:
        """Batches of the module, which has its own batch size.

        Raises:
            SettingsError: if they never end.
        """
        return self._steps

    @cached_property
    def _steps(self) -> int:
        loader = getattr(self.module, LOADERS["train"])()
        try:
            if (
                self.use.processes > 1
                and isinstance(loader, DataLoader)
                and not isinstance(loader.dataset, IterableDataset)
            ):
                return _dealt(loader, self.use.processes)
            return len(_combined(self.module, loader) if isinstance(loader, list | tuple | dict) else loader)
        except (TypeError, NotImplementedError):
            most = self.use.at_most or WITHOUT_LENGTH
        with undisturbed():
            seed_all("data module")
            count = sum(1 for _ in islice(batches(self.module, "train"), most))
        if count == WITHOUT_LENGTH:
            raise SettingsError(
                [
                    f"data: train_dataloader() of {type(self.module).__name__} has no length and gave {count:,} "
                    "batches; takes trainer.limit_train_batches=N for one that never ends"
                ]
            )
        return count

    def lengths(self, split: Split) -> list[int]:
        """How many batches each of a split's loaders has, of those that know it."""
        if not self.has(split):
            return []
        with undisturbed():
            seed_all("data module")
            given = getattr(self.module, LOADERS[split])()
        lengths = []
        for loader in given.flattened if type(given).__name__ == "CombinedLoader" else leaves(given):
            with suppress(TypeError, NotImplementedError):
                lengths.append(len(loader))
        return lengths

    def evaluation(self, split: Split, shard: Shard) -> Iterator[Batch]:
        for batch in batches(self.module, split):
            inputs, targets = inputs_and_targets(transferred(self.module, batch))
            yield Batch(shard.of(inputs), shard.of(targets), of=len(targets))

    @property
    def preprocessing(self) -> Preprocessing:
        return Preprocessing(unchanged, None)

    def raw(self, split: AnySplit) -> Iterator[tuple[Tensor, Tensor]]:
        """The module's own batches, and what it does to those of training."""
        with undisturbed():
            seed_all("data module")
            yield from (inputs_and_targets(transferred(self.module, each)) for each in batches(self.module, split))

    def inputs(self, split: Split) -> list[Any]:
        """What a module's forward most likely takes of each batch; where the module says an input, that."""
        if self.given is not None:
            return [self.given]
        with undisturbed():
            seed_all("data module")
            found = batches(self.module, split if self.has(split) else "train")
            return [inputs_of(transferred(self.module, each)) for each in islice(found, LOOKED_AT)]

    def notes(self) -> list[str]:
        return []


class Loaders(lightning.LightningDataModule):
    """DataLoaders as a data module: for training, and if there are such for validation and test."""

    def __init__(self, train: Any, validation: Any = None, test: Any = None) -> None:
        super().__init__()
        given: dict[AnySplit, Any] = {"train": train, "validation": validation, "test": test}
        for split, loader in given.items():
            if loader is not None:
                setattr(self, LOADERS[split], lambda loader=loader: loader)


def as_data_module(data: Any) -> Any:
    """A data module of what is given in Python: one already, a loader to train on, or (train, validation, test) ones.

    Raises:
        SettingsError: if it is none of these.
    """
    if is_data_module(data):
        return data
    loaders = data if isinstance(data, tuple | list) else (data,)
    if 1 <= len(loaders) <= 3 and all(each is None or isinstance(each, DataLoader) for each in loaders):
        return Loaders(*loaders)
    raise SettingsError(
        [f"data: got {data!r}, takes a LightningDataModule, a DataLoader, or DataLoaders (train, validation, test)"]
    )


HOOKS = (
    "prepare_data", "setup", "teardown", *LOADERS.values(), "on_before_batch_transfer", "transfer_batch_to_device",
    "on_after_batch_transfer", "state_dict", "load_state_dict", "on_exception",
)  # fmt: skip


def adopted(module: Any, package: Any) -> Any:
    """A data module as one of ``package``: itself, or one that hands on each of its hooks with its trainer."""
    if isinstance(module, package.LightningDataModule):
        return module

    def handed_on(name: str) -> Any:
        def hook(self: Any, *arguments: Any, **named: Any) -> Any:
            module.trainer = self.trainer
            return getattr(module, name)(*arguments, **named)

        return hook

    own = [name for name in HOOKS if has_own(module, name)]
    other = type(type(module).__name__, (package.LightningDataModule,), {name: handed_on(name) for name in own})()
    other.given = module
    return other


def has_own(module: Any, hook: str) -> bool:
    """Whether a data module has a hook that is not Lightning's: of its class, or given to it."""
    base = getattr(package_of(module).LightningDataModule, hook, None)
    found = getattr(module, hook, None)
    return found is not None and getattr(found, "__func__", found) is not base


def own_module(data: OwnData) -> Any:
    """The data module that a dotted path names.

    Raises:
        SettingsError: if there is none, or it does not take these arguments.
    """
    takes = "takes the dotted path of a LightningDataModule class"
    module = made(found_at(data.module, "data.module", takes), {}, data.arguments, "data.arguments")
    if not is_data_module(module):
        raise SettingsError([f"data.module: got {data.module!r}, which makes a {type(module).__name__}, {takes}"])
    return module


def own_batches(module: Any, use: Use) -> OwnBatches:
    """Sets a data module up and looks at its first batches.

    With ``use.labels`` batches must be inputs and targets, and all three loaders must be there.

    Raises:
        SettingsError: if a loader is missing or has no batches, or gives what it should not.
    """
    name = type(module).__name__
    try:
        with undisturbed():
            module.trainer = module.trainer or _onlooker(module)
            module.prepare_data()
            for stage in ("fit", "test"):
                seed_all("data module")
                module.setup(stage)
            tuple(getattr(module, "classes", ()))
    except (Exception, SystemExit) as error:
        raise SettingsError([f"data: {name} cannot be set up: {one_line(error)}"]) from error
    faults = []
    for split, loader in LOADERS.items():
        if not has_own(module, LOADERS[split]):
            if use.labels or split == "train":
                faults.append(
                    f"data: {name} has no {loader}(); takes a LightningDataModule that has it, in Python also "
                    "DataLoaders (train, validation, test)"
                )
            continue
        try:
            with undisturbed():
                seed_all("data module")
                if isinstance(given := getattr(module, loader)(), Iterator):
                    raise PipelineError(
                        f"data: {loader}() of {name} gives a {type(given).__name__}, which can be read once; takes a "
                        "DataLoader, or what else can be read in every epoch"
                    )
                found = next(batches(module, split), None)
            if found is None:
                faults.append(f"data: {loader}() of {name} gives no batches")
            elif use.labels:
                _checked_pair(f"batch 1 of {loader}() of {name}", transferred(module, found))
        except PipelineError as error:
            faults.append(str(error))
        except Exception as error:
            faults.append(f"data: {loader}() of {name} fails: {one_line(error)}")
    if faults:
        raise SettingsError(faults)
    return OwnBatches(module, use)


def batches(module: Any, split: AnySplit) -> Iterator[Any]:
    """The batches of a split; of several loaders as Lightning combines them."""
    loader = getattr(module, LOADERS[split])()
    if isinstance(loader, list | tuple | dict) or type(loader).__name__ == "CombinedLoader":
        combined = loader if type(loader).__name__ == "CombinedLoader" else _combined(module, loader, split)
        for batch, _, _ in combined:
            yield batch
    else:
        yield from loader


def _dealt(loader: "DataLoader[Any]", processes: int) -> int:
    """The batches of each process, as Lightning deals examples out: equal shares, the last of which repeats some."""
    share, batches = -(-len(loader.sampler) // processes), loader.batch_sampler  # type: ignore[arg-type]
    size = getattr(batches, "batch_size", 1)
    return share // size if getattr(batches, "drop_last", False) else -(-share // size)


def _combined(module: Any, loaders: Any, split: AnySplit = "train") -> Any:
    from importlib import import_module

    combined = import_module(f"{package_of(module).__name__}.utilities.combined_loader")
    found = combined.CombinedLoader(loaders, "max_size_cycle" if split == "train" else "sequential")
    iter(found)
    return found


def transferred(module: Any, batch: Any) -> Any:
    """A batch after the hooks that a data module has for its way to the device."""
    before = module.on_before_batch_transfer(batch, 0)
    return module.on_after_batch_transfer(module.transfer_batch_to_device(before, CPU, 0), 0)


def inputs_and_targets(batch: Any) -> tuple[Any, Tensor]:
    """What a network gets of a batch, and what its outputs are held against: a pair, or a mapping with ``labels``.

    Raises:
        ValueError: if a batch is anything else.
    """
    if isinstance(batch, Mapping) and isinstance(batch.get("labels"), Tensor):
        return {name: each for name, each in batch.items() if name != "labels"}, batch["labels"]
    if isinstance(batch, list | tuple) and len(batch) == 2 and isinstance(batch[1], Tensor):
        return batch[0], batch[1]
    raise ValueError(f"a {type(batch).__name__} of another form")


def inputs_of(batch: Any) -> Any:
    """What a LightningModule's forward most likely takes of a batch: the first of several parts, or all of it."""
    if isinstance(batch, list | tuple) and len(batch):
        return batch[0]
    return batch


def _checked_pair(place: str, batch: Any) -> tuple[Any, Tensor]:
    """Inputs and targets of a batch; a sentence where it is not these, of equal length."""
    try:
        inputs, targets = inputs_and_targets(batch)
        length = len(first_tensor(inputs))
        if not targets.ndim or length != len(targets):
            raise ValueError(f"tensors of {tuple(first_tensor(inputs).shape)} and {tuple(targets.shape)}")
    except (ValueError, TypeError, StopIteration) as error:
        raise PipelineError(
            f"data: {place} is {error}; takes (inputs, targets) of equal length, the targets a tensor; or a mapping of "
            "inputs with labels; other batches need a LightningModule, whose steps take any"
        ) from error
    return inputs, targets


def _onlooker(module: Any) -> Any:
    """A Trainer for a data module that asks for one before any training."""
    quiet()
    package = package_of(module)
    silent = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return package.Trainer(accelerator="cpu", devices=1, enable_model_summary=False, **silent)
