"""Whole jobs by the command line: plans, reports, the shipped files, real signals and real deaths."""

import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
from mlflow import MlflowClient

from pipeline.__main__ import main
from pipeline.ground.errors import Stopped
from pipeline.settings.composition import CONF
from pipeline.tracking.store import make_embedded_store
from pipeline.training.speed import has_compiler
from tests.conftest import PHOTOS, PROJECT, SMALL, settings, typed
from tests.processes import command, forked
from tests.rounds.test_loop import content
from tests.tracking.test_tracker import everything

EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
JOB = [
    *SMALL, "retraining=weight_rewinding", "training.max_steps=null", "training.epochs=3", "data.crop_padding=1",
    "data.flip=true",
]  # fmt: skip
DEATHS = {
    "images in memory": (6, JOB),
    "images on disk": (3, [*SMALL, *PHOTOS, "data.source={photos}", "training.batch_size=16"]),
    "bfloat16": (2, [*JOB, "training.precision=bfloat16"]),
    "compiled": (2, [*JOB, "training.compile=on"]),
}


def store(runs):
    return MlflowClient(f"sqlite:///{runs / 'mlflow' / 'mlflow.db'}")


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_a_shipped_experiment_opens_with_its_command_and_composes(experiment):
    text = (CONF / "experiment" / f"{experiment}.yaml").read_text()
    header = [line for line in text.splitlines() if line.startswith("#")]
    assert any(f"python -m pipeline +experiment={experiment}" in line for line in header)
    assert any(line.startswith("# Expect") for line in header)
    source = [] if experiment.endswith("digits") else ["data.source=x"]
    composed = settings(f"+experiment={experiment}", *source)
    assert composed.name == experiment.removeprefix("amc_"), "a search's policy is for the experiment's own runs"
    assert (composed.task == "search") == experiment.startswith("amc_")


def test_the_shipped_resnet20_holds_the_papers_settings():
    paper = settings("+experiment=resnet20")
    training, optimizer = paper.training, paper.training.optimizer
    assert (training.batch_size, training.max_steps, training.epochs) == (128, 71_108, 182)
    assert (optimizer.kind, optimizer.momentum, optimizer.nesterov, optimizer.rate) == ("sgd", 0.9, False, 0.1)
    assert (optimizer.weight_decay, optimizer.decay_norm_and_bias) == (2e-4, True)
    assert (training.schedule.milestones, training.schedule.factor) == ((91 / 182, 136 / 182), 0.1)
    assert paper.model.arguments == {"depth": 20, "batchnorm_eps": 1e-5, "batchnorm_momentum": 0.003}
    assert (paper.data.crop_padding, paper.data.flip) == (4, True)
    assert (paper.data.validation_images, paper.data.validation_from, paper.data.test_images) == (2000, "test", None)
    assert (paper.pruning.fraction, paper.pruning.rounds, paper.pruning.criterion) == (0.2, 10, "magnitude")
    assert (paper.pruning.scope, paper.pruning.exclude) == ("global", ())


def test_a_terminal_is_told_what_is_about_to_run_and_all_what_came_of_it(tmp_path, monkeypatch, capsys):
    job = [*SMALL, "pruning.rounds=1", f"runs={tmp_path}"]
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    assert typed(*job) == 0
    lines = [re.sub("\x1b\\[[0-9;]*m", "", line) for line in capsys.readouterr().out.splitlines()]
    assert [line.split()[0] for line in lines[:5]] == ["network", "data", "device", "method", "kept"]
    assert "small_cnn: 980 weights" in lines[0]
    assert all(len(line) <= 80 for line in lines[5:8])
    monkeypatch.setenv("TTY_COMPATIBLE", "0")
    assert typed(*job) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["round", "density"]
    assert re.match(r"chosen  round 1, 1.25 times fewer weights, test accuracy \S+% \(dense \S+%\)", lines[-1])


