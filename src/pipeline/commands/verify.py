"""``task=verify``: the proof that a bundle runs on ARM."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from pipeline.deploy import bundle, verify
from pipeline.deploy.manifest import Manifest
from pipeline.ground import tables
from pipeline.ground.documents import written
from pipeline.ground.environment import artifacts_folder
from pipeline.ground.errors import PipelineError, stoppable
from pipeline.rounds.building import build_job
from pipeline.rounds.choice import subject_of
from pipeline.rounds.job import Site
from pipeline.settings.groups import Settings
from pipeline.settings.identity import fingerprint


def main(settings: Settings, runs: Path) -> None:
    """Runs the bundle on ARM; writes what it did there, and prints what of that people look for.

    Raises:
        PipelineError: if there is no bundle of these settings or no way to run it, or it does not do there what it
            does here; ``verified.json`` then says ``not verified`` and why.
    """
    artifacts = artifacts_folder(settings.artifacts)
    folder, out = artifacts / "bundle", artifacts / "verified.json"
    if not (folder / "SHA256SUMS").exists():
        raise PipelineError(f"{folder} has no bundle: make it first, by the same command with task=bundle")
    out.unlink(missing_ok=True)
    facts: dict[str, Any] = {"bundle": bundle.digest(folder)}
    try:
        with Console(stderr=True).status("loading") as status, stoppable():
            manifest = verify.held(folder)
            job, site = build_job(settings, runs)
            _check_origin(manifest, settings, site)
            facts |= {"status": "verified"} | verify.verified(
                folder, subject_of(job, site, manifest.round), settings.deploy, status.update
            )
    except PipelineError as error:
        facts |= {"status": "not verified", "reason": str(error)}
        raise
    finally:
        if "status" in facts:
            out.write_text(written(facts, indent=1) + "\n")
    print(_table(facts, percent=bool(manifest.score["percent"])))
    print(f"\n{facts['status']}  {out}")


def _table(facts: Mapping[str, Any], *, percent: bool) -> str:
    """What a model does on each board, a line for each way that it is computed."""
    rows = [("board", "computed", str(facts["score"]), "instructions", "ms")]
    for place in facts["places"].values():
        timed = place.get("milliseconds") or {place["board"]: {}}
        for board, ways in timed.items():
            for way, score in place["scores"].items():
                count = place.get("instructions", {}).get(way)
                taken = place.get("milliseconds_p50_p95", {}).get(way) or ways[way]
                rows.append(
                    (
                        board.removeprefix("Raspberry "),
                        way,
                        "-" if score is None else f"{score:.2%}" if percent else f"{score:.4g}",
                        "-" if count is None else f"{count:,}",
                        "{:.3f} to {:.3f}".format(*taken),
                    )
                )
    emulated = any("milliseconds" in place for place in facts["places"].values())
    said = "of emulated boards: foretold, the least and the most" if emulated else "median and 95th percentile"
    return f"{tables.aligned(rows)}\n\nms of one inference on one thread, {said}"


def _check_origin(manifest: Manifest, settings: Settings, site: Site) -> None:
    """Holds a bundle against the settings that are verified.

    Raises:
        PipelineError: if it was made of others.
    """
    identity = site.ledger.identity
    made = {
        "settings": (manifest.fingerprint, fingerprint(identity)[:16]),
        "seed": (manifest.seed, settings.seed),
        "data": (manifest.data_digest, identity["data_digest"]),
        "deploy.round": (manifest.round, manifest.round if settings.deploy.round is None else settings.deploy.round),
    }
    if differing := [f"{name}: {its}, here {here}" for name, (its, here) in made.items() if its != here]:
        raise PipelineError(
            f"the bundle is of another run ({'; '.join(differing)}): task=bundle makes that of these settings"
        )
