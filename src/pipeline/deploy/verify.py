"""A bundle, run on ARM: golden answers, accuracy, and what an inference costs there.

Where it runs is a row of ``RUNNERS``: emulated processors, this machine if it is one, or a board by ssh.
"""

import io
import json
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
import onnx
from numpy.typing import NDArray

from pipeline.deploy import arm
from pipeline.deploy.arm.cycles import milliseconds
from pipeline.deploy.board.run import Refused, checked_manifest, difference
from pipeline.deploy.bundle import DENSE, PROGRAM
from pipeline.deploy.manifest import Manifest, read
from pipeline.deploy.models import structured, unrounded_model
from pipeline.deploy.runtime import Arrays, answers, arrays, session
from pipeline.deploy.subject import RECORDED, Form, Subject
from pipeline.ground.errors import PipelineError
from pipeline.settings.groups import Deploy

SAME = 1e-6
"""How far a score may be from the manifest's, which this machine's or another's ONNX Runtime gave the same model."""
CLOSE = 0.02
"""How far a score on ARM may be from the same examples' here, as a share; and one example more."""
TOOLS = ("-o", "BatchMode=yes", "-o", "ConnectTimeout=10")
Call = Callable[[Sequence[str]], str]


@dataclass(frozen=True)
class Place:
    """Somewhere that a bundle runs: ``call`` runs ``run.py`` with arguments in a copy of it and returns what it prints,
    ``fetch`` gives a file that it has written.

    Of an emulated ``processor`` it is seen what one inference executes by each way; elsewhere time is taken.
    """

    name: str
    board: str
    call: Call
    fetch: Callable[[str], bytes]
    processor: arm.Processor | None = None


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


def verified(bundle: Path, subject: Subject, deploy: Deploy, told: Callable[[str], None]) -> dict[str, Any]:
    """What the bundle, which is ``held``, does on ARM, by place; ``told`` hears where it is.

    Raises:
        PipelineError: if there is no place to run it, its own check fails there, or the manifest's scores are not those
            of its models, here or there.
    """
    runner = deploy.runner
    if runner == "auto":
        runner = "native" if platform.machine() == "aarch64" else "qemu"
    manifest = read(bundle)
    told("evaluating the bundle here")
    trial = tried(bundle, subject, manifest, deploy.images)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.savez(folder / "test.npz", allow_pickle=False, **trial.inputs)
        places = {}
        with RUNNERS[runner](bundle, folder, deploy) as found:
            for place in found:
                told(f"running the bundle on {place.name} ({place.board})")
                places[place.name] = _seen(place, bundle, folder, trial, subject, manifest)
    return {"runner": runner, "examples": trial.count, "score": manifest.score["label"], "places": places}


@dataclass(frozen=True)
class Trial:
    """Test examples and what is right of them: ``inputs`` by batch and name, ``count`` of them; of each way that a
    model is computed the ``expected`` outputs (those of one are unrounded for the sparse engine) and their ``scores``,
    None where forms cannot be judged.
    """

    inputs: Arrays
    count: int
    expected: Mapping[str, Sequence[Arrays]]
    scores: Mapping[str, float | None]


def tried(bundle: Path, subject: Subject, manifest: Manifest, rows: int | None) -> Trial:
    """Computes the first test examples (None: all) by a bundle's models, here.

    Raises:
        PipelineError: if the manifest's test scores are not those of its models.
    """
    loaded = {name: onnx.load(bundle / name) for name in manifest.models}
    running = {name: session(model) for name, model in loaded.items()}
    for name, model in loaded.items():
        if manifest.engine["uncovered"][name] is None:
            running[f"{name}, sparse"] = session(unrounded_model(model))
    forms = {name: structured(partial(answers, each), subject) for name, each in running.items()}
    given: list[Arrays] = []

    def look(form: Form) -> Form:
        def seen(inputs: Any) -> Any:
            given.append(arrays(inputs))
            return form(inputs)

        return seen

    scores: dict[str, float | None] = dict.fromkeys(forms)
    if manifest.unjudged is None:
        for name, told in manifest.models.items():
            whole, claimed = subject.judged(forms[name], "test"), manifest.scores["test"][told["kind"]]
            if not abs(whole - claimed) <= SAME * max(1.0, abs(claimed)):
                raise PipelineError(
                    f"{name} has {whole:.4g} of test {manifest.score['label']}, its manifest says {claimed:.4g}"
                )
        for name, each in forms.items():
            given.clear()
            scores[name] = subject.judged(look(each), "test", rows)
    else:
        given = [arrays(each) for each in subject.examples("test", rows or RECORDED)]
    inputs = {f"{number}/{name}": each for number, one in enumerate(given) for name, each in one.items()}
    expected = {name: [answers(each, one) for one in given] for name, each in running.items()}
    return Trial(inputs, sum(len(next(iter(one.values()))) for one in given), expected, scores)


def _counted_ways(bundle: Path, features: frozenset[str]) -> dict[str, arm.Way]:
    """The dense network, and the ways that ``run.py`` computes a bundle's models on such an ARM, named as there."""
    manifest = read(bundle)
    found: dict[str, arm.Way] = {"dense float32": (bundle.with_name(DENSE), None)}
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


