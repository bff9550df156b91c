"""A bundle of a real run: what is in it, what guards it, and what stock onnxruntime and MLflow make of it."""

import hashlib
import importlib.metadata
import io
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import wave
import zipfile
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, x25519
from mlflow import MlflowClient
from onnx import helper, numpy_helper
from PIL import Image

from pipeline.__main__ import main
from pipeline.data import load
from pipeline.data.batches import standardised
from pipeline.data.dataset import Preprocessing
from pipeline.deploy import bundle, models, runtime, verify
from pipeline.deploy.board import run
from pipeline.deploy.export import exported, lean
from pipeline.deploy.kernels import target_here
from pipeline.deploy.quantize import Calibrated, quantised
from pipeline.deploy.signature import signing_key
from pipeline.deploy.subject import Subject
from pipeline.ground.environment import CHECKOUT
from pipeline.ground.errors import PipelineError, SettingsError
from pipeline.networks import build_network
from pipeline.objective.score import ACCURACY
from pipeline.report import sizes
from pipeline.rounds.building import build_job
from pipeline.rounds.choice import network_after
from tests.conftest import SMALL, arrays, settings, some_fast
from tests.deploy.test_shrink import pruned

ENGINES = ("onnxruntime", "sparse")
here = pytest.mark.skipif(target_here() is None, reason="no library is for this processor")
RUN = [*SMALL, "pruning.fraction=0.6", "training.max_steps=null", "training.epochs=6"]


