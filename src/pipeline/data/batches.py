"""Crop, flip and standardisation of whole batches, never image by image; the draws come from outside."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor


def cropped(pixels: Tensor, padding: int, offsets: Tensor, fill: Literal["zeros", "reflect"] = "zeros") -> Tensor:
    """Pads images (N, C, H, W) with ``padding`` pixels on each side, by ``fill``, and crops each back to H x W.

    ``offsets`` int64 (N, 2) in [0, 2 x padding]: where each crop begins, down and right.
    """
    height, width = pixels.shape[2:]
    if fill == "zeros":
        padded = torch.nn.functional.pad(pixels, (padding,) * 4)
    else:
        padded = pixels[:, :, _mirrored_at_borders(height, padding)][..., _mirrored_at_borders(width, padding)]
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(len(pixels), device=pixels.device), :, offsets[:, 0], offsets[:, 1]]


def _mirrored_at_borders(size: int, padding: int) -> Tensor:
    """Positions from -padding to size + padding, those outside mirrored at the first and last pixel."""
    return size - 1 - (torch.arange(-padding, size + padding).abs() - (size - 1)).abs()


def mirrored(pixels: Tensor, which: Tensor) -> Tensor:
    """Mirrors those images (N, C, H, W) left to right that ``which`` bool (N) marks."""
    return torch.where(which[:, None, None, None], pixels.flip(3), pixels)


def standardised(
    pixels: Tensor, mean: Sequence[float] | None = None, deviation: Sequence[float] | None = None
) -> Tensor:
    """uint8 images (N, C, H, W) as float32 with the given mean and standard deviation of each channel taken out.

    Without them each image gets its own mean 0 and standard deviation 1 over all its pixels; the deviation counts as
    at least 1 / sqrt(C H W) of the pixel range, so an image of one colour becomes zeros (the paper's code: TensorFlow's
    ``per_image_standardization``).
    """
    values = pixels.to(torch.float32) / 255
    if mean is None or deviation is None:
        own_deviation, own_mean = torch.std_mean(values, dim=(1, 2, 3), correction=0, keepdim=True)
        values = (values - own_mean) / own_deviation.clamp_min(math.prod(pixels.shape[1:]) ** -0.5)
    else:
        by_channel = [torch.tensor(each, device=pixels.device).view(-1, 1, 1) for each in (mean, deviation)]
        values = (values - by_channel[0]) / by_channel[1]
    return values.contiguous(memory_format=torch.channels_last)


def standardised_alike(pixels: Tensor) -> Tensor:
    """``standardised`` by each image's own mean and deviation, to the same bits on every machine.

    Sums of whole numbers are exact in float64 in whatever order they are taken, and all else is one operation a value.
    """
    count = math.prod(pixels.shape[1:])
    exact = pixels.to(torch.float64)
    total = exact.sum(dim=(1, 2, 3), keepdim=True)
    squares = (exact * exact).sum(dim=(1, 2, 3), keepdim=True)
    mean = total / count
    deviation = (squares / count - mean * mean).clamp_min(0).sqrt().clamp_min(255 * count**-0.5)
    return ((exact - mean) / deviation).to(torch.float32)
