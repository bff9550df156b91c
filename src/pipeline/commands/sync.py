"""``task=sync``: MLflow gets what it misses of a run."""

from collections.abc import Callable, Sequence
from pathlib import Path

from pipeline.ground.environment import describe_environment
from pipeline.ground.errors import PipelineError, one_line, stoppable
from pipeline.report import sheet, sizes, table
from pipeline.report.style import save
from pipeline.rounds.building import build_job
from pipeline.rounds.choice import chosen, ended, recorded
from pipeline.rounds.job import Job, Site
from pipeline.rounds.ledger import Round
from pipeline.settings.groups import Settings
from pipeline.tracking.tracker import Tracker


def main(settings: Settings, runs: Path) -> None:
    """Sends MLflow what it misses of a run's complete rounds; trains nothing.

    Raises:
        PipelineError: if there is no complete pruned round, or MLflow is or goes out of reach.
    """
    job, site = build_job(settings, runs)
    done = recorded(site)
    complete = ended(job, site, done)
    with site.ledger.locked(), Tracker(settings, runs, site.ledger, job, print, reopen=False) as tracker, stoppable():
        for each in done:
            tracker.round_done(each, site.ledger_of(each.index).path(each.index), trained=False)
        if complete:
            save_and_send(job, site, done, sizes.stored(site, done, settings.deploy), settings, tracker, print)
        if not tracker.delivered():
            raise PipelineError(f"MLflow at {tracker.uri} still misses a part: type the same command again")
        if not complete:
            tracker.abort("KILLED")
    print(f"MLflow at {tracker.uri} has all {len(done)} rounds of {site.ledger.folder}")


def save_and_send(
    job: Job,
    site: Site,
    done: Sequence[Round],
    found: Sequence[sizes.Sizes],
    settings: Settings,
    tracker: Tracker,
    told: Callable[[str], None],
) -> list[Path]:
    """The report of an ended run: curves into the ledger's folder, whose paths it returns, and all of it to MLflow.

    A picture that cannot be drawn costs the picture: ``told`` hears why.
    """
    figures = [each.figures for each in found]
    curves = []
    try:
        drawn = sheet.curves(done, figures, job.score, f"{settings.name}, seed {settings.seed}, {job.method}")
        for name, curve in drawn.items():
            save(curve, site.ledger.folder / name)
            curves.append(site.ledger.folder / name)
    except Exception as error:
        told(f"the curves are not drawn: {one_line(error)}")
    tracker.finish(
        done,
        found,
        texts={
            "rounds.csv": table.as_csv(done, figures),
            "rounds.md": table.markdown(done, job.score, figures),
            "environment.txt": describe_environment(),
        },
        files=curves,
        tags={"chosen_round": str(chosen(done, job).index), "final_density": f"{done[-1].density:.4f}"},
    )
    return curves
