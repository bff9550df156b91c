"""``task=run``: the loop over rounds, shown and tracked, and what a person sees when it is done."""

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from pipeline.ground.environment import expanded
from pipeline.ground.errors import PipelineError, one_line, stoppable
from pipeline.ground.extras import missing
from pipeline.ground.files import write_file
from pipeline.ground.progress import clock
from pipeline.report import sizes, table
from pipeline.report.display import Display
from pipeline.rounds import loop
from pipeline.rounds.building import build_job
from pipeline.rounds.choice import chosen, recorded_from
from pipeline.rounds.job import Job, Site, Watcher, Watchers
from pipeline.rounds.ledger import Round
from pipeline.rounds.planning import planned_rounds
from pipeline.settings.groups import Settings
from pipeline.settings.identity import data_name, fingerprint
from pipeline.tracking.tracker import Tracker
from pipeline.training.cores import shared_cores
from pipeline.training.ranks import together
from pipeline.training.speed import keep_freed_memory


def main(settings: Settings, runs: Path) -> None:
    """Does the task, and before it the search that ``pruning.policy=search`` asks for."""
    if settings.pruning.policy == "search":
        from pipeline.commands.search import see_to_policy

        see_to_policy(settings, runs)
    run_job(*build_job(settings, runs), settings, runs)


def run_job(
    job: Job,
    site: Site,
    settings: Settings,
    runs: Path,
    watchers: Sequence[Watcher] = (),
    wait: Callable[[str], None] | None = None,
) -> list[Round]:
    """The loop over rounds, in as many processes as asked for; the one that leads shows and tracks it.

    ``wait`` as of ``Ledger.locked``: what to do where another process is at the same run.
    """
    keep_freed_memory()
    with shared_cores(), together(job.training.devices, job.training.nodes) as ranks:
        shared = site
        if ranks.world > 1:
            dense, ledger = (each.shared(ranks) for each in (site.dense, site.ledger))
            shared = dataclasses.replace(site, ranks=ranks, dense=dense, ledger=ledger)
        if not ranks.leads:
            return loop.run(job, shared)
        return _shown_and_tracked(job, site, shared, settings, runs, watchers, wait)


def _shown_and_tracked(
    job: Job,
    site: Site,
    shared: Site,
    settings: Settings,
    runs: Path,
    watchers: Sequence[Watcher],
    wait: Callable[[str], None] | None,
) -> list[Round]:
    """``shared`` is the site while the other processes are with this one, ``site`` once they are not any more."""
    begun = time.perf_counter()
    dense_epochs = job.dense_span.last if job.trained is None else 0
    display = Display(job.score, planned_rounds(job), dense_epochs, job.epochs_a_round)
    with site.ledger.locked(wait), Tracker(settings, runs, site.ledger, job, display.note) as tracker, stoppable():
        display.heading(_heading(job, site, settings))
        if settings.deploy.sizes and (told := missing("deploy")):
            display.note(f"bytes are not measured: deploy.sizes=true {told}")
        with display:
            watcher = Watchers(display, tracker, *watchers)
            done = loop.run(job, dataclasses.replace(shared, watcher=watcher))
            found = _sizes(job, site, done, settings, display)
        # a shorter call than an earlier one cuts nothing of what that recorded
        further = recorded_from(site, len(done))
        for result in further:
            tracker.round_done(result, site.ledger.path(result.index), trained=False)
        every = [*done, *further]
        of_every = found if len(every) == len(done) else sizes.stored(site, every, settings.deploy)
        from pipeline.commands.sync import save_and_send  # no training waits for matplotlib

        curves = save_and_send(job, site, every, of_every, settings, tracker, display.note)
        if not tracker.delivered():
            for each in (display, *watchers):
                each.note(
                    f"warning: MLflow at {tracker.uri} misses a part: the same command with task=sync delivers it"
                )
    if settings.record is not None:
        _write_record(expanded(settings.record), site, done, settings.seed)
    print()
    if not display.trained:
        print("all rounds asked for were complete: nothing was trained (pruning.rounds=N asks for more)")
    if found:
        print(table.bytes_table(done, job.score, [each.figures for each in found]))
        print()
    for path in curves:
        print(f"curve   {path}")
    print(f"rounds  {site.ledger.folder}")
    print(f"MLflow  {tracker.where}")
    print(f"time    {clock(time.perf_counter() - begun)}, of which training {clock(display.seconds)}")
    print(f"chosen  {_choice(job, done, found)}")
    return done


def _heading(job: Job, site: Site, settings: Settings) -> list[str]:
    """What is about to run."""
    layers, made = job.layers(job.alive()), site.environment
    weights, macs = sum(each.weights for each in layers), sum(each.macs for each in layers)
    threads = "1 thread" if made["threads"] == 1 else f"{made['threads']} threads"
    network = settings.model.module or settings.model.network or type(job.network).__name__
    return [
        f"network {network}: {weights:,} weights, {macs / 1e6:.3g} M multiply-adds",
        f"data    {data_name(site.ledger.identity)}",
        f"device  {made['device']}, {job.training.precision}, {threads}",
        f"method  {job.method}, seed {job.seed}",
        f"kept    {site.ledger.folder}",
    ]


def _choice(job: Job, done: Sequence[Round], found: Sequence[sizes.Sizes]) -> str:
    """The round that counts, against the dense network, and what can be done with it."""
    best, score = chosen(done, job), job.score
    fewer = f"{best.figures['compression_ratio']:.3g} times fewer weights" if best.density else "no weight left"
    said = [f"round {best.index}", fewer]
    if best.figures.get(score.test) is not None:
        of_dense = score.shown(done[0].figures.get(score.test))
        said.append(f"{score.test_label} {score.shown(best.figures[score.test])} (dense {of_dense})")
    if (drop := job.pruning.max_score_drop) is not None:
        said.append(f"the smallest within {score.shown_drop(drop)} of the dense network's validation {score.label}")
    if not found:
        return ", ".join(said)
    size, in_int8 = found[best.index], ""
    if size.int8_score is not None:
        in_int8 = f" in int8 ({score.shown(size.int8_score)})"
    said.append(f"{size.int8_bytes / 1000:.1f} kB{in_int8}")
    return ", ".join(said) + "; next: the same command with task=bundle"


def _sizes(job: Job, site: Site, done: list[Round], settings: Settings, display: Display) -> list[sizes.Sizes]:
    """Bytes of every round's files, if they are asked for and the network can be exported."""
    if not settings.deploy.sizes or missing("deploy"):
        return []
    try:
        return sizes.measured(job, site, done, settings.deploy, display.measuring)
    except Exception as error:  # a finished run is not lost to what comes after it
        display.note(f"bytes are not measured: {error if isinstance(error, PipelineError) else one_line(error)}")
        return []


def _write_record(path: Path, site: Site, done: Sequence[Round], seed: int) -> None:
    """Names what a run ended with, for what depends on it."""
    record = {
        "ledger": site.ledger.folder.parent.name,
        "fingerprint": fingerprint(site.ledger.identity),
        "seed": seed,
        "weights": [site.ledger_of(each.index).digest(each.index) for each in done],
    }
    write_file(path, json.dumps(record, indent=1).encode() + b"\n")
