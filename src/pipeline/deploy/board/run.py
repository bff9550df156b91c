"""What runs on the board: python run.py check | bench | predict FILE | answer FILE.npz

Needs numpy, Pillow and onnxruntime (requirements.txt), and the files that lie beside it.

    check            files, versions, and the answers to the golden inputs
    bench            milliseconds an inference of every model, in turns
    predict FILE     what the network answers to an image, a sound (.wav), a table (.csv) or arrays (.npy, .npz): the
                     five likeliest classes, the boxes that it finds, or its outputs; --out OUT.npz keeps these,
                     --out OUT.png draws boxes on the image
    answer FILE.npz  outputs of every model to all inputs of a file, kept by --out OUT.npz; where the file has `labels`
                     of classes, how many are right

A model runs in two ways: by onnxruntime alone, and by the sparse engine, a library beside it. `predict` takes the one
that was faster on this machine, the other commands show both; `--engine` sets one for all.
"""

import argparse
import csv
import hashlib
import json
import os
import platform
import statistics
import sys
import time
import wave
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # else it calls home when it is imported
import onnxruntime

Arrays = Mapping[str, "np.ndarray[Any, Any]"]
HERE = Path(__file__).resolve().parent
FORMAT = 3
"""Of the manifest."""
BOARD = Path("/proc/device-tree/model")
"""What Linux calls a board."""
BATCH = 100
EXACT = {"session.x64quantprecision": "1"}
VNNI = {"avx512_vnni", "avx_vnni"}
"""x86 without VNNI adds int8 products in 16 bits, which overflow, unless a session is told to be EXACT.

With VNNI the sums are exact anyway, and that would double the time of int8.
"""
UNROUNDED = {"session.qdq_matmulnbits_accuracy_level": "1"}
"""Newer ONNX Runtimes else round float activations to 8 bits in front of int8 weights of a MatMul."""


STOCK_MEMORY = 8
"""onnxruntime alone unpacks all weights at once, in up to so many times the bytes of the plain float export."""
STRETCH = 0.2
"""Seconds of a turn of a session. The threads of one that has answered look for work for 60 ms, on the cores that the
next one wants, so that half of a turn has to be longer.
"""


class Way(NamedTuple):
    """A model and what computes it: onnxruntime, or a library with this difference from the golden outputs."""

    model: str
    library: Path | None = None
    difference: float = 0.0


def difference(answer: Arrays, expected: Arrays) -> float:
    """The largest difference of an output, relative to its largest entry; of integers the share of those that differ.

    Infinite where shapes differ, or where one is no finite number and the other is.
    """
    found = [0.0]
    for name, right in expected.items():
        if answer[name].shape != right.shape:
            return float("inf")
        if right.dtype.kind != "f":
            found.append(float(np.mean(answer[name] != right)) if right.size else 0.0)
            continue
        finite = np.isfinite(right) & np.isfinite(answer[name])
        if not np.array_equal(answer[name][~finite], right[~finite], equal_nan=True):
            return float("inf")
        if finite.any():
            scale = float(np.abs(right[finite]).max()) or 1.0
            found.append(float(np.abs(answer[name][finite] - right[finite]).max()) / scale)
    return max(found)


class Refused(Exception):
    """What is wrong with the bundle or the call, in a sentence."""


def checked_manifest(folder: Path = HERE) -> dict[str, Any]:
    """The facts of a bundle that is whole: every file is the one that SHA256SUMS and manifest.json name.

    Whatever is wrong with a library is told where that is taken: there is another way.

    Raises:
        Refused: if a file is missing, or is another.
    """
    sums = folder / "SHA256SUMS"
    if not sums.exists():
        raise Refused(f"{sums.name} is missing: copy the whole bundle again")
    named = {}
    for line in sums.read_text(errors="replace").splitlines():
        expected, _, name = line.partition("  ")
        named[bare(name, "SHA256SUMS")] = expected
    for needed in ("manifest.json", "golden.npz", "model.onnx", "run.py"):
        if needed not in named:
            raise Refused(f"SHA256SUMS does not name {needed}: copy the whole bundle again")
    for name, expected in named.items():
        if name.endswith(".so"):
            continue
        path = folder / name
        if not path.is_file():
            raise Refused(f"{name} is missing: copy the whole bundle again")
        if digest(path) != expected:
            raise Refused(f"{name} is not the file that was made: its SHA-256 differs; copy the whole bundle again")
    manifest = read_manifest(folder)
    for part in (manifest["models"], manifest["engine"]["libraries"]):
        for name in part:
            if bare(name, "manifest.json") not in named:
                raise Refused(f"SHA256SUMS does not name {name}, but manifest.json does: copy the whole bundle again")
    for name, facts in manifest["models"].items():
        if facts["sha256"] != named[name]:
            raise Refused(f"{name} is not the model that manifest.json tells of: make the bundle again")
    return manifest


