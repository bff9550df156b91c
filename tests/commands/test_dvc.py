"""`dvc repro` in a copy of the project, with the real DVC: what runs, what is skipped, and what is kept."""

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
ENVIRONMENT = Path(sys.prefix)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """The project's files in a repository of its own, with a smaller job."""
    place = tmp_path_factory.mktemp("dvc") / "project"
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=PROJECT, capture_output=True, text=True, check=True
    ).stdout.split("\n")
    for name in filter(None, listed):
        if (PROJECT / name).is_file() and name != "dvc.lock":
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(PROJECT / name, place / name)
    (place / ".venv").symlink_to(ENVIRONMENT)
    parameters = (place / "params.yaml").read_text()
    parameters = re.sub("rounds: .*", "rounds: 1", parameters)
    small = "model.arguments.width=4 training.epochs=4 training.max_steps=null deploy.max_score_drop=0.5"
    (place / "params.yaml").write_text(parameters.replace('settings: ""', f'settings: "{small}"'))
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "all"]):
        git(place, *command)
    return place


def git(place, *arguments):
    who = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    return subprocess.run(["git", *who, *arguments], cwd=place, capture_output=True, text=True, check=True).stdout


def environment(place):
    return {**os.environ, "PYTHONPATH": str(place / "src"), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def dvc(place, *arguments):
    command = [str(ENVIRONMENT / "bin" / "dvc"), *arguments]
    done = subprocess.run(command, cwd=place, env=environment(place), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def ran(output):
    return re.findall(r"Running stage '(\w+)'", output)


def test_repro_runs_once_reruns_what_depends_and_compares(project):
    assert ran(dvc(project, "repro", "bundle")) == ["prune", "bundle"]
    assert ran(dvc(project, "repro", "report")) == ["report"]
    assert "up to date" in dvc(project, "repro", "bundle", "report")
    git(project, "add", "-A")
    git(project, "commit", "-qm", "one round")
    metrics = json.loads(dvc(project, "metrics", "show", "--json"))
    figures = metrics[""]["data"]["artifacts/report/metrics.json"]["data"]
    assert figures["round"] == 1
    assert figures["density"] == pytest.approx(0.8, abs=1e-3)
    assert figures["int8_bytes"] < figures["dense_bytes"]

    before = {path: path.stat().st_mtime_ns for path in project.glob("runs/**/round.json")}
    assert len(before) == 2
    text = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(text.replace("values: int8", "values: float32"))
    assert ran(dvc(project, "repro", "bundle", "report")) == ["bundle"]
    manifest = json.loads((project / "artifacts" / "bundle" / "manifest.json").read_text())
    assert manifest["models"]["model.onnx"]["kind"] == "float32"

    output = dvc(project, "exp", "run", "-S", "pruning.rounds=2", "report")
    assert ran(output) == ["prune", "report"]
    difference = json.loads(dvc(project, "metrics", "diff", "--json"))["artifacts/report/metrics.json"]
    assert (difference["round"]["old"], difference["round"]["new"]) == (1, 2)
    assert difference["density"]["new"] == pytest.approx(0.64, abs=1e-3)
    assert {path: path.stat().st_mtime_ns for path in before} == before, "DVC leaves the ledger alone"
    page = project / "dvc_plots" / "index.html"
    dvc(project, "plots", "show", "artifacts/report/rounds.csv")
    assert "test_accuracy" in page.read_text()


def test_an_interrupted_repro_goes_on_inside_the_round(project):
    (project / "params.yaml").write_text(
        re.sub("seed: .*", "seed: 3", (project / "params.yaml").read_text()).replace(
            "training.epochs=4", "training.epochs=40"
        )
    )
    process = subprocess.Popen(
        [str(ENVIRONMENT / "bin" / "dvc"), "repro", "prune"], cwd=project, env=environment(project),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    while not list(project.glob("runs/dense/*/seed-3/round-00/partial.safetensors")):
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    killed_ms = time.time() * 1000
    output = dvc(project, "repro", "prune")
    assert ran(output) == ["prune"]
    (record,) = project.glob("runs/dense/*/seed-3/round-00/round.json")
    history = json.loads(record.read_text())["history"]
    assert [epoch["number"] for epoch in history] == list(range(1, 41))
    assert history[0]["finished_ms"] < killed_ms < history[-1]["finished_ms"], "what was trained before was kept"
