"""The ledger refuses what it cannot trust, and says what differs; a folder has one owner."""

import dataclasses
import json
import multiprocessing
import shutil
from pathlib import Path

import pytest
import torch

from pipeline.ground.errors import PipelineError
from pipeline.report import ledgers
from pipeline.rounds import loop as rounds
from pipeline.rounds.building import build_job
from pipeline.rounds.job import Watcher
from pipeline.rounds.ledger import Ledger
from tests.conftest import settings


@pytest.fixture
def finished(small_job):
    job, site = small_job("retraining=weight_rewinding", "pruning.rounds=1")
    rounds.run(job, site)
    return site


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-10])


def edit(change):
    def edit_record(path):
        record = json.loads(path.read_text())
        change(record)
        path.write_text(json.dumps(record))

    return edit_record


DAMAGE = {
    "a flipped bit in the weights": ("round-01/weights.safetensors", flip_a_byte, "weights.safetensors is damaged"),
    "cut weights": ("round-01/weights.safetensors", truncate, "weights.safetensors is damaged"),
    "no weights": ("round-01/weights.safetensors", lambda p: p.unlink(), "weights.safetensors is damaged"),
    "a flipped bit in the masks": ("round-01/masks.safetensors", flip_a_byte, "masks.safetensors is damaged"),
    "a flipped bit in the momentum": ("round-01/optimizer.safetensors", flip_a_byte, "optimizer.safetensors is damaged"),
    "no JSON": ("round-01/round.json", truncate, "round.json is damaged"),
    "an empty record": ("round-01/round.json", lambda p: p.write_text("{}"), "round.json is damaged"),
    "a newer format": ("round-01/round.json", edit(lambda r: r.update(format=99)), "has format 99, this version reads 1"),
    "other settings": (
        "round-01/round.json",
        edit(lambda r: r["identity"]["training"].update(epochs=7)),
        "was written with other settings or data: training.epochs was 7, is 3",
    ),
    "other data": (
        "round-01/round.json",
        edit(lambda r: r["identity"].update(data_digest="0123")),
        "was written with other settings or data: data_digest was 0123, is ",
    ),
    "another round's weights": ("round-01/weights.safetensors", None, "is not the file that the round's record names"),
}  # fmt: skip


