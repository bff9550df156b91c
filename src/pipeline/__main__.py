"""The door: compose the settings, build what they name, run the task. A user's mistake ends in one sentence.

Exit status: 0 done; 1 something failed on the way (the ledger keeps what was reached); 2 faulty settings, nothing
written; 130 and 143 stopped by Ctrl-C and SIGTERM.
"""

import ctypes
import dataclasses
import json
import os
import signal
import sys
import sysconfig
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline.ground.errors import PipelineError, SettingsError, Stopped, one_line
from pipeline.settings.composition import CONF, lenient, sentence
from pipeline.settings.groups import OwnData, Settings, build


def main() -> None:
    """Entry point of ``python -m pipeline``."""
    if os.environ.get("LOCAL_RANK", "0") != "0":
        _end_with_leader()
    os.environ["HYDRA_FULL_ERROR"] = "1"
    sys.argv[1:] = [lenient(argument) for argument in sys.argv[1:]]
    # conf/hydra/launcher has settings of ours for launchers that plugins name
    warnings.filterwarnings("ignore", r"\s*'hydra/launcher/")
    given = get_args_parser().parse_args()
    try:
        if given.multirun and not (given.help or given.hydra_help or given.cfg or given.info):
            run_sweep(given.overrides)
        else:
            _composed(run_one)
    except KeyboardInterrupt:
        _end(130, "stopped before anything was trained")
    except SettingsError as error:
        _end(2, *error.faults)
    except (HydraException, OmegaConfBaseException) as error:
        _end(2, f"command line: {sentence(error)}")


def run_one(config: DictConfig) -> None:
    """The one job of a command: ends in a sentence and an exit status, whatever is wrong."""
    try:
        settings = build(OmegaConf.to_container(config, resolve=True))  # type: ignore[arg-type]
    except SettingsError as error:
        _end(2, *error.faults)
    status, sentences = _tried(settings, TASKS[settings.task])
    if status and not _follows(settings):
        _end(status, *sentences)


SWEEPING: set[int] = set()
"""Processes in which a sweep was typed."""


def run_sweep(overrides: list[str]) -> None:
    """The jobs of a command with ``-m``: all of them, whatever becomes of one, by the launcher that Hydra was given."""
    from pipeline.commands import sweep
    from pipeline.ground.environment import runs_folder

    jobs = sweep.planned(overrides, runs_folder)
    sweep.cleared(jobs)
    SWEEPING.add(os.getpid())
    sys.argv.append(f'hydra.sweep.dir="{jobs.folder}"')
    status, sentences = 0, []
    deaths: Counter[int] = Counter()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with sweep.View(jobs):
        try:
            while True:
                try:
                    _composed(run_in_sweep)
                    break
                except BrokenProcessPool:  # one of joblib's processes was killed, and with it all
                    if not sweep.left(jobs, deaths):
                        break
        except KeyboardInterrupt:
            status = 130
        except (HydraException, OmegaConfBaseException):
            raise
        except Exception as error:
            status, sentences = 1, [f"the launcher fails: {one_line(error)}"]
    unfinished, lines = sweep.summary(jobs)
    print("\n".join(lines))
    if status or unfinished:
        _end(status or 1, *sentences)


def run_in_sweep(config: DictConfig) -> None:
    """One job of a sweep, in whatever process: its outcome goes to its note. It raises Ctrl-C alone, and only here."""
    from pipeline.commands import sweep

    hydra_config = HydraConfig.get()
    folder, number, here = Path(hydra_config.sweep.dir), hydra_config.job.num, hydra_config.runtime.cwd
    if Path(here).is_dir():  # another process may have started elsewhere
        os.chdir(here)
        sys.path.append(here)
    alone = hydra_config.launcher._target_.endswith("BasicLauncher")  # one job after the other, in the sweep's process
    if not alone:  # joblib and Ray have set it
        os.environ.setdefault("OMP_NUM_THREADS", os.environ.get("SLURM_CPUS_PER_TASK", "1"))
    if sweep.read(folder, number).state in sweep.ENDED:
        return
    settings = build(OmegaConf.to_container(config, resolve=True))  # type: ignore[arg-type]
    sweep.write(folder, number, sweep.Note("running", at="starting"))
    trained: list[bool] = []
    with sweep.logged(sweep.log_path(folder, number)):
        try:
            status, sentences = _tried(
                settings, lambda known, runs: trained.append(sweep.work(known, runs, folder, number))
            )
        except Exception as error:
            traceback.print_exc()
            status, sentences = 1, [one_line(error)]
        print("\n".join(sentences))
    stopped = status in (130, 143)
    state = "stopped" if stopped else "failed" if status else "done" if any(trained) else "complete"
    note = sweep.read(folder, number)
    told = "; ".join(sentences) or note.sentence
    sweep.write(folder, number, dataclasses.replace(note, state=state, sentence=told))
    if stopped and os.getpid() in SWEEPING:
        raise KeyboardInterrupt


def _composed(task: Callable[[DictConfig], None]) -> None:
    """Lets Hydra compose the settings of the command line and call ``task`` with them, here or by a launcher."""
    hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(task)()


