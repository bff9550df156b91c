"""Libraries that fail, at any place: a finished run stays finished, a sentence says what is missing, MLflow gets all.

Around each real function stands a wrapper that raises; everything else is real. One trained ledger serves all cases.
"""

import functools
import pkgutil
import shutil
import threading

import pytest
from mlflow import MlflowClient
from mlflow.entities import ViewType
from mlflow.exceptions import MlflowException

from pipeline.deploy.traced import graphs
from pipeline.ground.errors import one_line
from pipeline.tracking.store import make_embedded_store
from tests import conftest
from tests.conftest import SMALL, some_fast

JOB = [*SMALL, "training.epochs=1", "training.max_steps=4", "pruning.rounds=1", "data.test_images=50"]


class OfALibrary(Exception):
    """As extensions in C++ and clients of stores of files have them: of no common kind."""


ERRORS = (
    RuntimeError("device lost"), KeyError("input"), AssertionError(), MemoryError(), OfALibrary("[ONNXRuntimeError] : 6"),
    OSError(28, "No space left on device"), MlflowException("no"), TimeoutError("timed out"), ValueError("bad magic"),
    OfALibrary("An error occurred (SlowDown)\nwhen calling PutObject"), BrokenPipeError(32, "Broken pipe"),
)  # fmt: skip
BYTES, CURVES, LAYERS = (
    "bytes are not measured: ",
    "the curves are not drawn: ",
    "the layers of round 0 are not drawn: ",
)
AFTER_TRAINING = {
    "torch.onnx.export": BYTES,
    "torch.export.export": BYTES,
    "torch.export.Dim": BYTES,
    "onnxscript.optimizer.optimize_ir": BYTES,
    "onnx_ir.serde.serialize_model": BYTES,
    "onnx.save": BYTES,
    "onnx.load": BYTES,
    "onnx.helper.make_node": BYTES,
    "onnx.helper.make_opsetid": BYTES,
    "onnx.helper.get_attribute_value": BYTES,
    "onnx.numpy_helper.to_array": BYTES,
    "onnx.numpy_helper.from_array": BYTES,
    "onnx.defs.get_schema": BYTES,
    "onnx.parser.parse_function": BYTES,
    "pipeline.deploy.quantize.quant_pre_process": BYTES,
    "pipeline.deploy.quantize.quantize_static": BYTES,
    "onnxruntime.capi.onnxruntime_inference_collection.Session.run": BYTES,
    "onnxruntime.InferenceSession": BYTES,
    "onnxruntime.SessionOptions": BYTES,
    "onnxruntime.quantization.calibrate.MinMaxCalibrater.collect_data": BYTES,
    "onnxruntime.quantization.calibrate.MinMaxCalibrater.compute_data": BYTES,
    "onnxruntime.quantization.qdq_quantizer.QDQQuantizer.quantize_model": BYTES,
    "onnxruntime.quantization.onnx_model.ONNXModel.save_model_to_file": BYTES,
    "matplotlib.figure.Figure.savefig": CURVES,
    "matplotlib.figure.Figure.add_subplot": CURVES,
    "matplotlib.figure.Figure.legend": CURVES,
    "matplotlib.axes.Axes.plot": CURVES,
    "matplotlib.axes.Axes.axhline": CURVES,
    "matplotlib.axes.Axes.set": CURVES,
    "matplotlib.axes.Axes.grid": CURVES,
    "matplotlib.axes.Axes.invert_xaxis": CURVES,
    "matplotlib.axes.Axes.barh": LAYERS,
    "matplotlib.axes.Axes.bar_label": LAYERS,
    "matplotlib.axes.Axes.axvline": LAYERS,
    "matplotlib.axes.Axes.set_xticks": LAYERS,
    "matplotlib.axes.Axes.tick_params": LAYERS,
    "matplotlib.axes.Axes.invert_yaxis": LAYERS,
    "matplotlib.font_manager.FontManager.findfont": CURVES,
    "matplotlib.backends.backend_agg.FigureCanvasAgg.print_png": CURVES,
    "PIL.Image.Image.save": CURVES,
}
"""Functions by dotted path, and what is said when one raises."""
TRACING = "torch.", "onnxscript.", "onnx_ir."
"""What is called where a network has no graph yet."""
TO_MLFLOW = {
    "MlflowClient.search_experiments": 1,
    "MlflowClient.get_experiment_by_name": 1,
    "MlflowClient.create_experiment": 1,
    "MlflowClient.search_runs": 5,
    "MlflowClient.create_run": 3,
    "MlflowClient.log_batch": 15,
    "MlflowClient.log_inputs": 1,
    "MlflowClient.log_dict": 1,
    "MlflowClient.log_text": 5,
    "MlflowClient.log_artifact": 14,
    "MlflowClient.update_run": 1,
    "MlflowClient.set_terminated": 3,
    "LocalArtifactRepository.log_artifact": 14,
    "SqlAlchemyStore.log_batch": 15,
    "SqlAlchemyStore.update_run_info": 4,
}
"""How often a run calls what stands between it and MLflow's database and files."""
OWNERS = {
    "MlflowClient": "mlflow.MlflowClient",
    "LocalArtifactRepository": "mlflow.store.artifact.local_artifact_repo.LocalArtifactRepository",
    "SqlAlchemyStore": "mlflow.store.tracking.sqlalchemy_store.SqlAlchemyStore",
}
BEFORE, AFTER, THRICE, FOR_GOOD = "before", "after", "three times", "for good"
"""A call fails; does what it is to do and fails then, as where a reply is lost; fails on and on."""