def called(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["pipeline", *arguments])
    main()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folder of a finished small run and its bundle, made by the commands."""
    place = tmp_path_factory.mktemp("made")
    where = [f"runs={place / 'runs'}", f"artifacts={place / 'artifacts'}"]
    before = set(os.environ)
    with pytest.MonkeyPatch.context() as patch:
        called(patch, *RUN, *where)
        called(patch, *RUN, *where, "task=bundle", "deploy.kernels=[aarch64,x86_64-avx2,aarch64-fp16]")
    assert "MLFLOW_TRACKING_URI" not in set(os.environ) - before, "MLflow's own state is left as it was"
    return place


@pytest.fixture
def copy(made, tmp_path):
    """The bundle, to be spoilt."""
    return Path(shutil.copytree(made / "artifacts" / "bundle", tmp_path / "bundle"))


def board(folder, *arguments, code=None):
    """``run.py`` where only numpy, Pillow and onnxruntime can be imported."""
    site = folder.parent / "site"
    if not site.exists():
        site.mkdir()
        installed = Path(sysconfig.get_paths()["purelib"])
        for name in ("numpy", "numpy.libs", "PIL", "pillow.libs", "onnxruntime"):
            if (installed / name).exists():
                (site / name).symlink_to(installed / name)
    command = [sys.executable, "-S", *(["run.py"] if code is None else ["-c", code]), *arguments]
    environment = {
        "PYTHONPATH": str(site), "PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", "HOME": str(folder.parent / "home")
    }  # fmt: skip
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_the_bundle_computes_what_the_masked_network_computes(made):
    folder = made / "artifacts" / "bundle"
    manifest = json.loads((folder / "manifest.json").read_text())
    job, site = build_job(settings(*RUN), made / "runs")
    network = network_after(job, site, 2)
    test = job.dataset.test
    with torch.no_grad():
        expected = network(job.dataset.preprocessing.apply(test.pixels)).numpy()
    session = onnxruntime.InferenceSession(folder / "model_fp32.onnx")
    scores = session.run(None, {"input": test.pixels.numpy()})[0]
    assert np.abs(scores - expected).max() < 1e-4
    accuracy = float((scores.argmax(1) == test.labels.numpy()).mean())
    assert manifest["scores"]["test"]["float32"] == pytest.approx(accuracy)
    assert manifest["scores"]["test"]["masked"] == pytest.approx(
        site.ledger.read(2).figures["test_accuracy"], abs=0.005
    )
    (size,) = sizes.measured(job, site, [site.ledger.read(2)], settings(*RUN).deploy, lambda _: None)
    assert size.int8_score == manifest["scores"]["test"]["int8"]
    assert manifest["round"] == 2
    assert manifest["density"] == pytest.approx(0.16, abs=1e-3)
    one = session.run(None, {"input": test.pixels[:1].numpy()})[0]
    assert one.shape == (1, 10)
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == list("0123456789")


def test_the_bundle_is_small_and_says_so_truly(made):
    folder = made / "artifacts" / "bundle"
    manifest = json.loads((folder / "manifest.json").read_text())
    size = manifest["size_bytes"]
    assert (folder / "model.onnx").stat().st_size == size["int8"]
    assert (folder / "model_fp32.onnx").stat().st_size == size["float32"]
    assert max(size["int8"], size["float32"]) < size["dense"] / 6
    for file in ("model.onnx", "model_fp32.onnx"):
        content = (folder / file).read_bytes()
        for trace in (b".py", b"site-packages", b"torch", str(CHECKOUT).encode(), b"pipeline"):
            assert trace not in content
    card = (folder / "README.md").read_text()
    assert f"{size['int8']:,}" in card
    assert "faster" not in card
    listed = {line.split("  ")[1] for line in (folder / "SHA256SUMS").read_text().splitlines()}
    assert listed == {path.name for path in folder.iterdir()} - {"SHA256SUMS"}


def test_the_board_needs_three_packages_alone(copy):
    gone = board(
        copy, code="import importlib.util as u; print([n for n in ('torch', 'onnx', 'pipeline') if u.find_spec(n)])"
    )
    assert gone.stdout.strip() == "[]", gone.stderr
    checked = board(copy, "check", "--json")
    assert checked.returncode == 0, checked.stderr
    sparse = {"model.onnx, sparse", "model_fp32.onnx, sparse"} if target_here() else set()
    assert set(json.loads(checked.stdout)) == {"model.onnx", "model_fp32.onnx"} | sparse
    assert json.loads(checked.stdout)["model.onnx"] == 0
    timed = json.loads(board(copy, "bench", "--json").stdout)
    assert all(0 < median <= slow for median, slow in timed.values())


ENGINE = "engine-x86_64-avx2.so"
WRONG = {
    "a byte of its code": (lambda f: flip(f / ENGINE), "is not the file that was made"),
    "no library there": (lambda f: (f / ENGINE).unlink(), "is missing"),
    "no library at all": (
        lambda f: told(f, lambda m: m["engine"].update(libraries={})),
        "no library for this processor",
    ),
    "an onnxruntime that it was not tried with": (
        lambda f: told(f, lambda m: m["engine"].update(onnxruntime=["1.99"])),
        "has not been tried with onnxruntime",
    ),
    "an operator it does not know": (
        lambda f: told(f, lambda m: m["engine"].update(uncovered=dict.fromkeys(m["models"], "the operator Sin"))),
        "it does not know the operator Sin",
    ),
    "a library for another processor": (lambda f: swapped(f, (f / "engine-aarch64.so").read_bytes()), "cannot be used"),
    "a file that is no library": (lambda f: swapped(f, b"a text\n"), "cannot be used"),
    "other scores": (
        lambda f: told(f, lambda m: [each.update(tolerance=0) for each in m["engine"]["libraries"].values()]),
        "computes something else",
    ),
}


def told(folder, change):
    """A bundle whose manifest says something else, with sums that fit."""
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    sums = [line.split("  ")[1] for line in (folder / "SHA256SUMS").read_text().splitlines()]
    lines = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in sums]
    (folder / "SHA256SUMS").write_text("".join(lines))


def replaced(folder, name, content):
    """A bundle with another file in the place of one, and sums that fit."""
    (folder / name).write_bytes(content)
    sums = (folder / "SHA256SUMS").read_text().splitlines()
    lines = [f"{hashlib.sha256(content).hexdigest()}  {name}" if each.endswith(f"  {name}") else each for each in sums]
    (folder / "SHA256SUMS").write_text("\n".join(lines) + "\n")


def swapped(folder, content):
    """A bundle that was made with this as its library."""
    (folder / ENGINE).write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    told(folder, lambda manifest: manifest["engine"]["libraries"][ENGINE].update(sha256=digest))


@here
@pytest.mark.parametrize("what", WRONG)
def test_without_a_sound_library_onnxruntime_computes_alone_and_a_line_says_so(what, copy):
    spoil, sentence = WRONG[what]
    spoil(copy)
    checked = board(copy, "check", "--json")
    assert checked.returncode == 0
    assert json.loads(checked.stdout) == {"model.onnx": 0, "model_fp32.onnx": 0}
    assert sentence in checked.stderr
    assert checked.stderr.count("\n") == (2 if what == "other scores" else 1)
    forced = board(copy, "check", "--engine", "sparse")
    assert forced.returncode == 1
    assert sentence in forced.stderr
    assert forced.stderr.count("\n") == 1


def test_the_best_library_for_a_processor_comes_first(made):
    engine = json.loads((made / "artifacts" / "bundle" / "manifest.json").read_text())["engine"]
    assert list(engine["libraries"]) == ["engine-x86_64-avx2.so", "engine-aarch64-fp16.so", "engine-aarch64.so"]
    assert "`engine-aarch64-fp16.so` computes in float16" in (made / "artifacts" / "bundle" / "README.md").read_text()


def test_a_bundle_needs_no_compiler(monkeypatch):
    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    assert bundle._libraries(["aarch64"]) == ({}, "the sparse engine cannot be built: pip install ziglang")


def test_int8_products_are_added_exactly():
    """Pairs of 255 x 127 overflow the 16 bits in which x86 without VNNI adds them."""
    nodes = [
        helper.make_node("Conv", ["input", "weight"], ["sums"]),
        helper.make_node("GlobalAveragePool", ["sums"], ["means"]),
        helper.make_node("Flatten", ["means"], ["scores"]),
    ]
    values = [
        helper.make_tensor_value_info(*each) for each in (("input", 1, [None, 16, 4, 4]), ("scores", 1, [None, 4]))
    ]
    weight = numpy_helper.from_array(np.ones((4, 16, 1, 1), np.float32), "weight")
    graph = helper.make_graph(nodes, "graph", values[:1], values[1:], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    inputs = np.ones((2, 16, 4, 4), np.float32)
    scores = runtime.answers(runtime.session(lean(quantised(model, [{"input": inputs}]))), {"input": inputs})["scores"]
    assert np.allclose(scores, 16, rtol=0.01)


def test_a_processor_that_adds_exactly_is_not_slowed_down(made):
    """The option that makes x86 without VNNI exact takes VNNI away from those that have it: twice the time."""
    exact = bool({"avx512_vnni", "avx_vnni"} & set(Path("/proc/cpuinfo").read_text().split()))
    folder = made / "artifacts" / "bundle"
    here = runtime.session(onnx.load(folder / "model.onnx")).get_session_options()
    code = "import run; run.session('model.onnx').get_session_options().get_session_config_entry('session.x64quantprecision')"
    if exact:
        with pytest.raises(RuntimeError, match="does not have configuration"):
            here.get_session_config_entry("session.x64quantprecision")
    else:
        assert here.get_session_config_entry("session.x64quantprecision") == "1"
    assert bool(board(folder, code=code).returncode) == exact


@here
def test_the_board_keeps_the_faster_way_and_says_which(copy):
    golden = arrays(copy / "golden.npz")
    margins = np.diff(np.sort(golden["model.onnx/scores"], axis=1), axis=1)[
        :, -1
    ]  # one that the network is not torn about
    pixels = golden["inputs/input"][margins.argmax()]
    picture = copy.parent / "digit.png"
    Image.fromarray(pixels[0]).save(picture)
    first, second = (board(copy, "predict", str(picture), "--json") for _ in range(2))
    assert "is the fastest here" in first.stderr
    assert second.stderr == ""
    ways = [json.loads(board(copy, "predict", str(picture), "--json", "--engine", each).stdout) for each in ENGINES]
    assert json.loads(first.stdout) == json.loads(second.stdout)
    assert json.loads(first.stdout) in ways
    assert max(ways[0], key=ways[0].get) == max(ways[1], key=ways[1].get)
    (choices,) = (copy.parent / "home").rglob("faster.json")
    choices.write_text("[1]")
    assert "is the fastest here" in board(copy, "predict", str(picture)).stderr


@here
def test_where_memory_is_short_the_engine_computes_untried(copy):
    code = """
