"""Where images come from: libraries that ship them, and the Hugging Face hub or local folders in its layout."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.data.split import Pool
from pipeline.errors import SettingsError
from pipeline.settings import Data


def digits(data: Data) -> Pool:
    """scikit-learn's 1,797 handwritten digits of 8x8 pixels; 16 grey levels spread over 0 to 255."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = torch.from_numpy((bunch.images * 255 / 16).round().astype(np.uint8)).unsqueeze(1)
    return Pool(pixels, torch.from_numpy(bunch.target.astype(np.int64)), tuple("0123456789"), official_test=0)


def cifar10(data: Data) -> Pool:
    """CIFAR-10 (60,000 images, 32x32 RGB) in the layout of the hub's ``uoft-cs/cifar10``."""
    parts = _from_hub(data, columns=("img", "label"))
    pixels = np.concatenate([_decoded(parts[part]["img"]) for part in ("train", "test")])
    labels = np.concatenate([np.asarray(parts[part]["label"], dtype=np.int64) for part in ("train", "test")])
    classes = tuple(parts["train"].features["label"].names)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    return Pool(images, torch.from_numpy(labels), classes, official_test=len(parts["test"]))


def _from_hub(data: Data, columns: tuple[str, ...]) -> Any:
    """The parts of a data set by hub id or local folder.

    Raises:
        SettingsError: if neither the network nor a local copy gives it, or it has other parts or columns.
    """
    assert data.source is not None
    remedy = (
        f"put a copy in the layout of the hub's {data.dataset} (parquet files) into a folder and name it with "
        "data.source=FOLDER; data=digits needs no files"
    )
    local = Path(data.source).expanduser()
    if data.source.startswith((".", "/", "~")) and not local.is_dir():
        raise SettingsError([f"data.source: got {data.source!r}, which is no folder; {remedy}"])
    import datasets

    datasets.disable_progress_bars()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        parts = datasets.load_dataset(str(local) if local.is_dir() else data.source)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise SettingsError([f"data.source: got {data.source!r}, which cannot be read ({reason}); {remedy}"]) from error
    missing = [part for part in ("train", "test") if part not in parts]
    missing += [column for part in parts for column in columns if column not in parts[part].column_names]
    if missing:
        raise SettingsError([f"data.source: got {data.source!r}, which has no {', '.join(missing)}; {remedy}"])
    return parts


def _decoded(column: Any) -> np.ndarray[Any, Any]:
    """Images of one size as uint8 (N, height, width, channels)."""
    return np.stack([np.asarray(image.convert("RGB")) for image in column])
