"""Many jobs as one command: by Hydra's own launcher, joblib, Ray (a cluster of two nodes) and submitit."""

import os
import random
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipeline.__main__ import main
from pipeline.commands import sweep, sweep_notes
from pipeline.commands.sweep_notes import Note
from tests.conftest import PROJECT, SMALL
from tests.rounds.test_loop import content
from tests.servers import family, free_port, killed
from tests.tracking.test_tracker import everything

SWEEP = ["-m", *SMALL, "pruning.rounds=1", "+method=lr_rewinding,random_pruning", "seed=0,1"]


@pytest.fixture
def typed(tmp_path, monkeypatch, capsys):
    """Types a command in this process; returns its exit status and what it printed and said."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["pipeline", *places(tmp_path / "runs", arguments)])
        try:
            main()
        except SystemExit as end:
            return end.code, "".join(capsys.readouterr())
        return 0, "".join(capsys.readouterr())

    return run


def places(runs, arguments=()):
    """Arguments, with settings that keep all that a command leaves in a test's own folder."""
    artifacts = [] if any(each.startswith("artifacts=") for each in arguments) else [f"artifacts={runs.parent}"]
    return [*arguments, f"runs={runs}", *artifacts]


def store(runs):
    return everything(MlflowClient(f"sqlite:///{runs / 'mlflow' / 'mlflow.db'}"))


def ordered(runs):
    """A store's content, whatever the order in which its runs were made."""
    return sorted(store(runs), key=repr)


def test_jobs_are_named_by_what_tells_them_apart():
    jobs = sweep.planned([*SMALL, "retraining=lr_rewinding,fine_tuning", "++seed=0,1", "hydra/launcher=joblib"])
    assert jobs.titles == (
        "retraining=lr_rewinding seed=0",
        "retraining=lr_rewinding seed=1",
        "retraining=fine_tuning seed=0",
        "retraining=fine_tuning seed=1",
    )  # fmt: skip
    assert [each.seed for each in jobs.settings] == [0, 1, 0, 1]


def test_the_launcher_does_not_change_a_sweeps_folder():
    one, two = (sweep.planned([*SMALL, "seed=0,1", *more]) for more in ([], ["hydra/launcher=ray"]))
    assert one.folder == two.folder


