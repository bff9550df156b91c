"""The door: compose the settings, build what they name, run the task. A user's mistake ends in one sentence.

Exit status: 0 done; 1 something failed on the way (the ledger keeps what was reached); 2 faulty settings, nothing
written; 130 and 143 stopped by Ctrl-C and SIGTERM.
"""

import os
import signal
import sys
import warnings
from pathlib import Path
from typing import NoReturn

try:
    from hydra._internal.utils import get_args_parser
    from omegaconf import OmegaConf
except ModuleNotFoundError as error:
    sys.exit(f"{sys.executable} has no {error.name}: activate the environment that has it, here . .venv/bin/activate")

from pipeline.commands import command
from pipeline.commands.attempt import IN_FULL, attempt
from pipeline.ground.errors import SettingsError
from pipeline.ground.processes import end_with_parent
from pipeline.settings.build import build
from pipeline.settings.composition import (
    MISUNDERSTOOD,
    Composed,
    composed,
    faults,
    jobs,
    launched,
    mapping,
    understood,
)
from pipeline.settings.groups import Settings


def main() -> None:
    """Entry point of ``python -m pipeline``."""
    if os.environ.get("LOCAL_RANK", "0") != "0":
        _end_with_leader()
    os.environ.setdefault(IN_FULL, os.environ.get("HYDRA_FULL_ERROR", "0"))  # the processes that follow have both
    os.environ["HYDRA_FULL_ERROR"] = "1"
    # conf/hydra/launcher has settings of ours for launchers that plugins name
    warnings.filterwarnings("ignore", r"\s*'hydra/launcher/")
    if (here := str(Path.cwd())) not in sys.path:  # of the installed command: there one's own code lies
        sys.path.append(here)
    given = get_args_parser().parse_args()
    told = given.help or given.hydra_help or given.cfg or given.info or given.shell_completion
    if sys.stdout.isatty() and not told:  # who looks on sees at once that something happens
        print("composing settings, loading PyTorch, Lightning and MLflow ...", flush=True)
    try:
        if not given.shell_completion:
            sys.argv[1:] = understood(sys.argv[1:])
            given = get_args_parser().parse_args()
        if given.multirun and given.cfg == "job":
            print("---\n".join(OmegaConf.to_yaml(composed(job)) for job in jobs(given.overrides)), end="")
        elif given.multirun and not told:
            from pipeline.commands.sweep import run_sweep

            status, sentences = run_sweep(given.overrides)
            if status:
                _end(status, *sentences)
        else:
            launched(run_one)
    except KeyboardInterrupt:
        _end(130, "stopped before anything was trained")
    except SettingsError as error:
        _end(2, *error.faults)
    except MISUNDERSTOOD as error:
        _end(2, *faults(given.overrides, error))
    except ValueError as error:
        if not given.shell_completion:
            raise
        _end(2, f"-sc: {error}; takes install=SHELL, uninstall=SHELL or query=SHELL")


def run_one(config: Composed) -> None:
    """The one job of a command: ends in a sentence and an exit status, whatever is wrong."""
    try:
        settings = build(mapping(config))
    except SettingsError as error:
        _end(2, *error.faults)
    status, sentences = attempt(settings, lambda known, runs: command(known.task)(known, runs))
    if status and not _follows(settings):
        _end(status, *sentences)


def _follows(settings: Settings) -> bool:
    """Whether another process, which leads this one, tells what is wrong."""
    from pipeline.training.ranks import follows

    return follows(settings.training.devices, settings.training.nodes)


def _end_with_leader() -> None:
    """A process that follows another (DDP) ends when that does, and leaves Ctrl-C to it, from its start on."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()


def _end(status: int, *sentences: str) -> NoReturn:
    for line in sentences:
        print(line, file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()
