"""Masks: parameter name -> bool tensor of the weight's shape, True = alive. They belong to a round, not to a module."""

import hashlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

Masks = Mapping[str, Tensor]


def ones_like(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The masks of round 0: everything is alive."""
    return {name: torch.ones(weight.shape, dtype=torch.bool) for name, weight in weights.items()}


def density(masks: Masks) -> float:
    """Share of the weights that is alive."""
    return kept(masks) / sum(mask.numel() for mask in masks.values())


def kept(masks: Masks) -> int:
    """Number of weights that are alive."""
    return sum(int(mask.sum()) for mask in masks.values())


def digest(masks: Masks) -> str:
    """SHA-256 over names, shapes and bits."""
    sha = hashlib.sha256()
    for name, mask in masks.items():
        sha.update(f"{name} {tuple(mask.shape)}".encode())
        sha.update(np.packbits(mask.cpu().numpy()).tobytes())
    return sha.hexdigest()