def bare(name: str, source: str) -> str:
    """The name of a file, as a file names it.

    Raises:
        Refused: if it leads out of the bundle.
    """
    if not name or name in (".", "..") or set("/\\\0") & set(name):
        raise Refused(f"{source} names {name!r}, takes names of files in the bundle alone")
    return name


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """What manifest.json says.

    Raises:
        Refused: if this program does not understand it.
    """
    try:
        manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
        written = manifest["format"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise Refused(f"manifest.json cannot be read ({error}): make the bundle again") from error
    if written != FORMAT:
        raise Refused(f"manifest.json has format {written}, takes {FORMAT}: use the run.py that was made with it")
    return manifest


def check_version(manifest: dict[str, Any]) -> None:
    """Refuses an onnxruntime that the bundle was not made for."""
    takes = manifest["onnxruntime"]
    if not number(takes["oldest"]) <= number(onnxruntime.__version__) <= number(takes["newest"]):
        raise Refused(
            f"onnxruntime: got {onnxruntime.__version__}, takes {takes['oldest']} to {takes['newest']}; "
            "pip install -r requirements.txt"
        )


def number(version: str) -> tuple[int, ...]:
    """1.32.0 as (1, 32, 0)."""
    return tuple(int(part) for part in version.split("+")[0].split(".")[:3] if part.isdigit())


def features() -> set[str]:
    """What this processor can do, as far as the system tells."""
    told = Path("/proc/cpuinfo")
    return set(told.read_text().split()) if told.exists() else set()


def options(threads: int, library: Path | None) -> Any:
    """Of a session; with a library of the sparse engine that computes what it covers."""
    found = onnxruntime.SessionOptions()
    found.intra_op_num_threads = threads
    found.log_severity_level = 4  # what is wrong is raised
    for key, value in (UNROUNDED | (EXACT if VNNI.isdisjoint(features()) else {})).items():
        found.add_session_config_entry(key, value)
    if library:
        found.register_custom_ops_library(str(library))
    return found


def session(name: str, threads: int = 0, library: Path | None = None) -> Any:
    """A model, ready to run; with a library by the sparse engine."""
    return loaded(str(HERE / name), options(threads, library))


def loaded(model: "str | bytes", chosen: Any) -> Any:
    """A session of a model, from its file or its bytes.

    onnxruntime cannot make sums of int8 EXACT in every graph; such a graph is computed as it is written.
    """
    try:
        return onnxruntime.InferenceSession(model, chosen, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has no class of its own for it
        if "Attempt to replace the existing tensor" not in str(error):
            raise
    chosen.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    return onnxruntime.InferenceSession(model, chosen, providers=["CPUExecutionProvider"])


def golden(part: str) -> dict[str, Any]:
    """The golden inputs by name; or a way's answers to them."""
    with np.load(HERE / "golden.npz") as found:
        return {key.removeprefix(f"{part}/"): found[key] for key in found.files if key.startswith(f"{part}/")}


def answered(running: Any, inputs: Arrays) -> dict[str, Any]:
    """Outputs by name of inputs by name."""
    names = [each.name for each in running.get_outputs()]
    return dict(zip(names, running.run(names, dict(inputs)), strict=True))


def library_of(manifest: dict[str, Any]) -> Path:
    """The sparse engine's library for this processor.

    Raises:
        Refused: if there is none, it is not the one that was made, or this onnxruntime has not been tried with it.
    """
    engine = manifest["engine"]
    known = features()
    fitting = [
        name
        for name, each in engine["libraries"].items()
        if each["machine"] == platform.machine() and known.issuperset(each["features"])
    ]
    if not fitting:
        raise Refused(engine["missing"] or f"the bundle has no library for this processor ({platform.machine()})")
    if ".".join(onnxruntime.__version__.split(".")[:2]) not in engine["onnxruntime"]:
        tried = ", ".join(engine["onnxruntime"])
        raise Refused(f"{fitting[0]} has not been tried with onnxruntime {onnxruntime.__version__}, but with {tried}")
    path = HERE / fitting[0]
    if not path.is_file():
        raise Refused(f"{path.name} is missing")
    if digest(path) != engine["libraries"][path.name]["sha256"]:
        raise Refused(f"{path.name} is not the file that was made: its SHA-256 differs")
    return path


def sparse(manifest: dict[str, Any], name: str) -> Way:
    """A model by the library for this processor.

    Raises:
        Refused: if there is no such library, or what it computes is wrong.
    """
    if reason := manifest["engine"]["uncovered"][name]:
        raise Refused(f"it does not know {reason}")
    library = library_of(manifest)
    expected = golden(f"{name}, sparse")
    try:
        answers = answered(session(name, library=library), golden("inputs"))
    except Exception as error:  # onnxruntime has no class of its own for a library that does not load
        raise Refused(f"{library.name} cannot be used: {str(error).splitlines()[0]}") from error
    differing = difference(answers, expected)
    tolerance = max(manifest["engine"]["libraries"][library.name]["tolerance"], manifest["models"][name]["between"])
    if not differing <= tolerance:
        raise Refused(
            f"{library.name} computes something else: the golden outputs of {name} differ by {differing:.3g} "
            "of the largest"
        )
    return Way(name, library, differing)


def ways(manifest: dict[str, Any], engine: str, names: Iterable[str]) -> dict[str, Way]:
    """The ways to compute these models that `engine` asks for; a line says why one is left out.

    Raises:
        Refused: if `engine` is sparse and the sparse engine cannot be used.
    """
    found: dict[str, Way] = {}
    refusals: dict[str, list[str]] = {}
    for name in names:
        if engine != "sparse":
            found[name] = Way(name)
        if engine != "onnxruntime":
            try:
                found[f"{name}, sparse"] = sparse(manifest, name)
            except Refused as refusal:
                refusals.setdefault(str(refusal), []).append(name)
    for reason, models in refusals.items():
        if engine == "sparse":
            raise Refused(f"{', '.join(models)}: no sparse engine: {reason}")
        print(f"{', '.join(models)}: computed by onnxruntime alone: {reason}", file=sys.stderr)
    return found


def faster(manifest: dict[str, Any], found: dict[str, Way]) -> Way:
    """The fastest of the ways of one model here: timed once, and kept in a file as long as nothing changes."""
    library = next((way.library for way in found.values() if way.library), None)
    if library is None or len(found) == 1:
        return next(iter(found.values()))
    if (there := available_bytes()) < STOCK_MEMORY * manifest["size_bytes"]["dense"]:
        print(f"the sparse engine computes: {there >> 20} MB are too few to load it without", file=sys.stderr)
        return next(way for way in found.values() if way.library)
    home = Path(os.environ.get("HOME", HERE))
    file = Path(os.environ.get("XDG_CACHE_HOME", home / ".cache")) / "rewind-pipeline" / "faster.json"
    model = manifest["models"][found[next(iter(found))].model]["sha256"]
    key = " ".join([model, digest(library), onnxruntime.__version__, processor()])
    try:
        choices = dict(json.loads(file.read_text()))
    except (OSError, ValueError, TypeError):
        choices = {}
    if choices.get(key) not in found:
        medians = {name: statistics.median(each) for name, each in timed(found, threads=0, seconds=1.0).items()}
        choices[key] = min(medians, key=medians.__getitem__)
        said = ", ".join(f"{name} {each:.3f} ms" for name, each in medians.items())
        print(f"{choices[key]} is the fastest here and computes from now on ({said})", file=sys.stderr)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(choices, indent=1))
        except OSError:
            pass  # it is timed again the next time
    return found[choices[key]]


def available_bytes() -> int:
    """Memory that a process can still get; where that is not known, without bound."""
    told = Path("/proc/meminfo")
    lines = told.read_text().splitlines() if told.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), sys.maxsize)


