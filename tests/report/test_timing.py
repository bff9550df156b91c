"""What rounds take, here and on ARM; and the bake-off's methods, searches included, as one sweep."""

import csv
import dataclasses
import json

import pytest
from mlflow import MlflowClient

from pipeline.deploy import arm, kernels
from pipeline.deploy.recipe import recipe
from pipeline.ground import tables
from pipeline.objective.score import ACCURACY
from pipeline.report import forecast, sizes, timing
from pipeline.report.sheet import curves
from pipeline.rounds import loop as rounds
from tests.commands.test_sweep import typed  # noqa: F401
from tests.conftest import SMALL, settings
from tests.tracking.test_tracker import history, runs

FILTERS = [*SMALL, "pruning=filters", "pruning.rounds=1", "pruning.target_density=null", "model.arguments.width=8"]


@pytest.fixture
def measured(typed, tmp_path):  # noqa: F811
    """Runs a small job and types ``task=measure``; returns what that prints and the tracked parent run's metrics."""

    def measure():
        assert typed(*FILTERS)[0] == 0
        status, out = typed(*FILTERS, "task=measure")
        assert status == 0
        client = MlflowClient(f"sqlite:///{tmp_path / 'runs' / 'mlflow' / 'mlflow.db'}")
        (parent,) = runs(client, "job")
        assert parent.info.status == "FINISHED"
        return out, history(client, parent)

    return measure


@pytest.mark.slow
def test_the_time_of_the_dense_and_the_last_round_is_taken_once_and_tracked(measured, monkeypatch, tmp_path):
    monkeypatch.setattr(arm, "missing", lambda: "no ARM in this test")
    out, figures = measured()
    files = sorted((tmp_path / "runs").glob("**/timing.json"))
    assert len(files) == 2
    first = [path.read_text() for path in files]
    for way in ("", "int8_", "sparse_"):
        assert [step for step, _ in figures[f"cost/{way}latency_ratio"]] == [0, 1]
        assert all(value > 0 for _, value in figures[f"cost/{way}latency_ms"])
    assert "cost/instructions" not in figures
    lines = out.splitlines()[-6:]
    assert [line.split()[3] for line in lines] == ["float32", "int8", "sparse"] * 2
    assert lines[-1].split()[-1] == "-"
    again, _ = measured()
    assert again.splitlines()[-6:] == lines
    assert [path.read_text() for path in files] == first
    # taken again, the later figure counts, be it the lower
    told = json.loads(first[0])
    faster = {"milliseconds": told["milliseconds"] | {"float32": 1e-6}, "taken_ms": told["taken_ms"] + 1}
    files[0].write_text(json.dumps(told | faster))
    measured()
    client = MlflowClient(f"sqlite:///{tmp_path / 'runs' / 'mlflow' / 'mlflow.db'}")
    index = 0 if "dense" in files[0].parts else 1
    (found,) = [run for run in runs(client, "round") if run.data.tags["round"] == str(index)]
    assert found.data.metrics["cost/latency_ms"] == 1e-6


def test_times_are_drawn_as_shares_of_what_the_dense_network_took_in_turns_with_them(small_job):
    """A machine that was busy in the second round drew it as slower."""
    figures = [{"latency_ms": 5.0, "latency_ratio": 1.0}, {"latency_ms": 9.0, "latency_ratio": 0.9}]
    done = rounds.run(*small_job("pruning.rounds=1"))
    line, dense = curves(done, figures, ACCURACY, "tuned")["accuracy_vs_time.png"].axes[0].get_lines()
    assert list(line.get_xdata()) == pytest.approx([100, 90])
    assert set(dense.get_ydata()) == {done[0].test["test_accuracy"] * 100}


@pytest.mark.parametrize(
    ("number", "shown"),
    [(0.12345, "0.1235"), (1.23456, "1.235"), (99.999, "100.00"), (123.45, "123.5"), (12345.6, "12346"), (0, "0.0000")],
)
def test_numbers_of_tables_have_four_digits(number, shown):
    assert tables.short(number) == shown


def test_tables_of_time_fit_a_terminal_of_80_columns(small_job):
    done = [dataclasses.replace(each, index=15) for each in rounds.run(*small_job("pruning.rounds=1"))]
    times = dict.fromkeys(timing.WAYS, 11567.0), dict.fromkeys(timing.WAYS, 1.0)
    board = dict.fromkeys(timing.WAYS, (11234.5, 12345.6))
    large = timing.Timing(*times, dict.fromkeys(timing.WAYS, 4_100_000_000), "", 1, 1, 0, {}, board)
    assert max(map(len, timing.table(done, [large] * len(done)).splitlines())) <= 80
    foretold = forecast.Forecast(15, 0.05, 4_100_123_456, 102_000_000, 25_500_000, 115.6, 12.3, False)
    assert max(map(len, forecast.table([foretold]).splitlines())) <= 80


