"""The door: compose the settings, build what they name, run the task. A user's mistake ends in one sentence.

Exit status: 0 done; 1 something failed on the way (the ledger keeps what was reached); 2 faulty settings, nothing
written; 130 and 143 stopped by Ctrl-C and SIGTERM.
"""

import ctypes
import json
import os
import signal
import sys
import sysconfig
import traceback
from pathlib import Path
from typing import NoReturn

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline.composition import CONF, lenient, sentence
from pipeline.errors import PipelineError, SettingsError, Stopped, one_line
from pipeline.settings import OwnData, Settings, build


def main() -> None:
    """Entry point of ``python -m pipeline``."""
    if os.environ.get("LOCAL_RANK", "0") != "0":
        _end_with_leader()
    os.environ["HYDRA_FULL_ERROR"] = "1"
    sys.argv[1:] = [lenient(argument) for argument in sys.argv[1:]]
    try:
        compose_and_run()
    except KeyboardInterrupt:
        _end(130, "stopped before anything was trained")
    except (HydraException, OmegaConfBaseException) as error:
        _end(2, f"command line: {sentence(error)}")


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def compose_and_run(config: DictConfig) -> None:
    """One job of Hydra's: ends in a sentence and an exit status, whatever is wrong."""
    try:
        settings = build(OmegaConf.to_container(config, resolve=True))  # type: ignore[arg-type]
    except SettingsError as error:
        _end(2, *error.faults)
    from pipeline.environment import runs_folder

    status, sentences = 0, []
    try:
        TASKS[settings.task](settings, runs_folder(settings.runs))
    except SettingsError as error:
        status, sentences = 2, error.faults
    except PipelineError as error:
        status, sentences = 1, [str(error)]
    except BrokenPipeError:  # who reads the output has gone; Python's own last words would follow
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115
        status = 141
    except OSError as error:
        place = f"{error.strerror or error}: {error.filename or ''}"
        status, sentences = (
            1,
            [f"{place}; runs= names the folder that all is written to (artifacts= that of what goes out)"],
        )
    except Exception as error:
        if not _has_own_code(settings):
            raise
        status, sentences = 1, [f"your network or data fail{_place(error)}: {one_line(error)}"]
    except Stopped as stopped:
        signum: int = stopped.args[0]
        name = signal.Signals(signum).name
        status = 128 + signum
        more = "; the same command goes on from the last finished epoch" if settings.task == "run" else ""
        sentences = [f"stopped by {name}{more}"]
    if status and not _follows(settings):
        _end(status, *sentences)


def run(settings: Settings, runs: Path) -> None:
    """``task=run``: the loop over rounds, shown and tracked."""
    from pipeline.jobs import build_job, run_job

    run_job(build_job(settings, runs), settings, runs)


def show_plan(settings: Settings, runs: Path) -> None:
    """``task=plan``."""
    from pipeline.jobs import build_job, stoppable
    from pipeline.plan import plan
    from pipeline.ranks import together

    job = build_job(settings, runs)
    with together(job.training.devices, job.training.nodes) as ranks, stoppable():
        for line in plan(job):
            if ranks.leads:
                print(line)


def show_report(settings: Settings, runs: Path) -> None:
    """``task=report``."""
    from pipeline import delivery, report
    from pipeline.environment import artifacts_folder

    text, files = report.write(runs, settings.name)
    print(text)
    for file in files:
        print(file)
    try:
        files = delivery.write_report(settings, runs, artifacts_folder(settings.artifacts) / "report")
    except SettingsError as error:
        print(f"the outcome sheet of one run is not written: {'; '.join(error.faults)}")
    else:
        for file in files:
            print(file)


def make_bundle(settings: Settings, runs: Path) -> None:
    """``task=bundle``."""
    from rich.console import Console

    from pipeline import delivery
    from pipeline.environment import artifacts_folder

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

    from pipeline import delivery
    from pipeline.environment import artifacts_folder

    artifacts = artifacts_folder(settings.artifacts)
    with Console(stderr=True).status("loading") as status:
        found = delivery.verify_bundle(settings, artifacts / "bundle", artifacts / "verified.json", status.update)
    print(json.dumps(found, indent=1))


TASKS = {
    "run": run,
    "plan": show_plan,
    "report": show_report,
    "bundle": make_bundle,
    "verify": verify_bundle,
}


def _follows(settings: Settings) -> bool:
    """Whether another process, which leads this one, tells what is wrong."""
    from pipeline.ranks import follows

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
    main()
