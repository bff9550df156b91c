"""What run.py, which runs alone on a board, shares with the package."""

import ast
import dataclasses
import statistics
import time
import wave
from pathlib import Path

import numpy as np
import pytest
from onnx import helper, numpy_helper

from pipeline.deploy import bundle, manifest, runtime
from pipeline.deploy.board import run

SOURCE = ast.parse(bundle.PROGRAM[0].read_text())


def keys_of(name):
    """Every key by which run.py reads a mapping of this name."""
    return {
        node.slice.value
        for node in ast.walk(SOURCE)
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == name
        if isinstance(node.slice, ast.Constant)
    }


def test_what_it_reads_of_a_manifest_is_there():
    fields = {field.name for field in dataclasses.fields(manifest.Manifest)}
    read = keys_of("manifest")
    assert {"models", "engine", "onnxruntime", "classes", "names", "inputs", "outputs"} <= read <= fields


def test_it_makes_sessions_as_the_package_does():
    assert runtime.options is run.options
    assert manifest.FILE in {node.value for node in ast.walk(SOURCE) if isinstance(node, ast.Constant)}


def test_its_files_import_nothing_of_the_package():
    names = {
        name
        for file in bundle.PROGRAM
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [each.name for each in node.names])
    }
    assert not [name for name in names if name.startswith("pipeline")]


def told(kind, shape, kind_of_number="float32", **more):
    """A manifest with one input."""
    return {
        "inputs": [{"name": "x", "shape": shape, "type": kind_of_number, "kind": kind, **more}],
        "outputs": [],
        "classes": None,
        "names": [],
    }


def recording(path, samples, *, rate=8000, width=2, channels=1):
    """A WAV file of integers, as the standard library writes it."""
    with wave.open(str(path), "wb") as sound:
        sound.setnchannels(channels)
        sound.setsampwidth(width)
        sound.setframerate(rate)
        sound.writeframes(np.asarray(samples, {1: "u1", 2: "<i2", 4: "<i4"}[width]).tobytes())
    return str(path)


@pytest.mark.parametrize(("width", "scale", "zero"), [(1, 128, 128), (2, 32768, 0), (4, 2**31, 0)])
@pytest.mark.parametrize("length", [3, 5, None])
def test_a_sound_is_one_channel_from_minus_one_to_one(width, scale, zero, length, tmp_path):
    shares = np.array([[0.5, -0.5], [0.25, 0.25], [-1, -0.5], [0.5, 0.25]])
    file = recording(tmp_path / "a.wav", (shares * scale + zero).ravel(), width=width, channels=2)
    found = run.inputs_in(told("sound", [None, 1, length], rate=8000), file)["x"]
    mean = [0, 0.25, -0.75, 0.375]
    expected = mean if length is None else [*mean, 0][:length]
    assert found.dtype == np.float32
    assert found.tolist() == [[expected]]


@pytest.mark.parametrize("head", ["", "a,b,c\n"])
def test_a_table_is_a_row_an_example_or_one_example(head, tmp_path):
    numbers = np.array([[1, 2.5, -3e-2], [4, 5, 6]])
    (tmp_path / "a.csv").write_text(head + "\n".join(",".join(map(str, row)) for row in numbers.tolist()) + "\n\n")
    rows = run.inputs_in(told("arrays", [None, 3]), str(tmp_path / "a.csv"))["x"]
    whole = run.inputs_in(told("arrays", [None, 2, 3], "float64"), str(tmp_path / "a.csv"))["x"]
    assert np.array_equal(rows, numbers.astype(np.float32))
    assert np.array_equal(whole, numbers[None])


def test_arrays_come_as_they_are_by_name_or_alone(tmp_path):
    one = np.arange(6, dtype=np.int64).reshape(2, 3)
    np.save(tmp_path / "a.npy", one)
    np.savez(tmp_path / "a.npz", x=one, y=one[:, :1])
    two = told("arrays", [None, 3], "int64")
    two["inputs"].append({**two["inputs"][0], "name": "y", "shape": [None, None]})
    assert np.array_equal(run.inputs_in(told("arrays", [None, 3], "int64"), str(tmp_path / "a.npy"))["x"], one)
    found = run.inputs_in(two, str(tmp_path / "a.npz"))
    assert {name: each.shape for name, each in found.items()} == {"x": (2, 3), "y": (2, 1)}
    np.save(tmp_path / "row.npy", one[0])
    assert run.inputs_in(told("arrays", [None, 3], "int64"), str(tmp_path / "row.npy"))["x"].shape == (1, 3)


