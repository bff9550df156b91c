"""Cores that other processes want too.

Threads of a parallel operation that have done their part spin until the next one: the fastest way on an idle machine,
and beside a busy process the slowest, for what spins keeps the core from the thread that all wait for. GNU's OpenMP
spins next to nothing once a process manages more threads than it has cores. So while others are busy there is a second
set of threads, which only sleeps. How many threads compute, and with it every number, stays as it is.
"""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

BUSY, QUIET = 0.5, 0.2
"""Cores' worth of others' work, from which on threads sleep, and under which they spin again."""

EVERY = 0.2
"""Seconds between two looks."""

STAT = Path("/proc/stat")
CHOSEN = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}
"""Variables by which a user says how threads wait."""


@contextmanager
def shared_cores() -> Iterator[None]:
    """Within it, threads spin while the cores are this process's alone, and sleep while others want them.

    Nothing where a user has said how threads wait (``OMP_WAIT_POLICY``, ``GOMP_SPINCOUNT``), where one thread computes,
    or where there is no ``/proc/stat``.
    """
    if torch.get_num_threads() == 1 or CHOSEN & os.environ.keys() or not STAT.exists():
        yield
        return
    done = threading.Event()
    watcher = threading.Thread(target=_watch, args=(done,), name="cores", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def _watch(done: threading.Event) -> None:
    cores = os.sched_getaffinity(0)
    free = len(cores) - torch.get_num_threads()
    with ExitStack() as asleep:
        sleep, before = False, _used(cores)
        while not done.wait(EVERY):
            now = _used(cores)
            seconds, busy, own = (new - old for new, old in zip(now, before, strict=True))
            before, others = now, (busy - own) / seconds - free
            if sleep and others < QUIET:
                asleep.close()
                sleep = False
            elif not sleep and others > BUSY:
                asleep.enter_context(sleeping_threads(len(cores)))
                sleep = True


def _used(cores: set[int]) -> tuple[float, float, float]:
    """Seconds: the time, how long the cores were busy so far (in sum), and how long this process was."""
    lines = (line.split() for line in STAT.read_text().splitlines() if line[:3] == "cpu")
    ticks = (sum(map(int, (*each[1:4], *each[6:8]))) for each in lines if each[0][3:] in map(str, cores))
    return time.monotonic(), sum(ticks) / os.sysconf("SC_CLK_TCK"), time.process_time()


@contextmanager
def sleeping_threads(cores: int) -> Iterator[None]:
    """Within it, threads that wait for the next parallel operation sleep: there are more of them than cores."""
    threads = torch.get_num_threads()
    idle = [_Idle() for _ in range((cores - threads) // (threads - 1) + 1)]
    try:
        yield
    finally:
        for each in idle:
            each.end()


class _Idle:
    """Threads of their own that have computed once, and then sleep."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._sleep, name="idle", daemon=True)
        self.thread.start()

    def _sleep(self) -> None:
        torch.ones(1 << 18).add_(1)  # large enough for all threads
        self.over.wait()

    def end(self) -> None:
        self.over.set()
        self.thread.join()
