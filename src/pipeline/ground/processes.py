"""Processes that end with the one that started them."""

import ctypes
import signal

_PRCTL = getattr(ctypes.CDLL(None), "prctl", None)


def end_with_parent(signum: int = signal.SIGKILL) -> None:
    """Has this process sent a signal when the thread that started it ends, in whatever way. Linux does that; other
    systems have nothing like it, and a process that waits for its parent stays there.
    """
    if _PRCTL is not None:
        _PRCTL(1, signum)  # PR_SET_PDEATHSIG
