"""What changes numbers: identities of dense networks, runs and searches, and their fingerprints."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from pipeline.settings.groups import OwnData, OwnObjective, Settings

LENGTHENS = ("rounds", "max_score_drop")
"""Pruning settings that change how far a run goes but no number on the way: they may change from call to call."""
NO_NUMBERS = {
    "model": {"weights"},
    "data": {"source", "workers"},
    "objective": {"score", "better", "test_score"},
    "training": {"devices", "nodes", "teacher"},
    "trainer": {
        "accelerator", "strategy", "logger", "profiler", "enable_progress_bar", "enable_model_summary",
        "log_every_n_steps", "default_root_dir", "detect_anomaly",
    },
}  # fmt: skip
"""Settings that say where, by how many hands and what is looked at, not what: the same run goes on with others."""
OF_A_NETWORK = {"optimizer", "schedule", "batch_size", "label_smoothing"}
"""Training settings that a LightningModule has none of: it brings its own."""
OF_SIZES = {"sizes", "calibration_images", "width_multiple", "dynamic_axes"}
"""Settings of deployment that a run asks for, which ends with the bytes of its rounds."""
OF_OTHER_TASKS = {"task", "debug", "runs", "record", "artifacts", "amc", "compare"}
LATER: Mapping[str, Mapping[str, Any]] = {
    "model": {"module": None, "whitened": None},
    "data": {"crop_fill": "zeros"},
    "pruning": {
        "structure": "weight", "mac_strength": 0.2, "norm": "l1", "measure": "weights", "shares": None, "policy": None,
        "include": [], "schedule": "at_once", "block": "auto",
    },
    "training": {"optimizer.rates": {}, "ema": None},
    "retraining": {"hold": "last", "copies": 1, "teacher": None},
    "objective": {
        "kind": "supervised",
        "loss": "torch.nn.CrossEntropyLoss",
        "loss_arguments": {},
        "metrics": {
            "accuracy": {"metric": "torchmetrics.classification.MulticlassAccuracy", "average": "micro"},
            "top5_accuracy": {
                "metric": "torchmetrics.classification.MulticlassAccuracy", "average": "micro", "top_k": 5,
            },
        },
    },
}  # fmt: skip
"""Settings that came later (dotted: within a group), at the values of earlier runs: they are the same runs still."""


def dense_identity(settings: Settings) -> dict[str, Any]:
    """What determines the dense network: model, data, objective, training and seed; not where the data lies."""
    identity = {part: _part(part, getattr(settings, part)) for part in NO_NUMBERS}
    identity["training"]["label_smoothing"] = 0.0  # once a setting of its own
    own_data = {"batch_size"} if isinstance(settings.data, OwnData) else set()
    unused = OF_A_NETWORK if isinstance(settings.objective, OwnObjective) else own_data
    identity["training"] = {key: value for key, value in identity["training"].items() if key not in unused}
    if identity["objective"] == LATER["objective"]:
        del identity["objective"]
    if not identity["trainer"]:
        del identity["trainer"]
    return {"seed": settings.seed, **identity}


def run_identity(settings: Settings) -> dict[str, Any]:
    """What determines a pruned run: the dense network's identity, the pruning and the retraining."""
    pruning = _part("pruning", settings.pruning)
    for key in LENGTHENS:
        if key != "rounds" or settings.pruning.shares is None:  # which are reached in those rounds
            del pruning[key]
    retraining = _part("retraining", settings.retraining)
    if settings.training.teacher is not None:  # of retrained networks alone: the dense one is shared
        retraining["teacher"] = settings.training.teacher
    return dense_identity(settings) | {"pruning": pruning, "retraining": retraining}


def used(settings: Settings, values: Mapping[str, Any]) -> dict[str, Any]:
    """Of ``values``, a mapping of all settings, those that the run of these settings asks for.

    Left out are places, what other tasks ask for, and what has no meaning beside the rest of the settings.
    """
    pruning = settings.pruning
    unused = {
        "pruning": {
            *({"block"} if pruning.structure != "block" else ()),
            *({"norm"} if pruning.structure == "weight" else ()),
            *({"mac_strength"} if pruning.criterion != "magnitude_per_mac" else ()),
        },
        "retraining": {"hold"} if settings.retraining.rate != "hold" else set(),
        "training": OF_A_NETWORK if isinstance(settings.objective, OwnObjective) else set(),
        "deploy": set(values["deploy"]) - OF_SIZES,
    }
    searched = pruning.policy == "search" or settings.task == "search"
    gone = OF_OTHER_TASKS - ({"amc"} if searched else set())
    return {
        part: {key: each for key, each in value.items() if key not in unused[part]} if part in unused else value
        for part, value in values.items()
        if part not in gone
    }


def data_name(identity: Mapping[str, Any]) -> str:
    """What the data of an identity are called: the data set, or the class that a user's come from."""
    data = identity["data"]
    return str(data.get("module") or data["dataset"])


def _part(part: str, group: Any) -> dict[str, Any]:
    """A group's settings that change numbers, without those that came later at the values of before."""
    values = plain(dict(group) if isinstance(group, Mapping) else dataclasses.asdict(group))
    for key, value in LATER[part].items() if part in LATER and part != "objective" else ():
        *outer, last = key.split(".")
        holder = values
        for each in outer:
            holder = holder[each]
        if last in holder and holder[last] == value:
            del holder[last]
    return {key: value for key, value in values.items() if key not in NO_NUMBERS.get(part, ())}


def amc_identity(settings: Settings) -> dict[str, Any]:
    """What determines a search for a policy beside the dense network; not how long it is."""
    amc = {key: value for key, value in dataclasses.asdict(settings.amc).items() if key != "episodes"}
    return plain(amc | {"structure": settings.pruning.structure, "exclude": settings.pruning.exclude})


def plain(value: Any) -> Any:
    """The same value made of what JSON knows."""
    return json.loads(json.dumps(value))


def fingerprint(identity: Mapping[str, Any]) -> str:
    """SHA-256 of an identity without seed and data digest: equal settings, equal fingerprint."""
    settings = {key: value for key, value in identity.items() if key not in ("seed", "data_digest")}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def flat(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping as one level of dotted names; empty mappings stay as values."""
    items: dict[str, Any] = {}
    for key, value in mapping.items():
        if isinstance(value, Mapping) and value:
            items |= flat(value, f"{prefix}{key}.")
        else:
            items[f"{prefix}{key}"] = value
    return items