def processor() -> str:
    """What tells this processor from others."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text().splitlines() if told.exists() else []
    marks = ("model name", "CPU implementer", "CPU part")
    said = [line.partition(":")[2].strip() for line in lines if line.startswith(marks)]
    return " ".join([platform.machine(), *dict.fromkeys(said)])


def check(manifest: dict[str, Any], engine: str) -> dict[str, float]:
    """The largest difference from the golden outputs, relative to the largest of these, by way.

    Raises:
        Refused: if a file, the version, an input or an answer is not the bundle's own.
    """
    check_version(manifest)
    differences = {}
    for way, (name, library, known) in ways(manifest, engine, manifest["models"]).items():
        differing = known if library else difference(answered(session(name), golden("inputs")), golden(name))
        takes = manifest["models"][name]["tolerance"]
        if not library and not differing <= takes:
            raise Refused(
                f"{name}: its golden outputs differ by {differing:.3g} of the largest, takes at most {takes:.3g}: "
                "onnxruntime computes something else on this machine"
            )
        differences[way] = differing
    return differences


def bench(manifest: dict[str, Any], engine: str, threads: int) -> dict[str, list[float]]:
    """Milliseconds of one inference, [median, 95th percentile], by way."""
    times = timed(ways(manifest, engine, manifest["models"]), threads, seconds=3.0)
    return {name: [float(np.percentile(each, share)) for share in (50, 95)] for name, each in times.items()}


def foretold(folder: Path = HERE) -> tuple[str, dict[str, tuple[float, float]]]:
    """The board that this is, and the least and most milliseconds of an inference by way that `task=verify` foretold of
    it: in `verified.json` of this bundle, in its folder or beside that. Nothing where there is none, or on no board.
    """
    try:
        board = BOARD.read_text()
        of_this_bundle = digest(folder / "SHA256SUMS")
    except OSError:
        return "", {}
    for place in (folder, folder.parent):
        try:
            told = json.loads((place / "verified.json").read_text())
            known = [one.get("milliseconds", {}) for one in told["places"].values()]
            for name, by_way in ((name, each) for one in known for name, each in one.items()):
                if told["bundle"] == of_this_bundle and board.startswith(name):
                    return name, {way: (float(least), float(most)) for way, (least, most) in by_way.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return "", {}


def timed(found: dict[str, Way], threads: int, seconds: float) -> dict[str, list[float]]:
    """Milliseconds of single inferences by way; the ways take turns."""
    one = {name: each[:1] for name, each in golden("inputs").items()}
    sessions = {name: session(way.model, threads, way.library) for name, way in found.items()}
    turns = in_turns(sessions, one, seconds, STRETCH)
    return {way: [each for turn in turns[way] for each in turn] for way in sessions}


def in_turns(
    sessions: Mapping[str, Any], inputs: Arrays, seconds: float, stretch: float
) -> dict[str, list[list[float]]]:
    """Milliseconds of single inferences by session, a list for each of its turns of ``stretch`` seconds: at least one,
    and more until ``seconds`` are over.
    """
    turns: dict[str, list[list[float]]] = {name: [] for name in sessions}
    end = time.perf_counter() + seconds
    while True:
        for name, each in sessions.items():
            turns[name].append(turn(partial(milliseconds, each, inputs), stretch))
        if time.perf_counter() >= end:
            return turns


def milliseconds(running: Any, inputs: Arrays) -> float:
    """That one inference takes."""
    begin = time.perf_counter()
    running.run(None, dict(inputs))
    return (time.perf_counter() - begin) * 1000


def turn(measure: Callable[[], float], stretch: float) -> list[float]:
    """What ``measure`` gives again and again for ``stretch`` seconds, without the first half: till then the caches hold
    what another has read, and another session's threads may still take cores.
    """
    found: list[float] = []
    begin = time.perf_counter()
    while not found or time.perf_counter() - begin < stretch:
        counts = time.perf_counter() - begin >= stretch / 2
        measured = measure()
        if counts:
            found.append(measured)
    return found


def answer(manifest: dict[str, Any], engine: str, file: str, out: str | None) -> dict[str, Any]:
    """The share of a file's inputs whose likeliest class is the label, or how many were answered, by way.

    A file has inputs by their names, or batches of such (`0/NAME`, `1/NAME`, ...), and perhaps `labels`.
    """
    given = arrays_in(Path(file))
    labels = given.pop("labels", None)
    if labels is not None and manifest["classes"] is None:
        raise Refused(f"{file} has labels, but the answers of this network are not scores of classes")
    if not given:
        raise Refused(f"{file} has no inputs, takes {names_of(manifest)}")
    batches = {key.partition("/")[0] if "/" in key else "" for key in given}
    fitted: dict[str, Arrays] = {}
    for batch in sorted(batches, key=lambda each: (len(each), each)):
        mark = f"{batch}/" if batch else ""
        of_it = {key.removeprefix(mark): each for key, each in given.items() if key.startswith(mark)}
        fitted[mark] = fitting(manifest, file, of_it)
    count = sum(len(next(iter(inputs.values()))) for inputs in fitted.values())
    if labels is not None and (labels.dtype.kind not in "iu" or labels.shape != (count,)):
        got = " x ".join(map(str, labels.shape)) or "one"
        raise Refused(f"{file}: labels are {got} of type {labels.dtype}, takes {count} whole numbers")
    kept: dict[str, Any] = {}
    found: dict[str, Any] = {}
    for way, (name, library, _) in ways(manifest, engine, manifest["models"]).items():
        model = session(name, library=library)
        parts: dict[str, list[Any]] = {}
        for mark, inputs in fitted.items():
            for key, each in by_pieces(manifest, model, inputs).items():
                kept[f"{way}/{mark}{key}"] = each
                parts.setdefault(key, []).append(each)
        if labels is None:
            found[way] = count
        else:
            (scores, *_) = parts.values()
            found[way] = float((np.concatenate(scores).argmax(1) == labels).mean())
    if out is not None:
        keep(out, kept)
    return found


def keep(out: str, arrays: Arrays) -> None:
    """Writes arrays to a file of just this name.

    Raises:
        Refused: if it cannot be written.
    """
    try:
        with Path(out).open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
    except OSError as error:
        raise Refused(f"--out {out}: {error}") from error


def by_pieces(manifest: dict[str, Any], model: Any, inputs: Arrays) -> dict[str, Any]:
    """Outputs of inputs, a few at a time where every output has a row an example.

    Raises:
        Refused: if the network takes no inputs of these sizes.
    """
    count = len(next(iter(inputs.values())))
    rows = all(each["shape"] and each["shape"][0] is None for each in (*manifest["inputs"], *manifest["outputs"]))
    size = BATCH if rows else count
    try:
        found = [
            answered(model, {name: each[first : first + size] for name, each in inputs.items()})
            for first in range(0, count, size)
        ]
    except Exception as error:  # onnxruntime has no class of its own for a graph that fails on an input
        raise Refused(f"the network cannot compute {sizes_of(inputs)}: {str(error).splitlines()[0]}") from error
    return {name: joined([part[name] for part in found]) for name in found[0]}


def sizes_of(inputs: Arrays) -> str:
    """In words: image of 1 x 3 x 32 x 32."""
    return ", ".join(f"{name} of " + " x ".join(map(str, each.shape)) for name, each in inputs.items())


def joined(parts: Sequence[Any]) -> Any:
    """An output of several pieces of inputs, or of all at once, whatever its shape."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def names_of(manifest: dict[str, Any]) -> str:
    """The names of a network's inputs."""
    return ", ".join(each["name"] for each in manifest["inputs"])


