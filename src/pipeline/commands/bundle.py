"""``task=bundle``: the folder that goes to a board, from the settings' own run."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from pipeline.deploy import bundle
from pipeline.deploy.manifest import Manifest, Origin
from pipeline.ground.environment import artifacts_folder, runs_folder
from pipeline.ground.errors import PipelineError, stoppable
from pipeline.rounds.building import build_job
from pipeline.rounds.choice import ended, recorded, subject_of, wanted
from pipeline.rounds.job import Job, Site
from pipeline.rounds.ledger import Round
from pipeline.settings.groups import Settings
from pipeline.settings.identity import fingerprint
from pipeline.tracking import registry
from pipeline.tracking.tracker import Tracker


def main(settings: Settings, runs: Path) -> None:
    """Makes the bundle of the settings' run, shows it to MLflow, and prints its README.

    Raises:
        PipelineError: if the run is not finished, or a check finds something wrong.
        SettingsError: if ``deploy.round`` is no round of it.
    """
    folder = artifacts_folder(settings.artifacts) / "bundle"
    with Console(stderr=True).status("loading") as status:
        job, site = build_job(settings, runs)
        manifest = bundled(job, site, settings, _round(job, site, settings), folder, status.update)
    print((folder / "README.md").read_text())
    print(f"bundle  {folder}  ({manifest.model_bytes:,} bytes of model.onnx)")


def bundled(
    job: Job, site: Site, settings: Settings, round_: Round, folder: Path, told: Callable[[str], None]
) -> Manifest:
    """Makes the bundle of a round in ``folder``, and shows it to MLflow.

    Raises:
        PipelineError: if the network cannot be exported, or a check finds something wrong.
    """
    subject = subject_of(job, site, round_.index)
    runs = runs_folder(settings.runs)
    with site.ledger.locked(), Tracker(settings, runs, site.ledger, job, told, reopen=False) as tracker, stoppable():
        origin = Origin(
            name=settings.name,
            method=job.method,
            seed=settings.seed,
            round=round_.index,
            density=round_.density,
            macs={"dense": round_.macs_dense, "kept": round_.macs_kept},
            fingerprint=fingerprint(site.ledger.identity)[:16],
            data_digest=site.ledger.identity["data_digest"],
            git_commit=site.environment["git_commit"],
            settings={**dataclasses.asdict(settings.deploy), "host": None, "sign_key": None},
            mlflow_run_id=tracker.run_id,
        )
        manifest = bundle.make(subject, deploy=settings.deploy, origin=origin, folder=folder, told=told)
        registry.log_bundle(tracker, folder, manifest, bundle.digest(folder))
    return manifest


def _round(job: Job, site: Site, settings: Settings) -> Round:
    """The round that the bundle is made of."""
    rounds = recorded(site)
    if settings.deploy.round is None and not ended(job, site, rounds):
        raise PipelineError(
            f"the run in {site.ledger.folder} is not finished, its last complete round is {len(rounds) - 1}: the same "
            f"command with task=run goes on; deploy.round={len(rounds) - 1} takes that round"
        )
    return wanted(rounds, settings.deploy.round, job)
