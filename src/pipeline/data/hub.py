"""The Hugging Face hub, and local folders in its layout."""

import io
import logging
from typing import Any

from PIL import Image

from pipeline.ground.environment import expanded
from pipeline.ground.errors import SettingsError

UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
"""What ``opened`` raises for what is no image, a broken one, one of more than 8 bits a channel, or a huge one."""


def read(source: str, dataset: str) -> Any:
    """The parts of a data set by hub id or local folder: part name -> ``datasets.Dataset``.

    Raises:
        SettingsError: if neither the network nor a local copy gives it.
    """
    local = expanded(source)
    if not local.is_dir() and (source.count("/") != 1 or source.startswith((".", "/", "~"))):
        raise SettingsError([f"data.source: got {source!r}, which is no folder; {remedy(dataset)}"])
    if set("*?[]") & set(str(local)):
        raise SettingsError([f"data.source: got {source!r}, takes a path without * ? [ ]"])
    import datasets

    datasets.disable_progress_bars()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        return datasets.load_dataset(str(local) if local.is_dir() else source)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise SettingsError(
            [f"data.source: got {source!r}, which cannot be read ({reason}); {remedy(dataset)}"]
        ) from error


def opened(entry: dict[str, Any], mode: str) -> Image.Image:
    """An image of a column that is not decoded: its ``bytes``, else the file at its ``path``; raises UNREADABLE."""
    content = entry["bytes"]
    image = Image.open(io.BytesIO(content) if content is not None else entry["path"])
    if image.mode.startswith(("I", "F")):
        raise ValueError("it has more than 8 bits a channel: convert it")
    return image.convert(mode)


def remedy(dataset: str) -> str:
    """What a user can do who has no such data."""
    layout = "images in folders by part and class (train/CLASS/IMAGE), or the hub's parquet files,"
    if dataset != "imagefolder":
        layout = f"a copy in the layout of the hub's {dataset} (parquet files)"
    return f"put {layout} into a folder and name it with data.source=FOLDER; data=digits needs no files"
