"""A user's own code, named by dotted path: whatever it does wrong ends in a sentence."""

import inspect
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any

from pipeline.ground.errors import SettingsError, one_line, where


def found_at(path: str, setting: str, takes: str) -> Callable[..., Any]:
    """The class, function, class method or nested name that a dotted path names.

    ``takes`` is what a sentence says that the setting takes.

    Raises:
        SettingsError: if there is none that can be called, or its module cannot be imported.
    """
    if "." not in path:
        raise SettingsError([f"{setting}: got {path!r}, {takes}"])
    try:
        found = pkgutil.resolve_name(path)
    except (Exception, SystemExit) as error:
        raise SettingsError([f"{setting}: got {path!r}, but {one_line(error)}; {takes}"]) from error
    if not callable(found):
        raise SettingsError([f"{setting}: got {path!r}, which makes nothing; {takes}"])
    return found


def made(make: Callable[..., Any], given: Mapping[str, Any], arguments: Mapping[str, Any], setting: str) -> Any:
    """``make`` called with what is given and with the user's arguments.

    Raises:
        SettingsError: if it does not take them, or fails.
    """
    try:
        return make(**given, **arguments)
    except (Exception, SystemExit) as error:
        raise SettingsError(
            [f"{setting}: got {dict(arguments)}, but {one_line(error)}{where(error)}; takes {_signature(make)}"]
        ) from error


def _signature(make: Callable[..., Any]) -> str:
    try:
        return str(inspect.signature(make))
    except ValueError:
        return "what it is documented to take"
