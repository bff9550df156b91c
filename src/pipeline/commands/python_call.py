"""The whole method as one call, for a network or LightningModule and data of your own."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from pipeline.commands.result import Pruned
from pipeline.commands.run import run_job
from pipeline.data.own import as_data_module
from pipeline.ground.environment import runs_folder
from pipeline.ground.errors import SettingsError, Stopped
from pipeline.ground.packages import is_lightning_module
from pipeline.ground.randomness import undisturbed
from pipeline.networks.given import unwrapped
from pipeline.rounds.building import build_job
from pipeline.settings.build import build
from pipeline.settings.composition import composed
from pipeline.settings.dotted import made
from pipeline.tracking.store import without_autologging
from pipeline.training.trainer import Factory


def prune_by_rewinding(
    network: nn.Module | Callable[[], nn.Module], data: Any, *settings: str, trainer: Factory | None = None
) -> Pruned:
    """Trains, prunes and retrains a network in rounds.

    Args:
        network: a LightningModule, which is trained as it is, or a plain network, which ``objective=`` gives a loss and
            a score (by default those of classification). It is not changed. Or a class or function that makes one
            without arguments: its initial weights then follow from the seed, as those of a command do.
        data: a LightningDataModule, or DataLoaders: (train, validation, test); a LightningModule may do with one.
        settings: as on the command line: ``"training.epochs=10"``, ``"retraining=weight_rewinding"``, ``"seed=1"``.
            A LightningModule takes ``"objective.score=val_loss"`` and ``"objective.better=lower"``. ``name=`` names the
            experiment (else the network's class does), ``runs=`` the folder for all that is kept.
        trainer: makes each Trainer of the keywords that it is given, as in
            ``lambda **needed: Trainer(**needed, logger=mine)``; None for those of ``trainer.`` settings.

    Calling it again with the same network, data and settings continues where that ended.

    Raises:
        PipelineError: with a sentence for everything that is wrong; what your code raises in a training comes as it is.
        KeyboardInterrupt: after Ctrl-C; what was finished is kept.
    """
    faults = [
        f"{setting}: network and data are given; only model.weights and settings of other groups go beside them"
        for setting in map(str, settings)
        if re.match(r"\+*(model|data|task)[.=]", setting) and "model.weights=" not in setting
    ]
    if not isinstance(network, nn.Module) and not callable(network):
        faults.append(f"network: got {network!r}, takes a torch.nn.Module, or a class or function that makes one")
    try:
        data = as_data_module(data)
    except SettingsError as error:
        faults += error.faults
    faults += [
        f"settings: got {each!r}, takes text such as 'training.epochs=10'" for each in settings if type(each) is not str
    ]
    if faults:
        raise SettingsError(faults)
    network = unwrapped(network)
    own = is_lightning_module(network if isinstance(network, nn.Module) else _once(network))
    given = any(re.match(r"\+*objective=", each) for each in settings)
    mapping: dict[str, Any] = composed([*settings, *(["objective=own"] if own and not given else [])])
    path, model = _path(network), mapping["model"]
    mapping["model"] = {
        "network": None if own else path,
        "module": path if own else None,
        "arguments": {},
        "whitened": model["whitened"],
        "weights": model["weights"],
    }
    mapping["data"] = {"dataset": "own", "module": _path(data), "arguments": {}}
    if not any(each.lstrip("+").startswith("name=") for each in settings):
        mapping["name"] = re.sub(r"\W", "", path.rpartition(".")[2]).lower()
    chosen = build(mapping)
    runs = runs_folder(chosen.runs)
    try:
        with without_autologging():
            job, site = build_job(chosen, runs, network, data, trainer)
            done = run_job(job, site, chosen, runs)
    except Stopped as stopped:
        raise KeyboardInterrupt from stopped
    return Pruned(job, site, chosen, tuple(done))


def _once(make: Callable[[], object]) -> object:
    """What a class or function makes; it changes no generator.

    Raises:
        SettingsError: if it fails.
    """
    with undisturbed():
        return unwrapped(made(make, {}, {}, "network"))


def _path(thing: object) -> str:
    """Where a class or function is, or the class of anything else."""
    while isinstance(thing, partial):
        thing = thing.func
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{named.__module__}.{named.__qualname__}"