def fitting(manifest: dict[str, Any], file: str, inputs: Arrays) -> dict[str, Any]:
    """Inputs as the network takes them.

    Raises:
        Refused: if one is missing, has another shape, or has what is no finite number.
    """
    found = {}
    for told in manifest["inputs"]:
        name, shape = told["name"], told["shape"]
        given = inputs.get(name)
        if given is None and len(inputs) == len(manifest["inputs"]) == 1:
            (given,) = inputs.values()
        if given is None:
            raise Refused(f"{file} has no {name}, takes {names_of(manifest)}")
        if len(given.shape) == len(shape) - 1:
            given = given[None]
        takes = " x ".join("N" if side is None else str(side) for side in shape)
        fits = len(given.shape) == len(shape) and all(a in (None, b) for a, b in zip(shape, given.shape, strict=True))
        if not fits or not len(given):
            got = " x ".join(map(str, given.shape))
            raise Refused(f"{file}: {name} is {got or 'one number'}, takes {takes}")
        if not np.can_cast(given.dtype, told["type"], "same_kind"):
            raise Refused(f"{file}: {name} has type {given.dtype}, takes {told['type']}")
        found[name] = np.ascontiguousarray(given, told["type"])
        if found[name].dtype.kind in "iu" and (found[name] != given).any():
            few, many = given.min(), given.max()
            raise Refused(f"{file}: {name} has numbers from {few} to {many}, takes those of {told['type']}")
        if count := np.count_nonzero(~np.isfinite(found[name])):
            raise Refused(f"{file}: {count} of the numbers in {name} are none, or infinite; takes finite ones")
    return found


