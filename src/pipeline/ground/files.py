"""Files and folders that appear whole."""

import glob
import itertools
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NUMBERS = itertools.count()


def write_file(path: Path, content: bytes) -> None:
    """Writes a file whole: it is there with all its bytes, on the disk, or not at all."""
    with whole(path) as unfinished:
        unfinished.write_bytes(content)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Gives a place to make a file in, beside ``path``, and moves it there at the end of the block, on the disk.

    Each process has a place of its own, so that two that write one file at once both leave it whole.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in _left(path):
        left.unlink(missing_ok=True)
    unfinished = _place(path)
    unfinished.unlink(missing_ok=True)
    try:
        yield unfinished
        _flush(unfinished)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    _flush(path.parent)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Gives a folder to fill, beside ``path``, which takes its place at the end of the block.

    What a process that died has left is cleared; a folder that it had moved away, and not replaced, is put back.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in _left(path):
        if (left / "old").exists() and not path.exists():
            (left / "old").rename(path)
        shutil.rmtree(left, ignore_errors=True)
    place = _place(path)
    new, old = place / "new", place / "old"
    new.mkdir(parents=True)
    try:
        yield new
        if path.exists():
            path.rename(old)
        new.rename(path)
    finally:
        if old.exists() and not path.exists():
            old.rename(path)
        shutil.rmtree(place, ignore_errors=True)
    _flush(path.parent)


def _place(path: Path) -> Path:
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}-{next(NUMBERS)}.unfinished")


def _left(path: Path) -> Iterator[Path]:
    """The places of processes that are no more."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.{glob.escape(socket.gethostname())}.*.unfinished"):
        if not _lives(int(left.name.split(".")[-2].split("-")[0])):
            yield left


def _lives(process: int) -> bool:
    """Whether there is a process of this number here."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