import json, run
manifest = json.load(open("manifest.json"))
manifest["size_bytes"]["dense"] = 1 << 50
print(run.faster(manifest, run.ways(manifest, "auto", ["model.onnx"])).library)
"""
    said = board(copy, code=code)
    assert said.stdout.strip().endswith(".so")
    assert "MB are too few to load it without" in said.stderr


def test_an_image_file_is_recognised(copy):
    pixels = load(settings().data).test.pixels[:4].numpy()
    scores = onnxruntime.InferenceSession(copy / "model.onnx").run(None, {"input": pixels})[0]
    for image, expected in zip(pixels, scores.argmax(1), strict=True):
        Image.fromarray(image[0]).save(copy / "digit.png")
        said = json.loads(board(copy, "predict", "digit.png", "--json", "--engine", "onnxruntime").stdout)
        assert len(said) == 5
        assert said[str(expected)] == max(said.values()), "two may have the same"
    wrong = board(copy, "predict", "run.py")
    assert wrong.returncode == 1
    assert "takes an image file" in wrong.stderr
    assert wrong.stderr.count("\n") == 1


def flip(path, place=None):
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if place is None else place] ^= 1
    path.write_bytes(content)


SPOILT = {
    "a byte of the model": (lambda f: flip(f / "model.onnx"), "model.onnx is not the file that was made"),
    "a byte of the program": (lambda f: flip(f / "run.py", 5), "run.py is not the file that was made"),
    "a byte of the card": (lambda f: flip(f / "README.md"), "README.md is not the file that was made"),
    "a byte of the manifest": (
        lambda f: flip(f / "manifest.json", (f / "manifest.json").read_text().index("lr_rewinding")),
        "manifest.json is not the file that was made",
    ),
    "a manifest cut short": (lambda f: os.truncate(f / "manifest.json", 100), "manifest.json is not the file that"),
    "a manifest that is none": (lambda f: replaced(f, "manifest.json", b"[1]"), "manifest.json cannot be read"),
    "a manifest of another time": (lambda f: told(f, lambda m: m.update(format=9)), "has format 9, takes 3"),
    "the other model": (
        lambda f: replaced(f, "model.onnx", (f / "model_fp32.onnx").read_bytes()),
        "model.onnx is not the model that manifest.json tells of",
    ),
    "a model from elsewhere": (
        lambda f: told(f, lambda m: m["models"].update({"../x.onnx": {}})),
        "manifest.json names '../x.onnx', takes names of files in the bundle",
    ),
    "a library from elsewhere": (
        lambda f: told(f, lambda m: m["engine"]["libraries"].update({"/tmp/x.so": {}})),
        "manifest.json names '/tmp/x.so', takes names of files in the bundle",
    ),
    "a library without a sum": (
        lambda f: told(f, lambda m: m["engine"]["libraries"].update({"x.so": {}})),
        "SHA256SUMS does not name x.so",
    ),
    "sums of a file elsewhere": (
        lambda f: (f / "SHA256SUMS").write_text(f"{'0' * 64}  ../x\n"),
        "SHA256SUMS names '../x', takes names of files in the bundle",
    ),
    "a model cut short": (lambda f: os.truncate(f / "model_fp32.onnx", 1000), "model_fp32.onnx is not the file"),
    "no golden inputs": (lambda f: (f / "golden.npz").unlink(), "golden.npz is missing"),
    "no sums": (lambda f: (f / "SHA256SUMS").unlink(), "SHA256SUMS is missing"),
    "sums of nothing": (lambda f: (f / "SHA256SUMS").write_text(""), "SHA256SUMS does not name manifest.json"),
}


def test_nothing_calls_home(copy):
    """ONNX Runtime's telemetry, where it starts, leaves the number of the device in the home folder."""
    assert board(copy, "check").returncode == 0
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"
    assert not (copy.parent / "home").exists()


