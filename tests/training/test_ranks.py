"""Two real processes (gloo) against one: the same training, one mask, metrics of the whole data set, exact resume."""

import json
import os
import random
import re
import subprocess
import sys
import time

import pytest
import torch

from pipeline.data.memory import EVALUATION_BATCH
from pipeline.ground.errors import PipelineError, SettingsError
from pipeline.rounds.building import build_job
from pipeline.rounds.ledger import Ledger, dense_home
from pipeline.training.ranks import LOST, Ranks, follows, together
from pipeline.training.train import evaluate
from tests.commands.test_command_line import store
from tests.conftest import PHOTOS, settings
from tests.processes import command, forked, loaded
from tests.rounds.test_loop import content
from tests.servers import free_port
from tests.tracking.test_tracker import everything

two_cores = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="takes two cores")
TWO = ["training.devices=2", "training.epochs=3", "pruning.rounds=1", "deploy.sizes=false"]


def apart(rank, port, answers):
    """One of two connected processes, which puts its number and what it is told."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"tcp://localhost:{port}", rank=rank, world_size=2)
    ranks = Ranks(rank, 2)
    made = ranks.from_leader(lambda: {"mask": torch.ones(2) * (rank + 1)})
    ranks.agree("the same", "the masks")
    told = [made["mask"].tolist()]
    for fails in (
        lambda: ranks.agree(f"digest {rank}", "the masks of round 3"),
        lambda: ranks.from_leader(lambda: Ledger.read(None, f"round of {rank}")),
    ):
        with pytest.raises((PipelineError, AttributeError)) as error:
            fails()
        told.append(str(error.value))
    answers.put((rank, told))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_get_the_leaders_results_and_errors_and_masks_that_differ_are_an_error_on_both():
    port = free_port()
    answers = loaded().SimpleQueue()
    processes = [loaded().Process(target=apart, args=(rank, port, answers)) for rank in range(2)]
    for process in processes:
        process.start()
    found = dict(answers.get() for _ in processes)
    for process in processes:
        process.join()
    differ = "the masks of round 3 of process 1 of 2 differ from those of process 0"
    assert found[0] == found[1]
    assert found[0][:2] == [[1.0, 1.0], differ]
    assert "NoneType" in found[0][2]


@pytest.mark.parametrize(
    ("variables", "devices", "nodes", "expected"),
    [
        ({}, 2, 1, False),
        ({"LOCAL_RANK": "1"}, 2, 1, True),
        ({"LOCAL_RANK": "0", "NODE_RANK": "1"}, 1, 2, True),
        ({"LOCAL_RANK": "1"}, 1, 1, False),
    ],
)
def test_a_process_knows_whether_it_follows(variables, devices, nodes, expected, monkeypatch):
    for name in ("RANK", "SLURM_PROCID", "NODE_RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert follows(devices, nodes) is expected


@pytest.mark.slow
def test_more_devices_than_there_are_is_a_sentence(tmp_path):
    many = len(os.sched_getaffinity(0)) + 1
    process = forked(*TWO, f"training.devices={many}", f"runs={tmp_path}")
    _, err = process.communicate(timeout=100)
    assert process.returncode == 2
    assert err == f"training.devices: got {many}, takes at most {many - 1}, the cores there are\n"


def test_nodes_without_a_launcher_are_a_sentence(monkeypatch):
    for name in ("TORCHELASTIC_RUN_ID", "SLURM_NTASKS", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    with (
        pytest.raises(SettingsError, match=r"training.nodes: got 2, which takes the same command on each node"),
        together(1, 2),
    ):
        pass


def finished(*arguments, processes=2):
    """The command to its end, started as torchrun starts it: what the process that leads said."""
    world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(processes)}
    started = [
        forked(*arguments, **(world | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}))
        for rank in range(processes)
    ]
    said = [process.communicate(timeout=300) for process in started]
    assert [process.returncode for process in started] == [0] * processes, said
    assert [err for _, err in said] == [""] * processes
    assert [out for out, _ in said[1:]] == [""] * (processes - 1)
    return said[0][0]


def ledgers(runs, *arguments):
    """The dense network's ledger and the run's, of the same settings."""
    job, site = build_job(settings(*arguments), runs)
    return job, Ledger(*dense_home(runs, site.ledger.identity)), site.ledger


@two_cores
@pytest.mark.slow
def test_two_processes_train_what_one_trains(tmp_path):
    """To rounding, for a network without BatchNorm, whose statistics are those of a process's part of a batch."""
    arguments = ["model=lenet_300_100", *TWO]
    finished(*arguments, f"runs={tmp_path / 'two'}")
    finished(*arguments, "training.devices=1", f"runs={tmp_path / 'one'}", processes=1)
    for index in (0, 1):
        one, two = (ledgers(tmp_path / name, *arguments)[1 + index] for name in ("one", "two"))
        for name, tensor in one.state(index).network.items():
            torch.testing.assert_close(two.state(index).network[name], tensor, atol=1e-3, rtol=1e-3)
        pairs = list(zip(one.read(index).history, two.read(index).history, strict=True))
        assert len(pairs) == 3
        for alone, both in pairs:
            assert both.metrics == pytest.approx(alone.metrics, abs=0.003)
        assert two.read(index).test == pytest.approx(one.read(index).test, abs=0.003)


