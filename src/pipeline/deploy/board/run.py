"""What runs on the board: python run.py check | bench | predict IMAGE | score FILE.npz

Needs numpy, Pillow and onnxruntime (requirements.txt), and the files that lie beside it.

    check           files, versions, and the answers to the golden inputs
    bench           milliseconds an inference of every model, in turns
    predict IMAGE   the five likeliest classes
    score FILE.npz  accuracy of every model on the file's `inputs` and `labels`

A model runs in two ways: by onnxruntime alone, and by the sparse engine, a library beside it. `predict` takes the one
that was faster on this machine, the other commands show both; `--engine` sets one for all.
"""

import argparse
import hashlib
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # else it calls home when it is imported
import onnxruntime

HERE = Path(__file__).resolve().parent
FORMAT = 2
"""Of the manifest."""
BATCH = 100
EXACT = {"session.x64quantprecision": "1"}
VNNI = {"avx512_vnni", "avx_vnni"}
"""x86 without VNNI adds int8 products in 16 bits, which overflow, unless a session is told to be EXACT.

With VNNI the sums are exact anyway, and that would double the time of int8.
"""


class Way(NamedTuple):
    """A model and what computes it: onnxruntime, or a library with this difference from the golden outputs."""

    model: str
    library: Path | None = None
    difference: float = 0.0


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
    found.log_severity_level = 4 if library else 3
    if VNNI.isdisjoint(features()):
        for key, value in EXACT.items():
            found.add_session_config_entry(key, value)
    if library:
        found.register_custom_ops_library(str(library))
    return found


def session(name: str, threads: int = 0, library: Path | None = None) -> Any:
    """A model, ready to run; with a library by the sparse engine."""
    path = str(HERE / name)
    return onnxruntime.InferenceSession(path, options(threads, library), providers=["CPUExecutionProvider"])


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
    golden = np.load(HERE / "golden.npz")
    expected = golden[f"{name}, sparse"]
    try:
        scores = session(name, library=library).run(None, {"input": golden["inputs"]})[0]
    except Exception as error:  # onnxruntime has no class of its own for a library that does not load
        raise Refused(f"{library.name} cannot be used: {str(error).splitlines()[0]}") from error
    difference = float(np.abs(scores - expected).max())
    tolerance = manifest["engine"]["libraries"][library.name]["tolerance"]
    if not difference <= tolerance * float(np.abs(expected).max()):
        raise Refused(
            f"{library.name} computes something else: the golden outputs of {name} differ by {difference:.3g}"
        )
    return Way(name, library, difference)


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


def processor() -> str:
    """What tells this processor from others."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text().splitlines() if told.exists() else []
    marks = ("model name", "CPU implementer", "CPU part")
    said = [line.partition(":")[2].strip() for line in lines if line.startswith(marks)]
    return " ".join([platform.machine(), *dict.fromkeys(said)])


def check(manifest: dict[str, Any], engine: str) -> dict[str, float]:
    """The largest difference from the golden outputs, by way.

    Raises:
        Refused: if a file, the version, an input or an answer is not the bundle's own.
    """
    check_version(manifest)
    golden = np.load(HERE / "golden.npz")
    differences = {}
    for way, (name, library, difference) in ways(manifest, engine, manifest["models"]).items():
        differences[way] = difference
        if library:
            continue
        model = manifest["models"][name]
        scores = session(name).run(None, {"input": golden["inputs"]})[0]
        difference = float(np.abs(scores - golden[name]).max())
        takes = model["tolerance"] * float(np.abs(golden[name]).max())
        if not difference <= takes:
            raise Refused(
                f"{name}: its golden outputs differ by {difference:.3g}, takes at most {takes:.3g}: "
                "onnxruntime computes something else on this machine"
            )
        differences[way] = difference
    return differences


def bench(manifest: dict[str, Any], engine: str, threads: int) -> dict[str, list[float]]:
    """Milliseconds of one inference, [median, 95th percentile], by way."""
    times = timed(ways(manifest, engine, manifest["models"]), threads, seconds=3.0)
    return {name: [float(np.percentile(each, share)) for share in (50, 95)] for name, each in times.items()}


def timed(found: dict[str, Way], threads: int, seconds: float) -> dict[str, list[float]]:
    """Milliseconds of single inferences by way; the ways take turns."""
    one = np.load(HERE / "golden.npz")["inputs"][:1]
    sessions = {name: session(way.model, threads, way.library) for name, way in found.items()}
    times: dict[str, list[float]] = {way: [] for way in sessions}
    for each in sessions.values():
        each.run(None, {"input": one})
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for way, each in sessions.items():
            begin = time.perf_counter()
            each.run(None, {"input": one})
            times[way].append((time.perf_counter() - begin) * 1000)
    return times


def score(manifest: dict[str, Any], engine: str, file: str) -> dict[str, float]:
    """Share of the file's inputs whose likeliest class is the label, by way."""
    try:
        given = np.load(file)
        inputs, labels = given["inputs"], given["labels"]
    except (OSError, ValueError, KeyError) as error:
        raise Refused(f"{file}: {error}; takes an .npz file with inputs and labels") from error
    found = {}
    for way, (name, library, _) in ways(manifest, engine, manifest["models"]).items():
        model = session(name, library=library)
        right = 0
        for first in range(0, len(labels), BATCH):
            part = slice(first, first + BATCH)
            scores = model.run(None, {"input": inputs[part]})[0]
            right += int((scores.argmax(1) == labels[part]).sum())
        found[way] = right / len(labels)
    return found


