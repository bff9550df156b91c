"""From settings to a job and its site: data, network, shares, identity, ledgers."""

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytorch_lightning as lightning
import torch
from torch import Tensor, nn

from pipeline.data import load
from pipeline.data.own import own_batches
from pipeline.ground.environment import environment, expanded
from pipeline.ground.errors import SettingsError, one_line
from pipeline.ground.randomness import derived_seed
from pipeline.ground.tensors import tensor_digest
from pipeline.networks import build_network, check_scores, prunable
from pipeline.networks.weights import read_weights
from pipeline.pruning.channels import ChannelGroup, channel_groups
from pipeline.pruning.policy import read_policy, searched
from pipeline.rounds.job import Job, Site
from pipeline.rounds.ledger import Ledger, dense_home, run_home, search_home
from pipeline.settings.groups import Pruning, Settings
from pipeline.settings.identity import amc_identity, dense_identity, run_identity
from pipeline.training.speed import resolved


def build_job(
    settings: Settings,
    runs: Path,
    network: nn.Module | None = None,
    module: lightning.LightningDataModule | None = None,
) -> tuple[Job, Site]:
    """Loads the data and builds the network, unless they are given; writes nothing.

    Raises:
        SettingsError: with all that is wrong about the two.
    """
    dataset = load(settings.data) if module is None else own_batches(module)
    training = resolved(settings.training, dataset.steps_per_epoch(settings.training.batch_size))
    settings = dataclasses.replace(settings, training=training)
    start: dict[str, Any] = dense_identity(settings) | {"data_digest": dataset.digest}

    if network is None:
        classes = len(dataset.classes)

        def initial(attempt: int) -> Mapping[str, Tensor]:
            return build_network(settings.model, dataset.example, classes, settings.seed, attempt).state_dict()

        network = build_network(settings.model, dataset.example, classes, settings.seed)
    else:
        given = copy.deepcopy(network)

        def initial(attempt: int) -> Mapping[str, Tensor]:
            return given.state_dict() if attempt == 0 else _fresh(given, settings.seed, attempt)

        start["initial_digest"] = tensor_digest(given.state_dict())
    scores = check_scores(network, settings.model.network, dataset.example, len(dataset.classes))
    trained = None
    if settings.model.weights is not None:
        trained = read_weights(expanded(settings.model.weights), network)
        start["weights_digest"] = tensor_digest(trained)
    pruning = _with_shares(settings, search_home(runs, settings.name, start | {"amc": amc_identity(settings)}))
    settings = dataclasses.replace(settings, pruning=pruning)
    identity = start | run_identity(settings)
    groups = _removable(network, dataset.example, settings.pruning) if settings.pruning.structure == "filter" else ()
    _check_patterns(settings.pruning, groups, prunable(network, settings.pruning.exclude))
    if training.compile == "on":
        network.compile(dynamic=False)
    job = Job(
        network=network,
        dataset=dataset,
        classes=scores,
        training=training,
        pruning=settings.pruning,
        groups=groups,
        retraining=settings.retraining,
        seed=settings.seed,
        initial=initial,
        trained=trained,
    )
    site = Site(
        dense=Ledger(*dense_home(runs, identity)),
        ledger=Ledger(run_home(runs, settings.name, identity), identity),
        environment=environment(),
    )
    return job, site


def _with_shares(settings: Settings, search: Path) -> Pruning:
    """The pruning with the shares of its policy file, whose name takes the place of its path; ``search`` is the folder
    of the search that the settings ask for.

    Raises:
        SettingsError: if the file is none, or the search is not complete.
    """
    pruning = settings.pruning
    if pruning.policy is None:
        return pruning
    if pruning.policy == "search" and not searched(search, settings.amc):
        raise SettingsError(
            [f"pruning.policy: got search, but that in {search} is not complete: the same settings with task=run do it"]
        )
    path = search / "policy.json" if pruning.policy == "search" else expanded(pruning.policy)
    name, shares = read_policy(path, pruning.structure)
    return dataclasses.replace(pruning, policy=name, shares=shares)


def _removable(network: nn.Module, example: Tensor, pruning: Pruning) -> tuple[ChannelGroup, ...]:
    """The groups of channels that may go.

    Raises:
        SettingsError: if there is none.
    """
    try:
        groups = channel_groups(network, example)
    except ValueError as error:
        raise SettingsError([f"pruning.structure: got filter, but {one_line(error)}; takes weight"]) from error
    groups = tuple(each for each in groups if not any(each.matches(pattern) for pattern in pruning.exclude))
    if not groups:
        raise SettingsError(["pruning.structure: got filter, but no layer's filters can be removed; takes weight"])
    return groups


def _check_patterns(pruning: Pruning, groups: Sequence[ChannelGroup], weights: Sequence[str]) -> None:
    """Every pattern of ``pruning.shares`` must be of a layer that can be pruned."""
    layers = [layer for group in groups for layer in group.layers] or [name.removesuffix(".weight") for name in weights]
    faults = [
        f"pruning.shares: got {pattern!r}, which matches no layer; the layers are {', '.join(layers)}"
        for pattern in pruning.shares or ()
        if not any(fnmatchcase(layer, pattern) for layer in layers)
    ]
    if faults:
        raise SettingsError(faults)


def _fresh(network: nn.Module, seed: int, attempt: int) -> Mapping[str, Tensor]:
    """New initial weights, by the layers' own ``reset_parameters``.

    Raises:
        SettingsError: if a parameter belongs to a layer that has none.
    """
    network = copy.deepcopy(network)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(seed, attempt, "initial weights"))
        for name, layer in network.named_modules():
            reset = getattr(layer, "reset_parameters", None) or getattr(layer, "_reset_parameters", None)
            if callable(reset):
                reset()
            elif next(layer.parameters(recurse=False), None) is not None:
                raise SettingsError(
                    [
                        f"retraining.weights: got fresh, but layer {name!r} has no reset_parameters() that draws its "
                        "weights anew; takes final or rewound"
                    ]
                )
    return network.state_dict()
