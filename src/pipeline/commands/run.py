"""From settings to a job; and a job as a person wants it: shown, tracked, reported."""

import copy
import dataclasses
import json
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

import pytorch_lightning as lightning
import torch
from torch import Tensor, nn

from pipeline.data import load
from pipeline.data.own import own_batches
from pipeline.ground.environment import describe_environment, environment, expanded
from pipeline.ground.errors import PipelineError, SettingsError, Stopped, one_line
from pipeline.ground.randomness import derived_seed
from pipeline.networks import build_network, check_scores, prunable
from pipeline.networks.weights import read_weights
from pipeline.pruning.channels import ChannelGroup, channel_groups
from pipeline.pruning.policy import read_policy, searched
from pipeline.report import sizes as outcome
from pipeline.report import table, timing
from pipeline.report.display import Display
from pipeline.rounds import loop as rounds
from pipeline.rounds.ledger import Ledger, Round, dense_home, run_home, search_home, tensor_digest, write_file
from pipeline.rounds.loop import Job, Watcher
from pipeline.settings.groups import Pruning, Settings, amc_identity, dense_identity, fingerprint, run_identity
from pipeline.training.ranks import LedOnly, Ranks, together
from pipeline.training.speed import keep_freed_memory, resolved

if TYPE_CHECKING:
    from pipeline.tracking.tracker import Tracker


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
    start: dict[str, Any] = dense_identity(settings) | {"data_digest": dataset.digest}

    if network is None:
        classes = len(dataset.classes)

        def initial(attempt: int) -> Mapping[str, Tensor]:
            return build_network(settings.model, dataset.example, classes, settings.seed, attempt).state_dict()

        network = build_network(settings.model, dataset.example, classes, settings.seed)
    else:
        given = copy.deepcopy(network)

        def initial(attempt: int) -> Mapping[str, Tensor]:
            return given.state_dict() if attempt == 0 else _fresh(given, settings.seed, attempt)

        start["initial_digest"] = tensor_digest(given.state_dict())
    scores = check_scores(network, settings.model.network, dataset.example, len(dataset.classes))
    trained = None
    if settings.model.weights is not None:
        trained = read_weights(expanded(settings.model.weights), network)
        start["weights_digest"] = tensor_digest(trained)
    pruning = _with_shares(settings, search_home(runs, settings.name, start | {"amc": amc_identity(settings)}))
    settings = dataclasses.replace(settings, pruning=pruning)
    identity = start | run_identity(settings)
    groups = _removable(network, dataset.example, settings.pruning) if settings.pruning.structure == "filter" else ()
    _check_patterns(settings.pruning, groups, prunable(network, settings.pruning.exclude))
    if training.compile == "on":
        network.compile(dynamic=False)
    return Job(
        network=network,
        dataset=dataset,
        classes=scores,
        training=training,
        pruning=settings.pruning,
        groups=groups,
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


def _with_shares(settings: Settings, search: Path) -> Pruning:
    """The pruning with the shares of its policy file, whose name takes the place of its path; ``search`` is the folder
    of the search that the settings ask for.

    Raises:
        SettingsError: if the file is none, or the search is not complete.
    """
    pruning = settings.pruning
    if pruning.policy is None:
        return pruning
    if pruning.policy == "search" and not searched(search, settings.amc):
        raise SettingsError(
            [f"pruning.policy: got search, but that in {search} is not complete: the same settings with task=run do it"]
        )
    path = search / "policy.json" if pruning.policy == "search" else expanded(pruning.policy)
    name, shares = read_policy(path, pruning.structure)
    return dataclasses.replace(pruning, policy=name, shares=shares)


def _removable(network: nn.Module, example: Tensor, pruning: Pruning) -> tuple[ChannelGroup, ...]:
    """The groups of channels that may go.

    Raises:
        SettingsError: if there is none.
    """
    try:
        groups = channel_groups(network, example)
    except ValueError as error:
        raise SettingsError([f"pruning.structure: got filter, but {one_line(error)}; takes weight"]) from error
    groups = tuple(each for each in groups if not any(each.matches(pattern) for pattern in pruning.exclude))
    if not groups:
        raise SettingsError(["pruning.structure: got filter, but no layer's filters can be removed; takes weight"])
    return groups


def _check_patterns(pruning: Pruning, groups: Sequence[ChannelGroup], weights: Sequence[str]) -> None:
    """Every pattern of ``pruning.shares`` must be of a layer that can be pruned."""
    layers = [layer for group in groups for layer in group.layers] or [name.removesuffix(".weight") for name in weights]
    faults = [
        f"pruning.shares: got {pattern!r}, which matches no layer; the layers are {', '.join(layers)}"
        for pattern in pruning.shares or ()
        if not any(fnmatchcase(layer, pattern) for layer in layers)
    ]
    if faults:
        raise SettingsError(faults)


def run_job(
    job: Job,
    settings: Settings,
    runs: Path,
    watchers: Sequence[Watcher] = (),
    wait: Callable[[str], None] | None = None,
) -> list[Round]:
    """The loop over rounds, in as many processes as asked for; the one that leads shows and tracks it.

    ``wait`` as of ``Ledger.locked``: what to do where another process is at the same run.
    """
    keep_freed_memory()
    alone = job
    with together(job.training.devices, job.training.nodes) as ranks:
        if ranks.world > 1:
            dense, ledger = (cast(Ledger, LedOnly(each, ranks)) for each in (job.dense, job.ledger))
            job = dataclasses.replace(job, ranks=ranks, dense=dense, ledger=ledger)
        if not ranks.leads:
            return rounds.run(job)
        return _shown_and_tracked(job, alone, settings, runs, watchers, wait)


def _shown_and_tracked(
    job: Job,
    alone: Job,
    settings: Settings,
    runs: Path,
    watchers: Sequence[Watcher],
    wait: Callable[[str], None] | None,
) -> list[Round]:
    """``alone`` is the job as this process has it, once the others are no longer with it."""
    from pipeline.tracking.tracker import Tracker

    dense_epochs = job.dense_span.last if job.trained is None else 0
    display = Display(rounds.planned_rounds(job), dense_epochs, job.span.last - job.span.first)
    with alone.ledger.locked(wait), Tracker(settings, runs, alone.ledger, alone.title, display.note) as tracker:
        with stoppable(), display:
            done = rounds.run(dataclasses.replace(job, watchers=(display, tracker, *watchers)))
            sizes = _sizes(alone, done, settings, display)
        curves = _save_and_send(alone, done, sizes, settings, tracker)
        if not tracker.delivered():
            for watcher in (display, *watchers):
                watcher.note(
                    f"warning: MLflow at {tracker.uri} misses a part: the same command with task=sync delivers it"
                )
    if settings.record is not None:
        ended = {"ledger": alone.ledger.folder.parent.name, "fingerprint": fingerprint(alone.ledger.identity)}
        digests = [rounds.ledger_of(alone, each.index).digest(each.index) for each in done]
        record = ended | {"seed": settings.seed, "weights": digests}
        write_file(expanded(settings.record), json.dumps(record, indent=1).encode() + b"\n")
    print()
    if not display.trained:
        print("all rounds asked for were complete: nothing was trained (pruning.rounds=N asks for more)")
    if settings.pruning.max_accuracy_drop is not None:
        best = rounds.chosen(done, settings.pruning)
        print(
            f"chosen: round {best.index}, density {best.density:.4f}, the smallest within "
            f"{settings.pruning.max_accuracy_drop * 100:g} points of the dense network's validation accuracy"
        )
    if sizes:
        print(table.bytes_table(done, [each.figures for each in sizes]))
        print()
    for path in curves:
        print(f"curve   {path}")
    print(f"rounds  {alone.ledger.folder}")
    print(f"MLflow  {tracker.where}")
    return done


def sync_job(job: Job, settings: Settings, runs: Path) -> str:
    """Sends MLflow what it misses of a job's complete rounds; trains nothing. Returns a sentence.

    Raises:
        PipelineError: if there is no complete pruned round, or MLflow is or goes out of reach.
    """
    from pipeline.tracking.tracker import Tracker

    done = rounds.recorded(job)
    with job.ledger.locked(), Tracker(settings, runs, job.ledger, job.title, print) as tracker, stoppable():
        for each in done:
            tracker.round_done(each, rounds.ledger_of(job, each.index).path(each.index), trained=False)
        if rounds.ended(job, done):
            sizes = outcome.kept(job, done, settings.deploy)
            _save_and_send(job, done, sizes, settings, tracker)
        if not tracker.delivered():
            raise PipelineError(f"MLflow at {tracker.uri} still misses a part: type the same command again")
        if not rounds.ended(job, done):
            tracker.abort("KILLED")
    return f"MLflow at {tracker.uri} has all {len(done)} rounds of {job.ledger.folder}"


def measure_job(job: Job, settings: Settings, runs: Path, told: Callable[[str], None]) -> str:
    """Takes the time of the dense network and of a round's, shows it to MLflow too, and returns a table.

    The round is that of ``deploy.round``, or the one that a bundle is made of; or all are, by ``deploy.measure``.

    Raises:
        PipelineError: if there is no complete pruned round, or its network cannot be exported.
        SettingsError: if ``deploy.round`` is no round of it.
    """
    from pipeline.tracking.tracker import Tracker

    every = rounds.recorded(job)
    done = every
    if settings.deploy.measure == "outcome":
        done = [every[0], rounds.wanted(every, settings.deploy.round, job.pruning)]
    with (
        job.ledger.locked(),
        Tracker(settings, runs, job.ledger, job.title, print, reopen=False) as tracker,
        stoppable(),
    ):
        timings = timing.measured(job, done, settings.deploy, told)
        for result, each in zip(done, timings, strict=True):
            tracker.log_figures(result, each.figures, each.taken_ms)
    return timing.table(done, timings)


def _save_and_send(
    job: Job, done: list[Round], sizes: Sequence[outcome.Sizes], settings: Settings, tracker: "Tracker"
) -> list[Path]:
    """The report of an ended run: curves into the ledger's folder, whose paths it returns, and all of it to MLflow."""
    figures = [each.figures for each in sizes]
    curves = outcome.curves(done, figures, job.method, f"{settings.name}, seed {settings.seed}")
    for name, curve in curves.items():
        curve.savefig(job.ledger.folder / name, dpi=150)
    tracker.finish(
        done,
        figures,
        texts={
            "rounds.csv": table.as_csv(done, figures),
            "rounds.md": table.markdown(done, figures),
            "environment.txt": describe_environment(),
        },
        figures=curves,
        tags={
            "chosen_round": str(rounds.chosen(done, settings.pruning).index),
            "final_density": f"{done[-1].density:.4f}",
        },
    )
    return [job.ledger.folder / name for name in curves]


def _sizes(job: Job, done: list[Round], settings: Settings, display: Display) -> list[outcome.Sizes]:
    """Bytes of every round's files, if they are asked for and the network can be exported."""
    if not settings.deploy.sizes:
        return []
    try:
        return outcome.measured(job, done, settings.deploy, display.measuring)
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
