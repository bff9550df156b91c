"""A task to its end, whatever is wrong: an exit status, and sentences instead of tracebacks."""

import errno
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.commands import Command
from pipeline.ground.environment import artifacts_folder, runs_folder
from pipeline.ground.errors import PipelineError, SettingsError, Stopped, one_line, where
from pipeline.settings.groups import OwnData, Settings

IN_FULL = "PIPELINE_FULL_ERROR"
"""Variable that says whether ``HYDRA_FULL_ERROR`` was 1 when the command was typed; the door sets that for Hydra."""


def attempt(settings: Settings, task: Command) -> tuple[int, list[str]]:
    """Runs a task; returns its exit status (as the door has them), and sentences on what went wrong.

    Only what is no fault of the user's is raised. With ``debug=true`` or ``HYDRA_FULL_ERROR=1`` the traceback of what
    came from elsewhere (a user's code, a library) is printed too.
    """
    try:
        with _in_full(settings.debug or os.environ.get(IN_FULL) == "1"):
            task(settings, runs_folder(settings.runs))
    except SettingsError as error:
        return 2, error.faults
    except PipelineError as error:
        return 1, [str(error)]
    except BrokenPipeError:  # who reads the output has gone; Python's own last words would follow
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115
        return 141, []
    except OSError as error:
        return 1, [_of_a_file(error, settings)]
    except SystemExit as error:
        return 1, [f"your network or data end the process{where(error)}: {one_line(error)}"]
    except Exception as error:
        if not _has_own_code(settings):
            raise
        return 1, [f"your network or data fail{where(error)}: {one_line(error)}"]
    except Stopped as stopped:
        signum: int = stopped.args[0]
        more = "; the same command goes on from the last finished epoch" if settings.task in ("run", "search") else ""
        return 128 + signum, [f"stopped by {signal.Signals(signum).name}{more}"]
    return 0, []


@contextmanager
def _in_full(wanted: bool) -> Iterator[None]:
    """Prints the traceback of an error that is no sentence from its start on, if the user wants that."""
    try:
        yield
    except (Exception, SystemExit) as error:
        if wanted and not (isinstance(error, PipelineError) and error.__cause__ is None):
            traceback.print_exc()
        raise


def _of_a_file(error: OSError, settings: Settings) -> str:
    """What is wrong with a file, and the setting that names its folder, if one does."""
    said = f"{error.strerror or error}: {error.filename or ''}{where(error)}"
    folders = {"runs": runs_folder(settings.runs), "artifacts": artifacts_folder(settings.artifacts)}
    named = [name for name, folder in folders.items() if str(error.filename or "").startswith(str(folder))]
    if named or error.errno in (errno.ENOSPC, errno.EROFS, errno.EDQUOT):
        said += "; runs= names the folder that all is written to (artifacts= that of what goes out)"
    return said


def _has_own_code(settings: Settings) -> bool:
    """Whether the network or the data are classes of the user's."""
    return "." in (settings.model.network or settings.model.module or ".") or isinstance(settings.data, OwnData)