def test_a_run_that_goes_on_says_from_where(tmp_path, monkeypatch, capsys):
    from pipeline.report.display import Display

    def stopped(self, index, history):
        raise Stopped(2)

    with monkeypatch.context() as patched:
        patched.setattr(Display, "epoch_done", stopped)
        assert typed(*SMALL, "pruning.rounds=1", f"runs={tmp_path}") == 130
    capsys.readouterr()
    assert typed(*SMALL, "pruning.rounds=1", f"runs={tmp_path}") == 0
    assert "round 0 goes on after epoch 1 of 3" in capsys.readouterr().out


def test_a_plan_trains_nothing_and_keeps_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["pipeline", *SMALL, f"runs={tmp_path}", "task=plan", "training.max_steps=null"])
    main()
    lines = capsys.readouterr().out.splitlines()
    weights = 9 * 4 + 9 * 4 * 8 + 9 * 8 * 8 + 80
    assert [line.split() for line in lines[1:4]] == [
        ["0", "1.0000", str(weights), "3", "30"],
        ["1", f"{784 / weights:.4f}", "784", "3", "30"],
        ["2", f"{627 / weights:.4f}", "627", "3", "30"],
    ]
    assert lines[4] == "3 rounds, 9 epochs, 90 steps"
    assert re.fullmatch(r"one epoch took .* s here: about .* in all, less what is complete already", lines[5])
    assert lines[6:] == ["pruned: features.0.weight, features.3.weight, features.6.weight, output.weight"]
    assert list(tmp_path.iterdir()) == []


def test_a_report_sets_methods_side_by_side(tmp_path, monkeypatch, capsys):
    for arguments in (["retraining=lr_rewinding"], ["retraining=fine_tuning"], ["task=report"]):
        monkeypatch.setattr(sys, "argv", ["pipeline", *SMALL, f"runs={tmp_path}", *arguments])
        main()
    table = (tmp_path / "digits.md").read_text()
    assert table in capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("|")]
    assert rows[0] == ["density", "fine_tuning, seed 0", "lr_rewinding, seed 0"]
    assert [row[0] for row in rows[2:]] == ["1.0000", "0.8000", "0.6398"]
    assert rows[2][1] == rows[2][2]
    assert (tmp_path / "digits.png").stat().st_size > 10_000


@pytest.mark.slow
def test_runs_that_differ_in_training_alone_are_told_apart_in_a_report(tmp_path, monkeypatch, capsys):
    for arguments in (["training.batch_size=32"], ["training.batch_size=64"], ["task=report"]):
        monkeypatch.setattr(sys, "argv", ["pipeline", *SMALL, "pruning.rounds=1", f"runs={tmp_path}", *arguments])
        main()
    head = next(line for line in (tmp_path / "digits.md").read_text().splitlines() if line.startswith("|"))
    assert re.fullmatch(r"\| density( \| lr_rewinding, seed 0 \(digits-[0-9a-f]{8}\)){2} \|", head)


