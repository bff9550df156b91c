"""From the mapping that was composed to ``Settings`` that can be: built strictly, completed, held against each other.

Nothing behind ``build`` ever sees a Hydra object.
"""

import dataclasses
import difflib
import inspect
import math
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pipeline.ground.errors import SettingsError
from pipeline.settings.groups import (
    Data,
    ImagesInMemory,
    ImagesOnDisk,
    OwnObjective,
    Pruning,
    Settings,
    Sgd,
    StepDecay,
    Supervised,
)
from pipeline.settings.strict import NO_MATCH, built, matched, shown, takes


def build(mapping: Mapping[str, Any]) -> Settings:
    """Builds ``Settings`` from a plain mapping.

    Raises:
        SettingsError: with a sentence for every unknown, missing, mistyped, out-of-range or impossible setting.
    """
    faults: list[str] = []
    settings = built(Settings, mapping, "", faults)
    if not faults:
        settings = _with_fraction(settings)
        faults = list(_impossible(settings))
        settings = _with_block(settings)
    if faults:
        raise SettingsError(faults)
    return typing.cast(Settings, settings)


def _with_fraction(settings: Settings) -> Settings:
    """The settings with the fraction that follows from rounds and target, where it is to follow from them."""
    pruning = settings.pruning
    if pruning.fraction is not None or not pruning.rounds or pruning.target_density is None:
        return settings
    fraction = 1 - pruning.target_density ** (1 / pruning.rounds)
    return dataclasses.replace(settings, pruning=dataclasses.replace(pruning, fraction=fraction))


JOINED = 4
"""Filters that the sparse engine computes together, on every processor that it knows."""


def _with_block(settings: Settings) -> Settings:
    """The settings with the size of blocks that ``auto`` stands for, where there are blocks."""
    pruning = settings.pruning
    if pruning.structure != "block" or pruning.block != "auto":
        return settings
    return dataclasses.replace(settings, pruning=dataclasses.replace(pruning, block=JOINED))


def _impossible(settings: Settings) -> Iterator[str]:
    """Settings that are each right and together cannot be."""
    training, pruning = settings.training, settings.pruning
    optimizer, schedule = training.optimizer, training.schedule
    name, refused = settings.name, "".join(sorted(NOT_IN_NAMES & set(settings.name)))
    length = len(name.encode(errors="replace"))
    if refused or name.strip() != name or name.startswith(".") or not 0 < length <= 200 or not name.isprintable():
        without = f": without {refused}" if refused else ", of 200 bytes at most" if length > 200 else ""
        yield f"name: got {name!r}, takes what can name a folder and a model{without}"
    if name == "Default":
        yield "name: got 'Default', which is MLflow's own for runs of no experiment, takes another"
    yield from _impossible_data(settings.data)
    yield from _impossible_objective(settings)
    yield from _impossible_trainer(settings.trainer)
    if settings.compare.where is not None and settings.compare.ledgers is not None:
        yield f"compare.where: got {settings.compare.where!r}, a filter of MLflow's, beside compare.ledgers; takes null"
    if settings.deploy.runner == "ssh" and not settings.deploy.host:
        yield "deploy.host: got null, takes the name of a board for deploy.runner=ssh"
    if settings.model.weights is not None and settings.retraining.weights == "rewound":
        yield (
            "retraining.weights: got rewound, but model.weights gives a network of which no earlier point is known; "
            "takes final or fresh (retraining=lr_rewinding, fine_tuning or reinitialisation)"
        )
    if settings.retraining.hold != "last" and settings.retraining.rate == "replay":
        yield f"retraining.hold: got {settings.retraining.hold} with retraining.rate=replay, takes last"
    if isinstance(optimizer, Sgd) and optimizer.nesterov and not optimizer.momentum:
        yield "training.optimizer.nesterov: got true with momentum 0, takes a momentum above 0"
    if isinstance(schedule, StepDecay) and list(schedule.milestones) != sorted(set(schedule.milestones)):
        yield f"training.schedule.milestones: got {list(schedule.milestones)}, takes rising shares"
    if settings.retraining.copies > 1 and pruning.schedule == "cubic":
        yield (
            f"retraining.copies: got {settings.retraining.copies} with pruning.schedule=cubic, by which each copy has "
            "a mask of its own; takes 1"
        )
    if training.teacher is not None and isinstance(settings.objective, OwnObjective):
        yield f"training.teacher: got {training.teacher} for a LightningModule, whose loss is its own; takes null"
    given = pruning.shares is not None or pruning.policy is not None
    if pruning.fraction is None and not given:
        yield (
            f"pruning.fraction: got null with pruning.rounds={shown(pruning.rounds)} and "
            f"pruning.target_density={shown(pruning.target_density)}, takes a share, or both of these"
        )
        return
    if pruning.fraction == 0 and not given and (pruning.rounds is None or pruning.target_density is not None):
        yield (
            f"pruning.fraction: got 0, with which nothing goes, and pruning.rounds={shown(pruning.rounds)} and "
            f"pruning.target_density={shown(pruning.target_density)}; takes a number of rounds and no target"
        )
        return
    if pruning.rounds is None and pruning.target_density is None and pruning.max_score_drop is None and not given:
        yield (
            "pruning: got rounds, target_density and max_score_drop all null, takes at least one of them "
            "(else pruning would never end)"
        )
    if pruning.target_density is not None and pruning.rounds is not None and pruning.fraction is not None:
        reached = (1 - pruning.fraction) ** pruning.rounds
        if reached > pruning.target_density * (1 + 1e-9):
            needed = math.ceil(math.log(pruning.target_density) / math.log(1 - pruning.fraction) - 1e-9)
            yield (
                f"pruning.target_density: got {pruning.target_density}, which no round reaches: pruning.rounds="
                f"{pruning.rounds} of pruning.fraction={pruning.fraction} end at density {reached:.4f}; "
                f"takes pruning.rounds={needed} or more, or null"
            )
    yield from _impossible_shares(pruning)
    yield from _impossible_criterion(pruning, given)
    amc = settings.amc
    if (settings.task == "search" or pruning.policy == "search") and training.devices * training.nodes > 1:
        yield "training.devices: got several processes for a search, takes training.devices=1 and training.nodes=1"
    if (settings.task == "search" or pruning.policy == "search") and (
        isinstance(settings.objective, OwnObjective) or settings.objective.score != "accuracy"
    ):
        yield "objective: got another score than accuracy for a search by AMC, takes objective=classification"
    if (settings.task == "search" or pruning.policy == "search") and pruning.structure == "block":
        yield "pruning.structure: got block for a search by AMC, takes weight or filter"
    if amc.share is None and amc.reward == "resource_constrained":
        yield "amc.share: got null with amc.reward=resource_constrained, takes a share (else nothing would be pruned)"
    if amc.budget == "latency" and pruning.structure == "weight":
        yield "amc.budget: got latency with pruning.structure=weight, takes macs or parameters: zeros take their time"
    share, target = pruning.empty_layer, pruning.target_density
    if isinstance(share, float) and target is not None and share >= target:
        yield (
            f"pruning.empty_layer: got {share}, a share of every layer that is kept, "
            f"takes less than pruning.target_density={target}"
        )


