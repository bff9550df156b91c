"""Policies: files that give each layer a share to keep, found by a search or written by hand.

    {"name": "halves", "structure": "filter", "shares": {"stage1.*": 0.5, "stage2.0.conv1": 0.75}}

``shares`` are what ``pruning.shares`` takes; ``name`` is what a comparison calls it.
"""

import json
from pathlib import Path

from pipeline.ground.errors import SettingsError, one_line
from pipeline.settings.build import shares_of
from pipeline.settings.groups import Amc


def read_policy(path: Path, structure: str) -> tuple[str, dict[str, float]]:
    """Name and shares of a policy file.

    Raises:
        SettingsError: if it cannot be read, or is for another ``structure``.
    """
    try:
        content = json.loads(path.read_text())
        name, shares, meant = str(content["name"]), content["shares"], content["structure"]
    except OSError as error:
        raise SettingsError([f"pruning.policy: {path}: {error.strerror}"]) from error
    except (ValueError, KeyError, TypeError) as error:
        takes = "takes a JSON file with name, structure and shares"
        raise SettingsError([f"pruning.policy: {path} is no policy ({one_line(error)}), {takes}"]) from error
    if meant != structure:
        raise SettingsError([f"pruning.policy: {path} is for pruning.structure={meant}, got {structure}"])
    return name, shares_of(shares, path)


def searched(folder: Path, amc: Amc) -> bool:
    """Whether a search has ended in a folder, with as many episodes as asked for."""
    try:
        return bool(json.loads((folder / "policy.json").read_text())["episodes"] == episodes_of(amc))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def episodes_of(amc: Amc) -> int:
    """How many episodes a search has: one is enough where there is no choice."""
    return 1 if amc.agent == "uniform" else amc.episodes
