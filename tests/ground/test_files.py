"""Files that appear whole, whoever else writes them."""

import multiprocessing
import os
import socket
import tempfile
from pathlib import Path

import pytest

from pipeline.ground.environment import cache_folder
from pipeline.ground.files import whole_folder, write_file


def writes(path, letter, times):
    for _ in range(times):
        write_file(path, letter * 100_000)


def test_two_processes_that_write_one_file_at_once_both_leave_it_whole(tmp_path):
    path = tmp_path / "figures [1].json"
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=writes, args=(path, letter, 40)) for letter in (b"a", b"b")]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert path.read_bytes() in (b"a" * 100_000, b"b" * 100_000)
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_dead_process_left_unfinished_goes_and_what_a_living_one_makes_stays(tmp_path):
    gone = multiprocessing.get_context("spawn").Process(target=len, args=((),))
    gone.start()
    gone.join()
    dead, living = (
        tmp_path / f".x.{socket.gethostname()}.{number}-7.unfinished" for number in (gone.pid, os.getppid())
    )
    for each in (dead, living):
        each.write_text("half")
    write_file(tmp_path / "x", b"whole")
    assert {each.name for each in tmp_path.iterdir()} == {"x", living.name}


@pytest.mark.parametrize("moved", [False, True])
def test_a_folder_that_a_dead_process_left_unfinished_goes_and_what_it_moved_away_comes_back(moved, tmp_path):
    gone = multiprocessing.get_context("spawn").Process(target=len, args=((),))
    gone.start()
    gone.join()
    left = tmp_path / f".x.{socket.gethostname()}.{gone.pid}-7.unfinished"
    (left / "new").mkdir(parents=True)
    before = left / "old" if moved else tmp_path / "x"
    before.mkdir()
    (before / "one").write_text("before")
    with pytest.raises(TypeError), whole_folder(tmp_path / "x") as unfinished:
        (unfinished / "one").write_text(None)
    assert (tmp_path / "x" / "one").read_text() == "before"
    with whole_folder(tmp_path / "x") as unfinished:
        (unfinished / "two").write_text("after")
    assert [each.name for each in (tmp_path / "x").iterdir()] == ["two"]
    assert list(tmp_path.iterdir()) == [tmp_path / "x"]


def test_what_fails_on_the_way_leaves_nothing(tmp_path):
    with pytest.raises(TypeError):
        write_file(tmp_path / "x", None)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("home", ["file", "nowhere"])
def test_a_home_that_cannot_be_written_gives_a_temporary_cache(home, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", {"file": str(tmp_path / "file"), "nowhere": "/proc/nowhere"}[home])
    assert cache_folder() == Path(tempfile.gettempdir()) / f"rewind-pipeline-{os.getuid()}"
