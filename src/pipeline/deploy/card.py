"""What a person reads in a bundle: its README, made of the manifest's facts alone, and what it needs."""

from pipeline.deploy import signature
from pipeline.deploy.manifest import Manifest
from pipeline.ground import tables


def requirements(manifest: Manifest) -> str:
    """The bundle's ``requirements.txt``."""
    versions, runtime = manifest.versions, manifest.onnxruntime
    return (
        f"numpy=={versions['numpy']}\npillow=={versions['pillow']}\n"
        f"onnxruntime>={runtime['oldest']},<={runtime['newest']}\n"
    )


def readme(manifest: Manifest, *, signed: bool) -> str:
    """The bundle's model card; where it is ``signed``, with how that is checked."""
    size, gzip = manifest.size_bytes, manifest.gzip_bytes
    scores, label = manifest.scores.get("test", {}), manifest.score["label"]
    rows = [("plain export, dense float", size["dense"], gzip["dense"], "")]
    shipped = {each["kind"] for each in manifest.models.values()}
    for kind, name in {"float32": "packed float", "int8": "packed int8"}.items():
        if kind in shipped:
            rows.append((name, size[kind], gzip[kind], shown(manifest, scores.get(kind))))
    table = tables.markdown(
        ["model", "bytes", "gzip", "of the plain export", f"test {label}"],
        [[name, f"{raw:,}", f"{zipped:,}", f"1/{size['dense'] / raw:.1f}", right] for name, raw, zipped, right in rows],
        left=[0],
    )
    engine = manifest.engine
    libraries = ", ".join(f"`{name}`" for name in engine["libraries"]) or "not in this bundle"
    uncovered = {f"{name}: {reason}" for name, reason in engine["uncovered"].items() if reason is not None}
    sparse = f"""The sparse engine ({libraries}) computes the same files from the weights that are left, in float;
`run.py` tries it, compares it with golden outputs, and takes the way that needs less time."""
    for name, each in engine["libraries"].items():
        if each["precision"] == "float16":
            sparse += f"\n`{name}` computes in float16: scores differ by up to {each['tolerance']:.0%} of the largest."
    if beside := dict.fromkeys(each for one in engine["beside"].values() for each in one):
        sparse += f"\nBeside it ONNX Runtime computes what it does not know: {', '.join(beside)}."
    if uncovered:
        sparse = f"The sparse engine does not know all of this network ({'; '.join(sorted(uncovered))})."
    latency = manifest.latency["ratio"]
    timed = ", ".join(f"{name.replace('_', ' ')} {ratio:.2f}" for name, ratio in latency.items())
    macs = manifest.macs
    judged = f"The masked network in PyTorch has {shown(manifest, scores.get('masked'))} ({label}) on the test split."
    if manifest.unjudged:
        judged = f"The models' outputs were compared, not their {label}: {manifest.unjudged}."
    what = {"image": "IMAGE", "sound": "SOUND.wav"}.get(manifest.inputs[0]["kind"], "FILE.npz")
    if manifest.float_layers:
        judged += f" Layers that int8 leaves in float: {', '.join(manifest.float_layers)}."
    return f"""# {manifest.name}, round {manifest.round}: {manifest.density:.2%} of the weights

Made by {manifest.method} (seed {manifest.seed}); settings {manifest.fingerprint}, commit
{manifest.git_commit}. {judged}

{table}
Multiply-adds with a weight that is not zero: {macs["kept"]:,} of {macs["dense"]:,}. ONNX Runtime computes
{macs["computed"]:,}: there zeros in channels that are alive save bytes, not time. Time of an inference over that of the
dense float model, on the machine that made this (one thread, in turns): {timed}.

{sparse}

    pip install -r requirements.txt
    python run.py check
    python run.py predict {what}
    python run.py bench

`run.py` compares every file with `SHA256SUMS` before it loads one. That protects from accident: a copy that broke off,
a file of another bundle. {_guarded(signed)}
"""


def shown(manifest: Manifest, value: float | None) -> str:
    """A score as people read it."""
    if value is None:
        return "-"
    return f"{value:.2%}" if manifest.score["percent"] else f"{value:.4g}"


def _guarded(signed: bool) -> str:
    """What protects from somebody who means to deceive."""
    if not signed:
        return """It does not protect from somebody who changes files and sums alike: take a bundle from where you
trust, or have it signed (`deploy.sign_key`)."""
    return f"""From somebody who changes files and sums alike, `{signature.FILE}` protects: the maker's ed25519
signature of `SHA256SUMS`. With the maker's public key, which you have from elsewhere, before you run anything here:

    openssl pkeyutl -verify -pubin -inkey PUBLIC.pem -rawin -in SHA256SUMS -sigfile {signature.FILE}
    sha256sum -c SHA256SUMS"""