def _impossible_criterion(pruning: Pruning, given: bool) -> Iterator[str]:
    by_layer = {"magnitude_per_mac": "of which all save the same multiply-adds", "lamp": "which it orders by magnitude"}
    if pruning.criterion in by_layer and pruning.structure == "filter":
        yield f"pruning.criterion: got {pruning.criterion} with pruning.structure=filter, takes magnitude or random"
    elif pruning.criterion in by_layer and (pruning.scope != "global" or given):
        yield (
            f"pruning.criterion: got {pruning.criterion} where weights compete within their layer, "
            f"{by_layer[pruning.criterion]}; takes magnitude or random, or pruning.scope=global without shares"
        )
    for setting, value in (("scope", "erk"), ("schedule", "cubic")):
        if getattr(pruning, setting) != value:
            continue
        if pruning.structure == "filter":
            yield f"pruning.{setting}: got {value} with pruning.structure=filter, takes weight or block"
        elif given:
            yield f"pruning.{setting}: got {value} beside shares of layers, takes pruning.shares=null and no policy"
    if pruning.scope == "erk" and isinstance(pruning.empty_layer, float):
        yield (
            f"pruning.empty_layer: got {pruning.empty_layer} with pruning.scope=erk, by which every layer keeps "
            "something; takes warn or error"
        )


def _impossible_objective(settings: Settings) -> Iterator[str]:
    model, objective = settings.model, settings.objective
    if (model.network is None) == (model.module is None):
        got = "neither" if model.network is None else "both"
        yield f"model: got {got} of network and module, takes one of them"
    elif model.module is not None and isinstance(objective, Supervised):
        yield "objective: got a loss and metrics for a LightningModule, which has its own; takes objective=own"
    elif model.module is None and isinstance(objective, OwnObjective):
        yield (
            "objective: got own for a plain network, which needs a loss; takes objective=classification, multilabel, "
            "regression or segmentation"
        )
    if isinstance(objective, Supervised):
        if objective.score not in (*objective.metrics, "loss"):
            yield f"objective.score: got {objective.score!r}, takes {' or '.join((*objective.metrics, 'loss'))}"
        for name, metric in objective.metrics.items():
            if not isinstance(metric.get("metric"), str):
                yield f"objective.metrics.{name}: got {shown(dict(metric))}, takes metric= with a dotted path"
    elif model.weights is not None:
        yield (
            "model.weights: got a file for a LightningModule, of whose rates nothing is known without a training here; "
            "takes null"
        )