@pytest.mark.parametrize("what", SPOILT)
def test_a_spoilt_bundle_is_refused_in_a_sentence(what, copy):
    spoil, sentence = SPOILT[what]
    spoil(copy)
    refused = board(copy, "check")
    assert refused.returncode == 1
    assert sentence in refused.stderr
    assert refused.stderr.count("\n") == 1
    with pytest.raises(PipelineError) as refusal:
        verify.held(copy)
    assert str(refusal.value) == f"{copy}: {refused.stderr.strip()}", "here and on the board it is the same"


@pytest.mark.parametrize("command", [["bench"], ["predict", "digit.png"], ["answer", "golden.npz"]])
def test_no_command_loads_a_file_that_is_not_the_one_that_was_made(command, copy):
    flip(copy / "model.onnx")
    refused = board(copy, *command)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert (
        refused.stderr == "model.onnx is not the file that was made: its SHA-256 differs; copy the whole bundle again\n"
    )


@pytest.mark.parametrize("threads", ["-1", "two", "1.5", str(os.cpu_count() + 1)])
def test_bench_takes_as_many_threads_as_there_are_cores(threads, made):
    refused = board(made / "artifacts" / "bundle", "bench", "--threads", threads)
    assert (refused.returncode, refused.stdout) == (2, "")
    takes = f"takes 0 (a thread a core) to {os.cpu_count()}, the cores that there are"
    assert refused.stderr.splitlines()[-1] == f"run.py: error: argument --threads: {threads!r}; {takes}"


def labelled(**given):
    return lambda: {"input": np.zeros((10, 1, 8, 8), np.uint8), **given}


HEAD = b"\x93NUMPY\x01\x00v\x00"
FILES = {
    "fewer labels": ("answer", "npz", labelled(labels=np.arange(5)), "labels are 5 of type int64, takes 10 whole numbers"),
    "one label": ("answer", "npz", labelled(labels=np.int64(1)), "labels are one of type int64, takes 10 whole numbers"),
    "labels in a column": ("answer", "npz", labelled(labels=np.zeros((10, 1), int)), "labels are 10 x 1 of type int64"),
    "labels of text": ("answer", "npz", labelled(labels=np.array(["a"] * 10)), "labels are 10 of type <U1, takes 10"),
    "labels alone": ("answer", "npz", lambda: {"labels": np.arange(5)}, "has no inputs, takes input"),
    "nothing": ("answer", "npz", dict, "has no inputs, takes input"),
    "larger numbers": (
        "predict", "npz", lambda: {"input": np.full((1, 1, 8, 8), 256, np.uint16)},
        "input has numbers from 256 to 256, takes those of uint8",
    ),
    "a broken head": ("predict", "npy", lambda: HEAD + b"{'descr': '|u1', 'fortran".ljust(118), "takes an .npy or .npz file"),
    "a huge head": (
        "predict", "npy", lambda: HEAD + b"{'descr': '<f8', 'fortran_order': False, 'shape': (9999999999999,), }".ljust(118),
        "takes an .npy or .npz file of arrays",
    ),
    "no array in it": ("predict", "npz", lambda: zipped("input", b"text"), "input in it is no array; takes an .npy or"),
}  # fmt: skip


def zipped(name, content):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as written:
        written.writestr(name, content)
    return file.getvalue()


@pytest.mark.parametrize("case", FILES)
def test_what_a_file_has_wrong_is_a_sentence(case, made, tmp_path):
    command, ending, content, sentence = FILES[case]
    found, file = content(), tmp_path / f"a.{ending}"
    if isinstance(found, bytes):
        file.write_bytes(found)
    else:
        np.savez(file, **found)
    refused = board(made / "artifacts" / "bundle", command, "--engine", "onnxruntime", str(file))
    assert (refused.returncode, refused.stdout) == (1, ""), refused.stderr
    assert sentence in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_labels_are_looked_at_before_anything_is_computed(copy, tmp_path):
    swapped(copy, b"no library")  # which a line tells of once it is tried
    np.savez(tmp_path / "few.npz", **labelled(labels=np.arange(5))())
    refused = board(copy, "answer", str(tmp_path / "few.npz"))
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (1, "", 1)
    assert "labels are 5 of type int64, takes 10 whole numbers" in refused.stderr


def test_outputs_are_kept_where_they_are_asked_for_or_nothing_is_computed(made, tmp_path):
    folder, digits = made / "artifacts" / "bundle", tmp_path / "digits.npy"
    np.save(digits, np.zeros((3, 1, 8, 8), np.uint8))
    for out, sentence in (
        (tmp_path / "none" / "o.npz", "takes the name of a file, in a folder that there is"),
        (tmp_path, "takes the name of a file, in a folder that there is"),
        (tmp_path / "o.png", "draws the boxes of a network that finds some, and this one names classes"),
    ):
        refused = board(folder, "predict", "--out", str(out), str(digits))
        assert (refused.returncode, refused.stdout) == (1, ""), refused.stderr
        assert f"--out {out if 'folder' in sentence else 'PNG'}" in refused.stderr
        assert sentence in refused.stderr
    done = board(folder, "predict", "--engine", "onnxruntime", "--out", str(tmp_path / "outputs"), str(digits))
    assert done.returncode == 0, done.stderr
    assert (
        f"digits.npy has 3 examples: the answer to the first is shown, {tmp_path / 'outputs'} has all\n" in done.stderr
    )
    assert arrays(tmp_path / "outputs")["scores"].shape == (3, 10)


