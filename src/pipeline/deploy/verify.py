"""A bundle, run on ARM: golden answers, accuracy, and what an inference costs there.

Where it runs is a row of ``RUNNERS``: emulated processors, this machine if it is one, or a board by ssh.
"""

import json
import math
import platform
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.dataset import Dataset
from pipeline.deploy import arm
from pipeline.deploy.board.run import Refused, checked_manifest
from pipeline.deploy.bundle import DENSE, PROGRAM
from pipeline.deploy.manifest import Manifest, read
from pipeline.deploy.models import first
from pipeline.ground.errors import PipelineError
from pipeline.settings.groups import Deploy

TOOLS = ("-o", "BatchMode=yes", "-o", "ConnectTimeout=10")
Call = Callable[[Sequence[str]], str]


@dataclass(frozen=True)
class Place:
    """Somewhere that a bundle runs: ``call`` runs ``run.py`` with arguments in a copy of it and returns what it prints.

    ``instructions`` counts those of one inference of a model, by a library if one is given, where they can be counted
    (on a processor with ``features``); else time is taken.
    """

    name: str
    board: str
    call: Call
    instructions: Callable[[Path, Path | None], int] | None = None
    features: frozenset[str] = frozenset()


def held(bundle: Path) -> Manifest:
    """The facts of a bundle that is whole and has the program of this version: nothing in it has run.

    Raises:
        PipelineError: if a file is not the one that was made.
    """
    try:
        checked_manifest(bundle)
    except Refused as refusal:
        raise PipelineError(f"{bundle}: {refusal}") from refusal
    for part in PROGRAM:
        if (bundle / part.name).read_bytes() != part.read_bytes():
            raise PipelineError(f"{bundle}: {part.name} is not that of this version: task=bundle makes it again")
    return read(bundle)


def verified(bundle: Path, dataset: Dataset, deploy: Deploy, told: Callable[[str], None]) -> dict[str, Any]:
    """What the bundle, which is ``held``, does on ARM, by place; ``told`` hears where it is.

    Raises:
        PipelineError: if there is no place to run it, its own check fails there, or its accuracy is another there.
    """
    runner = deploy.runner
    if runner == "auto":
        runner = "native" if platform.machine() == "aarch64" else "qemu"
    inputs, labels = (np.concatenate(each) for each in zip(*first(dataset.raw("test"), deploy.images), strict=True))
    manifest = read(bundle)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        test = folder / "test.npz"
        np.savez(test, inputs=inputs, labels=labels)
        places = {}
        with RUNNERS[runner](bundle, folder, deploy) as found:
            for place in found:
                told(f"running the bundle on {place.name} ({place.board})")
                places[place.name] = _seen(place, bundle, test)
                check_accuracy(place, places[place.name]["accuracy"], manifest, len(labels))
    return {"runner": runner, "images": len(labels), "places": places}


Way = tuple[Path, Path | None]
"""A model, and the sparse engine's library if that computes it."""


def _counted_ways(bundle: Path, features: frozenset[str]) -> dict[str, Way]:
    """The dense network, and the ways that ``run.py`` computes a bundle's models on such an ARM, named as there."""
    manifest = read(bundle)
    found: dict[str, Way] = {"dense float32": (bundle.with_name(DENSE), None)}
    found |= {name: (bundle / name, None) for name in manifest.models}
    libraries = (
        bundle / library
        for library, told in manifest.engine["libraries"].items()
        if told["machine"] == "aarch64" and features.issuperset(told["features"])
    )
    if library := next(libraries, None):
        covered = (name for name, reason in manifest.engine["uncovered"].items() if reason is None)
        found |= {f"{name}, sparse": (bundle / name, library) for name in covered}
    return found


def _refusal(place: Place, taken: Collection[str]) -> str | None:
    """Why the sparse engine does not compute some model there; None where all ``taken`` ways include it."""
    if all(f"{name}, sparse" in taken for name in taken if not name.endswith(", sparse")):
        return None
    try:
        place.call(["check", "--engine", "sparse"])
    except PipelineError as refusal:
        return str(refusal)
    return None


