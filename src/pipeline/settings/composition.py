"""Settings as Hydra composes them from ``conf/``, for one job or, by a launcher, for the jobs of a sweep."""

import dataclasses
import re
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import hydra
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline.ground.errors import SettingsError
from pipeline.settings.build import build
from pipeline.settings.groups import Settings
from pipeline.settings.strict import is_union

PACKAGE = Path(__file__).resolve().parents[1]
CONF = next(folder for folder in (PACKAGE / "conf", PACKAGE.parents[1] / "conf") if folder.is_dir())
"""Inside the package where it is an installed wheel, at the top of the project where it is a checkout."""
Composed = DictConfig
"""Settings as Hydra gives them to a task."""
OF_A_NETWORK = r"\+*training([./]optimizer|[./]schedule|\.batch_size)\b"
"""Settings that a LightningModule brings itself."""
ROW = r"\+*(experiment|method)="
"""Files of settings for the whole job; in the order of their names, since a method's hold in any experiment."""
IMPLIED = {"model.module": {"model": "custom", "objective": "own"}, "data.module": {"data": "own"}}
"""A setting of one's own code, and the options of groups that it has no meaning without."""
MISUNDERSTOOD = (HydraException, OmegaConfBaseException)
"""What is raised where Hydra does not understand the command line."""


def composed(overrides: Sequence[str]) -> dict[str, Any]:
    """The plain mapping that the same overrides give on the command line.

    Raises:
        SettingsError: if Hydra does not understand one.
    """
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
            return mapping(compose("config", understood(overrides)))
    except HydraException as error:
        raise SettingsError([f"settings: {sentence(error)}"]) from error


def understood(arguments: Sequence[str]) -> list[str]:
    """Overrides as they were typed, as Hydra takes them: leniently, with those options that they imply, an experiment
    before a method, whose settings then hold.

    Raises:
        SettingsError: if a LightningModule is named beside settings that it brings itself.
    """
    named = {match[1] for each in arguments if (match := re.match(r"\+*([A-Za-z_][\w.]*)=", each))}
    implied = {
        group: option
        for setting, options in IMPLIED.items()
        if setting in named
        for group, option in options.items()
        if group not in named
    }
    own = "model.module" in named or "objective=own" in arguments
    if own and (useless := [each for each in arguments if re.match(OF_A_NETWORK, each)]):
        raise SettingsError(
            [f"{each}: a LightningModule brings its own; takes what its configure_optimizers() and loaders give"
             for each in useless]
        )  # fmt: skip
    chosen = any(re.match(r"\+*experiment=", each) for each in arguments)
    if "name" not in named and not chosen and (path := _path_of(arguments)) is not None:
        implied["name"] = path.rpartition(".")[2].lower()
    rows = iter(sorted((each for each in arguments if re.match(ROW, each)), key=lambda each: each.lstrip("+")))
    ordered = [next(rows) if re.match(ROW, each) else each for each in arguments]
    return [*map(lenient, (f"{setting}={option}" for setting, option in implied.items())), *map(lenient, ordered)]


def _path_of(arguments: Sequence[str]) -> str | None:
    """The dotted path of a network or module of the user's, if one is named."""
    paths = (re.fullmatch(r"\+*model\.(?:module|network)=((?:\w+\.)+\w+)", each) for each in arguments)
    return next((match[1] for match in paths if match is not None), None)


def lenient(override: str) -> str:
    """``key=value`` as ``++key=value``, so that an unknown key reaches ``build``, which tells all faults at once.

    A row of settings needs no ``+``, which Hydra asks for where a group has no option by itself. A value that begins
    with ~ (a home folder) is quoted, which Hydra asks for; so is what a setting takes as text.
    """
    match = re.fullmatch(r"(\+*)([A-Za-z_][\w.]*)=(.*)", override, re.DOTALL)
    if match is not None and re.fullmatch(ROW, f"{match[2]}="):
        return f"+{match[2]}={match[3]}"
    groups = {path.name for path in CONF.iterdir() if path.is_dir()}
    if match is None or match[2] in groups or match[2].startswith("hydra."):
        return override
    signs, key, value = match.groups()
    read = quoted(value) if value.startswith("~") else as_text(value) if takes_text(key) else value
    return f"{signs or '++'}{key}={read}"


def takes_text(key: str) -> bool:
    """Whether a setting takes text, or a list of it."""
    hints: list[Any] = [Settings]
    for part in key.split("."):
        groups = [typing.get_type_hints(hint) for hint in hints if dataclasses.is_dataclass(hint)]
        found = [group[part] for group in groups if part in group]
        hints = [each for hint in found for each in (typing.get_args(hint) if is_union(hint) else (hint,))]
    return str in hints or tuple[str, ...] in hints


def as_text(value: str) -> str:
    """A value as typed, in quotes where Hydra would read a number in it, or nothing at all."""
    try:
        read = OverridesParser.create().parse_override(f"key={value}").value()
    except HydraException:
        return value if value.startswith(("[", "{")) or "," in value else quoted(value)
    if isinstance(read, list | ChoiceSweep):
        return re.sub(r"(?<=[\[,])[^][,{}'\"]+(?=[],])", lambda item: as_text(item[0]), f",{value},")[1:-1]
    return quoted(value) if isinstance(read, int | float) else value


def quoted(text: str) -> str:
    """Text in the quotes that Hydra takes off again."""
    return '"' + re.sub(r'(\\*)("|$)', lambda end: end[1] * 2 + ('\\"' if end[2] else ""), text) + '"'


def sentence(error: Exception) -> str:
    """Hydra's message on one line, without its search path."""
    if isinstance(error, OverrideParseException):
        override = str(error.override).lstrip("+")
        return f"cannot read {override!r}; a value with special characters takes quotes: 'key=\"a (value)\"'"
    lines = str(error).split("Config search path")[0].splitlines()
    return " ".join(line.strip() for line in lines if line.strip())


def faults(overrides: Sequence[str], error: Exception) -> list[str]:
    """Sentences on what is wrong with overrides, of which ``error`` tells something.

    Where that is an option that a group does not have, it hides nothing else: they are built without it.
    """
    cause = error.__cause__ if isinstance(error, SettingsError) else error
    if not isinstance(cause, MISUNDERSTOOD):
        return error.faults if isinstance(error, SettingsError) else [str(error)]
    told = [f"command line: {sentence(cause)}"]
    missing = getattr(cause, "missing_cfg_file", None) or ""
    rest = [each for each in overrides if each.lstrip("+") != "=".join(missing.rsplit("/", 1))]
    if len(rest) < len(overrides):
        try:
            build(composed(rest))
        except SettingsError as more:
            told += faults(rest, more)
    return told


def mapping(config: Composed) -> dict[str, Any]:
    """Composed settings as a plain mapping."""
    plain: Any = OmegaConf.to_container(config, resolve=True)
    return plain


def launched(task: Callable[[Composed], None]) -> None:
    """Composes the settings of the command line and calls ``task`` with them, here or, of a sweep, by a launcher."""
    hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(task)()


def jobs(overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of each job that a command with ``-m`` makes."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    (found,) = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    return found


class SweptJob(NamedTuple):
    """The sweep's folder, a job's number in it, where the command was typed, and whether jobs run there one by one."""

    folder: Path
    number: int
    here: Path
    alone: bool


def job_of_sweep() -> SweptJob:
    """Which job of a sweep this is, asked in it."""
    config = HydraConfig.get()
    alone = config.launcher._target_.endswith("BasicLauncher")
    return SweptJob(Path(config.sweep.dir), config.job.num, Path(config.runtime.cwd), alone)