@pytest.mark.parametrize(("file", "damage", "sentence"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_round_is_refused(file, damage, sentence, finished, small_job):
    path = finished.ledger.folder / file
    if damage is None:
        path.write_bytes((finished.dense.folder / "round-00" / path.name).read_bytes())
    else:
        damage(path)
    with pytest.raises(PipelineError, match=sentence):
        rounds.run(*small_job("retraining=weight_rewinding", "pruning.rounds=2"))


def test_a_damaged_rewind_point_is_refused(finished, small_job):
    flip_a_byte(finished.dense.path(0) / "epoch-0001.safetensors")
    with pytest.raises(PipelineError, match=r"epoch-0001.safetensors is damaged .*; delete"):
        rounds.run(*small_job("retraining=weight_rewinding", "pruning.rounds=2"))


def test_deleting_the_damaged_round_trains_it_again_to_the_same_bits(finished, small_job):
    weights = finished.ledger.path(1) / "weights.safetensors"
    before = weights.read_bytes()
    for file in finished.ledger.path(1).iterdir():
        file.unlink()
    rounds.run(*small_job("retraining=weight_rewinding", "pruning.rounds=1"))
    assert weights.read_bytes() == before


def test_round_0_is_shared_by_what_it_depends_on_alone(small_job):
    reference = small_job()[1].dense.folder
    for same in ("retraining=fine_tuning", "pruning.fraction=0.5", "name=other", "pruning.exclude=[output]"):
        assert small_job(same)[1].dense.folder == reference
    for other in (
        "seed=1",
        "training.epochs=4",
        "model.arguments.width=5",
        "data.flip=true",
        "training.optimizer.rate=1",
    ):
        assert small_job(other)[1].dense.folder != reference


def test_a_run_is_found_again_by_what_changes_numbers(small_job):
    reference = small_job()[1].ledger.folder
    for same in ("pruning.rounds=9", "pruning.max_score_drop=0.1", "tracking.uri=sqlite:///x"):
        assert small_job(same)[1].ledger.folder == reference
    for other in (
        "retraining=fine_tuning",
        "pruning.fraction=0.5",
        "pruning.target_density=0.9",
        "seed=1",
        "name=x",
    ):
        assert small_job(other)[1].ledger.folder != reference


def hold(folder, held, release):
    with Ledger(folder, {}).locked():
        held.set()
        release.wait(30)


def test_a_second_process_is_refused_naming_the_first_or_waits(tmp_path):
    context = multiprocessing.get_context("fork")
    held, release = context.Event(), context.Event()
    first = context.Process(target=hold, args=(tmp_path, held, release))
    first.start()
    assert held.wait(30)
    ledger, told = Ledger(tmp_path, {}), []
    with (
        pytest.raises(PipelineError, match=rf"in use by process {first.pid} of .* on .*: wait for it"),
        ledger.locked(),
    ):
        pass

    def wait(holder):
        told.append(holder)
        release.set()

    with ledger.locked(wait=wait), ledger.locked():
        assert f"process {first.pid} " in told[0]
    first.join()


def test_files_hold_plain_tensors_that_load_without_this_package(finished, small_job):
    from safetensors.torch import load_file

    weights = load_file(finished.ledger.path(1) / "weights.safetensors")
    assert weights.keys() == small_job()[0].network.state_dict().keys()
    assert not [name for name in weights if "mask" in name or "_orig" in name]
    masks = load_file(finished.ledger.path(1) / "masks.safetensors")
    assert all(mask.dtype == torch.bool and (weights[name][~mask] == 0).all() for name, mask in masks.items())


BEFORE = Path(__file__).with_name("ledger_before_the_rooms")
"""Written at commit b697e93: rounds 0 and 1 of weight rewinding, a rewind point, and round 2 after its first epoch."""
MASKS = "929eba2b272ac44cd6db22adb916bdb053cc24aa35ee86dd88bc30bef575df9c"
"""Of round 2, as that commit made them of round 1."""


class Told(Watcher):
    def __init__(self):
        self.started, self.trained = [], []

    def round_started(self, index, epochs, done):
        self.started.append((index, epochs, len(done)))

    def round_done(self, result, folder, *, trained):
        self.trained.append((result.index, trained))


def test_a_ledger_of_an_earlier_version_is_found_and_goes_on(tmp_path):
    """Where a run is kept and what its files say has not changed: pruning has one answer on every machine."""
    runs = Path(shutil.copytree(BEFORE, tmp_path / "runs"))
    before = {path.relative_to(runs): path.read_bytes() for path in runs.rglob("*") if path.is_file()}
    (partial,) = (path for path in before if path.name == "partial.safetensors")
    job, site = build_job(
        settings(
            "model.arguments.width=2", "training.epochs=4", "training.max_steps=null", "training.batch_size=256",
            "training.precision=float32", "training.compile=off", "retraining=weight_rewinding",
            "retraining.length=0.5", "pruning.rounds=2",
        ),
        runs,
    )  # fmt: skip
    under_way, history = site.ledger.partial(2)
    state = under_way.state
    told = Told()
    rounds.run(job, dataclasses.replace(site, watcher=told))
    assert told.started == [(2, 2, 1)]
    assert told.trained == [(0, False), (1, False), (2, True)]
    after = {path.relative_to(runs): path.read_bytes() for path in runs.rglob("*") if path.is_file()}
    assert all(after[path] == content for path, content in before.items() if path != partial)
    assert partial not in after
    assert site.ledger.read(2).history[0] == history[0]
    assert not all(torch.equal(state.network[name], new) for name, new in site.ledger.state(2).network.items())
    record = json.loads((site.ledger.path(2) / "round.json").read_text())
    assert record["digests"]["masks"] == MASKS


def test_rounds_whose_round_0_is_gone_or_another_are_refused(small_job, tmp_path):
    job, site = small_job("pruning.rounds=2")
    rounds.run(job, site)
    assert site.ledger.parent(1) == site.dense.digest(0)
    assert site.ledger.parent(2) == site.ledger.digest(1)
    assert site.dense.parent(0) is None
    record = site.ledger.path(1) / "round.json"
    told = json.loads(record.read_text())
    record.write_text(json.dumps(told | {"parent": "0" * 64}))
    with pytest.raises(
        PipelineError, match=r"round-01 was pruned from another round 0 .its weights were 000000000000, are"
    ):
        rounds.run(job, site)
    record.write_text(json.dumps({key: value for key, value in told.items() if key != "parent"}))
    assert len(rounds.run(job, site)) == 3, "records of before say nothing of it"
    shutil.rmtree(site.dense.path(0))
    gone = r"were pruned from a round 0 that is gone from .*dense.*: put it back"
    with pytest.raises(PipelineError, match=gone):
        rounds.run(job, site)
    with pytest.raises(PipelineError, match=gone):  # nor is round 1 taken for it
        ledgers.records(tmp_path, "digits")


def test_a_record_that_lacks_a_part_is_damaged(small_job):
    job, site = small_job("pruning.rounds=1")
    rounds.run(job, site)
    path = site.ledger.path(1) / "round.json"
    told = json.loads(path.read_text())
    for part in ("layers", "history", "test", "seconds"):
        path.write_text(json.dumps({key: value for key, value in told.items() if key != part}))
        with pytest.raises(PipelineError, match=rf"round.json is damaged \(.*{part}.*\); delete"):
            rounds.run(job, site)
