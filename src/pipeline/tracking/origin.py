"""Where a run comes from, as MLflow shows it: who typed what, the data, and a description to read before the rest."""

import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow.entities import Dataset, DatasetInput, InputTag
from mlflow.tracking.context.registry import resolve_tags

from pipeline.settings.identity import data_name
from pipeline.tracking.names import without_secrets

COMMANDS = ("__main__.py", "pipeline", "rewind")
OF_A_PLACE = ("runs=", "artifacts=", "record=", "task=", "hydra.sweep.dir=")
"""Settings that say where, or what else is done with a run; what it is does not depend on them."""


def origin() -> dict[str, str]:
    """Tags of who made a run, with which program (or notebook), and the command that makes it again."""
    tags: dict[str, str] = resolve_tags()
    if Path(sys.argv[0]).name not in COMMANDS:
        return tags
    words = (without_secrets(each.lstrip("+")) for each in sys.argv[1:])
    kept = shlex.join(each for each in words if not each.startswith(OF_A_PLACE))
    return tags | {"mlflow.source.name": "python -m pipeline", "command": f"python -m pipeline {kept}".rstrip()}


def data_input(identity: Mapping[str, Any]) -> DatasetInput:
    """The data of a ledger's identity, as MLflow lists the inputs of a run."""
    data = identity["data"]
    source = json.dumps({key: value for key, value in data.items() if value is not None}, default=str)
    return DatasetInput(
        Dataset(data_name(identity), identity["data_digest"][:32], "pipeline", source),
        [InputTag("mlflow.data.context", "training")],
    )


def description(title: str, tags: Mapping[str, str], table: str | None) -> str:
    """Markdown: what a run is, how it is made again, and its rounds once they are there."""
    parts = [f"**{title}**: pruned and retrained round by round; each round is a nested run."]
    if command := tags.get("command"):
        parts.append(f"Made by\n\n```sh\n{command}\n```")
    parts.append(
        f"Code {tags['git_commit'][:12]}, data {tags['data_digest'][:12]}; all settings are in `settings.yaml`."
    )
    if table is not None:
        parts.append(table)
    return "\n\n".join(parts)
