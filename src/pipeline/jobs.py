"""From settings to a job; and a job as a person wants it: shown, tracked, reported."""

import copy
import dataclasses
import json
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, cast

import pytorch_lightning as lightning
import torch
from torch import Tensor, nn

from pipeline import outcome, rounds, table
from pipeline.data import load
from pipeline.data.own import own_batches
from pipeline.display import Display
from pipeline.environment import describe_environment, environment, expanded
from pipeline.errors import PipelineError, SettingsError, Stopped
from pipeline.ledger import Ledger, Round, dense_home, run_home, tensor_digest, write_file
from pipeline.networks import build_network, check_scores, prunable
from pipeline.networks.weights import read_weights
from pipeline.randomness import derived_seed
from pipeline.ranks import LedOnly, Ranks, together
from pipeline.rounds import Job
from pipeline.settings import Settings, fingerprint, run_identity
from pipeline.speed import keep_freed_memory, resolved


def build_job(
    settings: Settings,
    runs: Path,
    network: nn.Module | None = None,
    module: lightning.LightningDataModule | None = None,
) -> Job:
    """Loads the data and builds the network, unless they are given; writes nothing.

    Raises:
        SettingsError: with all that is wrong about the two.
    """
    dataset = load(settings.data) if module is None else own_batches(module)
    training = resolved(settings.training, dataset.steps_per_epoch(settings.training.batch_size))
    settings = dataclasses.replace(settings, training=training)
    identity: dict[str, Any] = run_identity(settings) | {"data_digest": dataset.digest}

    if network is None:
        classes = len(dataset.classes)

        def initial(attempt: int) -> Mapping[str, Tensor]:
            return build_network(settings.model, dataset.example, classes, settings.seed, attempt).state_dict()

        network = build_network(settings.model, dataset.example, classes, settings.seed)
    else:
        given = copy.deepcopy(network)

        def initial(attempt: int) -> Mapping[str, Tensor]:
            return given.state_dict() if attempt == 0 else _fresh(given, settings.seed, attempt)

        identity["initial_digest"] = tensor_digest(given.state_dict())
    scores = check_scores(network, settings.model.network, dataset.example, len(dataset.classes))
    prunable(network, settings.pruning.exclude)
    trained = None
    if settings.model.weights is not None:
        trained = read_weights(expanded(settings.model.weights), network)
        identity["weights_digest"] = tensor_digest(trained)
    if training.compile == "on":
        network.compile(dynamic=False)
    return Job(
        network=network,
        dataset=dataset,
        classes=scores,
        training=training,
        pruning=settings.pruning,
        retraining=settings.retraining,
        seed=settings.seed,
        initial=initial,
        trained=trained,
        dense=Ledger(*dense_home(runs, identity)),
        ledger=Ledger(run_home(runs, settings.name, identity), identity),
        environment=environment(),
        watchers=(),
        ranks=Ranks(),
    )


def run_job(job: Job, settings: Settings, runs: Path) -> list[Round]:
    """The loop over rounds, in as many processes as asked for; the one that leads shows and tracks it."""
    keep_freed_memory()
    alone = job
    with together(job.training.devices, job.training.nodes) as ranks:
        if ranks.world > 1:
            dense, ledger = (cast(Ledger, LedOnly(each, ranks)) for each in (job.dense, job.ledger))
            job = dataclasses.replace(job, ranks=ranks, dense=dense, ledger=ledger)
        return _shown_and_tracked(job, alone, settings, runs) if ranks.leads else rounds.run(job)


def _shown_and_tracked(job: Job, alone: Job, settings: Settings, runs: Path) -> list[Round]:
    """``alone`` is the job as this process has it, once the others are no longer with it."""
    from pipeline.tracking import Tracker

    home = alone.ledger
    with home.locked():
        tracker = Tracker(settings.tracking.uri, runs, settings.name)
        tracker.start(settings, home, f"{job.method}, seed {settings.seed}")
        tracker.tag({"precision": job.training.precision, "compile": job.training.compile})
        dense_epochs = job.dense_span.last if job.trained is None else 0
        display = Display(rounds.planned_rounds(job), dense_epochs, job.span.last - job.span.first)
        try:
            with stoppable(), display:
                done = rounds.run(dataclasses.replace(job, watchers=(display, tracker)))
                sizes = [each.figures for each in _sizes(alone, done, settings, display)]
            best = rounds.chosen(done, settings.pruning)
            curves = outcome.curves(done, sizes, job.method, f"{settings.name}, seed {settings.seed}")
            if sizes:
                tracker.sizes(done, sizes)
            for name, curve in curves.items():
                curve.savefig(home.folder / name, dpi=150)
            tracker.finish(
                texts={
                    "rounds.csv": table.as_csv(done, sizes),
                    "rounds.md": table.markdown(done, sizes),
                    "environment.txt": describe_environment(),
                },
                figures=curves,
                tags={"chosen_round": str(best.index), "final_density": f"{done[-1].density:.4f}"},
            )
        except BaseException as error:
            tracker.abort("KILLED" if isinstance(error, Stopped) else "FAILED")
            raise
    if settings.record is not None:
        ended = {"ledger": home.folder.parent.name, "fingerprint": fingerprint(home.identity), "seed": settings.seed}
        digests = [rounds.ledger_of(alone, each.index).digest(each.index) for each in done]
        write_file(expanded(settings.record), json.dumps(ended | {"weights": digests}, indent=1).encode() + b"\n")
    print()
    if not display.trained:
        print("all rounds asked for were complete: nothing was trained (pruning.rounds=N asks for more)")
    if settings.pruning.max_accuracy_drop is not None:
        print(
            f"chosen: round {best.index}, density {best.density:.4f}, the smallest within "
            f"{settings.pruning.max_accuracy_drop * 100:g} points of the dense network's validation accuracy"
        )
    if sizes:
        print(table.bytes_table(done, sizes))
        print()
    for name in curves:
        print(f"curve   {home.folder / name}")
    print(f"rounds  {home.folder}")
    print(f"MLflow  {Path(sys.executable).with_name('mlflow')} ui --backend-store-uri {tracker.uri}")
    return done


def _sizes(job: Job, done: list[Round], settings: Settings, display: Display) -> list[outcome.Sizes]:
    """Bytes of every round's files, if they are asked for and the network can be exported."""
    if not settings.deploy.sizes:
        return []
    try:
        return outcome.measured(job, done, settings.deploy.calibration_images, display.measuring)
    except PipelineError as error:
        display.note(f"bytes are not measured: {error}")
        return []


@contextmanager
def stoppable() -> Iterator[None]:
    """Turns Ctrl-C and SIGTERM into ``Stopped`` within the block (of the main thread: others get no signals)."""

    def stop(signum: int, _: object) -> NoReturn:
        raise Stopped(signum)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signum: signal.signal(signum, stop) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _fresh(network: nn.Module, seed: int, attempt: int) -> Mapping[str, Tensor]:
    """New initial weights, by the layers' own ``reset_parameters``.

    Raises:
        SettingsError: if a parameter belongs to a layer that has none.
    """
    network = copy.deepcopy(network)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(seed, attempt, "initial weights"))
        for name, layer in network.named_modules():
            reset = getattr(layer, "reset_parameters", None) or getattr(layer, "_reset_parameters", None)
            if callable(reset):
                reset()
            elif next(layer.parameters(recurse=False), None) is not None:
                raise SettingsError(
                    [
                        f"retraining.weights: got fresh, but layer {name!r} has no reset_parameters() that draws its "
                        "weights anew; takes final or rewound"
                    ]
                )
    return network.state_dict()
