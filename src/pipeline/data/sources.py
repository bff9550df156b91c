"""Where images in memory come from: libraries that ship them, and the hub's data sets."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.data import hub
from pipeline.data.picture import Unreadable, opened
from pipeline.data.split import Pool
from pipeline.ground.errors import SettingsError
from pipeline.settings.groups import ImagesInMemory

DIGITS = Path(__file__).with_name("digits.csv.gz")


def digits(data: ImagesInMemory) -> Pool:
    """The 1,797 handwritten digits of 8x8 pixels that scikit-learn has; 16 grey levels spread over 0 to 255.

    A row is an image and its label: the test part of E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten
    Digits, UCI Machine Learning Repository (CC BY 4.0).
    """
    with gzip.open(DIGITS, "rt") as file:
        rows = np.loadtxt(file, delimiter=",", dtype=np.int64)
    pixels = torch.from_numpy((rows[:, :-1] * 255 / 16).round().astype(np.uint8)).reshape(-1, 1, 8, 8)
    labels = torch.from_numpy(rows[:, -1].copy())
    return Pool(pixels, labels, tuple("0123456789"), {"train": len(labels)})


def cifar10(data: ImagesInMemory) -> Pool:
    """CIFAR-10 (60,000 images, 32x32 RGB) in the layout of the hub's ``uoft-cs/cifar10``."""
    return _from_hub(data, image="img", label="label", mode="RGB")


def cifar100(data: ImagesInMemory) -> Pool:
    """CIFAR-100 (60,000 images, 32x32 RGB, 100 fine classes) in the layout of the hub's ``uoft-cs/cifar100``."""
    return _from_hub(data, image="img", label="fine_label", mode="RGB")


def fashion_mnist(data: ImagesInMemory) -> Pool:
    """Fashion-MNIST (70,000 images, 28x28 grey) in the layout of the hub's ``zalando-datasets/fashion_mnist``."""
    return _from_hub(data, image="image", label="label", mode="L")


def _from_hub(data: ImagesInMemory, *, image: str, label: str, mode: str) -> Pool:
    """A data set of images of one size, with the columns that the hub's has.

    Raises:
        SettingsError: if it cannot be had, has other parts or columns, or an image that cannot be decoded.
    """
    assert data.source is not None
    source = hub.read(data.source, data.dataset, image, label)
    parts = [source.parts[part] for part in ("train", "test") if part in source.parts]
    if len(parts) < 2:
        raise SettingsError([f"data.source: got {data.source!r}, which has no test; {hub.remedy(data.dataset)}"])
    try:
        pixels = np.concatenate([_decoded(part, mode) for part in parts])
    except (Unreadable, ValueError) as error:
        raise SettingsError([f"data.source: got {data.source!r}, whose images cannot be read ({error})"]) from error
    labels = np.concatenate([np.asarray(part["label"], dtype=np.int64) for part in parts])
    return Pool(
        torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(),
        torch.from_numpy(labels),
        source.classes,
        {name: len(part) for name, part in zip(("train", "test"), parts, strict=True)},
    )


def _decoded(part: Any, mode: str) -> np.ndarray[Any, Any]:
    """Images of one size as uint8 (N, height, width, channels)."""
    entries = part.with_format("arrow")[:]["image"].to_pylist()
    images = np.stack([np.asarray(opened(hub.content(entry), mode)[0]) for entry in entries])
    return images if images.ndim == 4 else images[..., None]
