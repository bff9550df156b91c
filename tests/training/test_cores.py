"""Threads that sleep while other processes want the cores: when they do, that they do, and that no number moves."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from pipeline.rounds import loop as rounds
from pipeline.training import cores
from pipeline.training.cores import shared_cores, sleeping_threads
from tests.rounds.test_loop import content

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
pytestmark = pytest.mark.skipif(CORES == 1 or not cores.STAT.exists(), reason="one core, or no /proc/stat")


@pytest.fixture(autouse=True)
def all_cores():
    threads = torch.get_num_threads()
    torch.set_num_threads(CORES)
    yield
    torch.set_num_threads(threads)


def waits() -> int:
    """How often the threads of this process have gone to sleep so far."""
    tasks = Path("/proc/self/task").glob("*/status")
    return sum(int(task.read_text().partition("\nvoluntary_ctxt_switches:")[2].split()[0]) for task in tasks)


def work() -> int:
    """Parallel operations one after another; returns how often a thread slept meanwhile."""
    numbers = torch.ones(1 << 16)
    numbers.add_(1)
    before = waits()
    for _ in range(3000):
        numbers.add_(1)
    return waits() - before


def test_threads_sleep_while_asked_to_and_spin_afterwards():
    spinning = work()
    with sleeping_threads(CORES):
        sleeping = work()
    afterwards = work()
    assert sleeping > 5 * max(spinning, afterwards), (spinning, sleeping, afterwards)


@pytest.mark.parametrize(("busy", "sleeps"), [(1.0, True), (0.1, False)])
def test_what_others_use_decides(busy, sleeps, monkeypatch):
    """The other process uses so much of a core: by the numbers that /proc/stat would have."""
    begin, asleep = time.monotonic(), threading.Event()

    def used(_):
        at = time.monotonic()
        return at, 5.0 + (CORES - 0.5) * (at - begin), (CORES - 0.5 - busy) * (at - begin)

    monkeypatch.setattr(cores, "_used", used)
    real = cores.sleeping_threads
    monkeypatch.setattr(cores, "sleeping_threads", lambda count: asleep.set() or real(count))
    with shared_cores():
        assert asleep.wait(5 if sleeps else 0.7) == sleeps


def test_another_process_is_seen():
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        before = cores._used(os.sched_getaffinity(0))
        time.sleep(1.5)
        seconds, busy, own = (b - a for a, b in zip(before, cores._used(os.sched_getaffinity(0)), strict=True))
        spent = float(Path(f"/proc/{other.pid}/stat").read_text().rpartition(")")[2].split()[11]) / 100
        other.kill()
    assert seconds == pytest.approx(1.5, abs=0.5)
    assert busy - own > 0.8 * min(spent, 1.0)


@pytest.mark.parametrize("variable", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"])
def test_who_says_how_threads_wait_is_obeyed(variable, monkeypatch):
    monkeypatch.setenv(variable, "1000")
    before = threading.active_count()
    with shared_cores():
        assert threading.active_count() == before


@pytest.mark.slow
def test_no_number_moves_and_nothing_is_left(small_job, tmp_path):
    before = threading.active_count()
    rounds.run(*small_job("pruning.rounds=1", runs=tmp_path / "spinning"))
    with sleeping_threads(CORES):
        rounds.run(*small_job("pruning.rounds=1", runs=tmp_path / "sleeping"))
    assert content(tmp_path / "sleeping") == content(tmp_path / "spinning")
    assert threading.active_count() == before
