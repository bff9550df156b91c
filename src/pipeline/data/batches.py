"""Batches made as whole tensors: order, crop, flip and standardisation, never image by image.

Every draw comes from a generator of its own (seed, round, epoch, purpose).
"""

import torch
from torch import Tensor


def epoch_order(count: int, generator: torch.Generator) -> Tensor:
    """The order of ``count`` images in one epoch, int64 (count)."""
    return torch.randperm(count, generator=generator)


def random_crop(pixels: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """Pads images (N, C, H, W) with ``padding`` zeros on each side and crops each back to H x W at random."""
    if padding == 0:
        return pixels
    count, _, height, width = pixels.shape
    padded = torch.nn.functional.pad(pixels, (padding,) * 4)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    down, right = torch.randint(2 * padding + 1, (2, count), generator=generator)
    return windows[torch.arange(count), :, down, right]


def random_flip(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Mirrors each image (N, C, H, W) left to right with probability 1/2."""
    mirrored = torch.rand(len(pixels), generator=generator) < 0.5
    return torch.where(mirrored[:, None, None, None], pixels.flip(3), pixels)


def standardised(pixels: Tensor) -> Tensor:
    """uint8 images (N, C, H, W) as float32, each with its own mean 0 and standard deviation 1.

    The deviation counts as at least 1 / sqrt(C H W) of the pixel range, so an image of one colour becomes zeros
    (the paper's code: TensorFlow's ``per_image_standardization``).
    """
    values = pixels.to(torch.float32) / 255
    deviation, mean = torch.std_mean(values, dim=(1, 2, 3), correction=0, keepdim=True)
    floor = values[0].numel() ** -0.5
    return ((values - mean) / deviation.clamp_min(floor)).contiguous(memory_format=torch.channels_last)