def arrays_in(file: Path) -> dict[str, Any]:
    """What an .npy or .npz file holds, by name.

    Raises:
        Refused: if it is none.
    """
    try:
        with file.open("rb") as content:
            found = np.load(content, allow_pickle=False)
            arrays = {"": found} if isinstance(found, np.ndarray) else {key: found[key] for key in found.files}
    except Exception as error:  # of a damaged file numpy raises what it comes upon, of no common kind
        reason = str(error).splitlines()[:1] or [type(error).__name__]
        raise Refused(f"{file}: {reason[0]}; takes an .npy or .npz file of arrays") from error
    if others := [key for key, each in arrays.items() if not isinstance(each, np.ndarray)]:
        raise Refused(f"{file}: {others[0]} in it is no array; takes an .npy or .npz file of arrays")
    return arrays


def image_in(told: dict[str, Any], file: Path) -> Any:
    """An image file as a model's input (1, channels, height, width)."""
    from picture import Unreadable, middle, opened  # type: ignore[import-not-found]  # the file beside this one

    if told["kind"] != "image":
        raise Refused(f"{file}: this network takes no images, but {takes_of(told)}")
    try:
        picture, animated = opened(file, told["mode"])
    except Unreadable as error:
        raise Refused(f"{file}: {error}; takes an image file") from error
    if animated:
        print(f"{file} has several frames: the first is used", file=sys.stderr)
    height, width = told["shape"][2:]
    scale = (told["shorter_side"] or min(picture.size)) / min(picture.size)
    size = (width or round(picture.width * scale), height or round(picture.height * scale))
    picture = middle(picture, told["shorter_side"], size)
    pixels = np.asarray(picture)
    pixels = (pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))[None]
    return pixels if told["type"] == "uint8" else pixels.astype(told["type"]) / np.asarray(255, told["type"])


