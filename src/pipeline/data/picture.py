"""An image file as a person sees it, and its middle at the size of a network.

This file stands alone: it reads the images of trainings, and it lies beside the program on the board.
"""

import io
import warnings
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # of twice as many pixels it is an error
DEEP = ("I", "F")
"""How the modes of more than 8 bits a channel begin."""
USUAL = ("JPEG", "PNG")
"""Formats that are tried first: to try all of them takes as long as to decode a small image."""
ONE_IN_PARTS = ("MPO", "PSD")
"""Formats whose further images are views or layers of the first."""

SAY_TURNS = {"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"}
"""What of an image may say how it is turned; a TIFF is turned by Pillow itself."""


class Unreadable(Exception):
    """Why a file is no image that can be shown, in words."""


def opened(source: Path | str | bytes, mode: str) -> tuple[Image.Image, bool]:
    """The image in a file, or in its bytes, as ``mode`` (RGB or L); and whether it is the first of several frames.

    Turned as its EXIF orientation says, in the colours of its profile (as sRGB), on white where it is transparent.
    Values of 16 bits are scaled to 8; an integer of 32 bits counts as one of 16, a float as a share of 1.

    Raises:
        Unreadable: if it is no image, a broken one, one of more than 179 million pixels, or beyond those scales.
    """
    try:
        with _identified(source) as image:
            animated = bool(getattr(image, "is_animated", False)) and image.format not in ONE_IN_PARTS
            image.load()
            return _turned(_flat(image), image).convert(mode), animated
    except Unreadable:
        raise
    except UnidentifiedImageError as error:
        size = len(source) if isinstance(source, bytes) else Path(source).stat().st_size
        raise Unreadable("in no format of images that Pillow knows" if size else "an empty file") from error
    except Exception as error:  # a broken file makes decoders raise anything
        raise Unreadable(str(error) or type(error).__name__) from error


def _identified(source: Path | str | bytes) -> Image.Image:
    """The image in a file, or in its bytes, before it is decoded."""

    def tried(formats: tuple[str, ...] | None) -> Image.Image:
        return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=formats)

    try:
        return tried(USUAL)
    except UnidentifiedImageError:
        return tried(None)


def middle(image: Image.Image, shorter_side: int | None, size: tuple[int, int]) -> Image.Image:
    """The middle of an image, ``size`` (width, height) pixels, where the shorter side is scaled to ``shorter_side``.

    Without ``shorter_side`` the whole image is scaled to the size. Only what is seen is computed.
    """
    if shorter_side is None:
        return image if image.size == size else image.resize(size, Image.Resampling.BILINEAR)
    scale = shorter_side / min(image.size)
    begin, end = [], []
    for side, wanted in zip(image.size, size, strict=True):
        scaled = max(wanted, round(side * scale))
        first = (scaled - wanted) // 2
        begin.append(first * side / scaled)
        end.append(min(float(side), (first + wanted) * side / scaled))
    return image.resize(size, Image.Resampling.BILINEAR, (begin[0], begin[1], end[0], end[1]))


def _turned(image: Image.Image, told: Image.Image) -> Image.Image:
    """An image upright, as ``told`` has it in its EXIF; as it is where that is broken."""
    if SAY_TURNS.isdisjoint(told.info):
        return image
    with suppress(Exception):
        image.getexif()[0x0112] = told.getexif().get(0x0112, 1)
        return ImageOps.exif_transpose(image)
    return image


def _flat(image: Image.Image) -> Image.Image:
    """RGB without transparency: what lies behind is white."""
    if image.mode.startswith(DEEP):
        image = _of_8_bits(image)
    if not image.has_transparency_data:
        return _in_srgb(image)
    seen = image.convert("RGBA")
    colours = image.convert("L") if image.mode in ("L", "LA", "La") else seen.convert("RGB")
    colours.info = image.info
    white = Image.new("RGB", image.size, "white")
    return Image.composite(_in_srgb(colours), white, seen.getchannel("A"))


def _of_8_bits(image: Image.Image) -> Image.Image:
    """An image of 16 or 32 bits a channel as one of 8, with its profile and what it marks as transparent."""
    values = np.asarray(image)
    if image.mode == "F":
        if not bool(((values >= 0) & (values <= 1)).all()):
            raise Unreadable(
                f"its floats go from {values.min():g} to {values.max():g}, takes 0 (black) to 1 (white): convert it"
            )
        scaled = np.rint(values * 255)
    else:
        values = values.astype(np.int64)
        if values.min() < 0 or values.max() > 65_535:
            raise Unreadable(f"its values go from {values.min()} to {values.max()}, takes 0 to 65535: convert it")
        scaled = (values * 255 + 32_767) // 65_535
    grey = Image.fromarray(scaled.astype(np.uint8))
    if "transparency" in image.info:
        shown = np.where(values == image.info["transparency"], 0, 255).astype(np.uint8)
        grey = Image.merge("LA", (grey, Image.fromarray(shown)))
    grey.info["icc_profile"] = image.info.get("icc_profile")
    return grey


def _in_srgb(image: Image.Image) -> Image.Image:
    """RGB, by the colour profile of an image where it has one that is valid and not sRGB already."""
    profile = b"LAB" if image.mode == "LAB" else image.info.get("icc_profile")
    if image.mode not in ("L", "RGB", "CMYK", "LAB"):
        image = image.convert("RGB")
    transform = _transform(profile, image.mode) if profile else None
    if transform is None:
        return image.convert("RGB")
    from PIL import ImageCms

    changed = ImageCms.applyTransform(image, transform)
    assert changed is not None
    return changed


@lru_cache(maxsize=32)
def _transform(profile: bytes, mode: str) -> Any:
    """From a profile to sRGB; None where there is nothing to do, or the profile is none for images of this mode.

    Raises:
        Unreadable: if this Pillow cannot read profiles.
    """
    try:
        from PIL import ImageCms

        srgb = ImageCms.createProfile("sRGB")
    except ImportError as error:
        raise Unreadable("it has a colour profile, and this Pillow was built without LittleCMS") from error
    try:
        own: Any = ImageCms.createProfile("LAB") if profile == b"LAB" else ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if mode != "LAB" and ImageCms.getProfileDescription(own).strip().startswith("sRGB"):
            return None
        return ImageCms.buildTransform(own, srgb, mode, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None