def _seen(place: Place, bundle: Path, test: Path) -> dict[str, Any]:
    differences = json.loads(place.call(["check", "--json"]))
    seen = {
        "board": place.board,
        "no_engine": _refusal(place, differences),
        "golden_difference": differences,
        "bit_identical": {name: difference == 0 for name, difference in differences.items()},
        "accuracy": json.loads(place.call(["score", str(test), "--json"])),
    }
    if place.instructions is None:
        return seen | {"milliseconds_p50_p95": json.loads(place.call(["bench", "--json"]))}
    ways = {
        name: way
        for name, way in _counted_ways(bundle, place.features).items()
        if way[1] is None or name in differences
    }
    return seen | {"instructions": {name: place.instructions(*way) for name, way in ways.items()}}


def check_accuracy(place: Place, seen: Mapping[str, float], manifest: Manifest, count: int) -> None:
    """Holds shares of ``count`` test examples that were right against the manifest's, which are of all of them.

    The sparse engine rounds less than int8 does: its share may be anywhere from int8's to the float model's.

    Raises:
        PipelineError: if they are further apart than an example and four standard errors.
    """
    told = manifest.accuracy["test"]
    for way, share in seen.items():
        expected = told[manifest.models[way.removesuffix(", sparse")]["kind"]]
        takes = (expected, told["float32"]) if way.endswith(", sparse") else (expected,)
        slack = 4 * math.sqrt(expected * (1 - expected) / count) + 1 / count
        if not min(takes) - slack <= share <= max(takes) + slack:
            raise PipelineError(
                f"{way} has {share:.2%} of {count} test examples right on {place.name}, "
                f"the manifest says {expected:.2%}"
            )


@contextmanager
def _qemu(bundle: Path, folder: Path, deploy: Deploy) -> Iterator[list[Place]]:
    def instructions(processor: arm.Processor, model: Path, library: Path | None) -> int:
        return arm.instructions(processor, model, bundle / "golden.npz", folder, library)

    def call(processor: arm.Processor, arguments: Sequence[str]) -> str:
        return arm.emulated(processor, ["run.py", *arguments], bundle)

    arm.root()
    yield [
        Place(
            each.name,
            f"{each.board}, emulated by {arm.emulator()}",
            partial(call, each),
            partial(instructions, each),
            frozenset(each.features.split()),
        )
        for each in arm.PROCESSORS
    ]


@contextmanager
def _native(bundle: Path, folder: Path, deploy: Deploy) -> Iterator[list[Place]]:
    if platform.machine() != "aarch64":
        raise PipelineError(f"deploy.runner: got native, but this machine is {platform.machine()}; takes qemu or ssh")
    yield [Place("native", platform.node(), lambda arguments: _said([sys.executable, "run.py", *arguments], bundle))]


@contextmanager
def _ssh(bundle: Path, folder: Path, deploy: Deploy) -> Iterator[list[Place]]:
    host = deploy.host
    assert host is not None
    ssh = ["ssh", *TOOLS, "--", host]
    there = _said([*ssh, "mktemp -d"], bundle).strip()

    def call(arguments: Sequence[str]) -> str:
        words = [Path(each).name if Path(each).is_absolute() else each for each in arguments]
        command = shlex.join([deploy.board_python, "run.py", *words])
        return _said([*ssh, f"cd {shlex.quote(there)} && {command}"], bundle)

    try:
        for source, name in ((bundle, "."), (folder, "test.npz")):
            packet = subprocess.run(["tar", "-C", source, "-c", name], capture_output=True, check=True).stdout
            _said([*ssh, f"tar -C {shlex.quote(there)} -x"], bundle, packet)
        yield [Place("ssh", host, call)]
    finally:
        subprocess.run([*ssh, f"rm -r {shlex.quote(there)}"], capture_output=True, check=False)


RUNNERS = {"qemu": _qemu, "native": _native, "ssh": _ssh}


def _said(command: Sequence[str], folder: Path, given: bytes | None = None) -> str:
    """What a command prints.

    Raises:
        PipelineError: with its last line, if it fails.
    """
    try:
        done = subprocess.run(command, cwd=folder, input=given, capture_output=True, check=False)
    except OSError as error:
        raise PipelineError(f"{command[0]} cannot be run: {error.strerror}") from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise PipelineError(f"{command[0]}: {said[-1] if said else f'status {done.returncode}'}")
    return done.stdout.decode()
