"""Makes docs/settings.md: ``python docs/settings.py``.

What a setting is and takes comes from its docstring and type in settings/groups.py, what it is by default from conf/.
"""

import dataclasses
import json
import re
import typing
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import griffe

from pipeline.settings import groups
from pipeline.settings.composition import CONF, composed
from pipeline.settings.strict import is_union, takes

PAGE = Path(__file__).with_suffix(".md")
TOLD = griffe.load("pipeline.settings.groups", search_paths=[str(CONF.parent / "src")])
OPENING = """# Settings

Made by `make docs` from `src/pipeline/settings/groups.py` and the files in `conf/`.

A setting is an override: `name=value` behind `python -m pipeline`, or a text in `prune_by_rewinding(...)`. An option of
a group sets several at once: `training=cifar_fast`. Defaults are those of the command without any, which is the digits
experiment. `null` is nothing, a list is `[a,b]`, a mapping `{a: 1}`.

`python -m pipeline --help` shows the values as composed.
"""


def page() -> str:
    """The page, in Markdown."""
    hints = typing.get_type_hints(groups.Settings, include_extras=True)
    simple = [name for name, hint in hints.items() if not all(map(dataclasses.is_dataclass, options(hint)))]
    lines = [OPENING, "## The job", "", *table(groups.Settings, simple, "", composed_with())]
    for name in (name for name in hints if name not in simple):
        lines += ["", f"## {name}", "", told(groups.Settings, name), "", *section(name, hints[name])]
    for rows, words in (
        ("experiment", "A whole job: network, data, training."),
        ("method", "How to prune and retrain, in any experiment."),
    ):
        lines += ["", f"## {rows}", "", f"{words} `{rows}=NAME`:", "", *choices(rows)]
    return re.sub("\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


def section(path: str, hint: Any) -> Iterator[str]:
    """A group: its options in conf/, and its settings; of a group of several kinds those of each kind."""
    group = path.replace(".", "/")
    if len(names(group)) > 1:
        yield from (f"`{group}=NAME`:", "", *choices(group), "")
    kinds = options(hint)
    for kind in kinds:
        values = at(composed_with(), path)
        if len(kinds) > 1:
            tag = dataclasses.fields(kind)[0].name
            words = typing.get_args(typing.get_type_hints(kind)[tag])
            yield from (f"### {path}.{tag}={', '.join(words)}", "")
            if values.get(tag) not in words:
                option = next(name for name in words if name in names(group))
                values = at(composed_with(f"{group}={option}"), path)
                yield from (f"Defaults are those of `{group}={option}`.", "")
        hints = typing.get_type_hints(kind, include_extras=True)
        inner = [name for name in hints if all(map(dataclasses.is_dataclass, options(hints[name])))]
        yield from (*table(kind, [name for name in hints if name not in inner], f"{path}.", values), "")
        for name in inner:
            yield from (f"## {path}.{name}", "", told(kind, name), "", *section(f"{path}.{name}", hints[name]))


@cache
def composed_with(*overrides: str) -> Any:
    """The settings as these overrides compose them."""
    return composed(overrides)


def table(kind: type, fields: list[str], prefix: str, values: Any) -> Iterator[str]:
    """Settings of one dataclass: what each is by default, takes and means."""
    hints = typing.get_type_hints(kind, include_extras=True)
    yield from ("| setting | default | takes | what it is |", "|---|---|---|---|")
    for name in fields:
        words = " or ".join(map(takes, options(hints[name])))
        yield f"| `{prefix}{name}` | {shown(values[name])} | {words} | {told(kind, name)} |"


def choices(group: str) -> Iterator[str]:
    """The options of a group in conf/, each with the comment that its file opens with."""
    yield from ("| option | what it is |", "|---|---|")
    for name in names(group):
        text = (CONF / group / f"{name}.yaml").read_text().removeprefix("# @package _global_\n")
        comment = []
        for line in text.splitlines():
            if not line.startswith("# ") or line.startswith(("#  ", "# Expect", "# Time")):
                break
            comment.append(line[2:])
        yield f"| `{name}` | {' '.join(comment).replace('|', ',')} |"


def names(group: str) -> list[str]:
    """The options of a group in conf/."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def told(kind: type, name: str) -> str:
    """The docstring of a setting, on one line."""
    return " ".join(TOLD[f"{kind.__name__}.{name}"].docstring.value.split())


def options(hint: Any) -> tuple[Any, ...]:
    """The types that a setting may have."""
    return typing.get_args(hint) if is_union(hint) else (hint,)


def at(mapping: Any, path: str) -> Any:
    """What a mapping of mappings has under a dotted path."""
    for part in path.split("."):
        mapping = mapping[part]
    return mapping


def shown(value: Any) -> str:
    """A value as one would type it."""
    if value == "???":
        return "(none)"
    if isinstance(value, dict):
        inside = ", ".join(f"{key}: {shown(each).strip('`')}" for key, each in value.items())
        return f"`{{{inside}}}`"
    return f"`{value}`" if isinstance(value, str) else f"`{json.dumps(value)}`"


if __name__ == "__main__":
    PAGE.write_text(page())