def sound_in(told: dict[str, Any], file: Path) -> Any:
    """A WAV file as a model's input (1, samples) or (1, 1, samples): one channel, from -1 to 1, cut or filled up.

    Raises:
        Refused: if it is none, or has another number of samples a second.
    """
    if told["kind"] != "sound":
        raise Refused(f"{file}: this network takes no sounds, but {takes_of(told)}")
    try:
        with wave.open(str(file)) as sound:
            rate, channels, width = sound.getframerate(), sound.getnchannels(), sound.getsampwidth()
            content = sound.readframes(sound.getnframes())
        content = content[: len(content) // (width * channels) * width * channels]
    except (OSError, EOFError, wave.Error) as error:
        raise Refused(f"{file}: {error}; takes a WAV file") from error
    if told["rate"] not in (None, rate):
        raise Refused(f"{file} has {rate} samples a second, takes {told['rate']}")
    if width not in (1, 2, 4):
        raise Refused(f"{file} has samples of {8 * width} bits, takes 8, 16 or 32")
    samples = np.frombuffer(content, {1: "u1", 2: "<i2", 4: "<i4"}[width]).reshape(-1, channels).astype("f8")
    samples = (samples / (1 << 7) - 1 if width == 1 else samples / (1 << (8 * width - 1))).mean(1)
    length = told["shape"][-1]
    if length is not None:
        samples = np.pad(samples, (0, max(0, length - len(samples))))[:length]
    return samples.reshape(*[1] * (len(told["shape"]) - 1), -1).astype(told["type"])


def table_in(told: dict[str, Any], file: Path) -> Any:
    """A CSV file as a model's input: a row an example, or, where that is a table, all rows one example.

    Raises:
        Refused: if it is none.
    """
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            rows = [row for row in csv.reader(lines) if row]
        if rows and not any(map(is_number, rows[0])):  # names of columns
            del rows[0]
        numbers = np.array([[float(each) for each in row] for row in rows])
        if numbers.ndim != 2 or not numbers.size:
            raise ValueError("it has no rows of numbers")
    except (OSError, ValueError, csv.Error) as error:
        raise Refused(f"{file}: {error}; takes a CSV file of numbers") from error
    numbers = numbers.astype(told["type"])
    return numbers if len(told["shape"]) == 2 else numbers.reshape(1, *numbers.shape)


def is_number(text: str) -> bool:
    """Whether a text is a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def takes_of(told: dict[str, Any]) -> str:
    """What a network takes, in words."""
    words = {"image": "an image", "sound": "a sound (.wav)", "arrays": "arrays (.npy, .npz)"}
    return f"{words[told['kind']]}, {told['name']}: " + " x ".join("N" if n is None else str(n) for n in told["shape"])


def inputs_in(manifest: dict[str, Any], file: str) -> dict[str, Any]:
    """A file as the network's inputs, read by what its name ends with.

    Raises:
        Refused: if it is none that the network takes.
    """
    path = Path(file)
    ending = path.suffix.lower()
    if ending in (".npy", ".npz"):
        return fitting(manifest, file, arrays_in(path))
    if len(manifest["inputs"]) != 1:
        raise Refused(f"{file}: takes an .npz file with {names_of(manifest)}")
    (told,) = manifest["inputs"]
    read = {".wav": sound_in, ".csv": table_in}.get(ending, image_in)
    return fitting(manifest, file, {told["name"]: read(told, path)})


def predict(manifest: dict[str, Any], engine: str, file: str, out: str | None) -> dict[str, Any]:
    """Class and probability of the five likeliest, boxes, or the outputs."""
    inputs = inputs_in(manifest, file)
    if out is not None and out.endswith(".png") and manifest["classes"] is not None:
        raise Refused("--out PNG draws the boxes of a network that finds some, and this one names classes; takes .npz")
    if (count := len(next(iter(inputs.values())))) > 1 and manifest["classes"] is not None:
        rest = "" if out is None else f", {out} has all"
        print(f"{file} has {count} examples: the answer to the first is shown{rest}", file=sys.stderr)
    way = faster(manifest, ways(manifest, engine, ["model.onnx"]))
    found = by_pieces(manifest, session(way.model, library=way.library), inputs)
    if out is not None and not out.endswith(".png"):
        keep(out, found)
    if manifest["classes"] is not None:
        (scores, *_) = found.values()
        shares = np.exp(scores[0] - scores[0].max())
        shares /= shares.sum()
        names = manifest["classes"] or [str(each) for each in range(len(shares))]
        return {names[each]: float(shares[each]) for each in shares.argsort()[::-1][:5]}
    if out is not None and out.endswith(".png"):
        drawn(manifest, file, found, out)
    return {name: each.tolist() for name, each in found.items()}


def boxes_in(manifest: dict[str, Any], found: Arrays) -> list[tuple[list[float], float, str]]:
    """Corners, score and class of every box of the first image, where the outputs are `boxes`, `scores`, `labels`."""
    if not {"boxes", "scores", "labels"} <= found.keys():
        return []
    boxes, scores, labels = (np.asarray(found[name]) for name in ("boxes", "scores", "labels"))
    if boxes.ndim == 3:
        boxes, scores, labels = boxes[0], scores[0], labels[0]
    names = manifest["names"]
    return [
        (box.tolist(), float(score), names[int(label)] if int(label) < len(names) else str(int(label)))
        for box, score, label in zip(boxes, scores, labels, strict=True)
    ]


def drawn(manifest: dict[str, Any], file: str, found: Arrays, out: str) -> None:
    """Draws boxes on the image, as the network saw it.

    Raises:
        Refused: if the network finds no boxes, or does not look at images.
    """
    from PIL import Image, ImageDraw

    (told, *_) = manifest["inputs"]
    if not {"boxes", "scores", "labels"} <= found.keys() or told["kind"] != "image":
        raise Refused("--out PNG draws the boxes of a network with outputs boxes, scores and labels, of images")
    pixels = image_in(told, Path(file))[0]
    pixels = pixels if told["type"] == "uint8" else np.rint(pixels * 255).astype("u1")
    picture = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).convert("RGB")
    pen = ImageDraw.Draw(picture)
    for box, score, name in boxes_in(manifest, found):
        pen.rectangle(box, outline="red")
        pen.text((box[0], box[1]), f"{name} {score:.0%}", fill="red")
    try:
        picture.save(out)
    except OSError as error:
        raise Refused(f"--out {out}: {error}") from error


def threads_of(text: str) -> int:
    """A number of threads that this board has cores for, 0 for all of them.

    Raises:
        ArgumentTypeError: if it is none.
    """
    cores = os.cpu_count() or 1
    if not (text.isdecimal() and int(text) <= cores):
        raise argparse.ArgumentTypeError(f"{text!r}; takes 0 (a thread a core) to {cores}, the cores that there are")
    return int(text)


def main() -> int:
    """Runs the command; a refusal is a sentence and status 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["check", "bench", "predict", "answer"])
    parser.add_argument("file", nargs="?")
    parser.add_argument("--threads", type=threads_of, default=1, help="threads of bench; 0: a thread a core")
    parser.add_argument("--engine", choices=["auto", "onnxruntime", "sparse"], default="auto", help="what computes")
    parser.add_argument("--out", help="file that predict and answer keep the outputs in")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_intermixed_args()
    if given.command in ("predict", "answer") and given.file is None:
        parser.error(f"{given.command} takes a file")
    try:
        if given.out is not None and (Path(given.out).is_dir() or not Path(given.out).parent.is_dir()):
            raise Refused(f"--out {given.out}: takes the name of a file, in a folder that there is")
        manifest = checked_manifest()
        found: dict[str, Any]
        if given.command == "check":
            found = check(manifest, given.engine)
        elif given.command == "bench":
            found = bench(manifest, given.engine, given.threads)
        elif given.command == "predict":
            found = predict(manifest, given.engine, given.file, given.out)
        else:
            found = answer(manifest, given.engine, given.file, given.out)
    except Refused as refusal:
        print(refusal, file=sys.stderr)
        return 1
    print(json.dumps(found) if given.json else "\n".join(lines(manifest, given.command, found)))
    return 0