@two_cores
@pytest.mark.slow
def test_metrics_are_those_of_the_whole_data_set_and_runs_and_processes_are_shown_once(tmp_path):
    places = [f"runs={tmp_path}", f"record={tmp_path / 'run.json'}"]
    process = command(*TWO, "deploy.sizes=true", *places)  # it starts the other itself
    out, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()[:3]] == ["round", "0", "1"]
    assert "dense bytes" in out, "the leader measures the files when the others have gone"
    assert len(json.loads((tmp_path / "run.json").read_text())["weights"]) == 2
    job, _, ledger = ledgers(tmp_path, *TWO)
    alone, _ = build_job(settings(*TWO, "training.devices=1"), tmp_path)
    assert len(job.dataset.test) % 2 == 0 < len(job.dataset.test) % EVALUATION_BATCH
    state, record = ledger.state(1), ledger.read(1)
    for split, expected in (("test", record.test), ("validation", record.history[-1].metrics)):
        figures = evaluate(alone.trainable, split, state)
        assert figures == pytest.approx({key: expected[key] for key in figures}, abs=1e-6)
    names = [name for name, *_ in everything(store(tmp_path))]
    assert names == ["80% lr_rewinding s0", "round 00", "round 01"]


@two_cores
@pytest.mark.slow
def test_two_processes_skip_and_count_the_corrupt_images_that_one_does(photos, tmp_path):
    for name in ("train/temple/03.jpg", "train/flower/05.jpg", "train/flower/06.jpg"):
        (photos / name).write_bytes((photos / name).read_bytes()[:200])
    job = [
        "model=lenet_300_100", *PHOTOS, f"data.source={photos}", "data.workers=0", "training.batch_size=4",
        "training.epochs=2", "pruning.rounds=0", "training.optimizer.rate=0.01", "deploy.sizes=false",
    ]  # fmt: skip
    for devices in (1, 2):
        settings_ = ["data.corrupt=skip", f"training.devices={devices}", f"runs={tmp_path / str(devices)}"]
        out = finished(*job, *settings_, processes=devices)
        assert "3 images cannot be decoded and are left out: " in out
    skipping = [*job, "data.corrupt=skip"]
    one, two = (ledgers(tmp_path / name, *skipping)[1].read(0) for name in ("1", "2"))
    for alone, together_ in zip(one.history, two.history, strict=True):
        assert together_.metrics == pytest.approx(alone.metrics, abs=0.01)
    process = command(*job, "training.devices=2", f"runs={tmp_path / 'error'}")
    _, err = process.communicate(timeout=200)
    assert process.returncode == 1
    assert re.fullmatch(
        r"an image cannot be decoded: .*; data.corrupt=skip leaves such images out and counts them\n", err
    )