STALE = {
    "timing.json": {
        "another engine": {"recipe": recipe({}) | {"source": "0" * 12}},
        "another onnxruntime": {"recipe": recipe({}) | {"onnxruntime": "1.0.0"}},
        "from before recipes were kept": {"recipe": {}},
        "another processor": {"processor": "x86_64 another"},
        "another width": {"width_multiple": 16},
    },
    "sizes.json": {
        "another packing": {"recipe": recipe({}) | {"source": "0" * 12}},
        "another torch": {"recipe": recipe({}) | {"torch": "2.0.0"}},
        "another calibration": {"calibration_images": 7},
    },
}


@pytest.mark.slow
def test_figures_that_were_made_otherwise_are_made_anew(small_job, monkeypatch):
    monkeypatch.setattr(arm, "missing", lambda: "no ARM in this test")
    job, site = small_job("pruning.rounds=1")
    last, deploy = rounds.run(job, site)[-1:], settings().deploy
    for file, makes in {"timing.json": timing, "sizes.json": sizes}.items():
        (made,) = makes.measured(job, site, last, deploy, lambda _: None)
        path = site.ledger.path(1) / file
        content = path.read_text()
        assert makes.measured(job, site, last, deploy, lambda _: None) == [made]
        assert path.read_text() == content
        for case, change in STALE[file].items():
            path.write_text(json.dumps(json.loads(content) | change))
            assert makes.stored(site, last, deploy) in ([], [{}]), case
        (again,) = makes.measured(job, site, last, deploy, lambda _: None)
        assert json.loads(path.read_text()).keys() == json.loads(content).keys()
        assert makes.stored(site, last, deploy) in ([again], [again.figures])


@pytest.mark.slow
def test_times_of_all_rounds_are_in_the_report(typed, monkeypatch, tmp_path):  # noqa: F811
    """Without a library for this processor there is no third way; what is not timed has no figure."""
    monkeypatch.setattr(arm, "missing", lambda: "no ARM in this test")
    monkeypatch.setattr(kernels, "target_here", lambda: None)
    command = [*SMALL, "pruning.rounds=2", f"artifacts={tmp_path / 'artifacts'}"]
    typed(*command)
    status, _ = typed(*command, "task=measure")
    assert status == 0
    typed(*command, "task=report")
    report = tmp_path / "artifacts" / "report"
    rows = list(csv.DictReader((report / "rounds.csv").read_text().splitlines()))
    assert [bool(row["latency_ms"]) for row in rows] == [True, False, True]
    assert "sparse_latency_ms" not in rows[0]
    status, out = typed(*command, "task=measure", "deploy.measure=all")
    assert (status, len(out.splitlines())) == (0, 7)
    typed(*command, "task=report")
    rows = list(csv.DictReader((report / "rounds.csv").read_text().splitlines()))
    assert all(float(row["latency_ms"]) > 0 and float(row["int8_latency_ms"]) > 0 for row in rows)
    assert float(json.loads((report / "metrics.json").read_text())["latency_ms"]) == float(rows[-1]["latency_ms"])
    assert (report / "accuracy_vs_time.png").exists()
    assert not (report / "accuracy_vs_instructions.png").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_fewer_filters_are_fewer_instructions_on_arm(measured, tmp_path):
    if reason := arm.missing():
        pytest.skip(reason)
    _, figures = measured()
    for name in ("instructions", "int8_instructions", "sparse_instructions"):
        (_, dense), (_, pruned) = figures[f"cost/{name}"]
        assert pruned < dense
        way = {"instructions": "float32"}.get(name, name.split("_")[0])
        files = (tmp_path / "runs").glob("**/timing.json")
        assert sorted(json.loads(path.read_text())["instructions"][way] for path in files) == [pruned, dense]


@pytest.mark.slow
def test_the_bakeoffs_methods_run_as_one_sweep_with_the_searches_that_they_need(typed, tmp_path):  # noqa: F811
    methods = "filters_lr_rewinding,amc_fine_tuning,amc_lr_rewinding,amc_weights,uniform_policy,random_policy"
    command = ["+experiment=amc_digits", *SMALL, f"+method={methods}", "seed=0", "task=run", "amc.warmup=3"]
    command += ["amc.episodes=5", "pruning.rounds=2"]
    status, out = typed("-m", *command)
    assert status == 0, out
    assert "6 jobs: 6 done" in out
    status, out = typed(*[each for each in command if "method" not in each], "task=compare", f"artifacts={tmp_path}")
    assert status == 0, out
    assert "round 2" in out
    for name in (
        "lr_rewinding (filters)", "fine_tuning (filters by AMC 0.5 macs)", "lr_rewinding (filters by AMC 0.5 macs)",
        "lr_rewinding (weights by AMC 0.5 macs)", "fine_tuning (filters by uniform 0.5 macs)", "fine_tuning (filters by random 0.5 macs)",
    ):  # fmt: skip
        assert f"| {name} |" in out
    assert len(list((tmp_path / "runs").glob("digits-amc-*"))) == 4
    assert "6 jobs: 6 complete" in typed("-m", *command)[1]
    _, out = typed(*[each for each in command if "method" not in each], "task=report", f"artifacts={tmp_path}")
    assert "lr_rewinding (filters by AMC 0.5 macs), seed 0" in out
