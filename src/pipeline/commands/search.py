"""``task=search``: an agent looks for a policy, shown and tracked; and a run that asks for one first."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic
from typing import Any

from matplotlib.figure import Figure

from pipeline.amc import latency
from pipeline.amc.mirror import Mirror
from pipeline.amc.problem import Problem, problem
from pipeline.amc.search import Episode, chosen, policy, search
from pipeline.ground import tables
from pipeline.ground.documents import written
from pipeline.ground.environment import cache_folder
from pipeline.ground.errors import one_line, stoppable
from pipeline.ground.files import write_file
from pipeline.ground.progress import Printer, progress_bar, time_left
from pipeline.pruning.policy import episodes_of, searched
from pipeline.report.style import FORMS, SMALL, WIDTH, save, style
from pipeline.rounds.building import build_job
from pipeline.rounds.job import Job, Site
from pipeline.rounds.ledger import Ledger, search_home
from pipeline.rounds.loop import dense_round
from pipeline.settings.groups import Amc, Settings
from pipeline.settings.identity import amc_identity


def main(settings: Settings, runs: Path) -> None:
    """Does the task."""
    search_job(*_searched_job(settings, runs), settings, runs)


def see_to_policy(settings: Settings, runs: Path, wait: Callable[[str], None] | None = None) -> None:
    """Sees to it that the search of these settings is done; ``wait`` as of ``Ledger.locked``."""
    job, site = _searched_job(settings, runs)
    if not searched(_home(site, settings, runs).folder, settings.amc):
        search_job(job, site, settings, runs, wait)


def _searched_job(settings: Settings, runs: Path) -> tuple[Job, Site]:
    """The job that a search for a policy is about: that of the settings, without the policy."""
    pruning = dataclasses.replace(settings.pruning, policy=None, shares=None)
    return build_job(dataclasses.replace(settings, pruning=pruning), runs)


def search_job(job: Job, site: Site, settings: Settings, runs: Path, wait: Callable[[str], None] | None = None) -> Path:
    """Trains round 0 if it must, searches, and returns the policy file.

    Raises:
        PipelineError: if another process is at the same search (``wait`` as of ``Ledger.locked``), or the budget is out
            of reach.
    """
    amc = settings.amc
    home = _home(site, settings, runs)
    console = Printer()
    told = console.print
    title = f"{amc.agent} policy search, {'channels' if job.groups else 'weights'}, seed {job.seed}"
    with home.locked(wait), Mirror(settings, runs, home, title, told) as mirror, stoppable():
        dense_round(job, site)
        files = [home.folder / "latency.json", cache_folder() / latency.file_here()]
        table = latency.read_table(files[0]) or latency.read_table(files[1]) if amc.budget == "latency" else {}
        with console.status("loading") as status:
            asked = problem(job, site, amc, table, status.update)
        if amc.budget == "latency":
            for path in files:
                latency.add_to_table(path, table)
        whole = asked.accurate(asked.environment.whole)
        with _Shown(console, asked, amc, whole) as shown:

            def done(episode: Episode) -> None:
                shown.done(episode)
                mirror.episode(episode)

            episodes = search(asked, amc, job.seed, home.folder, home.identity, done)
        best = chosen(amc, episodes)
        found = policy(asked, amc, settings.pruning.structure, best)
        write_file(home.folder / "policy.json", written(found, indent=1).encode() + b"\n")
        write_file(home.folder / "episodes.csv", _csv(episodes).encode())
        outcome = [home.folder / name for name in ("policy.json", "episodes.csv", "policy.png")]
        drawn_of = f"{settings.name}, seed {job.seed}: {found['name']}"
        try:
            save(policy_figure(asked, episodes, best, drawn_of), outcome[-1])
        except Exception as error:
            told(f"the policy is not drawn: {one_line(error)}")
            outcome.pop()
        mirror.finish(outcome, found)
    told(_table(asked, best, found))
    told(
        f"dense {whole:.2%}, the policy {best.accuracy:.2%} before retraining (validation), with {found['macs']:.3f} "
        f"of the multiply-adds and {found['parameters']:.3f} of the weights; "
        f"episode {best.number + 1} of {len(episodes)}"
    )
    path = home.folder / "policy.json"
    told("\n".join([f"policy  {path}", *(f"picture {each}" for each in outcome[2:]), f"MLflow  {mirror.where}"]))
    told(f"next    the same settings with task=run pruning.policy={path}")
    return path


def _home(site: Site, settings: Settings, runs: Path) -> Ledger:
    """Where the search of a job is kept."""
    identity = {**site.dense.identity, "amc": amc_identity(settings)}
    return Ledger(search_home(runs, settings.name, identity), identity)


class _Shown:
    """A bar with the time left on a terminal; off it, a line for each better episode."""

    def __init__(self, console: Printer, asked: Problem, amc: Amc, whole: float) -> None:
        self.console, self.asked, self.whole, self.total = console, asked, whole, episodes_of(amc)
        self.progress = progress_bar(console)
        self.task = self.progress.add_task("episode", total=self.total, status="")
        self.best: Episode | None = None
        self.started: tuple[float, int] | None = None

    def __enter__(self) -> "_Shown":
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def done(self, episode: Episode) -> None:
        """One more episode is on disk."""
        if self.best is None or episode.reward > self.best.reward:
            self.best = episode
            share = self.asked.macs(episode.counts) / self.asked.macs(self.asked.environment.whole)
            self.console.print(
                f"episode {episode.number + 1:>4} of {self.total}: reward {episode.reward:8.4f}, validation accuracy "
                f"{episode.accuracy:.2%} (dense {self.whole:.2%}), {share:.3f} of the multiply-adds"
            )
        now, done = monotonic(), episode.number + 1
        self.started = self.started or (now, done)
        status = f"{done}/{self.total}  best {self.best.reward:.4f}"
        if done > self.started[1]:
            left = (now - self.started[0]) / (done - self.started[1]) * (self.total - done)
            status += f"  {time_left(left)}"
        self.progress.update(self.task, completed=done, status=status)


def _table(asked: Problem, best: Episode, found: dict[str, Any]) -> str:
    counts = zip(asked.environment.steps, best.counts, strict=True)
    rows = [(step.name, f"{count:,}", f"{step.size:,}", f"{found['shares'][step.name]:.2f}") for step, count in counts]
    return tables.aligned([("layer", "kept", "of", "share"), *rows])


def _csv(episodes: Sequence[Episode]) -> str:
    return tables.as_csv(
        [
            {
                "episode": each.number,
                "reward": each.reward,
                "validation_accuracy": each.accuracy,
                "cost": each.cost,
                "counts": " ".join(map(str, each.counts)),
            }
            for each in episodes
        ]
    )


@style()
def policy_figure(asked: Problem, episodes: Sequence[Episode], best: Episode, title: str) -> Figure:
    """The rewards by episode, and what the policy leaves of each layer."""
    steps = asked.environment.steps
    figure = Figure(figsize=(WIDTH, 4.5 + 0.16 * len(steps)))
    above, below = figure.subplots(2, 1, height_ratios=(3, 2 + 0.16 * len(steps)))
    colour = FORMS[0][0]
    tried = [(each.number, each.reward) for each in episodes]
    above.plot(*zip(*tried, strict=True), ".", color=colour, markersize=3, alpha=0.5)
    above.plot(best.number, best.reward, "k*", markersize=10, label="the policy")
    above.set(xlabel="episode", ylabel="reward", title=title)
    above.legend()
    shares = [count / step.size * 100 for count, step in zip(best.counts, steps, strict=True)]
    bars = below.barh([step.name for step in steps], shares, color=colour)
    labels = [f"{count:,} of {step.size:,}" for count, step in zip(best.counts, steps, strict=True)]
    below.bar_label(bars, labels, padding=3, fontsize=SMALL)
    below.set(xlabel="kept (%)", xlim=(0, 118))
    below.grid(visible=False, axis="y")
    below.invert_yaxis()
    return figure
