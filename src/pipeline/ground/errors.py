"""Errors that a user can act on, each a sentence, shown without a traceback; and Ctrl-C and SIGTERM as an exception."""

import signal
import sysconfig
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

LIBRARIES = (*sysconfig.get_paths().values(), str(Path(__file__).parents[1]), "<")
"""How the files of code begin that is no user's."""


class PipelineError(Exception):
    """Something that the user has to know or to decide; the message says what, where and what to do."""


class SettingsError(PipelineError):
    """One or more faulty settings; ``faults`` holds a sentence for each."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


def one_line(error: BaseException) -> str:
    """What an error says, on one line of bearable length; its kind too, where the words alone would not do."""
    text = str(error).strip()
    if "Original Traceback" in text:  # from a worker process of a DataLoader: what it said last
        return one_line(RuntimeError(text.splitlines()[-1])).removeprefix("RuntimeError: ")
    words = " ".join(text.split())
    words = words if len(words) <= 300 else f"{words[:300]}..."
    plain = isinstance(error, AttributeError | ImportError | OSError | TypeError | ValueError) and words
    return words if plain else f"{type(error).__name__}: {words}"


def first_cause(error: BaseException) -> BaseException:
    """The error that others were raised from."""
    while (cause := error.__cause__) is not None:
        error = cause
    return error


def where(error: BaseException) -> str:
    """The last line of a user's own code that an error came through, as `` at file, line``, or nothing."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(LIBRARIES)]
    return f" at {own[-1].filename}, line {own[-1].lineno}" if own else ""


class Stopped(BaseException):
    """Ctrl-C, SIGTERM or SIGHUP. No KeyboardInterrupt, which Lightning would take for its own."""


@contextmanager
def stoppable() -> Iterator[None]:
    """Turns Ctrl-C, SIGTERM and SIGHUP (of a terminal that is closed) into ``Stopped`` within the block, of the main
    thread: others get no signals.
    """

    def stop(signum: int, _: object) -> NoReturn:
        raise Stopped(signum)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    signals = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # which nohup sets
        signals.append(signal.SIGHUP)
    before = {signum: signal.signal(signum, stop) for signum in signals}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