def fails(patched, place, error, at=lambda number: True, after=False):
    """Lets a function raise at the calls that ``at`` names by number; returns who called it, in order."""
    owner, _, name = place.rpartition(".")
    owner = pkgutil.resolve_name(owner)
    real, callers = getattr(owner, name), []

    def instead(*arguments, **named):
        callers.append(threading.current_thread())
        if at(len(callers)):
            if after:
                real(*arguments, **named)
            raise error
        return real(*arguments, **named)

    patched.setattr(owner, name, functools.wraps(real, updated=())(instead))
    return callers


def typed(folder, *arguments):
    return conftest.typed(*JOB, f"runs={folder}", *arguments)


def content(folder):
    """All that stands in a store, but for what is another in each folder and store."""
    client = MlflowClient(f"sqlite:///{folder / 'mlflow' / 'mlflow.db'}")
    experiments = [each.experiment_id for each in client.search_experiments(ViewType.ALL)]
    found = client.search_runs(experiments, run_view_type=ViewType.ALL)
    names = {run.info.run_id: (run.info.run_name, run.data.tags.get("kind")) for run in found}

    def files(run, path=None):
        for each in client.list_artifacts(run.info.run_id, path):
            yield from files(run, each.path) if each.is_dir else [each.path]

    rows = [
        (
            run.info.run_name, run.info.status, run.info.lifecycle_stage,
            {key: value for key, value in run.data.params.items() if key != "runs"},
            {key: names.get(value, value) for key, value in run.data.tags.items() if key != "ledger"},
            {key: sorted((m.step, m.timestamp, m.value) for m in client.get_metric_history(run.info.run_id, key))
             for key in run.data.metrics},
            sorted(files(run)),
        )
        for run in found
    ]  # fmt: skip
    return sorted(rows, key=lambda row: (row[0], str(sorted(map(str, row[4].items())))))


@pytest.fixture(scope="module")
def origin(tmp_path_factory):
    """A trained ledger, as ``ledger``; the same with bytes of every round and sent, as ``sized``; an empty store."""
    folder = tmp_path_factory.mktemp("origin")
    make_embedded_store(folder / "empty")
    shutil.copytree(folder / "empty", folder / "ledger")
    assert typed(folder / "ledger") == 0
    unsent(folder, "ledger", folder / "sized")
    assert typed(folder / "sized", "deploy.sizes=true") == 0
    return folder


@pytest.fixture(scope="module")
def expected(origin):
    """All that a whole run leaves in a store."""
    return content(origin / "sized")


def unsent(origin, name, folder):
    """A copy of the ledger beside an empty store."""
    shutil.copytree(origin / name, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("mlflow"))
    shutil.copytree(origin / "empty", folder, dirs_exist_ok=True)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr("pipeline.tracking.outbox.SECONDS_BETWEEN_TRIES", 0.001)


PLACES = [(place, ERRORS[number % len(ERRORS)]) for number, place in enumerate(AFTER_TRAINING)]


@pytest.mark.parametrize(("place", "error"), some_fast(PLACES, PLACES[::12]))
def test_what_fails_after_training_is_a_sentence_and_the_run_is_finished(
    place, error, origin, expected, quick, tmp_path, capsys
):
    unsent(origin, "ledger" if AFTER_TRAINING[place] == BYTES else "sized", tmp_path)
    if place.startswith(TRACING):
        graphs.clear()
    with pytest.MonkeyPatch.context() as patched:
        callers = fails(patched, place, error)
        assert typed(tmp_path, "deploy.sizes=true") == 0
    assert callers
    told = "".join(capsys.readouterr())
    assert "Traceback" not in told
    assert AFTER_TRAINING[place] in told
    for line in told.splitlines():
        if line.startswith((BYTES, CURVES, LAYERS)):
            assert one_line(error) in line or str(error) in line
    _check_finished(without_notes(content(tmp_path)), without_notes(expected))


def without_notes(rows):
    """What stands in a store but for descriptions, which have tables of bytes and seconds."""
    return [
        (*run[:4], {key: value for key, value in run[4].items() if key != "mlflow.note.content"}, *run[5:])
        for run in rows
    ]


