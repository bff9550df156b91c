"""Data sets of images: in folders, in the Hugging Face hub, and in local folders in the hub's layout."""

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.folders import Found, found_in, images_in, listed
from pipeline.ground.environment import expanded
from pipeline.ground.errors import SettingsError, one_line
from pipeline.ground.extras import needed

TABLES = (".parquet", ".arrow")
NAMES = ("label", "labels", "class", "category", "target", "fine_label", "class_name", "y")
"""What a column of labels is called, the likelier first."""
IMAGES = ("image", "img", "picture", "photo")
"""What a column of images is called that stands beside others of images."""


@dataclass(frozen=True)
class Source:
    """Tables of images and labels: part -> ``datasets.Dataset`` with ``image``, not decoded, and ``label``.

    ``notes`` are sentences on what of the source is not in them.
    """

    parts: Mapping[str, Any]
    classes: tuple[str, ...]
    notes: tuple[str, ...]


def read(source: str, dataset: str, image: str | None = None, label: str | None = None) -> Source:
    """A data set by hub id or local folder. ``image`` and ``label`` name its columns, where it has several.

    Raises:
        SettingsError: if neither the network nor a local copy gives it, or it has no images, labels or training part,
            or the library that reads it is not installed.
    """
    needed("hub", f"data.source={source}")
    local = expanded(source)
    if not local.is_dir() and (source.count("/") != 1 or source.startswith((".", "/", "~"))):
        raise SettingsError([f"data.source: got {source!r}, which is no folder; {remedy(dataset)}"])
    try:
        if local.is_dir() and not _has_tables(local) and ((found := found_in(local)).parts or found.notes):
            return _of_folders(found, source, dataset)
        return _of_columns(*_loaded(source, local), source, dataset, image, label)
    except SettingsError:
        raise
    except Exception as error:
        reason = one_line(error)[:200]
        raise SettingsError(
            [f"data.source: got {source!r}, which cannot be read ({reason}); {remedy(dataset)}"]
        ) from error


def content(entry: Mapping[str, Any]) -> bytes | Path:
    """Where an image of a column that is not decoded is: its bytes, or else the path of its file."""
    return entry["bytes"] if entry["bytes"] is not None else Path(entry["path"])


def remedy(dataset: str) -> str:
    """What a user can do who has no such data."""
    layout = "images in folders by part and class (train/CLASS/IMAGE), or the hub's parquet files,"
    if dataset != "imagefolder":
        layout = f"a copy in the layout of the hub's {dataset} (parquet files)"
    return f"put {layout} into a folder and name it with data.source=FOLDER; data=digits needs no files"


def _has_tables(folder: Path) -> bool:
    """Whether a folder is in the hub's layout: parquet files, or a list of its images."""
    return any(
        name.endswith(TABLES) or name.startswith("metadata.")
        for _, _, files in os.walk(folder, followlinks=False)
        for name in files
    )


def _of_folders(found: Found, source: str, dataset: str) -> Source:
    import datasets

    if "train" not in found.parts:
        notes = "; ".join(found.notes)
        raise SettingsError(
            [f"data.source: got {source!r}, which has no images for training ({notes}); {remedy(dataset)}"]
        )
    features = datasets.Features(
        {"image": datasets.Image(decode=False), "label": datasets.ClassLabel(names=list(found.classes))}
    )
    parts = {
        part: datasets.Dataset.from_dict(
            {"image": [{"bytes": None, "path": path} for path, _ in rows], "label": [label for _, label in rows]},
            features,
        )
        for part, rows in found.parts.items()
    }
    return Source(parts, found.classes, found.notes)


def _loaded(source: str, local: Path) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """What the hub's library makes of a data set, and sentences on the files that it left out."""
    import datasets

    if local.is_dir() and set("*?[]") & set(str(local)):
        raise SettingsError([f"data.source: got {source!r}, takes a path without * ? [ ] for the hub's layout"])
    datasets.disable_progress_bars()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    if not local.is_dir():
        return datasets.load_dataset(source), ()
    parts = datasets.load_dataset(str(local))
    files = datasets.load_dataset_builder(str(local)).config.data_files or {}
    used = [os.path.realpath(file) for part in files.values() for file in part]
    if twice := sorted(file for file, times in Counter(used).items() if times > 1):
        raise SettingsError(
            [f"data.source: got {source!r}, in which {listed(twice)} belong to more than one part: the name of a file "
             "or folder holds the words of several (train, validation, test); rename it"]
        )  # fmt: skip
    read = {path for path in used if path.endswith(TABLES)}
    read |= {os.path.realpath(path) for part in parts.values() for path in _paths(part)}
    here = [*(path for path in local.rglob("*") if path.suffix in TABLES), *images_in(local)]
    left = sorted(str(path.relative_to(local)) for path in here if os.path.realpath(path) not in read)
    return parts, (f"warning: {len(left)} files belong to no part and are left out: {listed(left)}",) if left else ()


def _paths(part: Any) -> list[str]:
    """The files that the images of a table are in, where they are not in the table."""
    from pyarrow import compute

    table, names = part.data, [name for name, each in part.features.items() if _is_image(each)]
    columns = [compute.struct_field(table.column(name), "path").to_pylist() for name in names]
    return [path for column in columns for path in column if path and Path(path).is_absolute()]


