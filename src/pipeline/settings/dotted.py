"""A user's own classes, named by dotted path: whatever their code does wrong ends in a sentence."""

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pipeline.ground.errors import SettingsError, one_line

Made = TypeVar("Made")


def class_at(path: str, kind: type[Made], called: str, setting: str, takes: str = "takes") -> type[Made]:
    """The class that a dotted path names, a subclass of ``kind``.

    ``called`` is what a sentence calls ``kind``, ``takes`` what it takes beside a dotted path.

    Raises:
        SettingsError: if there is none, or its module cannot be imported.
    """
    takes = f"{takes} the dotted path of a {called} class"
    module, _, name = path.rpartition(".")
    if not module:
        raise SettingsError([f"{setting}: got {path!r}, {takes}"])
    try:
        found = getattr(importlib.import_module(module), name)
    except (Exception, SystemExit) as error:
        raise SettingsError([f"{setting}: got {path!r}, but {one_line(error)}; {takes}"]) from error
    if not (isinstance(found, type) and issubclass(found, kind)):
        raise SettingsError([f"{setting}: got {path!r}, which is no {called} class; {takes}"])
    return found


def made(make: Callable[..., Made], given: Mapping[str, Any], arguments: Mapping[str, Any], setting: str) -> Made:
    """``make`` called with what is given and with the user's arguments.

    Raises:
        SettingsError: if it does not take them, or fails.
    """
    try:
        return make(**given, **arguments)
    except (Exception, SystemExit) as error:
        takes = inspect.signature(make)
        raise SettingsError([f"{setting}: got {dict(arguments)}, but {one_line(error)}; takes {takes}"]) from error
