"""Every random draw follows from (seed, round, epoch, purpose), so nothing has to be stored to resume."""

import hashlib

import torch


def derived_seed(*key: int | str) -> int:
    """A 63-bit seed that depends on the whole key, and on nothing else."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(*key: int | str) -> torch.Generator:
    """A CPU generator for one purpose: ``generator(seed, round, epoch, "order")``."""
    return torch.Generator().manual_seed(derived_seed(*key))