def _of_columns(
    parts: Mapping[str, Any], notes: tuple[str, ...], source: str, dataset: str, image: str | None, label: str | None
) -> Source:
    import datasets

    if "train" not in parts:
        raise SettingsError(
            [f"data.source: got {source!r}, which has no part train, but {', '.join(parts)}; {remedy(dataset)}"]
        )
    features = parts["train"].features
    every = _columns_of_images(features)
    images = [str(image)] if image in every else _the_column_of_images(every, source)
    if not images:
        raise SettingsError([f"data.source: got {source!r}, which has no images; {remedy(dataset)}"])
    labels = [str(label)] if label in features else _columns_of_labels(features, source)
    if not labels:
        raise SettingsError([f"data.source: got {source!r}, which has no labels; {remedy(dataset)}"])
    known = {name: part for name in ("train", "validation", "test") if (part := parts.get(name)) is not None}
    others = []
    if beside := [name for name in every if name != images[0]]:
        others += [f"images are those of the column {images[0]}, not of {', '.join(beside)}"]
    if label not in features and (beside := [name for name in _typed(features) if name != labels[0]]):
        others += [f"labels are those of the column {labels[0]}, not of {', '.join(beside)}"]
    others += [f"warning: part {name} ({len(parts[name])} images) is left out" for name in parts if name not in known]
    told = {name: part.with_format("arrow")[:][labels[0]].to_pylist() for name, part in known.items()}
    classes, numbers = _numbered(features[labels[0]], told, source, labels[0])
    if empty := sum(int((each < 0).sum()) for each in numbers.values()):
        others.append(f"warning: {empty} images have no label ({labels[0]}) and are left out")
    nowhere = {name: _nowhere(part, images[0]) for name, part in known.items()}
    if nothing := sum(int(each.sum()) for each in nowhere.values()):
        others.append(f"warning: {nothing} rows have no image ({images[0]}) and are left out")
    tables = {}
    for name, part in known.items():
        rows = part.select_columns(images[:1]).rename_columns({images[0]: "image"} if images[0] != "image" else {})
        rows = rows.cast_column("image", datasets.Image(decode=False))
        tables[name] = rows.add_column("label", numbers[name]).select(
            np.flatnonzero((numbers[name] >= 0) & ~nowhere[name])
        )
    return Source({name: rows for name, rows in tables.items() if len(rows)}, classes, (*notes, *others))


def _is_image(feature: Any) -> bool:
    """An image, or what parquet files without a description of theirs have for one."""
    import datasets

    return isinstance(feature, datasets.Image) or (isinstance(feature, dict) and set(feature) == {"bytes", "path"})


def _nowhere(part: Any, column: str) -> NDArray[np.bool_]:
    """Which rows have no image."""
    from pyarrow import compute

    entries = part.with_format("arrow")[:][column]
    fields = [compute.is_null(compute.struct_field(entries, name)) for name in ("bytes", "path")]
    found: NDArray[np.bool_] = compute.or_(compute.is_null(entries), compute.and_(*fields)).to_numpy()
    return found


def _columns_of_images(features: Mapping[str, Any]) -> list[str]:
    return [name for name, each in features.items() if _is_image(each)]


def _the_column_of_images(found: list[str], source: str) -> list[str]:
    """The column of images, by its name where there are several.

    Raises:
        SettingsError: if there are several that are none by name.
    """
    if len(found) < 2:
        return found
    if named := [name for name in IMAGES if name in found]:
        return named[:1]
    raise SettingsError(
        [f"data.source: got {source!r}, whose images may be {', '.join(found)}; takes one column of them, or one "
         "called image"]
    )  # fmt: skip


def _typed(features: Mapping[str, Any]) -> list[str]:
    """The columns that are of classes by their kind."""
    import datasets

    return [name for name, each in features.items() if isinstance(each, datasets.ClassLabel)]


def _columns_of_labels(features: Mapping[str, Any], source: str) -> list[str]:
    """The column of labels: by its name, else the only one of classes, or else the only one of words or whole numbers.

    Raises:
        SettingsError: if there are several that are none by name.
    """
    typed = _typed(features)
    plain = [name for name, each in features.items() if _is_word_or_number(each)]
    if named := [name for name in NAMES if name in typed or name in plain]:
        return named[:1]
    found = typed or plain
    if len(found) > 1:
        raise SettingsError(
            [f"data.source: got {source!r}, whose labels may be {', '.join(found)}; takes one column of them, or one "
             "called label"]
        )  # fmt: skip
    return found


def _is_word_or_number(feature: Any) -> bool:
    kind = str(getattr(feature, "dtype", ""))
    return kind in ("string", "large_string", "bool") or kind.startswith(("int", "uint"))


def _numbered(
    feature: Any, told: Mapping[str, Sequence[Any]], source: str, column: str
) -> tuple[tuple[str, ...], dict[str, NDArray[np.int64]]]:
    """Names of classes and their numbers by part, -1 for none: as the data set numbers them, or in sorted order."""
    import datasets

    if isinstance(feature, datasets.ClassLabel):
        return tuple(feature.names), {
            name: np.array([-1 if each is None else each for each in part], dtype=np.int64)
            for name, part in told.items()
        }
    if not _is_word_or_number(feature):
        raise SettingsError(
            [f"data.source: got {source!r}, whose {column} is {feature}; takes words or whole numbers for labels"]
        )
    values = sorted({each for part in told.values() for each in part if each not in (None, "")})
    number = {value: index for index, value in enumerate(values)} | {None: -1, "": -1}
    return tuple(str(value) for value in values), {
        name: np.array([number[each] for each in part], dtype=np.int64) for name, part in told.items()
    }