def _seen(
    place: Place, bundle: Path, folder: Path, trial: Trial, subject: Subject, manifest: Manifest
) -> dict[str, Any]:
    differences = json.loads(place.call(["check", "--json"]))
    place.call(["answer", str(folder / "test.npz"), "--out", str(folder / "answers.npz"), "--json"])
    with np.load(io.BytesIO(place.fetch("answers.npz"))) as kept:
        answered = {way: _by_batch(kept, way) for way in differences}
    seen = {
        "board": place.board,
        "no_engine": _refusal(place, differences),
        "golden_difference": differences,
        "bit_identical": {name: each == 0 for name, each in differences.items()},
        "difference": {way: max(map(difference, batches, trial.expected[way])) for way, batches in answered.items()},
        "scores": {way: _scored(place, way, batches, trial, subject, manifest) for way, batches in answered.items()},
    }
    if place.processor is None:
        return seen | {"milliseconds_p50_p95": json.loads(place.call(["bench", "--json"]))}
    ways = {
        name: way
        for name, way in _counted_ways(bundle, frozenset(place.processor.features.split())).items()
        if way[1] is None or name in differences
    }
    executed = arm.executed(place.processor, list(ways.values()), bundle / "golden.npz", folder)
    foretold = dict(zip(ways, milliseconds(executed, place.processor), strict=True))
    return seen | {
        "instructions": {name: each.instructions for name, each in zip(ways, executed, strict=True)},
        "milliseconds": {
            board: {name: [round(end, 4) for end in each[board]] for name, each in foretold.items()}
            for board in place.processor.gigahertz
        },
    }


def _by_batch(kept: Mapping[str, NDArray[Any]], way: str) -> list[Arrays]:
    """A way's outputs by name, batch by batch."""
    found: dict[int, dict[str, NDArray[Any]]] = {}
    for key in kept:
        owner, batch, name = key.split("/")
        if owner == way:
            found.setdefault(int(batch), {})[name] = kept[key]
    return [found[number] for number in sorted(found)]


def _scored(
    place: Place, way: str, batches: Sequence[Arrays], trial: Trial, subject: Subject, manifest: Manifest
) -> float | None:
    """The score that outputs from a place have.

    Raises:
        PipelineError: if it is another than that of this machine's.
    """
    expected = trial.scores[way]
    if expected is None:
        return None
    following = iter(batches)
    score = subject.judged(structured(lambda _: next(following), subject), "test", trial.count)
    if not abs(score - expected) <= CLOSE * max(abs(expected), 1e-9) + 1 / trial.count:
        raise PipelineError(
            f"{way} has {score:.4g} of test {manifest.score['label']} on {place.name}, on the same {trial.count} "
            f"examples here {expected:.4g}"
        )
    return score


@contextmanager
def _qemu(bundle: Path, folder: Path, deploy: Deploy) -> Iterator[list[Place]]:
    def call(processor: arm.Processor, arguments: Sequence[str]) -> str:
        return arm.emulated(processor, ["run.py", *arguments], bundle)

    arm.root()
    yield [
        Place(
            each.name,
            f"{' and '.join(each.gigahertz)}, emulated by {arm.emulator()}",
            partial(call, each),
            lambda name: (folder / name).read_bytes(),
            each,
        )
        for each in arm.PROCESSORS
    ]


@contextmanager
def _native(bundle: Path, folder: Path, deploy: Deploy) -> Iterator[list[Place]]:
    if platform.machine() != "aarch64":
        raise PipelineError(f"deploy.runner: got native, but this machine is {platform.machine()}; takes qemu or ssh")
    yield [
        Place(
            "native",
            platform.node(),
            lambda arguments: _said([sys.executable, "run.py", *arguments], bundle).decode(),
            lambda name: (folder / name).read_bytes(),
        )
    ]


@contextmanager
def _ssh(bundle: Path, folder: Path, deploy: Deploy) -> Iterator[list[Place]]:
    host = deploy.host
    assert host is not None
    ssh = ["ssh", *TOOLS, "--", host]
    there = _said([*ssh, "mktemp -d"], bundle).decode().strip()

    def call(arguments: Sequence[str]) -> str:
        words = [Path(each).name if Path(each).is_absolute() else each for each in arguments]
        command = shlex.join([deploy.board_python, "run.py", *words])
        return _said([*ssh, f"cd {shlex.quote(there)} && {command}"], bundle).decode()

    def fetch(name: str) -> bytes:
        return _said([*ssh, f"cat {shlex.quote(there)}/{shlex.quote(name)}"], bundle)

    try:
        for source, name in ((bundle, "."), (folder, "test.npz")):
            packet = subprocess.run(["tar", "-C", source, "-c", name], capture_output=True, check=True).stdout
            _said([*ssh, f"tar -C {shlex.quote(there)} -x"], bundle, packet)
        yield [Place("ssh", host, call, fetch)]
    finally:
        subprocess.run([*ssh, f"rm -r {shlex.quote(there)}"], capture_output=True, check=False)


RUNNERS = {"qemu": _qemu, "native": _native, "ssh": _ssh}


def _said(command: Sequence[str], folder: Path, given: bytes | None = None) -> bytes:
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
    return done.stdout
