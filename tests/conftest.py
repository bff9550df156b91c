"""Real jobs, small: the digits network at a quarter of its width, a few epochs."""

import copy
import dataclasses
import functools
import gc
import sys
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.__main__ import main
from pipeline.rounds.building import build_job
from pipeline.rounds.job import Job, Site, Watcher, Watchers
from pipeline.settings.build import build
from pipeline.settings.composition import composed
from pipeline.settings.groups import Settings

SHORT = [
    "model.arguments.width=4", "training.epochs=3", "training.max_steps=25", "pruning.rounds=2", "deploy.sizes=false",
]  # fmt: skip
"""Settings for a module that brings its batches."""
SMALL = [*SHORT, "training.batch_size=128"]
torch.set_num_threads(1)  # two threads that meet at every tiny operation crawl on a busy machine

PROJECT = Path(__file__).resolve().parents[1]
LONG = (
    "deploy/test_kernels.py", "commands/test_faults.py", "commands/test_dvc.py", "commands/test_sweep.py", "deploy/test_arm.py",
    "deploy/test_bundle.py", "test_blocks.py", "commands/test_examples.py", "report/test_timing.py", "deploy/test_graphs.py",
    "tracking/test_tracker.py", "ground/test_extras.py", "commands/test_browser.py", "commands/test_command_line.py",
    "training/test_ranks.py", "tracking/test_server.py",
)  # fmt: skip
"""Files whose tests take minutes, the longest first: begun first, they leave no worker waiting for another at the end."""
SHARED_CIFAR10 = PROJECT.parent / "shared" / "data" / "cifar10"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {PROJECT / "tests" / name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path, len(order)))


def some_fast(cases: Iterable[tuple[object, ...]], fast: Collection[tuple[object, ...]]) -> list[pytest.ParameterSet]:
    """Cases of a test, each all its arguments; those that are not in ``fast`` are slow."""
    return [pytest.param(*case, marks=() if case in fast else pytest.mark.slow) for case in cases]


def pytest_collection_finish() -> None:
    gc.collect()
    spare_what_is_loaded()


def spare_what_is_loaded() -> None:
    """Leaves all that is loaded out of looks for garbage, which took a twentieth of the tests' time."""
    gc.freeze()
    gc.set_threshold(50_000)


def typed(*arguments: str) -> object:
    """The command line in this process; returns its exit status."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "argv", ["pipeline", *arguments])
        patched.delenv("MLFLOW_TRACKING_URI", raising=False)
        try:
            main()
        except SystemExit as end:
            return end.code
    return 0


def arrays(file: Path) -> dict[str, np.ndarray]:
    """What an .npz file holds, by name."""
    with np.load(file) as found:
        return dict(found)


_composed = functools.cache(composed)


def settings(*overrides: str) -> Settings:
    """Settings as the command line would compose them."""
    return build(copy.deepcopy(_composed(overrides)))


@pytest.fixture
def small_job(tmp_path: Path) -> Callable[..., tuple[Job, Site]]:
    """Makes a small job in a folder of its own: ``small_job("retraining=fine_tuning")``."""

    def make(*overrides: str, runs: Path = tmp_path, watchers: tuple[Watcher, ...] = ()) -> tuple[Job, Site]:
        job, site = build_job(settings(*SMALL, *overrides), runs)
        return job, dataclasses.replace(site, watcher=Watchers(*watchers))

    return make


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of images by part and class, of many sizes: pieces of two real photographs, as JPEG and PNG."""
    from sklearn.datasets import load_sample_images

    draws = np.random.default_rng(0)
    for name, photo in zip(("temple", "flower"), load_sample_images().images, strict=True):
        for part, count in (("train", 28), ("test", 10)):
            folder = tmp_path / "photos" / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                height, width = draws.integers(40, 120, 2)
                top, left = draws.integers(0, (photo.shape[0] - height, photo.shape[1] - width))
                piece = Image.fromarray(photo[top : top + height, left : left + width])
                piece.save(folder / f"{number:02d}.{'png' if number % 4 == 0 else 'jpg'}")
    return tmp_path / "photos"


PHOTOS = ["data=imagefolder", "data.size=32", "data.shorter_side=36", "data.validation_images=8", "data.workers=2"]
"""Settings for ``photos``; their place comes on top."""


@pytest.fixture
def cifar10() -> Path:
    """The real CIFAR-10, where a copy lies beside the project."""
    if not SHARED_CIFAR10.is_dir():
        pytest.skip(f"no copy of CIFAR-10 at {SHARED_CIFAR10}")
    return SHARED_CIFAR10
