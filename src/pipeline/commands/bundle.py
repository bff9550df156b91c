"""``task=report``, ``bundle`` and ``verify``: what goes out of a run, and the proof that it runs on ARM."""

import dataclasses
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.commands.run import build_job, stoppable
from pipeline.deploy import bundle, verify
from pipeline.ground.errors import PipelineError
from pipeline.report import sizes as outcome
from pipeline.report import timing
from pipeline.rounds.ledger import Round
from pipeline.rounds.loop import Job, chosen, ended, network_after, recorded, wanted
from pipeline.settings.groups import Settings, fingerprint
from pipeline.tracking.tracker import Tracker


def make_bundle(settings: Settings, runs: Path, folder: Path, told: Callable[[str], None]) -> dict[str, Any]:
    """Makes the bundle of the settings' run in ``folder``, shows it to MLflow, and returns its manifest.

    Raises:
        PipelineError: if the run is not finished, or a check finds something wrong.
        SettingsError: if ``deploy.round`` is no round of it.
    """
    job = build_job(settings, runs)
    round_ = _round(job, settings)
    network = network_after(job, round_.index)
    with (
        job.ledger.locked(),
        Tracker(settings, runs, job.ledger, job.title, told, reopen=False) as tracker,
        stoppable(),
    ):
        facts = _facts(job, round_, settings) | {"mlflow_run_id": tracker.run_id}
        manifest = bundle.make(network, job.dataset, deploy=settings.deploy, facts=facts, folder=folder, told=told)
        tracker.log_bundle(folder, manifest, bundle.digest(folder))
    return manifest


def write_report(settings: Settings, runs: Path, folder: Path) -> list[Path]:
    """Writes the outcome sheet of the settings' own run into ``folder``, if it has a pruned round."""
    job = build_job(settings, runs)
    try:
        rounds = recorded(job)
    except PipelineError:
        return []
    sizes = []
    if settings.deploy.sizes:
        with suppress(PipelineError):  # a network that cannot be exported has no bytes
            sizes = outcome.measured(job, rounds, settings.deploy, lambda index: None)
    title = f"{settings.name}, seed {settings.seed}"
    timings = timing.kept(job, rounds, settings.deploy)
    return outcome.write(folder, rounds, sizes, timings, chosen(rounds, settings.pruning), job.method, title)


def verify_bundle(settings: Settings, folder: Path, out: Path, told: Callable[[str], None]) -> dict[str, Any]:
    """Runs the bundle in ``folder`` on ARM and writes ``out``.

    Raises:
        PipelineError: if there is no bundle or no way to run it, or it does not do there what it does here; ``out``
            then says ``not verified`` and why.
    """
    from pipeline.data import load

    if not (folder / "SHA256SUMS").exists():
        raise PipelineError(f"{folder} has no bundle: make it first, by the same command with task=bundle")
    out.unlink(missing_ok=True)
    facts: dict[str, Any] = {"bundle": bundle.digest(folder)}
    try:
        with stoppable():
            found = verify.verified(folder, load(settings.data), settings.deploy, told)
    except PipelineError as error:
        out.write_text(json.dumps(facts | {"status": "not verified", "reason": str(error)}, indent=1) + "\n")
        raise
    facts |= {"status": "verified", **found}
    out.write_text(json.dumps(facts, indent=1) + "\n")
    return facts


def _round(job: Job, settings: Settings) -> Round:
    """The round that the bundle is made of."""
    rounds = recorded(job)
    if settings.deploy.round is None and not ended(job, rounds):
        raise PipelineError(
            f"the run in {job.ledger.folder} is not finished, its last complete round is {len(rounds) - 1}: the same "
            f"command with task=run goes on; deploy.round={len(rounds) - 1} takes that round"
        )
    return wanted(rounds, settings.deploy.round, settings.pruning)


def _facts(job: Job, round_: Round, settings: Settings) -> dict[str, Any]:
    return {
        "name": settings.name,
        "method": job.method,
        "seed": settings.seed,
        "round": round_.index,
        "density": round_.density,
        "macs": {"dense": round_.macs_dense, "kept": round_.macs_kept},
        "fingerprint": fingerprint(job.ledger.identity)[:16],
        "data_digest": job.ledger.identity["data_digest"],
        "git_commit": job.environment["git_commit"],
        "settings": dataclasses.asdict(settings.deploy),
    }
