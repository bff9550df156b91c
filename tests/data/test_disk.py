"""Images on disk against Pillow, whatever the number of workers; what cannot be decoded is named."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.data import load
from pipeline.data.dataset import Shard
from pipeline.data.disk import random_box
from pipeline.data.split import split
from pipeline.ground.errors import PipelineError, SettingsError
from pipeline.ground.randomness import generator
from pipeline.rounds import loop as rounds
from tests.conftest import PHOTOS, PROJECT
from tests.conftest import settings as composed
from tests.rounds.test_loop import Stop, Watch, content


def data_of(photos, *overrides):
    return composed(*PHOTOS, f"data.source={photos}", *overrides).data


def test_class_folders_become_disjoint_splits_with_the_folders_names(photos):
    dataset = load(data_of(photos))
    assert dataset.classes == ("flower", "temple")
    assert {name: len(index) for name, index in dataset.splits.items()} == {"train": 48, "validation": 8, "test": 20}
    assert len(torch.cat(list(dataset.splits.values())).unique()) == 76
    for index in dataset.splits["test"].tolist():
        path = dataset.files[index]["image"]["path"]
        assert f"/test/{dataset.classes[dataset.labels[index]]}/" in path
    assert load(data_of(photos)).digest == dataset.digest
    (photos / "train" / "flower" / "01.jpg").write_bytes((photos / "train" / "flower" / "02.jpg").read_bytes())
    assert load(data_of(photos)).digest != dataset.digest


def test_evaluation_takes_the_middle_of_the_scaled_image(photos):
    data = data_of(photos)
    dataset = load(data)
    (batch,) = dataset.evaluation("validation", Shard())
    for index, got in zip(dataset.splits["validation"].tolist(), batch.inputs.numpy(), strict=True):
        image = Image.open(dataset.files[index]["image"]["path"]).convert("RGB")
        scale = 36 / min(image.size)
        scaled = image.resize(tuple(round(side * scale) for side in image.size), Image.Resampling.BILINEAR)
        left, top = (scaled.size[0] - 32) // 2, (scaled.size[1] - 32) // 2
        middle = np.asarray(scaled)[top : top + 32, left : left + 32].transpose(2, 0, 1) / 255
        expected = (middle - np.reshape(data.mean, (3, 1, 1))) / np.reshape(data.deviation, (3, 1, 1))
        assert got == pytest.approx(expected, abs=1.01 / 255 / min(data.deviation))  # one level of grey


@given(
    size=st.tuples(st.integers(1, 400), st.integers(1, 400)), smallest=st.floats(0.01, 1), seed=st.integers(0, 2**31)
)
@settings(max_examples=200, deadline=None)
def test_a_random_part_lies_within_the_image_and_has_the_area_and_shape_asked_for(size, smallest, seed):
    left, top, right, bottom = random_box(size, smallest, generator(seed))
    assert 0 <= left < right <= size[0]
    assert 0 <= top < bottom <= size[1]
    width, height = right - left, bottom - top
    assert 3 / 4 * (1 - 1 / width) * (1 - 1 / height) <= width / height * (1 + 1 / width) * (1 + 1 / height)
    if min(size) > 100 and max(size) / min(size) <= 4 / 3:
        assert width * height >= smallest * size[0] * size[1] * 0.95 - 2 * (width + height)
        assert 0.72 <= width / height <= 1.39


def test_random_parts_cover_the_shares_of_area_evenly():
    boxes = [random_box((300, 300), 0.08, generator(seed)) for seed in range(2000)]
    shares = np.array([(right - left) * (bottom - top) / 90_000 for left, top, right, bottom in boxes])
    assert np.quantile(shares, [0.1, 0.25]) == pytest.approx([0.08 + 0.92 * 0.1, 0.08 + 0.92 * 0.25], abs=0.05)


def test_neither_workers_nor_processes_change_a_batch(photos):
    def batches(workers, rank=0, world=1):
        dataset = load(data_of(photos, f"data.workers={workers}"))
        return list(dataset.training(16, 3, (0, 1, 2), Shard(rank, world)))

    alone, two_workers = batches(0), batches(2)
    halves = [batches(0, rank, 2) for rank in range(2)]
    for number, batch in enumerate(alone):
        assert batch.of == 16
        assert torch.equal(batch.inputs, two_workers[number].inputs)
        for rank, half in enumerate(halves):
            assert torch.equal(half[number].inputs, batch.inputs[rank::2])
            assert half[number].of == 16
    labels = torch.cat([batch.labels for batch in alone])
    assert sorted(labels.tolist()) == sorted(
        load(data_of(photos)).labels[load(data_of(photos)).splits["train"]].tolist()
    )


LITTLE_SHARED_MEMORY = """
import sys
from pathlib import Path
from pipeline.data import load
from pipeline.data.dataset import Shard
from tests.data.test_disk import data_of

if __name__ == "__main__":
    data = load(data_of(Path(sys.argv[1]), "data.size=224", "data.shorter_side=256", "data.workers=2"))
    print(sum(len(batch.labels) for batch in data.training(48, 1, (0, 0, 0), Shard())))