def _check_finished(found, expected):
    """All runs are there and FINISHED, with all that is neither a picture nor of the files of rounds (nor a table of them)."""
    assert [run[:5] for run in found] == [run[:5] for run in expected]
    assert {run[1] for run in found} == {"FINISHED"}
    for run, whole in zip(found, expected, strict=True):
        assert run[5] == {key: whole[5][key] for key in run[5]}
        assert all("bytes" in key or key == "test/int8_score" for key in set(whole[5]) - set(run[5]))
        assert all(name.endswith(".png") for name in set(whole[6]) - set(run[6]))


HOWS = (BEFORE, AFTER, THRICE, FOR_GOOD)
CALLS = [(call, n) for call, count in TO_MLFLOW.items() for n in sorted({1, (count + 1) // 2, count})]
LAST = [(call, count, AFTER) for call, count in TO_MLFLOW.items() if call.startswith("MlflowClient")]
EACH = [(*each, HOWS[number % len(HOWS)]) for number, each in enumerate(CALLS)]


@pytest.mark.parametrize(("call", "number", "how"), some_fast(list(dict.fromkeys(EACH + LAST)), LAST[4::4]))
def test_mlflow_that_fails_at_any_call_gets_all_of_a_run_once(
    call, number, how, origin, expected, quick, tmp_path, monkeypatch, capsys
):
    unsent(origin, "sized", tmp_path)
    if how == FOR_GOOD:
        monkeypatch.setattr("pipeline.tracking.tracker.PATIENCE", 0.1)
    error = ERRORS[CALLS.index((call, number)) % len(ERRORS)]
    of, name = call.split(".")
    last = {BEFORE: number, AFTER: number, THRICE: number + 2, FOR_GOOD: 1_000_000}[how]
    with pytest.MonkeyPatch.context() as patched:
        callers = fails(patched, f"{OWNERS[of]}.{name}", error, lambda n: number <= n <= last, how == AFTER)
        status = typed(tmp_path, "deploy.sizes=true")
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    if callers[number - 1] is threading.main_thread():  # before anything is trained
        assert (status, err.count("\n")) == (1, 1)
        assert err.startswith("MLflow at sqlite:////")
        assert typed(tmp_path, "deploy.sizes=true") == 0
    else:
        assert (status, err) == (0, "")
        assert out.count("warning: MLflow at ") == {BEFORE: 0, AFTER: 0, THRICE: 1, FOR_GOOD: 2}[how]
        if how == FOR_GOOD:
            assert "misses a part: the same command with task=sync delivers it" in out
            assert typed(tmp_path, "deploy.sizes=true", "task=sync") == 0
    assert content(tmp_path) == expected


NOW_AND_THEN = {number * (number + 1) // 2 for number in range(1, 9)}
ANEW = [
    (call, after)
    for call in ("search_runs", "create_run", "log_batch", "log_dict", "log_artifact", "set_terminated")
    for after in (False, True)
]


def anew(folder, **fault):
    """Sends a run, trains its round 1 anew, under a fault, and tells all that stands in the store but for clocks."""
    assert typed(folder) == 0
    for path in folder.glob("digits-*/seed-0/round-01"):
        shutil.rmtree(path)
    with pytest.MonkeyPatch.context() as patched:
        if fault:
            assert not fails(patched, **fault)
        assert typed(folder) == 0
    return [
        (*run[:5], {key: [(step, value) for step, _, value in rows] for key, rows in run[5].items() if "sec" not in key},
         run[6])
        for run in without_notes(content(folder))
    ]  # fmt: skip


@pytest.fixture(scope="module")
def expected_anew(origin):
    unsent(origin, "ledger", origin / "anew")
    return anew(origin / "anew")


@pytest.mark.parametrize(("call", "after"), some_fast(ANEW[::2] + ANEW[5::6], []))
def test_a_round_trained_anew_gets_a_whole_run_through_any_fault(call, after, origin, expected_anew, quick, tmp_path):
    unsent(origin, "ledger", tmp_path)
    place, error = f"mlflow.MlflowClient.{call}", OfALibrary("SlowDown")
    assert anew(tmp_path, place=place, error=error, at=away(NOW_AND_THEN), after=after) == expected_anew
    assert len(expected_anew) == 2 * 3


def away(numbers):
    """Calls of these numbers among those that the thread of deliveries makes."""
    made = []

    def at(_):
        if threading.current_thread() is threading.main_thread():
            return False
        made.append(None)
        return len(made) in numbers

    return at


def test_the_tables_name_what_is_called(origin, tmp_path):
    unsent(origin, "sized", tmp_path)
    with pytest.MonkeyPatch.context() as patched:
        called = {
            call: fails(patched, f"{OWNERS[of]}.{name}", None, lambda number: False)
            for call in TO_MLFLOW
            for of, name in [call.split(".")]
        }
        assert typed(tmp_path, "deploy.sizes=true") == 0
    assert {call: len(callers) for call, callers in called.items()} == TO_MLFLOW
    assert len(AFTER_TRAINING) >= 40
    assert len(set(EACH + LAST)) >= 40