def test_a_program_that_is_not_this_versions_is_not_run_to_verify(copy):
    replaced(copy, "run.py", b"print('{}')")
    with pytest.raises(PipelineError, match=r"run\.py is not that of this version: task=bundle makes it again"):
        verify.held(copy)


NOT_THERE = {
    "answers of another network": (
        "found *= np.roll(np.ones(10), 3) - 2",
        "of test accuracy on native, on the same 60 examples here 0.8",
    ),
    "no number": ("found *= np.nan", "of test accuracy on native"),
    "nothing else": ("", None),
}


@pytest.mark.parametrize("case", NOT_THERE)
def test_a_board_whose_score_is_not_this_machines_is_refused(case, copy, made, tmp_path, monkeypatch, capsys):
    """The board is this machine: its program runs, and what it answers is spoilt."""
    spoil, sentence = NOT_THERE[case]
    python = tmp_path / "python"
    python.write_text(
        f"#!{sys.executable}\nimport subprocess, sys\nimport numpy as np\n"
        f"done = subprocess.run([{sys.executable!r}, *sys.argv[1:]], check=False)\n"
        "if 'answer' in sys.argv:\n"
        "    file = sys.argv[sys.argv.index('--out') + 1]\n"
        "    kept = dict(np.load(file))\n"
        f"    for found in kept.values():\n        {spoil or 'pass'}\n"
        "    np.savez(file, **kept)\n"
        "sys.exit(done.returncode)\n"
    )
    python.chmod(0o755)
    monkeypatch.setattr(verify.sys, "executable", str(python))
    monkeypatch.setattr(verify.platform, "machine", lambda: "aarch64")
    where = [f"runs={made / 'runs'}", f"artifacts={copy.parent}"]
    with nullcontext() if sentence is None else pytest.raises(SystemExit):
        called(monkeypatch, *RUN, *where, "task=verify", "deploy.runner=native", "deploy.images=60")
    error = capsys.readouterr().err
    if sentence is not None:
        assert sentence in error
        return
    seen = json.loads((copy.parent / "verified.json").read_text())
    assert seen["examples"] == 60
    assert seen["places"]["native"]["difference"]["model.onnx"] == 0
    assert seen["places"]["native"]["scores"]["model.onnx"] > 0.8


def test_scores_that_are_not_those_of_its_models_are_refused(copy, made, monkeypatch, capsys):
    told(copy, lambda m: m["scores"]["test"].update(int8=0.5))
    where = [f"runs={made / 'runs'}", f"artifacts={copy.parent}"]
    with pytest.raises(SystemExit):
        called(monkeypatch, *RUN, *where, "task=verify")
    assert re.search(r"model\.onnx has 0\.\d+ of test accuracy, its manifest says 0\.5", capsys.readouterr().err)


FORETOLD = {
    "beside the bundle": ("..", "Raspberry Pi 4 Model B Rev 1.4\0", None, True),
    "in it": (".", "Raspberry Pi 4 Model B Rev 1.4\0", None, True),
    "of another board": (".", "Raspberry Pi 5 Model B Rev 1.0\0", None, False),
    "of another bundle": (".", "Raspberry Pi 4 Model B Rev 1.4\0", {"bundle": "0"}, False),
    "not as it is written": (".", "Raspberry Pi 4 Model B Rev 1.4\0", {"places": [1]}, False),
}


@pytest.mark.parametrize("case", some_fast(zip(FORETOLD), [("in it",)]))
def test_a_board_says_what_was_foretold_beside_what_it_takes(case, copy):
    where, model, spoilt, told_there = FORETOLD[case]
    milliseconds = {"Raspberry Pi 4": {"model.onnx": [0.25, 0.5]}}
    facts = {"bundle": bundle.digest(copy), "places": {"cortex-a72": {"milliseconds": milliseconds}}} | (spoilt or {})
    (copy / where / "verified.json").write_text(json.dumps(facts))
    (copy.parent / "model").write_text(model)
    code = (
        "import sys, run; from pathlib import Path; run.BOARD = Path('../model'); sys.argv = ['run.py', 'bench']; "
        "sys.exit(run.main())"
    )
    timed = board(copy, code=code)
    lines = [line for line in timed.stdout.splitlines() if line.startswith("model.onnx: ")]
    assert len(lines) == 1, timed.stderr
    assert lines[0].endswith("; foretold for a Raspberry Pi 4: 0.250 to 0.500 ms") == told_there


@pytest.mark.parametrize("version", ["1.20.1", "1.99.0"])
def test_another_onnxruntime_is_refused_in_a_sentence(version, copy):
    code = f"import sys, onnxruntime; onnxruntime.__version__ = {version!r}; import run; sys.argv = ['run.py', 'check']; sys.exit(run.main())"
    refused = board(copy, code=code)
    assert refused.returncode == 1
    assert f"onnxruntime: got {version}, takes 1." in refused.stderr


