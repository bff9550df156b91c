"""Settings as Hydra composes them from ``conf/``."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, OverrideParseException
from omegaconf import OmegaConf

from pipeline.ground.errors import SettingsError

PACKAGE = Path(__file__).resolve().parents[1]
CONF = next(folder for folder in (PACKAGE / "conf", PACKAGE.parents[1] / "conf") if folder.is_dir())
"""Inside the package where it is an installed wheel, at the top of the project where it is a checkout."""


def composed(overrides: Sequence[str]) -> dict[str, Any]:
    """The plain mapping that the same overrides give on the command line.

    Raises:
        SettingsError: if Hydra does not understand one.
    """
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
            plain: Any = OmegaConf.to_container(compose("config", [*map(lenient, overrides)]), resolve=True)
    except HydraException as error:
        raise SettingsError([f"settings: {sentence(error)}"]) from error
    return plain


def lenient(override: str) -> str:
    """``key=value`` as ``++key=value``, so that an unknown key reaches ``build``, which tells all faults at once.

    A value that begins with ~ (a home folder) is quoted, which Hydra asks for.
    """
    match = re.fullmatch(r"([A-Za-z_][\w.]*)=(.*)", override, re.DOTALL)
    groups = {path.name for path in CONF.iterdir() if path.is_dir()}
    if match is None or match[1] in groups or match[1].startswith("hydra."):
        return override
    key, value = match.groups()
    return f'++{key}="{value}"' if value.startswith("~") else f"++{key}={value}"


def sentence(error: Exception) -> str:
    """Hydra's message on one line, without its search path."""
    if isinstance(error, OverrideParseException):
        override = str(error.override).lstrip("+")
        return f"cannot read {override!r}; a value with special characters takes quotes: 'key=\"a (value)\"'"
    lines = str(error).split("Config search path")[0].splitlines()
    return " ".join(line.strip() for line in lines if line.strip())