def _tried(settings: Settings, task: Callable[[Settings, Path], None]) -> tuple[int, list[str]]:
    """Runs a task; returns its exit status, and sentences on what went wrong.

    Only what is no fault of the user's is raised.
    """
    from pipeline.ground.environment import runs_folder

    try:
        task(settings, runs_folder(settings.runs))
    except SettingsError as error:
        return 2, error.faults
    except PipelineError as error:
        return 1, [str(error)]
    except BrokenPipeError:  # who reads the output has gone; Python's own last words would follow
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115
        return 141, []
    except OSError as error:
        place = f"{error.strerror or error}: {error.filename or ''}"
        return 1, [f"{place}; runs= names the folder that all is written to (artifacts= that of what goes out)"]
    except Exception as error:
        if not _has_own_code(settings):
            raise
        return 1, [f"your network or data fail{_place(error)}: {one_line(error)}"]
    except Stopped as stopped:
        signum: int = stopped.args[0]
        more = "; the same command goes on from the last finished epoch" if settings.task in ("run", "search") else ""
        return 128 + signum, [f"stopped by {signal.Signals(signum).name}{more}"]
    return 0, []


def run(settings: Settings, runs: Path) -> None:
    """``task=run``: the loop over rounds, shown and tracked."""
    from pipeline.commands.run import build_job, run_job
    from pipeline.commands.search import with_policy

    with_policy(settings, runs)
    run_job(build_job(settings, runs), settings, runs)


def sync(settings: Settings, runs: Path) -> None:
    """``task=sync``."""
    from pipeline.commands.run import build_job, sync_job

    print(sync_job(build_job(settings, runs), settings, runs))


def search_policy(settings: Settings, runs: Path) -> None:
    """``task=search``."""
    from pipeline.commands.search import search_job, search_of

    search_job(search_of(settings, runs), settings, runs)


def measure(settings: Settings, runs: Path) -> None:
    """``task=measure``."""
    from rich.console import Console

    from pipeline.commands.run import build_job, measure_job

    with Console(stderr=True).status("loading") as status:
        table = measure_job(build_job(settings, runs), settings, runs, status.update)
    print(table)


def show_plan(settings: Settings, runs: Path) -> None:
    """``task=plan``."""
    from pipeline.commands.plan import plan
    from pipeline.commands.run import build_job, stoppable
    from pipeline.training.ranks import together

    job = build_job(settings, runs)
    with together(job.training.devices, job.training.nodes) as ranks, stoppable():
        for line in plan(job):
            if ranks.leads:
                print(line)


def show_report(settings: Settings, runs: Path) -> None:
    """``task=report``."""
    from pipeline.commands import bundle as delivery
    from pipeline.ground.environment import artifacts_folder
    from pipeline.report import ledgers as report

    _show(*report.write(runs, settings.name))
    try:
        files = delivery.write_report(settings, runs, artifacts_folder(settings.artifacts) / "report")
    except SettingsError as error:
        print(f"the outcome sheet of one run is not written: {'; '.join(error.faults)}")
    else:
        for file in files:
            print(file)


def compare_methods(settings: Settings, runs: Path) -> None:
    """``task=compare``."""
    from pipeline.commands.compare import compare
    from pipeline.ground.environment import artifacts_folder

    _show(*compare(settings, runs, artifacts_folder(settings.artifacts) / "comparison"))


def hold_against_paper(settings: Settings, runs: Path) -> None:
    """``task=conformance``."""
    from pipeline.commands.compare import conform
    from pipeline.ground.environment import artifacts_folder

    text, files, outside = conform(settings, runs, artifacts_folder(settings.artifacts) / "conformance")
    _show(text, files)
    if outside:
        raise PipelineError(f"{outside} of the measured medians lie outside")


def _show(text: str, files: Sequence[Path]) -> None:
    print(text)
    for file in files:
        print(file)


def make_bundle(settings: Settings, runs: Path) -> None:
    """``task=bundle``."""
    from rich.console import Console

    from pipeline.commands import bundle as delivery
    from pipeline.ground.environment import artifacts_folder

    folder = artifacts_folder(settings.artifacts) / "bundle"
    with Console(stderr=True).status("loading") as status:
        manifest = delivery.make_bundle(settings, runs, folder, status.update)
    print((folder / "README.md").read_text())
    print(
        f"bundle  {folder}  ({manifest['size_bytes'][manifest['models']['model.onnx']['kind']]:,} bytes of model.onnx)"
    )


def verify_bundle(settings: Settings, runs: Path) -> None:
    """``task=verify``."""
    from rich.console import Console

    from pipeline.commands import bundle as delivery
    from pipeline.ground.environment import artifacts_folder

    artifacts = artifacts_folder(settings.artifacts)
    with Console(stderr=True).status("loading") as status:
        found = delivery.verify_bundle(settings, artifacts / "bundle", artifacts / "verified.json", status.update)
    print(json.dumps(found, indent=1))


TASKS = {
    "run": run,
    "sync": sync,
    "search": search_policy,
    "measure": measure,
    "plan": show_plan,
    "report": show_report,
    "compare": compare_methods,
    "conformance": hold_against_paper,
    "bundle": make_bundle,
    "verify": verify_bundle,
}


def _follows(settings: Settings) -> bool:
    """Whether another process, which leads this one, tells what is wrong."""
    from pipeline.training.ranks import follows

    return follows(settings.training.devices, settings.training.nodes)


def _end_with_leader() -> None:
    """A process that follows another (DDP) ends when that does, and leaves Ctrl-C to it, from its start on."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _has_own_code(settings: Settings) -> bool:
    """Whether the network or the data are classes of the user's."""
    return "." in settings.model.network or isinstance(settings.data, OwnData)


def _place(error: Exception) -> str:
    """The last line of the user's own code that an error came through, if it came through any."""
    libraries = (*sysconfig.get_paths().values(), str(Path(__file__).parent), "<")
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(libraries)]
    return f" at {own[-1].filename}, line {own[-1].lineno}" if own else ""


def _end(status: int, *sentences: str) -> NoReturn:
    for line in sentences:
        print(line, file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    from pipeline import __main__ as importable  # what launchers send to other processes has to be found there by name

    importable.main()