def test_an_answer_that_differs_is_refused(copy):
    golden = arrays(copy / "golden.npz")
    golden["model.onnx/scores"] = golden["model.onnx/scores"] * 2
    np.savez(copy / "golden.npz", **golden)
    manifest = json.loads((copy / "manifest.json").read_text())
    code = f"import run; run.check({manifest!r}, 'auto')"
    assert "golden outputs differ by 0.5 of the largest, takes at most" in board(copy, code=code).stderr


def test_mlflow_answers_with_the_bundles_scores_and_counts_a_digest_once(made, monkeypatch):
    import mlflow

    uri = f"sqlite:///{made / 'runs' / 'mlflow' / 'mlflow.db'}"
    where = [f"runs={made / 'runs'}", f"artifacts={made / 'artifacts'}"]
    client = MlflowClient(uri)
    (version,) = client.search_model_versions("name = 'digits'")
    golden = arrays(made / "artifacts" / "bundle" / "golden.npz")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    answers = mlflow.pyfunc.load_model("models:/digits@arm").predict(golden["inputs/input"])["scores"]
    assert np.array_equal(answers, golden["model.onnx/scores"])
    run = client.get_run(version.run_id)
    assert run.info.status == "FINISHED"
    (output,) = run.outputs.model_outputs
    model = client.get_logged_model(output.model_id)
    assert (model.status, output.step) == ("READY", int(run.data.tags["bundle_round"]))
    assert version.source == model.artifact_location
    readme = (made / "artifacts" / "bundle" / "README.md").read_text()
    assert model.tags["mlflow.note.content"] == version.description == readme
    assert run.data.metrics["size/bundle_int8_bytes"] == (made / "artifacts" / "bundle" / "model.onnx").stat().st_size
    assert run.data.tags["bundle_digest"] == bundle.digest(made / "artifacts" / "bundle")
    sums = (made / "artifacts" / "bundle" / "SHA256SUMS").read_text()
    called(monkeypatch, *RUN, *where, "task=bundle")
    again = (made / "artifacts" / "bundle" / "SHA256SUMS").read_text()
    same = {line for line in again.splitlines() if line.endswith((".onnx", ".npz", ".py", ".txt"))}
    assert same <= set(sums.splitlines()), "models are the same, byte for byte, when made again"
    versions = client.search_model_versions("name = 'digits'")
    assert len({each.tags["model_digest"] for each in versions}) == len(versions) == 1


FAULTS = {
    ("deploy.round=7",): (2, "deploy.round: got 7, takes 0 to 2, the rounds that are complete"),
    ("pruning.rounds=3",): (1, "is not finished, its last complete round is 2"),
    ("seed=5",): (1, "no pruned round of these settings is complete in"),
    ("deploy.max_bytes=1000",): (1, "deploy.max_bytes allows 1,000"),
    ("task=verify", "artifacts={nowhere}"): (1, "has no bundle: make it first"),
    ("task=verify", "seed=5"): (1, "the bundle is of another run (seed: 0, here 5): task=bundle makes that of these"),
    ("task=verify", "deploy.round=1"): (1, "the bundle is of another run (deploy.round: 2, here 1)"),
    ("task=verify", "training.epochs=7"): (1, "the bundle is of another run (settings: "),
    ("task=verify", "deploy.runner=native"): (1, "deploy.runner: got native, but this machine is"),
    ("task=verify", "deploy.runner=ssh"): (2, "deploy.host: got null, takes the name of a board"),
    ("task=verify", "deploy.runner=ssh", "deploy.host=no.such.host.invalid"): (1, "ssh"),
}


@pytest.mark.parametrize("arguments", FAULTS)
def test_what_cannot_be_is_one_sentence_and_leaves_the_bundle_as_it_was(arguments, made, tmp_path, monkeypatch, capsys):
    status, sentence = FAULTS[arguments]
    before = bundle.digest(made / "artifacts" / "bundle")
    words = [word.format(nowhere=tmp_path) for word in arguments]
    where = [f"runs={made / 'runs'}", f"artifacts={made / 'artifacts'}"]
    with pytest.raises(SystemExit) as end:
        called(monkeypatch, *RUN, *where, "task=bundle", *words)
    error = capsys.readouterr().err
    assert end.value.code == status, error
    assert sentence in error
    assert error.count("\n") == 1
    assert bundle.digest(made / "artifacts" / "bundle") == before
    client = MlflowClient(f"sqlite:///{made / 'runs' / 'mlflow' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("digits").experiment_id
    assert {run.info.status for run in client.search_runs([experiment])} == {"FINISHED"}, "what was trained is"
    verified = made / "artifacts" / "verified.json"
    if "task=verify" in arguments and verified.exists():
        assert json.loads(verified.read_text())["status"] == "not verified"


@pytest.mark.slow
def test_int8_that_loses_too_much_is_refused_and_float_offered(made, tmp_path, monkeypatch, capsys):
    real = Calibrated.quantised

    def spoilt(self, float_layers=()):
        model = real(self, float_layers)
        for tensor in model.graph.initializer:
            if tensor.name.endswith("_quantized"):
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 0, tensor.name))
        return model

    monkeypatch.setattr(Calibrated, "quantised", spoilt)
    shutil.copytree(made / "runs", tmp_path / "runs")
    where = [f"runs={tmp_path / 'runs'}", f"artifacts={tmp_path / 'artifacts'}"]
    with pytest.raises(SystemExit):
        called(monkeypatch, *RUN, *where, "task=bundle")
    error = capsys.readouterr().err
    assert "points of the validation accuracy, deploy.max_score_drop allows 1 points, and no choice of float" in error
    assert "deploy.values=float32 ships" in error
    assert not (tmp_path / "artifacts" / "bundle").exists()
    called(monkeypatch, *RUN, *where, "task=bundle", "deploy.values=float32")
    manifest = json.loads((tmp_path / "artifacts" / "bundle" / "manifest.json").read_text())
    assert manifest["models"]["model.onnx"]["kind"] == "float32"
    assert board(tmp_path / "artifacts" / "bundle", "check").returncode == 0


