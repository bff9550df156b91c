"""Many jobs as one: ``python -m pipeline -m ...``. Hydra's launchers start them, in whatever processes they like.

The digest of the command names the folder of the jobs' notes, so the same command typed again has the same folder. A
job that fails leaves its sentence there and lets the others go on.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from pipeline.commands import command
from pipeline.commands.attempt import attempt
from pipeline.commands.sweep_notes import ENDED, Note, Sweep, View, log_path, read, summary, write
from pipeline.ground.environment import runs_folder
from pipeline.ground.errors import PipelineError, SettingsError, one_line
from pipeline.ground.extras import needed
from pipeline.ground.loading import loading
from pipeline.settings import composition
from pipeline.settings.build import build
from pipeline.settings.groups import Settings

SWEEPING: set[int] = set()
"""Processes in which a sweep was typed."""


def run_sweep(overrides: Sequence[str]) -> tuple[int, list[str]]:
    """The jobs of a command with ``-m``: all of them, whatever becomes of one, by the launcher that Hydra was given.

    Returns an exit status and sentences on what went wrong.
    """
    sweep = planned(overrides)
    _cleared(sweep)
    SWEEPING.add(os.getpid())
    sys.argv.append(f"hydra.sweep.dir={composition.quoted(str(sweep.folder))}")
    status, sentences = 0, []
    deaths: Counter[int] = Counter()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with View(sweep):
        try:
            while True:
                try:
                    composition.launched(run_in_sweep)
                    break
                except BrokenProcessPool:  # one of joblib's processes was killed, and with it all
                    if not _left(sweep, deaths):
                        break
        except KeyboardInterrupt:
            status = 130
        except composition.MISUNDERSTOOD:
            raise
        except Exception as error:
            status, sentences = 1, [f"the launcher fails: {one_line(error)}"]
    missing, lines = summary(sweep)
    print("\n".join(lines))
    if status == 0:
        _compare(sweep)
    return status or int(missing > 0), sentences


def _compare(sweep: Sweep) -> None:
    """Ends a sweep with its jobs side by side, and no others; what cannot be compared costs a sentence."""
    ended = [note for note in sweep.notes() if note.ledger and note.rounds]
    if len(ended) < 2:
        return
    print()
    settings = sweep.settings[0]
    try:
        needed("compare", "the jobs are not compared")
        from pipeline.commands.compare import compared
        from pipeline.report.ledgers import record
        from pipeline.tracking.store import Store

        found = (record(Path(note.ledger), last=note.rounds, measured=True) for note in ended)
        records = [each for each in found if each is not None]
        if records:
            compared(settings, records, Store(settings, runs_folder(settings.runs)))
    except SettingsError as error:
        print("\n".join(error.faults))
    except Exception as error:  # the jobs are done, whatever becomes of what is said of them
        print(f"the jobs are not compared: {error if isinstance(error, PipelineError) else one_line(error)}")


def planned(overrides: Sequence[str]) -> Sweep:
    """The jobs that Hydra makes of a command's overrides, all checked before one is started.

    Raises:
        SettingsError: with the faults of all jobs.
    """
    sweepers = [word for word in overrides if word.lstrip("+").startswith("hydra/sweeper=")]
    if other := [word for word in sweepers if not word.endswith("=basic")]:
        raise SettingsError(
            [f"{other[0].lstrip('+')}: a sweep's jobs are all checked before one starts; takes hydra/sweeper=basic"]
        )
    jobs = composition.jobs(overrides)
    varied = [word for word in {w: None for job in jobs for w in job} if not all(word in job for job in jobs)]
    titles = tuple(" ".join(word.lstrip("+") for word in job if word in varied) or "the job" for job in jobs)
    faults: dict[str, None] = {}
    settings = []
    for job in jobs:
        try:
            settings.append(build(composition.composed([word for word in job if not word.startswith("hydra")])))
        except SettingsError as error:
            faults |= dict.fromkeys(composition.faults(job, error))
    for each in settings:
        if each.task not in ("run", "sync", "measure"):
            faults |= {f"task: got {each.task} in a sweep (-m), takes run, sync or measure": None}
        if each.training.devices * each.training.nodes > 1:
            faults |= {
                "training.devices: got several processes for a job of a sweep (-m), takes training.devices=1 and "
                "training.nodes=1: a sweep's jobs share the machine": None
            }
    if faults:
        raise SettingsError(list(faults))
    digest = hashlib.sha256(json.dumps([word for word in overrides if not word.startswith("hydra")]).encode())
    folder = runs_folder(settings[0].runs).absolute() / "sweeps" / digest.hexdigest()[:8]
    return Sweep(titles, tuple(settings), folder)


def run_in_sweep(config: composition.Composed) -> None:
    """One job of a sweep, in whatever process: its outcome goes to its note. It raises Ctrl-C alone, and only here."""
    folder, number, here, alone = composition.job_of_sweep()
    if here.is_dir():  # another process may have started elsewhere
        os.chdir(here)
        sys.path.append(str(here))
    if not alone:  # joblib and Ray have set it
        os.environ.setdefault("OMP_NUM_THREADS", os.environ.get("SLURM_CPUS_PER_TASK", "1"))
    if read(folder, number).state in ENDED:
        return
    settings = build(composition.mapping(config))
    write(folder, number, Note("running", at="starting"))
    trained: list[bool] = []
    with _logged(log_path(folder, number)):
        try:
            status, sentences = attempt(
                settings, lambda known, runs: trained.append(_work(known, runs, folder, number))
            )
        except Exception as error:
            traceback.print_exc()
            status, sentences = 1, [one_line(error)]
        print("\n".join(sentences))
    stopped = status in (130, 143)
    state = "stopped" if stopped else "failed" if status else "done" if any(trained) else "complete"
    note = read(folder, number)
    told = "; ".join(sentences) or note.sentence
    write(folder, number, dataclasses.replace(note, state=state, sentence=told))
    if stopped and os.getpid() in SWEEPING:
        raise KeyboardInterrupt


def _work(settings: Settings, runs: Path, folder: Path, number: int) -> bool:
    """Does a job of a sweep, noting how far it is; says whether there was anything to do.

    Where another process is at the same run, it waits for that to end.
    """
    if settings.task != "run":
        command(settings.task)(settings, runs)
        return True

    with loading():
        from pipeline.commands.run import run_job
        from pipeline.commands.search import see_to_policy
        from pipeline.commands.sweep_progress import JobProgress
        from pipeline.rounds.building import build_job
        from pipeline.rounds.planning import planned_rounds

    def wait(holder: str) -> None:
        print(f"waiting for {holder}, which is at this run")

    if settings.pruning.policy == "search":
        see_to_policy(settings, runs, wait)
    job, site = build_job(settings, runs)
    progress = JobProgress(folder, number, job, planned_rounds(job))
    last = run_job(job, site, settings, runs, (progress,), wait)[-1]
    reached = job.score.shown(last.figures.get(job.score.test))
    result = f"{100 * last.density:.3g}% kept, {job.score.test_label} {reached}"
    ledger = str(site.ledger.folder.absolute())
    note = dataclasses.replace(read(folder, number), result=result, ledger=ledger, rounds=last.index)
    write(folder, number, note)
    return progress.trained > 0


@contextlib.contextmanager
def _logged(path: Path) -> Iterator[None]:
    """What is printed in the block goes to a file."""
    with path.open("w", buffering=1) as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        yield


def _left(sweep: Sweep, deaths: Counter[int]) -> bool:
    """After the death of processes: whether jobs are left to run.

    A job that ran then is to be run again; at its second death, as ``deaths`` counts them, it has failed.
    """
    for number, note in enumerate(sweep.notes()):
        if note.state == "running":
            deaths[number] += 1
            state, sentence = ("waiting", "") if deaths[number] < 2 else ("failed", "its process was killed, twice")
            write(sweep.folder, number, dataclasses.replace(note, state=state, sentence=sentence))
    return any(note.state == "waiting" for note in sweep.notes())


def _cleared(sweep: Sweep) -> None:
    """Forgets what an earlier call of the same command noted."""
    sweep.folder.mkdir(parents=True, exist_ok=True)
    for path in sweep.folder.glob("job-*"):
        path.unlink()
