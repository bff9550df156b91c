"""Every random draw follows from (seed, round, epoch, purpose), so nothing has to be stored to resume."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derived_seed(*key: int | str) -> int:
    """A 63-bit seed that depends on the whole key, and on nothing else."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(*key: int | str) -> torch.Generator:
    """A CPU generator for one purpose: ``generator(seed, round, epoch, "order")``."""
    return torch.Generator().manual_seed(derived_seed(*key))


def seed_all(*key: int | str) -> None:
    """Sets the generators of Python, NumPy and torch, which a user's own code draws from."""
    seed = derived_seed(*key)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Gives Python's, NumPy's and torch's generators back as they were before the block."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        yield
    random.setstate(python)
    np.random.set_state(numpy)