@pytest.mark.slow
def test_a_network_of_which_nothing_is_left_goes_through_everything(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    runs = tmp_path / "runs"
    job = [*SMALL, "training.epochs=1", "pruning.rounds=1", "pruning.fraction=0.999999", f"artifacts={tmp_path}"]
    for task in ("run", "run", "report", "compare", "sync"):
        monkeypatch.setattr(sys, "argv", ["pipeline", *job, f"runs={runs}", f"task={task}"])
        main()
    documents = [json.loads(each.read_text(), parse_constant=pytest.fail) for each in tmp_path.rglob("*.json")]
    assert len(documents) == 3
    (parent,) = [metrics for name, _, metrics, _ in everything(store(runs)) if "lr_rewinding" in name]
    assert parent["pruning/density"] == [(0, 1.0), (1, 0.0)]
    assert parent["pruning/compression_ratio"][1][1] > 1e300
    # a ledger of before, where such numbers stood bare
    (path,) = runs.glob("digits-*/seed-0/round-01/round.json")
    record = json.loads(path.read_text())
    record["test"]["test_loss"] = math.inf
    path.write_text(json.dumps(record))
    monkeypatch.setattr(sys, "argv", ["pipeline", *job, f"runs={runs}", "task=report"])
    main()


def test_a_report_of_nothing_is_a_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["pipeline", f"runs={tmp_path}", "task=report"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 1
    assert capsys.readouterr().err.startswith("no complete round of experiment 'digits' in ")


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(sys, "argv", ["pipeline", *SMALL, f"runs={tmp_path / 'file'}"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 1
    assert re.fullmatch(r"Not a directory: .*/file/.*; runs= names the folder .*\n", capsys.readouterr().err)


def test_help_comes_without_the_heavy_libraries():
    code = "import sys; sys.argv = ['pipeline', '--help']\nfrom pipeline.__main__ import main\ntry: main()\nexcept SystemExit: pass\nassert not {'torch', 'mlflow', 'pytorch_lightning'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "retraining: fine_tuning, lottery_ticket" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signum", "status", "run_status"), [(2, 130, "KILLED"), (15, 143, "KILLED"), (1, 129, "KILLED")]
)
def test_a_real_signal_ends_in_a_sentence_and_a_true_status(signum, status, run_status, tmp_path):
    process = forked(*JOB, "training.epochs=400", "pruning.rounds=1", f"runs={tmp_path}")
    while not list(tmp_path.glob("dense/*/*/round-00/partial.safetensors")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signum)
    out, err = process.communicate(timeout=60)
    assert process.returncode == status
    name = signal.Signals(signum).name
    assert err == f"stopped by {name}; the same command goes on from the last finished epoch\n"
    statuses = [status for _, status, *_ in everything(store(tmp_path))]
    assert statuses == [run_status] * 2
    assert out == ""


@pytest.mark.slow
def test_a_reader_that_goes_ends_a_run_in_silence(tmp_path):
    with command(*JOB, "pruning.rounds=1", f"runs={tmp_path}") as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(timeout=120) == 141
        assert process.stderr.read() == ""
    statuses = {status for _, status, *_ in everything(store(tmp_path))}
    assert statuses <= {"KILLED", "FINISHED"}
    assert "KILLED" in statuses


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", DEATHS)
def test_killed_at_random_moments_and_continued_a_job_ends_as_if_nothing_had_been(kind, photos, tmp_path):
    """One moment is drawn from each part of the job's length, from its first line to its last."""
    if kind == "compiled" and not has_compiler():
        pytest.skip("no C++ compiler")
    kills, arguments = DEATHS[kind]
    job = [argument.format(photos=photos) for argument in arguments]
    if kind == "compiled":  # what is compiled is kept for the next process
        assert forked(*job, f"runs={tmp_path / 'first'}").wait() == 0
    whole, begin = tmp_path / "whole", time.perf_counter()
    assert forked(*job, f"runs={whole}").wait() == 0
    length = time.perf_counter() - begin
    files, mirrored = content(whole), everything(store(whole))
    assert len(files) > 10
    moments, killed, unlike = random.Random(20), 0, 0
    while killed < kills:
        runs = tmp_path / f"killed-{killed}"
        process = forked(*job, f"runs={runs}")
        process.wait(length * moments.uniform(killed, killed + 1) / kills)
        process.kill()
        process.wait()
        if process.returncode == 0:  # it had come to its end before
            length *= 0.9
            shutil.rmtree(runs)
            continue
        assert process.returncode == -signal.SIGKILL
        killed += 1
        unlike += content(runs) != files
        assert forked(*job, f"runs={runs}").wait() == 0
        assert content(runs) == files
        assert everything(store(runs)) == mirrored
    assert unlike >= kills // 2, "most kills should fall before the end of the work"


@pytest.mark.slow
@pytest.mark.parametrize("home", [{}, {"HOME": "/proc/nowhere"}], ids=["no home", "a home that cannot be written"])
def test_a_user_without_a_name_and_a_home_runs(home, tmp_path):
    """As of ``docker run -u 4242``. Files stay readable, as they are in an image."""
    if os.getuid() or shutil.which("setpriv") is None:
        pytest.skip("takes root and setpriv")
    caps = "+dac_override,+dac_read_search"
    program = ["setpriv", "--reuid", "4242", "--clear-groups", "--inh-caps", caps, "--ambient-caps", caps]
    done = subprocess.run(
        [*program, sys.executable, "-m", "pipeline", *SMALL, f"runs={tmp_path}"],
        cwd=PROJECT, env={"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", **home},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert [status for _, status, *_ in everything(store(tmp_path))] == ["FINISHED"] * 4


def test_settings_that_a_lightning_module_brings_itself_are_a_sentence(monkeypatch, capsys):
    arguments = ["model.module=tests.own_modules.Plain", "training.batch_size=7", "training/schedule=cosine"]
    monkeypatch.setattr(sys, "argv", ["pipeline", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert re.fullmatch(r"(training.batch_size=7|training/schedule=cosine): a LightningModule brings.*\n"
                        r"training/schedule=cosine: a LightningModule.*\n", capsys.readouterr().err)  # fmt: skip


@pytest.mark.slow
def test_two_runs_at_once_share_the_training_of_round_0_and_the_store(tmp_path):
    processes = [
        forked(*JOB, f"retraining={method}", f"runs={tmp_path}")
        for method in ("lr_rewinding", "fine_tuning", "weight_rewinding")
    ]
    for process in processes:
        process.wait()
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert len(list(tmp_path.glob("dense/*/*/round-00/round.json"))) == 1
    runs = everything(store(tmp_path))
    assert len(runs) == 3 + 9
    assert all(status == "FINISHED" for _, status, *_ in runs)


@pytest.mark.slow
def test_the_same_command_twice_at_once_is_refused(tmp_path, monkeypatch, capsys):
    from pipeline.rounds.building import build_job

    with build_job(settings(*SMALL), tmp_path)[1].ledger.locked():
        second = forked(*SMALL, f"runs={tmp_path}")
        _, error = second.communicate(timeout=120)
    assert second.returncode == 1
    assert f"is in use by process {os.getpid()} of " in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_the_wheels_command_runs_from_any_folder_with_the_code_there(tmp_path):
    """Also where that has a ``pipeline.py`` of its own."""
    site, cwd = tmp_path / "site", tmp_path / "elsewhere"
    cwd.mkdir()
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(PROJECT)], check=True
    )
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run([*pip, "install", "-q", "--no-deps", "--target", str(site), str(wheel)], check=True)
    (cwd / "pipeline.py").write_text("raise SystemExit('another pipeline')")
    (cwd / "mine.py").write_text(
        "from torch import nn\n\n\ndef net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))\n"
    )
    done = subprocess.run(
        [site / "bin" / "rewind", *SMALL[1:], "model=custom", "model.network=mine.net", "pruning.rounds=1"],
        cwd=cwd, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(site)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    out, err = done.stdout, done.stderr
    assert done.returncode == 0, err
    assert err == ""
    (record,) = (cwd / "runs").glob("net-*/seed-0/round-01/round.json")
    assert json.loads(record.read_text())["environment"]["git_commit"] == "unknown"
    assert f"curve   {record.parents[1].relative_to(cwd)}" in out


def test_an_empty_store_that_was_left_unfinished_is_made_again(tmp_path):
    (tmp_path / "mlflow").mkdir()
    (tmp_path / "mlflow" / "unfinished.db").write_bytes(b"half a database")
    make_embedded_store(tmp_path)
    assert store(tmp_path).search_experiments()


@pytest.mark.slow
def test_resnet20_on_real_images_runs_without_a_warning(cifar10, tmp_path):
    """A few steps of the paper's experiment, as typed but for the length of an epoch."""
    process = forked(
        "+experiment=resnet20", f"data.source={cifar10}", "training.epochs=1", "training.max_steps=3",
        "pruning.rounds=1", "data.test_images=500", "data.validation_images=500", f"runs={tmp_path}",
    )  # fmt: skip
    out, err = process.communicate(timeout=500)
    assert process.returncode == 0, err
    assert err == ""
    assert [line.split()[:2] for line in out.splitlines()[1:3]] == [["0", "1.0000"], ["1", "0.8000"]]
