"""Names and values as MLflow takes them: whatever users call a metric or a pattern, it arrives; passwords do not."""

import hashlib
import posixpath
import re

LONGEST_NAME = 250
LONGEST_VALUE = 6000
"""MLflow's limits on the name and the value of a parameter."""


def known_as(name: str) -> str:
    """A parameter, metric or tag as MLflow calls it: itself, where MLflow takes it.

    A character that it refuses becomes its code, ``mAP@50`` is ``mAP_40_50``; so do slashes and dots where a name reads
    as a path to another (``/a``, ``a//b``, ``..``). What is too long ends in a digest.
    """
    called = re.sub(r"[^/\w.\- :]", _code, name)
    if posixpath.normpath(called) != called or called.startswith(("/", "..")) or called == ".":
        called = re.sub(r"[/.]", _code, called) or "_"
    return _cut(called, LONGEST_NAME)


def text_of(value: object) -> str:
    """A parameter's value as MLflow keeps it; what is too long ends in a digest."""
    return _cut(str(value), LONGEST_VALUE)


def without_secrets(uri: str) -> str:
    """An address without the password and the tokens in it, as it may be shown and kept."""
    hidden = re.sub(r"(?<=://)([^:/@]*):.*@", r"\1:***@", uri)
    return re.sub(r"(?i)([?&][^=&]*(?:password|passwd|token|secret|key)[^=&]*=)[^&]*", r"\1***", hidden)


def _code(character: re.Match[str]) -> str:
    return f"_{ord(character[0]):x}_"


def _cut(text: str, longest: int) -> str:
    if len(text) <= longest:
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return f"{text[: longest - 20]}...-{digest}"
