"""Names and values as MLflow takes them: whatever users call a metric or a pattern, it arrives; passwords do not."""

import hashlib
import posixpath
import re
from collections.abc import Collection

LONGEST_NAME = 250
LONGEST_VALUE = 6000
"""MLflow's limits on the name and the value of a parameter."""

GROUPS = {
    "pruning": r"density|sparsity|compression_ratio",
    "train": r"learning_rate|epochs|examples|(epoch_)?seconds",
    "test": r"int8_score",
    "size": r"(dense|float32|int8)_bytes|bytes_compression",
    "cost": r"macs_(dense|kept)|(\w+_)?(latency_ms|latency_ratio|instructions|board_ms_(least|most))",
}
"""Figures of a round that MLflow shows together."""
OF_A_SPLIT = r"(train|validation|val|test)_(.+)"


def grouped(figure: str, others: Collection[str] = ()) -> str:
    """A figure's name in its group, as MLflow lays out its charts: ``test/accuracy`` of ``test_accuracy``.

    Where one of ``others``, which go to the same run, is called so already, it keeps its name.
    """
    if split := re.fullmatch(OF_A_SPLIT, figure):
        name = f"{split[1]}/{split[2]}"
    else:
        group = next((group for group, figures in GROUPS.items() if re.fullmatch(figures, figure)), None)
        name = figure if group is None else f"{group}/{figure}"
    return figure if name in others else name


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