def pixels_of(manifest: dict[str, Any], file: str) -> np.ndarray[Any, Any]:
    """An image file as the model's input, uint8 (1, channels, height, width)."""
    from picture import Unreadable, middle, opened  # type: ignore[import-not-found]  # the file beside this one

    image = manifest["input"]["image"]
    if image is None:
        raise Refused("predict: this network does not take images")
    height, width = manifest["input"]["shape"][2:]
    try:
        picture, animated = opened(Path(file), image["mode"])
    except Unreadable as error:
        raise Refused(f"{file}: {error}; takes an image file") from error
    if animated:
        print(f"{file} has several frames: the first is used", file=sys.stderr)
    picture = middle(picture, image["shorter_side"], (width, height))
    pixels = np.asarray(picture)
    return (pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))[None]


def predict(manifest: dict[str, Any], engine: str, file: str) -> dict[str, float]:
    """Class and probability of the five likeliest."""
    pixels = pixels_of(manifest, file)
    way = faster(manifest, ways(manifest, engine, ["model.onnx"]))
    scores = session(way.model, library=way.library).run(None, {"input": pixels})[0][0]
    shares = np.exp(scores - scores.max())
    shares /= shares.sum()
    names = manifest["classes"] or [str(each) for each in range(len(shares))]
    return {names[each]: float(shares[each]) for each in shares.argsort()[::-1][:5]}


def main() -> int:
    """Runs the command; a refusal is a sentence and status 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["check", "bench", "predict", "score"])
    parser.add_argument("file", nargs="?")
    parser.add_argument("--threads", type=int, default=1, help="threads of bench")
    parser.add_argument("--engine", choices=["auto", "onnxruntime", "sparse"], default="auto", help="what computes")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args()
    if given.command in ("predict", "score") and given.file is None:
        parser.error(f"{given.command} takes a file")
    try:
        manifest = checked_manifest()
        found: dict[str, Any]
        if given.command == "check":
            found = check(manifest, given.engine)
        elif given.command == "bench":
            found = bench(manifest, given.engine, given.threads)
        elif given.command == "predict":
            found = predict(manifest, given.engine, given.file)
        else:
            found = score(manifest, given.engine, given.file)
    except Refused as refusal:
        print(refusal, file=sys.stderr)
        return 1
    print(json.dumps(found) if given.json else "\n".join(lines(given.command, found)))
    return 0


def lines(command: str, found: dict[str, Any]) -> Iterator[str]:
    """What a person reads."""
    for name, figure in found.items():
        if command == "check":
            yield f"{name}: golden outputs differ by {figure:.3g} at most"
        elif command == "bench":
            yield f"{name}: {figure[0]:.3f} ms (95%: {figure[1]:.3f} ms)"
        else:
            yield f"{name}: {figure:.2%}"


if __name__ == "__main__":
    sys.exit(main())