MISTAKES = {
    "another rate": (told("sound", [None, 8], rate=16000), "a.wav", "has 8000 samples a second, takes 16000"),
    "no sound": (told("sound", [None, 8], rate=None), "text.wav", "takes a WAV file"),
    "a sound for a table": (told("arrays", [None, 8]), "a.wav", "takes no sounds, but arrays (.npy, .npz), x: N x 8"),
    "no such file": (told("arrays", [None, 8]), "none.npz", "takes an .npy or .npz file of arrays"),
    "no arrays": (told("arrays", [None, 8]), "text.npy", "takes an .npy or .npz file of arrays"),
    "an archive cut short": (told("arrays", [None, 8]), "short.npz", "takes an .npy or .npz file of arrays"),
    "another shape": (told("arrays", [None, 8]), "a.npy", "x is 2 x 3, takes N x 8"),
    "another type": (told("arrays", [None, 3], "int64"), "float.npy", "x has type float64, takes int64"),
    "no rows": (told("arrays", [None, 3]), "empty.csv", "takes a CSV file of numbers"),
    "words": (told("arrays", [None, 3]), "words.csv", "takes a CSV file of numbers"),
    "rows of different length": (told("arrays", [None, 3]), "uneven.csv", "takes a CSV file of numbers"),
    "an image for arrays": (told("arrays", [None, 3]), "a.png", "takes no images, but arrays"),
    "no number": (
        told("arrays", [None, 3]),
        "nan.npy",
        "1 of the numbers in x are none, or infinite; takes finite ones",
    ),
    "an infinity": (told("arrays", [None, 3]), "inf.csv", "2 of the numbers in x are none, or infinite"),
    "no image": (told("image", [None, 3, 4, 4], mode="RGB", shorter_side=None), "text.png", "takes an image file"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_what_the_network_does_not_take_is_a_sentence(case, tmp_path, monkeypatch):
    manifest, name, sentence = MISTAKES[case]
    monkeypatch.syspath_prepend(str(bundle.PROGRAM[1].parent))
    recording(tmp_path / "a.wav", range(8))
    np.save(tmp_path / "a.npy", np.ones((2, 3), np.float32))
    np.save(tmp_path / "float.npy", np.ones((2, 3)))
    np.savez(tmp_path / "short.npz", x=np.ones((2, 3)))
    (tmp_path / "short.npz").write_bytes((tmp_path / "short.npz").read_bytes()[:-30])
    np.save(tmp_path / "nan.npy", np.array([1, np.nan, 2], np.float32))
    for file, text in {
        "inf.csv": "1,inf,-inf",
        "empty.csv": "",
        "words.csv": "a,b\nc,d\n",
        "uneven.csv": "1,2\n3\n",
    }.items():
        (tmp_path / file).write_text(text)
    for ending in ("wav", "npy", "png"):
        (tmp_path / f"text.{ending}").write_text("a text")
    with pytest.raises(run.Refused) as refusal:
        run.inputs_in(manifest, str(tmp_path / name))
    assert sentence in str(refusal.value)
    assert "\n" not in str(refusal.value)


NUMBERS = {
    "alike": ([1.0, 2.0], [1.0, 2.0], 0),
    "half of the largest": ([1.0, 4.0], [3.0, 4.0], 0.5),
    "both no numbers": ([np.nan, 1.0], [np.nan, 1.0], 0),
    "one no number": ([np.nan, 1.0], [1.0, 1.0], np.inf),
    "both infinite": ([np.inf, 1.0], [np.inf, 1.0], 0),
    "infinite the other way": ([-np.inf, 1.0], [np.inf, 1.0], np.inf),
    "another length": ([1.0], [1.0, 2.0], np.inf),
    "nothing": ([], [], 0),
    "zeros": ([0.25, 0.0], [0.0, 0.0], 0.25),
    "whole numbers": ([1, 2, 3, 4], [1, 2, 3, 5], 0.25),
}


@pytest.mark.parametrize("case", NUMBERS)
def test_how_far_answers_are_apart(case):
    answer, expected, apart = NUMBERS[case]
    assert run.difference({"x": np.array(answer)}, {"x": np.array(expected)}) == apart


@pytest.mark.parametrize("name", ["short", "long"])
def test_the_first_half_of_a_turn_is_not_counted(name):
    """Nor is the first measure of all, however long it takes."""
    stretch, takes = 0.06, {"short": 0.001, "long": 0.1}[name]
    begun = []

    def measure():
        begun.append(time.perf_counter())
        time.sleep(takes)
        return float(len(begun) - 1)

    counted = run.turn(measure, stretch)
    late = [number for number, each in enumerate(begun) if each - begun[0] >= stretch / 2]
    assert counted
    assert set(late) >= set(counted) >= set(late[1:])
    assert (len(counted) == 1) == (name == "long")


def test_what_counts_of_a_turn_is_not_disturbed_by_threads_that_wait_for_work():
    """Of another session: onnxruntime lets them for a while."""
    made = helper.make_node("MatMul", ["input", "w"], ["y"])
    weight = numpy_helper.from_array(np.ones((512, 512), np.float32), "w")
    given, gives = (helper.make_tensor_value_info(each, 1, (512, 512)) for each in ("input", "y"))
    graph = helper.make_graph([made], "product", [given], [gives], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    inputs = {"input": np.ones((512, 512), np.float32)}

    def threads():
        return set(Path("/proc/self/task").iterdir())

    here = threads()
    other = runtime.session(model, threads=2)
    waiting = threads() - here
    assert waiting

    def ran():
        """Nanoseconds that the other session's threads have run."""
        return sum(int((each / "schedstat").read_text().split()[0]) for each in waiting)

    one = runtime.session(model, threads=2)

    def disturbed():
        before = ran()
        one.run(None, inputs)
        return float(ran() - before)

    other.run(None, inputs)
    assert sum(disturbed() for _ in range(5)) > 0
    other.run(None, inputs)
    assert statistics.median(run.turn(disturbed, 1.0)) == 0
