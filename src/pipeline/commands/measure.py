"""``task=measure``: the time of a run's rounds, here and on ARM."""

from pathlib import Path

from rich.console import Console

from pipeline.ground.errors import stoppable
from pipeline.report import timing
from pipeline.rounds.building import build_job
from pipeline.rounds.choice import recorded, wanted
from pipeline.settings.groups import Settings
from pipeline.tracking.tracker import Tracker


def main(settings: Settings, runs: Path) -> None:
    """Takes the time of the dense network and of a round's, shows it to MLflow too, and prints a table.

    The round is that of ``deploy.round``, or the one that a bundle is made of; or all are, by ``deploy.measure``.

    Raises:
        PipelineError: if there is no complete pruned round, or its network cannot be exported.
        SettingsError: if ``deploy.round`` is no round of it.
    """
    with Console(stderr=True).status("loading") as status:
        job, site = build_job(settings, runs)
        done = recorded(site)
        if settings.deploy.measure == "outcome":
            done = [done[0], wanted(done, settings.deploy.round, job)]
        with (
            site.ledger.locked(),
            Tracker(settings, runs, site.ledger, job, print, reopen=False) as tracker,
            stoppable(),
        ):
            timings = timing.measured(job, site, done, settings.deploy, status.update)
            for result, each in zip(done, timings, strict=True):
                tracker.log_figures(result, each.figures, each.taken_ms)
    print(timing.table(done, timings))