@pytest.mark.slow
def test_an_int8_bundle_can_leave_the_float_model_out(made, tmp_path, monkeypatch):
    shutil.copytree(made / "runs", tmp_path / "runs")
    where = [f"runs={tmp_path / 'runs'}", f"artifacts={tmp_path / 'artifacts'}"]
    small, full = tmp_path / "artifacts" / "bundle", made / "artifacts" / "bundle"
    engines = ",".join(path.stem.removeprefix("engine-") for path in full.glob("engine-*.so"))
    called(monkeypatch, *RUN, *where, "task=bundle", "deploy.reference=false", f"deploy.kernels=[{engines}]")
    assert {path.name for path in full.iterdir()} - {path.name for path in small.iterdir()} == {"model_fp32.onnx"}
    assert (small / "model.onnx").read_bytes() == (full / "model.onnx").read_bytes()
    assert "packed float" not in (small / "README.md").read_text()
    assert board(small, "check").returncode == 0


KEYS = {
    "by OpenSSL": (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8),
    "by ssh-keygen": (serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH),
}


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl")
@pytest.mark.parametrize("written", some_fast(zip(KEYS), [("by OpenSSL",)]))
def test_a_bundle_can_be_signed_and_openssl_tells_one_that_was_changed(written, made, tmp_path, monkeypatch):
    key = ed25519.Ed25519PrivateKey.generate()
    (tmp_path / "key").write_bytes(key.private_bytes(*KEYS[written], serialization.NoEncryption()))
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "public.pem").write_bytes(public)
    where = [f"runs={made / 'runs'}", f"artifacts={tmp_path / 'artifacts'}"]
    called(monkeypatch, *RUN, *where, "task=bundle", f"deploy.sign_key={tmp_path / 'key'}", "deploy.kernels=[]")
    folder = tmp_path / "artifacts" / "bundle"
    (line,) = (each for each in (folder / "README.md").read_text().splitlines() if "openssl" in each)
    command = shlex.split(line.replace("PUBLIC.pem", str(tmp_path / "public.pem")))
    assert subprocess.run(command, cwd=folder, check=False, capture_output=True).returncode == 0
    assert str(tmp_path) not in (folder / "manifest.json").read_text()
    assert board(folder, "check").returncode == 0
    told(folder, lambda m: m.update(name="another"))
    assert board(folder, "check").returncode == 0, "sums that fit are all that the board sees"
    assert subprocess.run(command, cwd=folder, check=False, capture_output=True).returncode == 1


NO_KEYS = {
    "nothing": (lambda file: None, "No such file or directory"),
    "a text": (lambda file: file.write_text("key"), "takes a file with an ed25519 private key"),
    "a key with a passphrase": (
        lambda file: file.write_bytes(
            ed25519.Ed25519PrivateKey.generate().private_bytes(
                *KEYS["by OpenSSL"], serialization.BestAvailableEncryption(b"secret")
            )
        ),
        "that has no passphrase",
    ),
    "a key of another kind": (
        lambda file: file.write_bytes(
            x25519.X25519PrivateKey.generate().private_bytes(*KEYS["by OpenSSL"], serialization.NoEncryption())
        ),
        "a key of another kind",
    ),
}


@pytest.mark.parametrize("case", NO_KEYS)
def test_what_is_no_key_is_a_sentence(case, tmp_path):
    write, sentence = NO_KEYS[case]
    write(tmp_path / "key")
    with pytest.raises(SettingsError, match=f"deploy.sign_key: got .*{sentence}"):
        signing_key(tmp_path / "key")


class Noise:
    """Random images, standardised as ImageNet's are."""

    classes = ("a", "b")
    preprocessing = Preprocessing(partial(standardised, mean=(0.5,) * 3, deviation=(0.2,) * 3), None)

    def __init__(self, size):
        self.size = size

    def raw(self, split):
        draws = torch.Generator().manual_seed(len(split))
        images = torch.randint(0, 256, (8, 3, self.size, self.size), generator=draws, dtype=torch.uint8)
        yield images, torch.zeros(8, dtype=torch.int64)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size", "density"), [("vgg16", 32, 0.05), ("mobilenet_v2", 96, 0.3), ("resnet50", 96, 0.1)]
)
def test_large_networks_export_pack_and_pass_the_checks(name, size, density):
    network, _ = pruned(name, 3, size, density)
    noise = Noise(size)
    subject = Subject(network, noise, None, ACCURACY)
    found = models.models(subject, 8, multiple=4)
    (inputs,) = subject.inputs("validation")
    assert models.check(found, subject, inputs) == []
    sizes = found.size_bytes
    assert sizes["int8"] < sizes["float32"] / 2 < sizes["dense"] * (density + 0.1) / 2
    positions = models.positions(found.int8_facts)
    assert positions["bytes"] < 1.1 * positions["entropy_bytes"]


