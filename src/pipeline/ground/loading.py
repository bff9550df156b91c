"""Loading PyTorch, Lightning and MLflow sooner."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loading() -> Iterator[None]:
    """Within it, libraries are imported that live as long as the process, so that no garbage is looked for.

    It would take a fifth of the loading, and what has been loaded some of every later look. Where PyTorch is loaded
    already, what is garbage now would never be found: nothing is changed.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()
