"""The whole method as one call, for a network and data of your own."""

import re
from typing import Any

import pytorch_lightning as lightning
from torch import nn

from pipeline.commands.run import run_job
from pipeline.ground.environment import runs_folder
from pipeline.ground.errors import SettingsError, Stopped
from pipeline.rounds.building import build_job
from pipeline.rounds.ledger import Round
from pipeline.settings.build import build
from pipeline.settings.composition import composed


def prune_by_rewinding(network: nn.Module, data: lightning.LightningDataModule, *settings: str) -> list[Round]:
    """Trains, prunes and retrains a network in rounds; returns the rounds, from the dense network (round 0) on.

    Args:
        network: maps a batch of inputs to a score per class, (N, classes). It is trained in place, and has at the end
            the weights of the last round.
        data: its train, val and test loaders give (inputs, labels); labels are int64 (N).
        settings: as on the command line: ``"training.epochs=10"``, ``"retraining=weight_rewinding"``, ``"seed=1"``.
            ``name=`` names the experiment (else the network's class does), ``runs=`` the folder for all that is kept.

    Calling it again with the same data and settings, and a network with the initial weights of the first call,
    continues where that ended.

    Raises:
        PipelineError: with a sentence for everything that is wrong.
        KeyboardInterrupt: after Ctrl-C; what was finished is kept.
    """
    faults = [
        f"{setting}: network and data are given; only model.weights and settings of other groups go beside them"
        for setting in map(str, settings)
        if re.match(r"\+*(model|data|task)[.=]", setting) and "model.weights=" not in setting
    ]
    if not isinstance(network, nn.Module):
        faults.append(f"network: got {network!r}, takes a torch.nn.Module")
    if not isinstance(data, lightning.LightningDataModule):
        faults.append(f"data: got {data!r}, takes a LightningDataModule")
    faults += [
        f"settings: got {each!r}, takes text such as 'training.epochs=10'" for each in settings if type(each) is not str
    ]
    if faults:
        raise SettingsError(faults)
    mapping: dict[str, Any] = composed(settings)
    mapping["model"] = {"network": _path(network), "arguments": {}, "weights": mapping["model"]["weights"]}
    mapping["data"] = {"dataset": "own", "module": _path(data), "arguments": {}}
    if not any(each.lstrip("+").startswith("name=") for each in settings):
        mapping["name"] = type(network).__name__.lower()
    chosen = build(mapping)
    runs = runs_folder(chosen.runs)
    job, site = build_job(chosen, runs, network, data)
    try:
        done = run_job(job, site, chosen, runs)
    except Stopped as stopped:
        raise KeyboardInterrupt from stopped
    last = done[-1].index
    network.load_state_dict(dict(site.ledger_of(last).state(last).network))
    return done


def _path(thing: object) -> str:
    return f"{type(thing).__module__}.{type(thing).__qualname__}"