def test_a_job_sets_its_threads_before_anything_loads_that_reads_them():
    """A job that began with torch loaded had two threads instead of one, and other numbers."""
    code = "import sys, pipeline.commands.sweep\nassert not {'numpy', 'torch', 'mlflow', 'pytorch_lightning'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("overrides", "fault"),
    [
        (["seed=0,-1"], "seed: got -1, takes a whole number from 0"),
        (["task=run,compare"], "task: got compare in a sweep (-m), takes run, sync or measure"),
        (["training.devices=2"], "training.devices: got several processes"),
        (["pruning.fraction=0.2,2", "trainig.epochs=3"], "trainig: unknown setting; did you mean training?"),
        (["+method=lr_rewinding,lr_rewindin"], "lr_rewindin"),
        (
            ["hydra/sweeper=optuna", "seed=0,1"],
            "hydra/sweeper=optuna: a sweep's jobs are all checked before one starts",
        ),
    ],
)
def test_faults_of_any_job_are_told_before_one_is_started(overrides, fault, typed, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["pipeline", "-m", *overrides, f"runs={tmp_path / 'runs'}"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert fault in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_time_left_counts_what_this_call_has_done():
    notes = [Note("done", 1.0), Note("complete", 1.0, 1.0), Note("running", 0.75, 0.5), Note("waiting")]
    assert sweep_notes.seconds_left(notes, 100.0) == pytest.approx((0.25 + 1.0) * 100 / (1.0 + 0.25))
    assert sweep_notes.seconds_left([Note("running", 0.5, 0.5), Note()], 9.0) is None


@pytest.mark.slow
def test_a_job_that_fails_lets_the_others_go_on_and_again_runs_what_is_missing(typed, tmp_path):
    command = ["-m", *SMALL, "pruning.rounds=1", "model.weights=null,missing.pt", "seed=0,1"]
    status, out = typed(*command)
    assert status == 1
    assert "4 jobs: 2 done, 2 failed" in out
    assert re.search(r"failed: model.weights=missing.pt seed=1: model.weights: .*missing.pt", out)
    assert len(list((tmp_path / "runs").glob("digits-*/seed-*/round-01/round.json"))) == 2
    status, out = typed(*command)
    assert "4 jobs: 2 complete before, 2 failed" in out
    assert "the same command runs what is missing" in out
    assert [run[1] for run in store(tmp_path / "runs")] == ["FINISHED"] * (2 + 4)


@pytest.mark.slow
def test_what_jobs_print_is_kept_apart(typed, tmp_path):
    status, out = typed("-m", *SMALL, "pruning.rounds=1", "seed=0,1")
    assert status == 0
    assert "compression" not in out
    assert len(re.findall(r"(?m)^ +[12] of 2  done +seed=[01]: 80% kept, test accuracy \d+\.\d+%$", out)) == 2
    logs = sorted((tmp_path / "runs" / "sweeps").glob("*/job-*.log"))
    assert [log.read_text().split()[:3] for log in logs] == [["round", "density", "sparsity"]] * 2


@pytest.mark.slow
def test_a_sweep_ends_with_the_comparison_of_its_own_jobs_and_no_others(typed, tmp_path):
    short = [*SMALL, "pruning.rounds=1", "training.epochs=2", "training.max_steps=null"]
    assert typed(*short, "training.batch_size=32", "seed=0")[0] == 0
    sweep_of_two = ["-m", *short, "retraining=lr_rewinding,fine_tuning", "seed=0"]
    status, out = typed(*sweep_of_two)
    assert status == 0
    table = (tmp_path / "comparison" / "comparison.md").read_text()
    assert "2 methods, 2 runs" in table
    assert "| density | fine_tuning | lr_rewinding |" in out
    assert typed(*short, "task=compare")[0] == 1, "of all runs of that name, one has other batches"
    status, out = typed(*sweep_of_two)
    assert (status, "2 complete before" in out, "| density |" in out) == (0, True, True)
    assert typed(*short, "retraining=lr_rewinding", "pruning.rounds=2", "seed=0")[0] == 0
    typed(*sweep_of_two)
    assert (tmp_path / "comparison" / "comparison.md").read_text() == table, (
        "rounds of a longer run are not the sweep's"
    )
    status, out = typed("-m", *short, "training.epochs=1,2")
    assert status == 0
    assert "the jobs are not compared: these runs cannot be compared: training.epochs is" in out


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [[], ["hydra/launcher=joblib", "hydra.launcher.n_jobs=1"]])
def test_ctrl_c_stops_the_whole_sweep(launcher, typed, monkeypatch, tmp_path):
    from pipeline.report.display import Display

    epoch_done = Display.epoch_done

    def interrupted(self, index, history):
        epoch_done(self, index, history)
        if index == 1:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(Display, "epoch_done", interrupted)
        status, out = typed("-m", *SMALL, "seed=0,1", *launcher)
    assert status == 130
    assert "2 jobs: 1 stopped, 1 not started" in out
    assert typed("-m", *SMALL, "seed=0,1", *launcher)[0] == 0
    assert [run[1] for run in store(tmp_path / "runs")] == ["FINISHED"] * (2 + 6)


def typed_for_real(*arguments, **environment):
    """The command as a process at the head of a session of its own."""
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"} | environment
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline", *arguments],
        cwd=PROJECT, env=environment, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The sweep, undisturbed, by two workers of joblib: its runs folder."""
    runs = tmp_path_factory.mktemp("whole") / "runs"
    process = typed_for_real(*SWEEP, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", *places(runs))
    out, _ = process.communicate(timeout=400)
    assert process.returncode == 0, out
    assert "4 jobs: 4 done" in out
    assert len(list(runs.glob("dense/*/seed-*"))) == 2, "the dense network of a seed is trained once"
    return runs


@pytest.mark.slow
def test_killed_with_all_its_processes_and_typed_again_a_sweep_ends_as_if_nothing_had_been(whole, tmp_path):
    runs, rounds = tmp_path / "runs", random.Random(5).randrange(1, 4)
    command = [*SWEEP, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", *places(runs)]
    process = typed_for_real(*command)
    while len(list(runs.glob("digits-*/*/round-*/round.json"))) < rounds:
        assert process.poll() is None
        time.sleep(0.02)
    killed(process)
    process.stdout.close()
    assert content(runs) != content(whole)
    process = typed_for_real(*command)
    out, _ = process.communicate(timeout=400)
    assert process.returncode == 0, out
    assert content(runs) == content(whole)
    assert ordered(runs) == ordered(whole)


@pytest.mark.slow
def test_a_worker_that_is_killed_costs_no_job(whole, tmp_path):
    runs = tmp_path / "runs"
    process = typed_for_real(*SWEEP, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", *places(runs))
    while not list(runs.glob("digits-*/*/round-01/round.json")):
        time.sleep(0.02)
    workers = [each for each in family(process) if "loky.backend.popen_loky_posix" in " ".join(each.cmdline())]
    workers[0].kill()
    out, _ = process.communicate(timeout=400)
    assert process.returncode == 0, out
    assert ordered(runs) == ordered(whole)


@pytest.mark.slow
def test_submitit_runs_the_same_sweep(whole, tmp_path):
    """The jobs of one seed, each in a process of its own."""
    runs = tmp_path / "runs"
    process = typed_for_real(*SWEEP[:-1], "seed=0", "hydra/launcher=submitit_local", *places(runs))
    out, _ = process.communicate(timeout=500)
    assert process.returncode == 0, out
    assert content(runs) == {path: each for path, each in content(whole).items() if "seed-0" in path.parts}
    of_one, of_both = (Counter(map(repr, store(each))) for each in (runs, whole))
    assert of_one <= of_both
    assert 2 * of_one.total() == of_both.total()


@pytest.mark.slow
def test_ray_runs_it_on_two_nodes_and_goes_on_when_one_is_killed(whole, tmp_path):
    ray = str(Path(sys.executable).with_name("ray"))
    port = free_port()
    address, folder = f"127.0.0.1:{port}", Path(f"/tmp/ray-{os.getpid()}")  # sockets' paths may have a hundred letters
    cluster = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
    environment = os.environ | cluster
    common = ["--num-cpus=1", "--disable-usage-stats", "--block", "--object-store-memory=100000000"]
    head = [ray, "start", "--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={folder}", *common]
    nodes = []
    try:
        for command in (head, [ray, "start", f"--address={address}", *common]):
            nodes.append(
                subprocess.Popen(
                    command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL, cwd=PROJECT
                )
            )
            time.sleep(8)
        runs = tmp_path / "runs"
        command = [*SWEEP, "hydra/launcher=ray", f"hydra.launcher.ray.init.address={address}", *places(runs)]
        process = typed_for_real(*command, **cluster)
        while not list(runs.glob("digits-*/*/round-01/round.json")):
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.05)
        killed(nodes[1])
        out, _ = process.communicate(timeout=400)
        process = typed_for_real(*command, **cluster)
        again, _ = process.communicate(timeout=400)
        assert process.returncode == 0, out + again
        assert ordered(runs) == ordered(whole)
    finally:
        for node in nodes:
            if node.poll() is None:
                killed(node)
        shutil.rmtree(folder, ignore_errors=True)