"""


@pytest.mark.slow
def test_workers_need_no_shared_memory(photos):
    """One megabyte of it, where a batch has seven: a container has 64 by default."""
    try:
        subprocess.run(["unshare", "-m", "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no right to a file system of one's own (unshare -m)")
    command = 'mount -t tmpfs -o size=1M tmpfs /dev/shm && exec timeout 60 "$@"'
    python = [sys.executable, "-c", LITTLE_SHARED_MEMORY, str(photos)]
    said = subprocess.run(
        ["unshare", "-m", "sh", "-c", command, "sh", *python], capture_output=True, text=True, cwd=PROJECT, check=False
    )
    assert said.stdout.strip() == "48", said.stderr


def _stays_in_a_batch(photos, told):
    """Has two workers with more to say than a pipe holds, tells which, and does nothing more."""
    large = ("data.workers=2", "data.size=224", "data.shorter_side=256")
    batches = iter(load(data_of(photos, *large)).training(8, 6, (0, 0, 0), Shard()))
    next(batches)
    told.send([each.pid for each in multiprocessing.active_children()])
    time.sleep(600)


def test_workers_end_with_a_process_that_is_killed(photos):
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=_stays_in_a_batch, args=(photos, there))
    process.start()
    assert here.poll(60)
    workers = [Path(f"/proc/{pid}") for pid in here.recv()]
    assert len(workers) == 2
    assert all(each.exists() for each in workers)
    process.kill()
    process.join()
    until = time.monotonic() + 20
    while any(each.exists() for each in workers) and time.monotonic() < until:
        time.sleep(0.02)
    left = [each for each in workers if each.exists()]
    for each in left:  # or they would keep what reads of these tests waiting
        os.kill(int(each.name), signal.SIGKILL)
    assert not left


def test_parquet_in_the_hubs_layout_gives_the_same_images(photos, tmp_path):
    import datasets

    for part, rows in datasets.load_dataset("imagefolder", data_dir=str(photos)).items():
        rows.to_parquet(tmp_path / "hub" / "data" / f"{part}-00000-of-00001.parquet")
    folder, parquet = (load(data_of(place)) for place in (photos, tmp_path / "hub"))
    assert parquet.classes == folder.classes
    for one, other in zip(folder.evaluation("test", Shard()), parquet.evaluation("test", Shard()), strict=True):
        assert torch.equal(one.inputs, other.inputs)
        assert torch.equal(one.labels, other.labels)


def test_a_corrupt_image_is_named_or_left_out_and_counted(photos, small_job):
    broken = photos / "train" / "temple" / "03.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    arguments = [*PHOTOS, f"data.source={photos}", "training.epochs=2", "pruning.rounds=1", "training.batch_size=16"]
    with pytest.raises(PipelineError, match=r"cannot be decoded: .*/train/temple/03.jpg .*; data.corrupt=skip"):
        rounds.run(*small_job(*arguments))
    watch = Watch()
    rounds.run(*small_job(*arguments, "data.corrupt=skip", watchers=(watch,)))
    assert watch.notes
    assert all("1 images cannot be decoded and are left out: " in note and "03.jpg" in note for note in watch.notes)


@pytest.mark.parametrize(
    ("source", "sentence"),
    [("photos", "got 'photos', which is no folder"), ("{photos}/[x]", r"takes a path without \* \? \[ \]")],
)
def test_places_that_are_none(source, sentence, photos):
    (photos / "[x]").mkdir()
    with pytest.raises(SettingsError, match=sentence):
        load(composed(*PHOTOS, f'data.source="{source.format(photos=photos)}"').data)


@pytest.mark.slow
def test_stopping_after_any_epoch_changes_nothing_for_images_on_disk_too(photos, small_job, tmp_path):
    arguments = [*PHOTOS, f"data.source={photos}", "training.batch_size=16", "pruning.rounds=1"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    rounds.run(*small_job(*arguments, runs=whole))
    for _ in range(6):
        with pytest.raises(Stop):
            rounds.run(*small_job(*arguments, "data.workers=0", runs=stopped, watchers=(Watch(dies_after=1),)))
        assert content(stopped) != content(whole)
    rounds.run(*small_job(*arguments, runs=stopped))
    assert content(stopped) == content(whole)


@pytest.mark.parametrize(
    ("sizes", "overrides", "counts"),
    [
        ({"train": 50}, ["data.test_images=10"], (32, 8, 10)),
        ({"train": 50, "test": 20}, [], (42, 8, 20)),
        ({"train": 50, "test": 20}, ["data.validation_from=test"], (50, 8, 12)),
        ({"train": 50, "validation": 30}, [], (42, 8, 30)),
        ({"train": 50, "validation": 30}, ["data.validation_from=validation"], (50, 8, 22)),
        ({"train": 50, "validation": 30, "test": 20}, ["data.validation_from=validation"], (50, 8, 20)),
        ({"train": 50, "validation": 30, "test": 20}, ["data.test_images=5"], (42, 8, 5)),
    ],
)
def test_the_parts_that_a_data_set_has_decide_the_split(sizes, overrides, counts):
    parts = split(sizes, data_of("x", *overrides))
    assert tuple(len(parts[name]) for name in ("train", "validation", "test")) == counts
    assert len(torch.cat(list(parts.values())).unique()) == sum(counts)


def test_a_folder_without_classes_is_a_sentence(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SettingsError, match=r"data.source: got .*empty.*; put images in folders by part and class"):
        load(data_of(tmp_path / "empty"))
    with pytest.raises(SettingsError, match=r"data.validation_from: got validation, takes a part that there is: train"):
        split({"train": 50, "test": 20}, data_of("x", "data.validation_from=validation"))


@pytest.mark.parametrize("split", ["validation", "test"])
def test_raw_inputs_become_those_of_evaluation(split, photos):
    dataset = load(data_of(photos))
    pairs = list(zip(dataset.raw(split), dataset.evaluation(split, Shard()), strict=True))
    assert pairs
    for (inputs, labels), batch in pairs:
        assert inputs.dtype == torch.uint8
        assert torch.equal(dataset.preprocessing.apply(inputs), batch.inputs)
        assert torch.equal(labels, batch.labels)
    assert sum(len(labels) for _, labels in dataset.raw("train")) == len(dataset.splits["train"])