@two_cores
@pytest.mark.slow
@pytest.mark.parametrize("module", [True, False])
def test_two_processes_share_the_examples_of_data_of_ones_own(module, tmp_path):
    """As Lightning deals them out: 200 of 400 to each, in batches of the data's own size."""
    own = ["model.module=tests.own_modules.Lit", "objective.score=val_accuracy", "objective.better=higher"]
    plain = ["model=custom", "model.network=tests.own_data.CountsExamples"]
    arguments = [*(own if module else plain), "data.module=tests.own_data.WithClasses", *TWO]
    finished(*arguments, f"runs={tmp_path}")
    job, dense, ledger = ledgers(tmp_path, *arguments)
    assert job.steps_per_epoch == 4
    assert dense.tape().starts["0"].tolist() == [0, 4, 8, 12]
    if not module:
        assert torch.equal(dense.tape().numbers["0|0|lr"], job.schedule().numbers["0|0|lr"])
    assert len(ledger.read(1).history) == 3
    assert ledger.read(1).figures[job.score.test] > 0.15
    if not module:
        assert int(dense.state(0).network["seen"]) == 3 * 200
    alone, _, other = ledgers(tmp_path, *arguments, "training.devices=1")
    assert alone.steps_per_epoch == 8
    assert other.identity != ledger.identity


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The runs folder of two processes that nothing stopped."""
    runs = tmp_path_factory.mktemp("whole")
    finished(*KILLED, f"runs={runs}")
    return runs


KILLED = [*TWO, "training.epochs=4"]


@two_cores
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("victim", ["leader", "follower"])
def test_killed_and_continued_two_processes_end_as_if_nothing_had_been(victim, whole, tmp_path):
    expected, moments = content(whole), random.Random(len(victim))
    runs = tmp_path / "killed"
    process = command(*KILLED, f"runs={runs}")
    while not list(runs.glob("dense/*/*/round-00/partial.safetensors")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    time.sleep(moments.uniform(0, 1))
    followers = [int(pid) for pid in children(process.pid)]
    assert len(followers) == 1
    os.kill(process.pid if victim == "leader" else followers[0], 9)
    _, err = process.communicate(timeout=100)
    if victim == "follower":
        assert process.returncode == 1
        sentence = "another process of this run has ended; the same command goes on from the last finished epoch\n"
        assert err == sentence
    wait_for_end(followers[0])
    assert content(runs) != expected
    finished(*KILLED, f"runs={runs}")
    assert content(runs) == expected
    assert everything(store(runs)) == everything(store(whole))


LONELY = """
import os
import time

from pipeline.training.ranks import together

with together(2, 1) as ranks:
    if ranks.leads:
        time.sleep(100)
    os._exit(9)
"""


@two_cores
@pytest.mark.slow
def test_a_leader_that_waits_for_nobody_is_told_of_a_lost_follower(tmp_path):
    """Lightning's own observer would kill it without a word."""
    (tmp_path / "lonely.py").write_text(LONELY)
    ended = subprocess.run([sys.executable, tmp_path / "lonely.py"], capture_output=True, text=True, timeout=90)
    assert (ended.returncode, ended.stderr) == (1, f"{LOST}\n")


def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:  # noqa: PTH123
        return file.read().split()


def wait_for_end(pid):
    """A follower whose leader has died ends by itself."""
    for _ in range(600):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    raise AssertionError(f"process {pid} goes on without its leader")


OWN = """
import torch
from torch import nn


class Some(nn.Module):
    # a layer that no step uses, one that some use, and dropout
    def __init__(self):
        super().__init__()
        self.stem, self.never, self.sometimes, self.head = (nn.Linear(64, n) for n in (64, 5, 64, 10))

    def forward(self, x):
        x = self.stem(x.flatten(1)).relu()
        if len(x) % 2:
            x = self.sometimes(x).relu()
        return self.head(nn.functional.dropout(x, 0.2, self.training))


class Told(Some):
    def forward(self, x):
        if self.training and torch.distributed.is_initialized():  # not in the rehearsal
            kept = nn.functional.dropout(torch.ones(64), 0.5)
            with open(f"{__file__}-{torch.distributed.get_rank()}", "a") as file:
                file.write("".join(str(int(each > 0)) for each in kept) + "\\n")
        return super().forward(x)
"""


MINE = ["model.network=somewhere.Some", "~model.arguments.width"]


@two_cores
@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        [*MINE, "training.batch_size=1125"],
        ["model=lenet_300_100", "data.validation_images=1", "data.test_images=1"],
    ],
    ids=["one image for two in training", "one image each for validation and test"],
)
def test_a_process_may_have_nothing_to_do(settings, tmp_path, monkeypatch):
    (tmp_path / "somewhere.py").write_text(OWN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    two = ["training.devices=2", "training.epochs=2", "pruning.rounds=1", "deploy.sizes=false"]
    out = finished(*two, *settings, f"runs={tmp_path / 'runs'}")
    assert "nan" not in out


@two_cores
@pytest.mark.slow
def test_each_process_drops_out_others_and_layers_may_have_no_step(tmp_path, monkeypatch):
    (tmp_path / "somewhere.py").write_text(OWN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    finished(
        "training.devices=2", "training.epochs=1", "pruning.rounds=0", "deploy.sizes=false",
        *MINE, "model.network=somewhere.Told", f"runs={tmp_path / 'runs'}",
    )  # fmt: skip
    first, second = ((tmp_path / f"somewhere.py-{rank}").read_text().splitlines() for rank in range(2))
    assert len(first) == len(second) > 5
    assert not set(first) & set(second)
