"""``task=report``: what has been run, from the ledgers: all runs of the experiment, and the settings' own run."""

from contextlib import suppress
from pathlib import Path

from pipeline.ground.environment import artifacts_folder
from pipeline.ground.errors import PipelineError, SettingsError
from pipeline.ground.tables import show
from pipeline.report import ledgers, sheet, sizes, timing
from pipeline.report.comparison import by_score, each_alone, scores
from pipeline.report.pictures import methods_figure
from pipeline.report.style import save
from pipeline.rounds.building import build_job
from pipeline.rounds.choice import recorded, wanted
from pipeline.settings.groups import Settings


def main(settings: Settings, runs: Path) -> None:
    """Does the task."""
    table, files = write_all(runs, settings.name)
    show(table)
    for file in files:
        print(file)
    try:
        files = write_own(settings, runs, artifacts_folder(settings.artifacts) / "report")
    except SettingsError as error:
        print(f"the outcome sheet of one run is not written: {'; '.join(error.faults)}")
    else:
        for file in files:
            print(file)


def write_all(runs: Path, name: str) -> tuple[str, list[Path]]:
    """The tables of an experiment's runs side by side, one for each score that runs have, and the files that they were
    written to: Markdown and pictures.

    Raises:
        PipelineError: if there is none.
    """
    parts = by_score(each_alone(ledgers.records(runs, name)))
    text, pictures = runs / f"{name}.md", []
    table = "\n".join(map(scores, parts))
    text.write_text(table)
    for part in parts:
        pictures.append(runs / (f"{name}.png" if len(parts) == 1 else f"{name}-{part[0].score.slug}.png"))
        save(methods_figure(part, name), pictures[-1])
    return table, [text, *pictures]


def write_own(settings: Settings, runs: Path, folder: Path) -> list[Path]:
    """Writes the outcome sheet of the settings' own run into ``folder``, if it has a pruned round."""
    job, site = build_job(settings, runs)
    try:
        done = recorded(site)
    except PipelineError:
        return []
    found: list[sizes.Sizes] = []
    if settings.deploy.sizes:
        with suppress(Exception):  # a network that cannot be exported has no bytes
            found = sizes.measured(job, site, done, settings.deploy, lambda index: None)
    timings = timing.stored(site, done, settings.deploy)
    title = f"{settings.name}, seed {settings.seed}, {job.method}"
    return sheet.write(folder, done, found, timings, wanted(done, settings.deploy.round, job), job.score, title)
