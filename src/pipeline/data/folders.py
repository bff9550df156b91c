"""Images in folders named after their classes: of which part and class each is, and which are left out.

    FOLDER/PART/CLASS/.../IMAGE    where a folder called train holds folders
    FOLDER/CLASS/.../IMAGE         else

Every image that lies in the folder is used, or counted and named in a sentence.
"""

import errno
import mimetypes
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image, ImageFile

from pipeline.ground.errors import SettingsError

WORDS = {
    "train": ("train", "training", "trainval"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
PARTS = {word: part for part, words in WORDS.items() for word in words}
NO_PICTURES = {"MPEG", "EPS", "FITS"}
OF_CAMERAS = (".heic", ".heif", ".dng", ".nef", ".cr2", ".cr3", ".arw", ".raf", ".orf", ".rw2", ".jxl")
SHOWN = 5


@dataclass(frozen=True)
class Found:
    """Images by part, as paths and numbers of classes; the names of the classes; sentences on what is left out."""

    parts: Mapping[str, Sequence[tuple[str, int]]]
    classes: tuple[str, ...]
    notes: tuple[str, ...]


def images_in(folder: Path) -> list[Path]:
    """All images in a folder that can be used, through links too, in the order of their names."""
    return [path for path, fault in _walked(folder) if fault is None]


def found_in(folder: Path) -> Found:
    """The images of a folder, by part and class.

    Raises:
        SettingsError: if a file is in two parts or two classes, or folders of parts lie in those of classes.
    """
    top = _top(folder)
    left: dict[str, list[str]] = defaultdict(list)
    placed: list[tuple[Path, tuple[str, ...]]] = []
    for path, fault in _walked(folder):
        if fault is None and not path.is_relative_to(top):
            fault = f"lie beside {top.name}/, which holds the classes,"
        if fault is None:
            placed.append((path, tuple(map(_name, path.relative_to(top).parts[:-1]))))
        else:
            left[fault].append(_short(path, folder))
    below: dict[str, set[str]] = defaultdict(set)
    for _, names in placed:
        below[names[0] if names else ""] |= set(names[1:2])
    below.pop("", None)
    parts = _parts(below)
    rows = []
    for path, names in placed:
        part, inner = (parts.get(names[0]) if names else None, names[1:]) if parts else ("train", names)
        if part is None:
            left[f"lie beside the parts ({', '.join(parts)})" if names else "lie in no folder"].append(
                _short(path, folder)
            )
        elif not inner:
            left["lie in no folder of a class"].append(_short(path, folder))
        else:
            rows.append((part, inner, path))
    _check_levels(folder, parts, rows)
    _check_files(folder, [(str(part), inner[0], path) for part, inner, path in rows])
    seen = {inner[0] for _, inner, _ in rows}
    empty, others = _without_images(top, parts, seen)
    classes = tuple(sorted(seen | empty))
    number = {name: index for index, name in enumerate(classes)}
    every = {
        part: [(str(path), number[inner[0]]) for own, inner, path in rows if own == part]
        for part in WORDS
        if any(own == part for own, _, _ in rows)
    }
    trained = {label for _, label in every.get("train", ())}
    notes = [f"warning: {len(names)} images {why} and are left out: {listed(names)}" for why, names in left.items()]
    if unseen := [name for name in classes if number[name] not in trained]:
        notes.append(f"warning: no image of {listed(unseen)} is for training")
    if others:
        notes.append(f"folders without images are no classes: {listed(sorted(others))}")
    if deeper := sorted({"/".join(inner) for _, inner, _ in rows if len(inner) > 1}):
        notes.append(f"the class of an image is its first folder, others lie in it: {listed(deeper)}")
    return Found(every, classes, tuple(notes))


def listed(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _parts(below: Mapping[str, set[str]]) -> dict[str, str]:
    """Which folders are parts, by the folders in each: none where that of training is not told from the others.

    A folder called as a part is one if it holds folders. One with the word of a part in its name is one beside others
    alone of which the same is true, if they hold the same classes.
    """
    named = {name: PARTS[name.lower()] for name, inner in below.items() if name.lower() in PARTS and inner}
    if "train" in named.values():
        return named
    worded = {
        name: PARTS[words[0]]
        for name in below
        if len(words := [word for word in re.split(r"[^a-z]+", name.lower()) if word in PARTS]) == 1
    }
    training = [name for name, part in worded.items() if part == "train"]
    if len(training) != 1 or set(worded) != set(below) or len(worded) == 1:
        return {}
    shared = all(below[name] & below[training[0]] for name in worded)
    return worded if shared else {}


def _top(folder: Path) -> Path:
    """Where the parts or classes lie: in the folder, or in the only one that is in it."""
    inner = sorted(each for each in folder.iterdir() if each.is_dir() and not _hidden(each.name))
    if len(inner) != 1 or inner[0].name.lower() in PARTS:
        return folder
    deeper = [each.name for each in inner[0].iterdir() if each.is_dir() and not _hidden(each.name)]
    return inner[0] if any(PARTS.get(name.lower()) == "train" for name in deeper) else folder


def _check_levels(folder: Path, parts: Mapping[str, str], rows: Sequence[tuple[str, tuple[str, ...], Path]]) -> None:
    """Refuses folders of parts where classes are expected, or within classes."""
    classes = {inner[0] for _, inner, _ in rows}
    inside = {inner[1].lower() for _, inner, _ in rows if len(inner) > 1}
    if not parts and classes and {name.lower() for name in classes} <= set(PARTS):
        names = ", ".join(sorted(classes))
        raise SettingsError(
            [f"data.source: got {str(folder)!r}, where {names} hold images and no folders of classes; takes "
             "train/CLASS/IMAGE"]
        )  # fmt: skip
    within = {first: {inner[1] for _, inner, _ in rows if len(inner) > 1 and inner[0] == first} for first in classes}
    alike = (
        len(within) > 1
        and all(len(each) > 1 for each in within.values())
        and len(set(map(frozenset, within.values()))) == 1
    )
    words = {word for name in classes for word in re.split(r"[^a-z]+", name.lower())}
    if not parts and alike and words & set(PARTS):
        raise SettingsError(
            [f"data.source: got {str(folder)!r}, where {', '.join(sorted(classes))} hold the same folders of classes, "
             "and which of them is for training is not said; takes train/CLASS/IMAGE"]
        )  # fmt: skip
    if "train" in {PARTS.get(name) for name in inside} and len({PARTS.get(name) for name in inside} - {None}) > 1:
        raise SettingsError(
            [f"data.source: got {str(folder)!r}, where folders of classes hold those of parts "
             f"({', '.join(sorted(inside & set(PARTS)))}); takes train/CLASS/IMAGE"]
        )  # fmt: skip


def _check_files(folder: Path, rows: Sequence[tuple[str, str, Path]]) -> None:
    """Sees to it that no image trains and tests, or is of two classes, by links."""
    real = cache(os.path.realpath)
    first: dict[str, tuple[str, str, Path]] = {}
    for part, name, path in rows:
        file = os.path.realpath(path) if path.is_symlink() else f"{real(path.parent)}/{path.name}"
        known = first.setdefault(file, (part, name, path))
        if known[:2] != (part, name):
            raise SettingsError(
                [f"data.source: got {str(folder)!r}, in which {_short(known[2], folder)} and {_short(path, folder)} "
                 "are one file; takes a file in one part and class"]
            )  # fmt: skip


def _without_images(top: Path, parts: Mapping[str, str], classes: set[str]) -> tuple[set[str], set[str]]:
    """Folders where those of classes are, but without images: those that are empty, and those with other files."""
    places = [each for each in top.iterdir() if _name(each.name) in parts] or [top]
    folders = [each for place in places for each in place.iterdir() if each.is_dir() and not _hidden(each.name)]
    bare = [each for each in folders if _name(each.name) not in classes]
    filled = {_name(each.name) for each in bare if any(files for _, _, files in os.walk(each))}
    return {_name(each.name) for each in bare} - filled, filled


def _walked(folder: Path, above: tuple[str, ...] = (), hidden: bool = False) -> Iterator[tuple[Path, str | None]]:
    """Every image file in a folder, and why it cannot be used, if it cannot. No link to a folder above is followed."""
    real = os.path.realpath(folder)
    if real in above:
        return
    for entry in sorted(os.scandir(folder), key=lambda each: each.name):
        path, unseen = folder / entry.name, hidden or _hidden(entry.name)
        if _is_folder(entry):
            yield from _walked(path, (*above, real), unseen)
        elif kind := _kind(path):
            nowhere = entry.is_symlink() and not path.exists()
            fault = "are hidden" if unseen else "are links that lead nowhere" if nowhere else _FAULTS[kind]
            yield path, fault if _is_text(path) else "have names or folders that are no UTF-8"


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    """Whether it is a folder, or a link to one; a link that leads to itself is none."""
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        return False


def _hidden(name: str) -> bool:
    return name.startswith((".", "__MACOSX"))


_FAULTS = {"image": None, "other": "are of a kind that Pillow does not read"}


def _kind(path: Path) -> str | None:
    """An ``image`` that Pillow reads, or an ``other``: by the end of its name, where that says nothing by its bytes."""
    ending = path.suffix.lower()
    if ending in _endings():
        return "image"
    told = mimetypes.guess_type(path.name)[0] or ""
    if told.startswith("image/") or ending in OF_CAMERAS:
        return "other"
    if told:
        return None
    try:
        with Image.open(path) as image:
            return "image" if image.format in _formats() else None
    except Exception:  # whatever a file is that is none
        return None


@cache
def _endings() -> frozenset[str]:
    """How the names of images end that Pillow reads by itself."""
    return frozenset(end for end, name in Image.registered_extensions().items() if name in _formats())


@cache
def _formats() -> frozenset[str]:
    """The kinds of images that Pillow reads by itself."""
    Image.init()
    read = {
        name
        for name, (factory, _) in Image.OPEN.items()
        if not (isinstance(factory, type) and issubclass(factory, ImageFile.StubImageFile))
    }
    return frozenset(read - NO_PICTURES)


def _short(path: Path, folder: Path) -> str:
    return _name(str(path.relative_to(folder)))


def _name(text: str) -> str:
    """A name as it is shown and compared: one spelling of each letter, bytes that are no text as their numbers."""
    return unicodedata.normalize("NFC", text.encode(errors="backslashreplace").decode())


def _is_text(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True