NOT_IN_NAMES = set("/\\:?#*%'\"`<>|")
"""What has a meaning of its own in a path, an address or a query."""
SET_ELSEWHERE = {
    "max_epochs": "training.epochs", "max_steps": "training.max_steps", "devices": "training.devices",
    "num_nodes": "training.nodes", "min_epochs": "training.epochs", "min_steps": "training.max_steps",
    "callbacks": "a module's configure_callbacks(), or in Python trainer=",
}  # fmt: skip
"""Arguments of Lightning's Trainer that have a setting of their own."""
NOT_HERE = {
    "max_time", "fast_dev_run", "overfit_batches", "enable_checkpointing", "barebones", "plugins",
    "inference_mode", "num_sanity_val_steps", "check_val_every_n_epoch", "val_check_interval",
    "reload_dataloaders_every_n_epochs",
}  # fmt: skip
"""Arguments of Lightning's Trainer with which rounds could not be exact, or continued."""

WHOLE: tuple[str, Callable[[Any], bool]] = ("a whole number from 1", lambda value: type(value) is int and value >= 1)
LIMIT: tuple[str, Callable[[Any], bool]] = (
    "a whole number of batches from 1, or a share from 0.0 (excluded) to 1.0",
    lambda value: WHOLE[1](value) or (type(value) is float and 0 < value <= 1),
)
BATCHES = {
    "accumulate_grad_batches": WHOLE,
    "limit_train_batches": LIMIT,
    "limit_val_batches": LIMIT,
    "limit_test_batches": LIMIT,
}
"""What arguments of Lightning's Trainer that count batches take here, and whether a value is that."""


def _impossible_trainer(trainer: Mapping[str, Any]) -> Iterator[str]:
    if not trainer:
        return
    from pytorch_lightning import Trainer

    known = [name for name in inspect.signature(Trainer).parameters if name not in NOT_HERE | set(SET_ELSEWHERE)]
    for name, value in trainer.items():
        if name in SET_ELSEWHERE:
            yield f"trainer.{name}: got {shown(value)}, takes {SET_ELSEWHERE[name]}, which says the same"
        elif name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            yield f"trainer.{name}: unknown or not for rounds; " + (
                f"did you mean trainer.{near[0]}?" if near else f"takes {', '.join(known)}"
            )
        elif name in BATCHES and not BATCHES[name][1](value):
            yield f"trainer.{name}: got {shown(value)}, takes {BATCHES[name][0]}"


def _impossible_shares(pruning: Pruning) -> Iterator[str]:
    given = "policy" if pruning.policy is not None else "shares"
    if pruning.measure == "macs" and pruning.structure != "filter":
        yield f"pruning.measure: got macs with pruning.structure={pruning.structure}, takes weights"
    if pruning.block != "auto" and pruning.structure != "block":
        yield f"pruning.block: got {pruning.block} with pruning.structure={pruning.structure}, takes auto"
    if pruning.shares is not None and pruning.policy is not None:
        yield f"pruning.policy: got {pruning.policy!r} beside pruning.shares, takes null: one of them says what stays"
    if getattr(pruning, given) is not None and pruning.target_density is not None:
        yield f"pruning.target_density: got {pruning.target_density}, but pruning.{given} says how far; takes null"


def shares_of(mapping: Any, path: Any) -> dict[str, float]:
    """What ``pruning.shares`` takes, read from ``path``.

    Raises:
        SettingsError: if it does not take this.
    """
    hint = typing.get_args(typing.get_type_hints(Pruning, include_extras=True)["shares"])[0]
    shares = matched(hint, mapping)
    if shares is NO_MATCH or not shares:
        raise SettingsError([f"pruning.policy: {path} has shares {shown(mapping)}, takes {takes(hint)}"])
    return typing.cast(dict[str, float], shares)


def _impossible_data(data: Data) -> Iterator[str]:
    if isinstance(data, ImagesInMemory):
        if data.dataset != "digits" and data.source is None:
            yield f"data.source: got null, takes a hub id or a local folder for data.dataset={data.dataset}"
        if data.dataset == "digits" and data.source is not None:
            yield f"data.source: got {data.source!r}, takes null for data.dataset=digits, which needs no files"
    if isinstance(data, ImagesOnDisk):
        for name in ("mean", "deviation"):
            if len(getattr(data, name)) != 3:
                yield f"data.{name}: got {list(getattr(data, name))}, takes a number for each of red, green and blue"
        if data.shorter_side < data.size:
            yield f"data.shorter_side: got {data.shorter_side}, takes at least data.size={data.size}"
