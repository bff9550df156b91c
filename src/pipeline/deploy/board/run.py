"""What runs on the board: python run.py check | bench | predict IMAGE | score FILE.npz

Needs numpy, Pillow and onnxruntime (requirements.txt), and the files that lie beside it.

    check           files, versions, and the answers to the golden inputs
    bench           milliseconds an inference of every model, in turns
    predict IMAGE   the five likeliest classes
    score FILE.npz  accuracy of every model on the file's `inputs` and `labels`
"""

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # else it calls home when it is imported
import onnxruntime

HERE = Path(__file__).resolve().parent
BATCH = 100


class Refused(Exception):
    """What is wrong with the bundle or the call, in a sentence."""


def check_files() -> None:
    """Compares every file with SHA256SUMS."""
    sums = HERE / "SHA256SUMS"
    if not sums.exists():
        raise Refused(f"{sums.name} is missing: copy the whole bundle again")
    named = {}
    for line in sums.read_text(errors="replace").splitlines():
        digest, _, name = line.partition("  ")
        named[name] = digest
    for needed in ("manifest.json", "golden.npz", "model.onnx", "run.py"):
        if needed not in named:
            raise Refused(f"SHA256SUMS does not name {needed}: copy the whole bundle again")
    for name, digest in named.items():
        path = HERE / name
        if not path.is_file():
            raise Refused(f"{name} is missing: copy the whole bundle again")
        if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            raise Refused(f"{name} is not the file that was made: its SHA-256 differs; copy the whole bundle again")


def read_manifest() -> dict[str, Any]:
    """The facts of the bundle."""
    try:
        manifest: dict[str, Any] = json.loads((HERE / "manifest.json").read_text())
    except (OSError, ValueError) as error:
        raise Refused(f"manifest.json cannot be read ({error}): copy the whole bundle again") from error
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


def session(name: str, threads: int = 0) -> Any:
    """A model, ready to run."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(HERE / name), options, providers=["CPUExecutionProvider"])


def check(manifest: dict[str, Any]) -> dict[str, float]:
    """The largest difference from the golden outputs, by model.

    Raises:
        Refused: if a file, the version, an input or an answer is not the bundle's own.
    """
    check_files()
    check_version(manifest)
    golden = np.load(HERE / "golden.npz")
    differences = {}
    for name, model in manifest["models"].items():
        scores = session(name).run(None, {"input": golden["inputs"]})[0]
        difference = float(np.abs(scores - golden[name]).max())
        if not difference <= model["tolerance"]:
            raise Refused(
                f"{name}: its golden outputs differ by {difference:.3g}, takes at most {model['tolerance']:.3g}: "
                "onnxruntime computes something else on this machine"
            )
        differences[name] = difference
    return differences


def bench(manifest: dict[str, Any], threads: int, seconds: float = 3.0) -> dict[str, list[float]]:
    """Milliseconds of one inference, [median, 95th percentile], by model; the models take turns."""
    one = np.load(HERE / "golden.npz")["inputs"][:1]
    sessions = {name: session(name, threads) for name in manifest["models"]}
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for each in sessions.values():
        each.run(None, {"input": one})
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for name, each in sessions.items():
            begin = time.perf_counter()
            each.run(None, {"input": one})
            times[name].append((time.perf_counter() - begin) * 1000)
    return {name: [float(np.percentile(each, share)) for share in (50, 95)] for name, each in times.items()}


def score(manifest: dict[str, Any], file: str) -> dict[str, float]:
    """Share of the file's inputs whose likeliest class is the label, by model."""
    try:
        given = np.load(file)
        inputs, labels = given["inputs"], given["labels"]
    except (OSError, ValueError, KeyError) as error:
        raise Refused(f"{file}: {error}; takes an .npz file with inputs and labels") from error
    found = {}
    for name in manifest["models"]:
        model = session(name)
        right = 0
        for first in range(0, len(labels), BATCH):
            part = slice(first, first + BATCH)
            scores = model.run(None, {"input": inputs[part]})[0]
            right += int((scores.argmax(1) == labels[part]).sum())
        found[name] = right / len(labels)
    return found


def pixels_of(manifest: dict[str, Any], file: str) -> np.ndarray[Any, Any]:
    """An image file as the model's input, uint8 (1, channels, height, width)."""
    from PIL import Image, UnidentifiedImageError

    image = manifest["input"]["image"]
    if image is None:
        raise Refused("predict: this network does not take images")
    try:
        picture = Image.open(file).convert(image["mode"])
    except (OSError, UnidentifiedImageError) as error:
        raise Refused(f"{file}: {error}; takes an image file") from error
    height, width = manifest["input"]["shape"][2:]
    if image["shorter_side"] is not None:
        scale = image["shorter_side"] / min(picture.size)
        picture = picture.resize([round(side * scale) for side in picture.size], Image.Resampling.BILINEAR)
        left, top = (picture.width - width) // 2, (picture.height - height) // 2
        picture = picture.crop((left, top, left + width, top + height))
    elif picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(picture)
    return (pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))[None]


def predict(manifest: dict[str, Any], file: str) -> dict[str, float]:
    """Class and probability of the five likeliest."""
    scores = session("model.onnx").run(None, {"input": pixels_of(manifest, file)})[0][0]
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
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args()
    if given.command in ("predict", "score") and given.file is None:
        parser.error(f"{given.command} takes a file")
    try:
        manifest = read_manifest()
        found: dict[str, Any]
        if given.command == "check":
            found = check(manifest)
        elif given.command == "bench":
            found = bench(manifest, given.threads)
        elif given.command == "predict":
            found = predict(manifest, given.file)
        else:
            found = score(manifest, given.file)
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