def lines(manifest: dict[str, Any], command: str, found: dict[str, Any]) -> Iterator[str]:
    """What a person reads."""
    if command == "predict" and manifest["classes"] is None:
        outputs = {name: np.asarray(each) for name, each in found.items()}
        boxes = boxes_in(manifest, outputs)
        for box, score, name in boxes:
            yield f"{name}: {score:.2%}, corners " + ", ".join(f"{each:.1f}" for each in box)
        for name, each in {} if boxes else outputs.items():
            size = " x ".join(map(str, each.shape))
            some = np.array2string(each.ravel()[:8], precision=4, separator=", ")
            yield f"{name}: {size}{f', from {each.min():.4g} to {each.max():.4g}' if each.size else ''}: {some}"
        return
    board, expected = foretold() if command == "bench" else ("", {})
    for name, figure in found.items():
        if command == "check":
            yield f"{name}: golden outputs differ by {figure:.3g} of the largest at most"
        elif command == "bench":
            beside = (
                "; foretold for a {}: {:.3f} to {:.3f} ms".format(board, *expected[name]) if name in expected else ""
            )
            yield f"{name}: {figure[0]:.3f} ms (95%: {figure[1]:.3f} ms){beside}"
        else:
            yield f"{name}: {figure:.2%}" if isinstance(figure, float) else f"{name}: {figure} answers"


if __name__ == "__main__":
    sys.exit(main())
