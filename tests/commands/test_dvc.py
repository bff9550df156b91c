"""DVC's stages and experiments in a copy of the project: what runs, what is skipped, and what is kept."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import PROJECT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
PROGRAMS = Path(sys.prefix) / "bin"


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """The project's files in a repository of its own, with a smaller job and without an environment in it."""
    place = tmp_path_factory.mktemp("dvc") / "project of mine"
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=PROJECT, capture_output=True, text=True, check=True
    ).stdout.split("\n")
    for name in filter(None, listed):
        if (PROJECT / name).is_file() and name != "dvc.lock":
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(PROJECT / name, place / name)
    parameters = (place / "params.yaml").read_text()
    parameters = re.sub("rounds: .*", "rounds: 1", parameters)
    small = "model.arguments.width=4 training.epochs=4 training.max_steps=null deploy.max_score_drop=0.5"
    (place / "params.yaml").write_text(parameters.replace('settings: ""', f'settings: "{small}"'))
    git(place, "init", "-q")
    git(place, "config", "user.name", "test")
    git(place, "config", "user.email", "test@example.org")
    committed(place, "all")
    return place


def git(place, *arguments):
    return subprocess.run(["git", *arguments], cwd=place, capture_output=True, text=True, check=True).stdout


def committed(place, message):
    git(place, "add", "-A")
    git(place, "commit", "-qm", message)


def environment():
    """That of a shell in which the environment is activated."""
    path = f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}


def dvc(place, *arguments, warned=False):
    """What a command prints, which warns of nothing unless it is ``warned`` of something."""
    done = subprocess.run(
        ["dvc", *arguments], cwd=place, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert warned == bool(re.search("WARNING|ERROR|failed", done.stdout + done.stderr)), done.stdout + done.stderr
    return done.stdout


def ran(output):
    return re.findall(r"Running stage '(\w+)'", output)


def records(place):
    """When each round on disk was recorded, by its folder."""
    return {path.parent: path.stat().st_mtime_ns for path in place.glob("runs/**/round.json")}


def experiments(place):
    """Figures of the report by name of the experiment, as ``dvc exp show`` has them."""
    (_, baseline) = json.loads(dvc(place, "exp", "show", "--json"))
    return {
        each["name"]: each["revs"][0]["data"]["metrics"]["metrics/report.json"]["data"]
        for each in baseline["experiments"] or []
    }


def test_before_anything_has_run_nothing_is_missed(project):
    for command in (["metrics", "show"], ["exp", "show"], ["status", "prune"]):
        dvc(project, *command)


def test_repro_runs_once_reruns_what_depends_and_compares(project):
    assert ran(dvc(project, "repro", "bundle")) == ["prune", "bundle"]
    assert ran(dvc(project, "repro", "report")) == ["report"]
    assert "up to date" in dvc(project, "repro", "bundle", "report")
    untracked = git(project, "status", "--porcelain", "-uall").split()
    assert {"metrics/report.json", "dvc.lock"} == set(untracked) - {"??"}
    committed(project, "one round")
    metrics = json.loads(dvc(project, "metrics", "show", "--json"))
    figures = metrics[""]["data"]["metrics/report.json"]["data"]
    assert figures == json.loads(git(project, "show", "HEAD:metrics/report.json"))
    assert figures["round"] == 1
    assert figures["density"] == pytest.approx(0.8, abs=1e-3)
    assert figures["int8_bytes"] < figures["dense_bytes"]
    page = project / "dvc_plots" / "index.html"
    dvc(project, "plots", "show")
    assert "test_accuracy" in page.read_text()
    assert set(re.findall(r'<img[^>]*src="static/[^"]*?(accuracy_vs_\w+\.png)"', page.read_text())) == {
        "accuracy_vs_sparsity.png",
        "accuracy_vs_bytes.png",
    }

    before = records(project)
    assert len(before) == 2
    text = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(text.replace("values: int8", "values: float32"))
    assert ran(dvc(project, "repro", "bundle", "report")) == ["bundle"]
    manifest = json.loads((project / "artifacts" / "bundle" / "manifest.json").read_text())
    assert manifest["models"]["model.onnx"]["kind"] == "float32"

    output = dvc(project, "exp", "run", "-S", "pruning.rounds=2", "report")
    assert ran(output) == ["prune", "report"]
    difference = json.loads(dvc(project, "metrics", "diff", "--json"))["metrics/report.json"]
    assert (difference["round"]["old"], difference["round"]["new"]) == (1, 2)
    assert difference["density"]["new"] == pytest.approx(0.64, abs=1e-3)
    assert before.items() <= records(project).items(), "DVC leaves the ledger alone"


def test_experiments_in_a_temporary_copy_go_on_from_the_rounds_of_the_workspace(project):
    committed(project, "two rounds")
    before = records(project)
    assert len(before) == 3
    dvc(project, "exp", "run", "--temp", "-n", "fewer", "-S", "pruning.rounds=1", "report")
    dvc(project, "exp", "run", "--queue", "-n", "more", "-S", "pruning.rounds=3", "report")
    dvc(project, "exp", "run", "--run-all")

    after = records(project)
    assert before.items() <= after.items(), "no finished round was trained again"
    assert sorted(path.name for path in after.keys() - before.keys()) == ["round-03"]
    found = experiments(project)
    assert {name: figures["round"] for name, figures in found.items()} == {"fewer": 1, "more": 3}
    assert found["more"]["density"] == pytest.approx(0.8**3, abs=1e-3)
    assert not git(project, "status", "--porcelain"), "the workspace is as it was"
    for name, figures in found.items():
        assert json.loads(git(project, "show", f"{name_of(project, name)}:metrics/report.json")) == figures


def name_of(place, experiment):
    """The Git ref that DVC keeps an experiment under."""
    (ref,) = re.findall(rf"refs/exps/\S+/{experiment}$", git(place, "for-each-ref", "refs/exps"), re.MULTILINE)
    return ref


def test_an_interrupted_repro_goes_on_inside_the_round(project):
    (project / "params.yaml").write_text(
        re.sub("seed: .*", "seed: 3", (project / "params.yaml").read_text()).replace(
            "training.epochs=4", "training.epochs=12"
        )
    )
    process = subprocess.Popen(
        ["dvc", "repro", "prune"], cwd=project, env=environment(),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    while not list(project.glob("runs/dense/*/seed-3/round-00/partial.safetensors")):
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    killed_ms = time.time() * 1000
    output = dvc(project, "repro", "prune", warned=True)  # of the one that was killed
    assert ran(output) == ["prune"]
    (record,) = project.glob("runs/dense/*/seed-3/round-00/round.json")
    history = json.loads(record.read_text())["history"]
    assert [epoch["number"] for epoch in history] == list(range(1, 13))
    assert history[0]["finished_ms"] < killed_ms < history[-1]["finished_ms"], "what was trained before was kept"
