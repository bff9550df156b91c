"""The door: compose the settings, build what they name, run the task. A user's mistake ends in one sentence.

Exit status: 0 done; 1 something failed on the way (the ledger keeps what was reached); 2 faulty settings, nothing
written; 130 and 143 stopped by Ctrl-C and SIGTERM.
"""

import dataclasses
import os
import re
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline.errors import PipelineError, SettingsError
from pipeline.settings import Settings, build, run_identity

if TYPE_CHECKING:
    from pipeline.rounds import Job

PACKAGE = Path(__file__).resolve().parent
CONF = next(folder for folder in (PACKAGE / "conf", PACKAGE.parents[1] / "conf") if folder.is_dir())
"""Inside the package where it is an installed wheel, at the top of the project where it is a checkout."""


class Stopped(BaseException):
    """Ctrl-C or SIGTERM. No KeyboardInterrupt, which Lightning would take for its own."""


def main() -> None:
    """Entry point of ``python -m pipeline``."""
    os.environ["HYDRA_FULL_ERROR"] = "1"
    sys.argv[1:] = [_lenient(argument) for argument in sys.argv[1:]]
    try:
        compose_and_run()
    except KeyboardInterrupt:
        _end(130, "stopped before anything was trained")
    except (HydraException, OmegaConfBaseException) as error:
        _end(2, f"command line: {_hydra_sentence(error)}")


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def compose_and_run(config: DictConfig) -> None:
    """One job of Hydra's: ends in a sentence and an exit status, whatever is wrong."""
    try:
        settings = build(OmegaConf.to_container(config, resolve=True))  # type: ignore[arg-type]
        TASKS[settings.task](settings, runs_folder(settings.runs))
    except SettingsError as error:
        _end(2, *error.faults)
    except PipelineError as error:
        _end(1, str(error))
    except OSError as error:
        _end(1, f"{error.strerror or error}: {error.filename or ''}; runs= names the folder that all is written to")
    except Stopped as stopped:
        signum: int = stopped.args[0]
        name = signal.Signals(signum).name
        _end(128 + signum, f"stopped by {name}; the same command goes on from the last finished epoch")


def run(settings: Settings, runs: Path) -> None:
    """``task=run``: the loop over rounds, shown and tracked."""
    from pipeline import pictures, rounds, table
    from pipeline.display import Display
    from pipeline.environment import describe_environment
    from pipeline.tracking import Tracker

    job = build_job(settings, runs)
    title = f"{job.method}, seed {settings.seed}"
    with job.ledger.locked():
        tracker = Tracker(settings.tracking.uri, runs, settings.name)
        tracker.start(settings, job.ledger, title)
        display = Display(rounds.planned_rounds(job), job.dense_span.last, job.span.last - job.span.first)
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, _stop)
        try:
            with display:
                done = rounds.run(dataclasses.replace(job, watchers=(display, tracker)))
            best = rounds.chosen(done, settings.pruning)
            curve = pictures.accuracy_curves({job.method: done}, f"{settings.name}, seed {settings.seed}")
            picture = job.ledger.folder / "accuracy_vs_sparsity.png"
            curve.savefig(picture, dpi=150)
            tracker.finish(
                texts={
                    "rounds.csv": table.as_csv(done),
                    "rounds.md": table.markdown(done),
                    "environment.txt": describe_environment(),
                },
                figures={"accuracy_vs_sparsity.png": curve},
                tags={"chosen_round": str(best.index), "final_density": f"{done[-1].density:.4f}"},
            )
        except BaseException as error:
            tracker.abort("KILLED" if isinstance(error, Stopped) else "FAILED")
            raise
    print()
    if not display.trained:
        print("all rounds asked for were complete: nothing was trained (pruning.rounds=N asks for more)")
    if settings.pruning.max_accuracy_drop is not None:
        print(
            f"chosen: round {best.index}, density {best.density:.4f}, the smallest within "
            f"{settings.pruning.max_accuracy_drop * 100:g} points of the dense network's validation accuracy"
        )
    print(f"curve   {picture}")
    print(f"rounds  {job.ledger.folder}")
    print(f"MLflow  {Path(sys.executable).with_name('mlflow')} ui --backend-store-uri {tracker.uri}")


def show_plan(settings: Settings, runs: Path) -> None:
    """``task=plan``."""
    from pipeline.plan import plan

    for line in plan(build_job(settings, runs)):
        print(line)


def show_report(settings: Settings, runs: Path) -> None:
    """``task=report``."""
    from pipeline import report

    text, files = report.write(runs, settings.name)
    print(text)
    for file in files:
        print(file)


def build_job(settings: Settings, runs: Path) -> "Job":
    """Loads the data and builds the network; writes nothing.

    Raises:
        SettingsError: with all that is wrong about the two.
    """
    from pipeline.data import load
    from pipeline.environment import environment
    from pipeline.ledger import Ledger, dense_home, run_home
    from pipeline.networks import build_network, prunable
    from pipeline.rounds import Job

    dataset = load(settings.data)
    shape, classes = dataset.shape, len(dataset.classes)
    network = build_network(settings.model, shape, classes, settings.seed)
    prunable(network, settings.pruning.exclude)
    digest = {"data_digest": dataset.digest}
    identity = run_identity(settings) | digest
    return Job(
        network=network,
        dataset=dataset,
        data=settings.data,
        training=settings.training,
        pruning=settings.pruning,
        retraining=settings.retraining,
        seed=settings.seed,
        initial=lambda attempt: build_network(settings.model, shape, classes, settings.seed, attempt).state_dict(),
        dense=Ledger(*dense_home(runs, identity)),
        ledger=Ledger(run_home(runs, settings.name, identity), identity),
        environment=environment(),
        watchers=(),
    )


def runs_folder(runs: str | None) -> Path:
    """The folder of ledgers and tracking, the same wherever the command is typed in a checkout."""
    from pipeline.environment import CHECKOUT, in_checkout

    if runs is not None:
        return Path(runs).expanduser()
    return CHECKOUT / "runs" if in_checkout() else Path("runs")


TASKS = {"run": run, "plan": show_plan, "report": show_report}


def _lenient(argument: str) -> str:
    """``key=value`` as ``++key=value``, so that an unknown key reaches ``build``, which tells all faults at once."""
    key = re.match(r"([A-Za-z_][\w.]*)=", argument)
    groups = {path.name for path in CONF.iterdir() if path.is_dir()}
    if key is None or key[1] in groups or key[1].startswith("hydra."):
        return argument
    return f"++{argument}"


def _hydra_sentence(error: Exception) -> str:
    """Hydra's message on one line, without its search path."""
    lines = str(error).split("Config search path")[0].splitlines()
    return " ".join(line.strip() for line in lines if line.strip())


def _stop(signum: int, _: object) -> NoReturn:
    raise Stopped(signum)


def _end(status: int, *sentences: str) -> NoReturn:
    for sentence in sentences:
        print(sentence, file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()
