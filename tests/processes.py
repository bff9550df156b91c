"""Commands and scripts in processes of their own, as users type them, or forked from one that has loaded the libraries.

A forked one is as real (it has signals, a status and an end of its own) and begins with the work: it is for tests of
what a command does, not of how it starts.
"""

import contextlib
import faulthandler
import multiprocessing
import os
import pty
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import termios
import weakref
from functools import partial
from pathlib import Path

import pyte
from torchmetrics.utilities.prints import rank_zero_only

from pipeline.__main__ import main
from tests.conftest import PROJECT, spare_what_is_loaded


def command(*arguments, cwd=PROJECT, **environment):
    """``python -m pipeline`` with pipes to what it prints and says."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline", *arguments],
        cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def terminal(columns, rows, *arguments, cwd=PROJECT):
    """The screen of a terminal of this size once the command has ended."""
    outside, inside = pty.openpty()
    termios.tcsetwinsize(inside, (rows, columns))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm-256color"}
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline", *arguments],
        cwd=cwd, env=environment, stdin=inside, stdout=inside, stderr=inside, start_new_session=True,
    )  # fmt: skip
    os.close(inside)
    screen = pyte.Screen(columns, rows)
    stream = pyte.ByteStream(screen)
    with contextlib.suppress(OSError):  # the command has ended, and nothing is left to read
        while shown := os.read(outside, 4096):
            stream.feed(shown)
    assert process.wait(60) == 0, screen.display
    return screen


def loaded():
    """What starts processes that have loaded the libraries: a server without threads forks them, for the tests' own
    process has some and could pass on a lock.
    """
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload([__name__, "pipeline.commands.run", "pipeline.commands.search", "alembic.command"])
    return server


class Forked:
    """A command or script that runs, with the methods of ``subprocess.Popen`` that tests use."""

    def __init__(self, act, words, own, cwd, environment):
        folder = tempfile.mkdtemp()
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self._files = [Path(folder) / name for name in ("out", "err")]
        self._process = loaded().Process(target=_run, args=(act, words, own, cwd, environment, self._files))
        self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self):
        return self._process.exitcode

    def poll(self):
        return self._process.exitcode

    def said(self):
        """What it has printed so far."""
        return self._files[0].read_text() if self._files[0].exists() else ""

    def wait(self, timeout=None):
        self._process.join(timeout)
        return self.returncode

    def communicate(self, timeout=None):
        self.wait(timeout)
        assert self.returncode is not None, f"goes on after {timeout} s"
        return tuple(file.read_text() for file in self._files)

    def send_signal(self, signum):
        if self.returncode is None:
            os.kill(self.pid, signum)

    def kill(self):
        self.send_signal(signal.SIGKILL)


def forked(*arguments, cwd=PROJECT, **environment):
    """The command, forked: it is at work within a moment."""
    return Forked(main, ["pipeline", *arguments], cwd, cwd, {**os.environ, **environment})


def script(path, *arguments, cwd, **environment):
    """``python PATH`` to its end, forked: what it prints and says."""
    act = partial(runpy.run_path, str(path), run_name="__main__")
    process = Forked(act, [str(path), *arguments], path.parent, cwd, {**os.environ, **environment})
    out, err = process.communicate(timeout=500)
    assert process.returncode == 0, out + err
    return out, err


def _run(act, words, own, cwd, environment, files):
    spare_what_is_loaded()
    for number, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # as a terminal has it, also where the tests run under nohup
    faulthandler.dump_traceback_later(300)  # a job that hangs tells where
    multiprocessing.set_start_method("fork", force=True)  # as a command has it: the server hands on its own
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    rank_zero_only.rank = int(environment.get("LOCAL_RANK", "0"))  # as torchmetrics finds it when it is loaded
    sys.path[:0] = [str(own), *environment.get("PYTHONPATH", "").split(os.pathsep)]
    sys.argv = words
    act()
