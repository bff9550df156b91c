"""``make server``: real PostgreSQL and MLflow, eight writers at once, and a server that dies in the middle of a run."""

import collections
import contextlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from pipeline.ground.errors import PipelineError
from pipeline.tracking import server
from tests import servers
from tests.conftest import SMALL
from tests.processes import forked
from tests.tracking.test_tracker import artifacts, runs

pytestmark = pytest.mark.slow
EPOCHS = 30
"""Of a round, in a run that outlasts an outage."""


@pytest.fixture(scope="module")
def folder():
    """A folder that PostgreSQL, which is not run by root, can enter."""
    try:
        server._programs()
    except PipelineError as error:
        pytest.skip(str(error))
    folder = Path(tempfile.mkdtemp(prefix="server-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


class Server:
    """The server, which can die and come back."""

    def __init__(self, folder):
        self.port = servers.free_port()
        self.command = [
            sys.executable,
            "-m",
            "pipeline.tracking.server",
            "--folder",
            str(folder),
            "--port",
            str(self.port),
        ]
        self.log = folder / "log"
        self.uri = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self):
        self.process = servers.started(self.command, self.port, self.log)

    def kill(self):
        servers.killed(self.process)


@pytest.fixture(scope="module")
def one_server(folder):
    server = Server(folder)
    yield server
    servers.stopped(server.process)


@pytest.fixture
def team(one_server):
    """The server, which lives: a test that failed while it was away leaves the next ones theirs."""
    if one_server.process.poll() is not None:
        one_server.start()
    return one_server


def every_metric(client, name):
    """How often each metric of each run stands there, by run, metric and step; and its values."""
    seen = collections.Counter()
    values = {}
    for kind in ("job", "round"):
        for run in runs(client, kind, name):
            who = (run.data.tags["method"] if kind == "job" else "", run.data.tags["seed"], run.data.tags.get("round"))
            for key in run.data.metrics:
                for each in client.get_metric_history(run.info.run_id, key):
                    seen[kind, who, key, each.step, each.timestamp] += 1
                    if "seconds" not in key:
                        values[kind, who, key, each.step] = each.value
    return seen, values


def check(client, name, jobs):
    parents, children = runs(client, "job", name), runs(client, "round", name)
    assert [run.info.status for run in parents] == ["FINISHED"] * jobs
    assert [run.info.status for run in children] == ["FINISHED"] * jobs * 3
    seen, _ = every_metric(client, name)
    assert set(seen.values()) == {1}
    for run in parents:
        for key in ("pruning/density", "test/accuracy", "validation/accuracy", "cost/macs_kept"):
            steps = [each.step for each in client.get_metric_history(run.info.run_id, key)]
            assert sorted(steps) == [0, 1, 2]
    for run in children:
        steps = [each.step for each in client.get_metric_history(run.info.run_id, "train/loss")]
        assert sorted(steps) == [1, 2, 3]
        assert len(artifacts(client, run)) == 4


def at_once(jobs, *arguments):
    """So many seeds, a process each, all started at once."""
    processes = [forked(*SMALL, f"seed={seed}", *arguments) for seed in range(jobs)]
    for process in processes:
        out, err = process.communicate(timeout=500)
        assert process.returncode == 0, out + err


def test_eight_runs_at_once_leave_every_figure_once_in_postgresql(team, tmp_path):
    at_once(8, "name=eight", f"runs={tmp_path}", f"tracking.uri={team.uri}")
    check(MlflowClient(team.uri), "eight", 8)


def test_four_runs_that_meet_an_empty_sqlite_store_make_it_once_and_lose_nothing(tmp_path):
    at_once(4, f"runs={tmp_path}")
    check(MlflowClient(f"sqlite:///{tmp_path / 'mlflow' / 'mlflow.db'}"), "digits", 4)


def rounds_of(folder):
    return len(list(folder.glob("rough/rough-*/*/round-*/round.json")))


def heard(process, words):
    """Waits until a process prints some words."""
    while words not in process.said():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def test_a_server_that_dies_for_a_while_costs_neither_training_nor_content(team, tmp_path):
    job = [
        *SMALL,
        f"training.epochs={EPOCHS}",
        "training.max_steps=null",
        "pruning.rounds=3",
        f"tracking.uri={team.uri}",
    ]
    calm = forked(*job, "name=calm", f"runs={tmp_path / 'calm'}")
    assert calm.wait(300) == 0, calm.communicate()
    rough = forked(*job, "name=rough", f"runs={tmp_path / 'rough'}")
    while rounds_of(tmp_path) < 1:
        assert rough.poll() is None
        time.sleep(0.02)
    team.kill()
    before = rounds_of(tmp_path)
    heard(rough, "warning: MLflow at ")
    while rounds_of(tmp_path) == before:
        assert rough.poll() is None, "training goes on"
        time.sleep(0.1)
    rough.send_signal(signal.SIGSTOP)  # a run that ends waits so long for its server, and no longer
    try:
        team.start()
    finally:
        rough.send_signal(signal.SIGCONT)
    out, err = rough.communicate(timeout=300)
    assert rough.returncode == 0, out + err
    assert out.count("warning: MLflow at ") == 1
    assert out.count(" is back and gets what it missed") == 1
    client = MlflowClient(team.uri)
    (seen, values), (_, expected) = every_metric(client, "rough"), every_metric(client, "calm")
    assert values == expected
    assert set(seen.values()) == {1}
    for kind in ("job", "round"):
        assert [(r.info.run_name, r.info.status, artifacts(client, r)) for r in runs(client, kind, "rough")] == [
            (r.info.run_name, r.info.status, artifacts(client, r)) for r in runs(client, kind, "calm")
        ]


def test_what_a_server_missed_for_good_is_delivered_by_sync(team, tmp_path):
    job = [*SMALL, "training.epochs=20", f"tracking.uri={team.uri}", "name=late", f"runs={tmp_path}"]
    process = forked(*job)
    while not list(tmp_path.glob("late-*/*/round-01/round.json")):
        assert process.poll() is None
        time.sleep(0.02)
    team.kill()
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    assert "misses a part: the same command with task=sync delivers it" in out
    team.start()
    for _ in range(2):
        sync = forked(*job, "task=sync")
        out, _ = sync.communicate(timeout=300)
        assert sync.returncode == 0, out
        assert "has all 3 rounds of" in out
        client = MlflowClient(team.uri)
        seen, _ = every_metric(client, "late")
        assert set(seen.values()) == {1}
        assert [run.info.status for run in runs(client, "job", "late")] == ["FINISHED"]
        assert [run.info.status for run in runs(client, "round", "late")] == ["FINISHED"] * 3


def test_a_second_server_is_told_of_the_first_and_leaves_it_alone(team):
    before = [each.pid for each in servers.family(team.process)]
    command = [*team.command[:-1], str(servers.free_port())]
    second = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert second.returncode == 1
    assert re.fullmatch(
        rf"a server runs for \S+ already: {team.uri}, process {team.process.pid} on \S+; use that, .*\n", second.stderr
    )
    assert MlflowClient(team.uri).search_experiments()
    assert set(before) <= {each.pid for each in servers.family(team.process)}


@pytest.mark.parametrize("spared", ["PostgreSQL", "all but the command"])
def test_a_server_that_was_killed_comes_back_with_all_it_had(spared, team):
    name = f"spared {spared}"
    MlflowClient(team.uri).create_experiment(name)
    everyone = servers.family(team.process)
    of_postgresql = [each for each in everyone if each.name().startswith("postgres")]
    killed = {"nobody": everyone, "all but the command": everyone[:1]}.get(
        spared, [each for each in everyone if each not in of_postgresql]
    )
    for each in killed:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    team.process.wait()
    assert not psutil.wait_procs(everyone, 60)[1], "what a server started ends with it"
    team.start()
    assert MlflowClient(team.uri).get_experiment_by_name(name)


STRANGERS = {"lives": lambda alive: f"{alive}\n/elsewhere\n", "is gone": lambda _: "4194303\n/elsewhere\n",
             "is no number": lambda _: "half a no", "was never written": lambda _: ""}  # fmt: skip


@pytest.mark.parametrize("stranger", STRANGERS)
def test_a_note_of_another_process_is_no_leftover(stranger, folder):
    place = folder / "strangers" / "postgres"
    with server.postgresql(place):
        pass
    alive = subprocess.Popen(["sleep", "600"], user=server._user())
    try:
        (place / "postmaster.pid").write_text(STRANGERS[stranger](alive.pid))
        with server.postgresql(place) as uri:
            assert uri.startswith("postgresql")
        assert alive.poll() is None
    finally:
        alive.kill()
        alive.wait()


def test_a_postgresql_that_was_left_is_ended(folder):
    place = folder / "left" / "postgres"
    with server.postgresql(place), server.postgresql(place) as uri:
        assert uri.startswith("postgresql")
        assert not server._serves("1", place)
        assert server._serves((place / "postmaster.pid").read_text().split()[0], place)


def test_a_server_listens_on_loopback_alone_and_its_database_on_no_port(team):
    listening = [
        each.laddr
        for process in servers.family(team.process)
        for each in process.net_connections()
        if each.status == "LISTEN"
    ]
    assert {(each.ip, each.port) for each in listening} == {("127.0.0.1", team.port)}
