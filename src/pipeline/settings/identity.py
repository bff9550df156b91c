"""What changes numbers: identities of dense networks, runs and searches, and their fingerprints."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from pipeline.settings.groups import Settings

LENGTHENS = ("rounds", "max_accuracy_drop")
"""Pruning settings that change how far a run goes but no number on the way: they may change from call to call."""
NO_NUMBERS = {"model": {"weights"}, "data": {"source", "workers"}, "training": {"devices", "nodes"}}
"""Settings that say where and by how many hands, not what: the same run goes on with others."""


def dense_identity(settings: Settings) -> dict[str, Any]:
    """What determines the dense network: model, data, training and seed; not where the data lies."""
    parts = {part: dataclasses.asdict(getattr(settings, part)) for part in NO_NUMBERS}
    identity = {part: {k: v for k, v in parts[part].items() if k not in NO_NUMBERS[part]} for part in parts}
    return plain({"seed": settings.seed, **identity})


LATER: dict[str, Any] = {
    "structure": "weight", "mac_strength": 0.2, "norm": "l1", "measure": "weights", "shares": None, "policy": None,
}  # fmt: skip
"""Pruning settings that came later, at the values that earlier runs had: they are the same runs still."""


def run_identity(settings: Settings) -> dict[str, Any]:
    """What determines a pruned run: the dense network's identity, the pruning and the retraining."""
    pruning = dataclasses.asdict(settings.pruning)
    left_out = {key for key in pruning if key in LENGTHENS or (key in LATER and pruning[key] == LATER[key])}
    if settings.pruning.shares is not None:  # which are reached in those rounds
        left_out.remove("rounds")
    pruning = {key: value for key, value in pruning.items() if key not in left_out}
    return plain(dense_identity(settings) | {"pruning": pruning, "retraining": dataclasses.asdict(settings.retraining)})


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