def test_zeros_stay_zero_in_int8_and_a_lean_model_has_no_negative_zero():
    dataset = load(settings().data)
    network = build_network(settings().model, dataset.example, 10, 0).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter[torch.rand_like(parameter) < 0.9] = -0.0
    pixels = dataset.train.pixels[:50]
    plain = exported(network, dataset.preprocessing.apply, pixels)
    small = lean(plain)
    int8 = lean(quantised(plain, [{"input": pixels.numpy()}]))
    exact, rounded = (
        [array for tensor in model.graph.initializer if (array := numpy_helper.to_array(tensor)).ndim > 1]
        for model in (small, int8)
    )
    assert all(each.dtype == np.int8 for each in rounded)
    for one, other in zip(exact, rounded, strict=True):
        assert np.mean(one == 0) > 0.8
        assert not np.signbit(one[one == 0]).any()
        assert np.all(other[one == 0] == 0)
    onnx.checker.check_model(small, full_check=True)


@pytest.mark.slow
def test_mlflow_serves_the_registered_model(made):
    import requests

    port = free_port()
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": f"sqlite:///{made / 'runs' / 'mlflow' / 'mlflow.db'}",
        "PATH": f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}",  # it looks for uvicorn there
        "OMP_NUM_THREADS": "1",
    }
    command = [
        "mlflow", "models", "serve", "-m", "models:/digits@arm",
        "--env-manager", "local", "--host", "127.0.0.1", "--port", str(port),
    ]  # fmt: skip
    golden = arrays(made / "artifacts" / "bundle" / "golden.npz")
    server = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        for _ in range(240):
            assert server.poll() is None
            try:
                requests.get(f"http://127.0.0.1:{port}/ping", timeout=5).raise_for_status()
                break
            except requests.RequestException:
                time.sleep(0.5)
        answer = requests.post(
            f"http://127.0.0.1:{port}/invocations", json={"inputs": golden["inputs/input"].tolist()}, timeout=60
        )
        answer.raise_for_status()
        assert np.allclose(answer.json()["predictions"]["scores"], golden["model.onnx/scores"], atol=1e-6)
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@pytest.mark.slow
def test_the_oldest_onnxruntime_allowed_folds_all_and_gives_the_same_bits(made, tmp_path):
    folder, old = made / "artifacts" / "bundle", tmp_path / "old"
    oldest = json.loads((folder / "manifest.json").read_text())["onnxruntime"]["oldest"]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", old, f"onnxruntime=={oldest}"],
        check=True,
    )
    code = f"""
import numpy as np, onnx, onnxruntime
from pipeline.deploy.pack import unpacked
from pipeline.deploy.node import opened
from pipeline.deploy.runtime import answers, optimised_operators, session
assert onnxruntime.__version__ == {oldest!r}
golden = np.load("golden.npz")
for name in ("model.onnx", "model_fp32.onnx"):
    model = onnx.load(name)
    assert optimised_operators(model) == optimised_operators(unpacked(opened(model)))
    found = answers(session(model), {{"input": golden["inputs/input"]}})["scores"]
    print(float(np.abs(found - golden[name + "/scores"]).max()))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(old), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    int8, float32 = (float(line) for line in done.stdout.split())
    assert int8 == 0
    assert float32 < 1e-4


SOUND = {"kind": "sound", "name": "input", "rate": None, "shape": [None, 8], "type": "float32"}
TABLE = {"name": "input", "shape": [None, 2], "type": "float32"}


@pytest.mark.parametrize(("channels", "cut"), [(1, 1), (2, 2), (2, 3)])
def test_a_sound_that_was_cut_within_a_sample_has_those_before_it(channels, cut, tmp_path):
    samples = np.arange(12 * channels, dtype="<i2").reshape(12, channels)
    with wave.open(str(tmp_path / "whole.wav"), "wb") as sound:
        sound.setparams((channels, 2, 8000, 0, "NONE", ""))
        sound.writeframes(samples.tobytes())
    (tmp_path / "cut.wav").write_bytes((tmp_path / "whole.wav").read_bytes()[:-cut])
    told = {**SOUND, "shape": [None, None]}
    whole, rest = (run.sound_in(told, tmp_path / name) for name in ("whole.wav", "cut.wav"))
    assert rest.shape == (1, 11)
    assert np.array_equal(rest, whole[:, :11])


def test_a_table_by_a_spreadsheet_begins_with_its_first_row(tmp_path):
    (tmp_path / "a.csv").write_text("1.5,1\n2.5,2\n", encoding="utf-8-sig")
    assert run.table_in(TABLE, tmp_path / "a.csv").tolist() == [[1.5, 1], [2.5, 2]]
    (tmp_path / "b.csv").write_text('1,"' + "2" * 200_000)
    with pytest.raises(run.Refused, match=r"b.csv: field larger than .*; takes a CSV file of numbers"):
        run.table_in(TABLE, tmp_path / "b.csv")
