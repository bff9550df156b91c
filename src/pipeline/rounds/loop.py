"""The loop over rounds. Read this first; in pseudo-code it is

    round 0: train the dense network                         (once for all runs that share it)
    round r = 1, 2, ...:
        masks = prune(weights at the end of round r - 1)     the lowest 20% of what is left go
        start = by method: those very weights, round 0's at the rewind point, or fresh ones
        train from start through the last t epochs of the schedule, pruned weights held at zero
        evaluate, record
        stop at the target density, at the number of rounds, or under the accuracy floor

(Renda, Frankle and Carbin 2020, section 2). A round whose record exists is skipped, a round under way goes on from its
last finished epoch, and so typing the same command again continues.
"""

import copy
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Generator, Tensor, nn

from pipeline.data.dataset import Dataset, Split
from pipeline.ground.errors import PipelineError, SettingsError
from pipeline.ground.randomness import generator
from pipeline.networks import prunable, weight_layers
from pipeline.networks.costs import density, layer_costs, positions
from pipeline.pruning.channels import ChannelGroup
from pipeline.pruning.cut import cut_filters, cut_weights, least_share
from pipeline.pruning.masks import Masks, digest, kept, ones_like
from pipeline.pruning.prune import emptied, removal_count
from pipeline.rounds.ledger import Ledger, Round
from pipeline.settings.groups import Pruning, Retraining, Training
from pipeline.training.ranks import Ranks
from pipeline.training.retraining import Span, retraining_span, run_title, training_span
from pipeline.training.train import Epoch, State, evaluate, masked, train_round


class Watcher(Protocol):
    """What may look on: a display, a tracker. A watcher decides nothing."""

    def round_started(self, index: int, epochs: int, done: tuple[Epoch, ...]) -> None:
        """A round is to train ``epochs`` epochs, of which ``done`` are finished already."""

    def batch_done(self, batches: int, of: int) -> None:
        """So many batches of the present epoch are done."""

    def epoch_done(self, index: int, history: tuple[Epoch, ...]) -> None:
        """One more epoch is on disk."""

    def round_done(self, result: Round, folder: Path, *, trained: bool) -> None:
        """A round is complete on disk in ``folder``; ``trained`` is false where it was found there."""

    def note(self, sentence: str) -> None:
        """Something that a person should know."""


@dataclass(frozen=True)
class Job:
    """All that a run needs.

    ``groups`` are the channels that may go where whole filters are pruned. ``initial(0)`` gives round 0's initial
    weights, ``initial(r)`` fresh ones for round r. ``trained`` are weights that take the place of round 0's training.
    """

    network: nn.Module
    dataset: Dataset
    classes: int
    training: Training
    pruning: Pruning
    groups: tuple[ChannelGroup, ...]
    retraining: Retraining
    seed: int
    initial: Callable[[int], Mapping[str, Tensor]]
    trained: Mapping[str, Tensor] | None
    dense: Ledger
    ledger: Ledger
    environment: Mapping[str, Any]
    watchers: Sequence[Watcher]
    ranks: Ranks

    @property
    def method(self) -> str:
        """The run's name in a comparison."""
        return run_title(self.pruning, self.retraining)

    @property
    def title(self) -> str:
        """What tells the run apart from those of its experiment."""
        return f"{self.method}, seed {self.seed}"

    @cached_property
    def positions(self) -> Mapping[str, int]:
        """How many times an input uses each weight of a layer, as ``costs.positions`` counts it."""
        return positions(self.network, self.dataset.example)

    @property
    def dense_span(self) -> Span:
        return training_span(self.training, self.dataset.steps_per_epoch(self.training.batch_size))

    @property
    def span(self) -> Span:
        return retraining_span(self.retraining, self.dense_span)


def run(job: Job) -> list[Round]:
    """Runs or continues the loop to its end and returns all rounds, from round 0 on.

    Raises:
        PipelineError: if another process holds the ledger, the ledger is of other settings, or training diverges.
    """
    with job.ledger.locked():
        masks: Masks = _alive(job)
        rounds = [dense_round(job)]
        while not finished(rounds, job.pruning):
            index = len(rounds)
            if trained := job.ledger.read(index) is None:
                before, masks = masks, _next_masks(job, index, masks)
                if kept(masks) == kept(before):
                    break
                _train_round(job, job.ledger, index, masks, job.span, partial(start_state, job, index))
            else:
                job.ledger.clear(index)
                masks = _in_order(job.ledger.masks(index), masks)
            rounds.append(_complete(job, index))
            _tell(job, "round_done", rounds[-1], job.ledger.path(index), trained=trained)
    return rounds


def recorded(job: Job) -> list[Round]:
    """The complete rounds of a job, from round 0 on; nothing is trained.

    Raises:
        PipelineError: if there is none, or not even its round 0.
    """
    found = [job.dense.read(0)]
    while found[-1] is not None:
        found.append(job.ledger.read(len(found)))
    rounds = [each for each in found if each is not None]
    if len(rounds) < 2:
        raise PipelineError(
            f"no pruned round of these settings is complete in {job.ledger.folder}: "
            "run them first, by the same command with task=run"
        )
    return rounds


def network_after(job: Job, index: int) -> nn.Module:
    """A network of its own with the weights that a complete round ended with, in evaluation, on the CPU."""
    network = copy.deepcopy(job.network).cpu().eval()
    network.load_state_dict(dict(ledger_of(job, index).state(index).network))
    return network


def finished(rounds: Sequence[Round], pruning: Pruning) -> bool:
    """Whether a limit is reached: the number of rounds, or the floor on validation accuracy.

    The target density needs no word here: at the target a step removes nothing, and that ends the loop.
    """
    if pruning.rounds is not None and len(rounds) > pruning.rounds:
        return True
    return pruning.max_accuracy_drop is not None and not _within(rounds[-1], rounds[0], pruning.max_accuracy_drop)


def chosen(rounds: Sequence[Round], pruning: Pruning) -> Round:
    """The smallest round within the accuracy floor, or the last where there is no floor."""
    if pruning.max_accuracy_drop is None:
        return rounds[-1]
    return [each for each in rounds if _within(each, rounds[0], pruning.max_accuracy_drop)][-1]


def wanted(rounds: Sequence[Round], index: int | None, pruning: Pruning) -> Round:
    """The round of ``deploy.round``; None for the ``chosen`` one.

    Raises:
        SettingsError: if it is not complete.
    """
    if index is None:
        return chosen(rounds, pruning)
    if index >= len(rounds):
        raise SettingsError([f"deploy.round: got {index}, takes 0 to {len(rounds) - 1}, the rounds that are complete"])
    return rounds[index]


def _within(round_: Round, dense: Round, drop: float) -> bool:
    accuracy, reference = (each.figures["validation_accuracy"] for each in (round_, dense))
    return accuracy >= reference - drop - 1e-9


def planned(job: Job) -> list[float] | None:
    """Density of every round from 0 on, by arithmetic alone; None if nothing but accuracy ends the run.

    A floor on accuracy may end a run before. Filters: of weights or multiply-adds (``pruning.measure``), each round to
    within a filter; there may be fewer rounds, since one never removes less than it should.
    """
    pruning, masks = job.pruning, _alive(job)
    if pruning.rounds is None and pruning.target_density is None and pruning.shares is None:
        return None
    if pruning.shares is not None:
        nothing = {name: torch.zeros(mask.shape) for name, mask in masks.items()}
        last = 1 if pruning.rounds is None else pruning.rounds
        return [density(_layers(job, masks if r == 0 else _cut(job, nothing, masks, r))) for r in range(last + 1)]
    assert pruning.fraction is not None
    if pruning.structure == "filter":
        densities = [1.0]
        while densities[-1] != pruning.target_density and len(densities) - 1 != pruning.rounds:
            densities.append(max(densities[-1] * (1 - pruning.fraction), pruning.target_density or 0.0))
        return densities
    return planned_densities([mask.numel() for mask in masks.values()], pruning)


def planned_densities(sizes: Sequence[int], pruning: Pruning) -> list[float]:
    """Density of every round from 0 on where weights of layers of these ``sizes`` compete, to the weight."""
    assert pruning.fraction is not None
    groups = [[sum(sizes), sum(sizes)]] if pruning.scope == "global" else [[size, size] for size in sizes]
    densities = [1.0]
    while pruning.rounds is None or len(densities) <= pruning.rounds:
        removed = 0
        for group in groups:
            count = removal_count(group[1], group[0], pruning.fraction, pruning.target_density)
            group[1] -= count
            removed += count
        if not removed:
            break
        densities.append(sum(alive for _, alive in groups) / sum(sizes))
    return densities


def planned_rounds(job: Job) -> int | None:
    """How many rounds follow round 0; None if nothing but accuracy ends the run."""
    densities = planned(job)
    return None if densities is None else len(densities) - 1


def ended(job: Job, rounds: Sequence[Round]) -> bool:
    """Whether no further round is asked for."""
    if finished(rounds, job.pruning):
        return True
    if job.groups and job.pruning.target_density is not None:
        last = rounds[-1]
        left = last.macs_kept / last.macs_dense if job.pruning.measure == "macs" else last.density
        return left <= job.pruning.target_density
    planned = planned_rounds(job)
    return planned is not None and len(rounds) > planned


def start_state(job: Job, index: int) -> State:
    """Weights and optimizer state that a round starts from, before its masks are applied: a row of REFERENCE's table.

    final: the end of the last round. rewound: round 0 at the rewind point. fresh: new random weights.
    """
    match job.retraining.weights:
        case "final":
            state = ledger_of(job, index - 1).state(index - 1)
        case "rewound":
            state = _rewind_point(job, job.span.first)
        case "fresh":
            state = State(job.initial(index), {})
    return state if job.retraining.optimizer_state == "keep" else State(state.network, {})


def _next_masks(job: Job, index: int, masks: Masks) -> Masks:
    """The masks of a round, from the weights at the end of the one before."""
    weights = ledger_of(job, index - 1).state(index - 1).network
    try:
        pruned = job.ranks.from_leader(lambda: _cut(job, weights, masks, index))
    except ValueError as error:
        setting = " (pruning.empty_layer)" if least_share(job.pruning) else ""
        raise PipelineError(f"round {index}: {error}{setting}") from error
    if layers := emptied(masks, pruned):
        sentence = f"round {index} removes the last weight of {', '.join(layers)}"
        remedy = "pruning.empty_layer=0.01 would keep a hundredth of every layer, pruning.exclude all of the named"
        if job.pruning.empty_layer == "error":
            raise PipelineError(f"{sentence}, and pruning.empty_layer=error: {remedy}")
        _tell(job, "note", f"warning: {sentence}; {remedy}")
    return pruned


def _cut(job: Job, weights: Mapping[str, Tensor], masks: Masks, index: int) -> dict[str, Tensor]:
    def draws(name: str) -> Generator:
        return generator(job.seed, index, "random criterion", name)

    if job.groups:
        return cut_filters(job.pruning, weights, masks, index, draws, job.groups, job.positions)
    return cut_weights(job.pruning, weights, masks, index, draws, job.positions)


def dense_round(job: Job) -> Round:
    """Round 0, trained by this run or another. What this run excludes from pruning is told apart afterwards."""
    trained = False
    if job.dense.read(0) is None:
        with job.dense.locked(wait=lambda holder: _tell(job, "note", f"waiting for round 0, which {holder} trains")):
            if trained := job.dense.read(0) is None:
                if job.trained is None:
                    _train_round(job, job.dense, 0, _whole(job), job.dense_span, lambda: State(job.initial(0), {}))
                else:
                    _take_trained(job, State(job.trained, {}))
    job.dense.clear(0)
    dense = job.dense.read(0)
    assert dense is not None
    dense = dataclasses.replace(dense, layers=_layers(job, _alive(job)))
    _tell(job, "round_done", dense, job.dense.path(0), trained=trained)
    return dense


def _take_trained(job: Job, state: State) -> None:
    """Round 0 of a network that comes trained: validated and tested, as after an epoch 0."""
    metrics = _evaluated(job, "validation", state)
    validated = Epoch(number=0, rate=0.0, metrics=metrics, seconds=0.0, finished_ms=time.time_ns() // 1_000_000)
    _record(job, job.dense, 0, _whole(job), state, (validated,))


def _rewind_point(job: Job, epoch: int) -> State:
    """Round 0 after ``epoch`` epochs: kept, or trained again from the nearest point before it, bit for bit."""
    if (state := job.dense.kept(epoch)) is not None:
        return state
    if epoch == 0:
        return State(job.initial(0), {})
    with job.dense.locked(wait=lambda holder: _tell(job, "note", f"waiting for round 0, which {holder} uses")):
        if (state := job.dense.kept(epoch)) is not None:
            return state
        nearest = max([0, *(each for each in job.dense.kept_epochs() if each < epoch)])
        start = job.dense.kept(nearest) or State(job.initial(0), {})
        _tell(
            job,
            "note",
            f"training round 0 again from epoch {nearest} to {epoch}, the rewind point that was not kept",
        )
        reached: list[State] = []
        _train(
            job, 0, _whole(job), dataclasses.replace(job.dense_span, last=epoch), start, nearest,
            lambda _, state: reached.append(state),
        )  # fmt: skip
        job.dense.keep(epoch, reached[-1])
        return reached[-1]


def _train_round(job: Job, ledger: Ledger, index: int, masks: Masks, span: Span, start: Callable[[], State]) -> None:
    """Trains a round from its start, or from its last finished epoch, and completes it in the ledger."""
    state, history = ledger.partial(index) or (masked(start(), masks), ())
    _tell(job, "round_started", index, span.last - span.first, history)

    def on_epoch(epoch: Epoch, reached: State) -> None:
        nonlocal state, history
        state, history = reached, (*history, epoch)
        if index == 0 and job.retraining.weights == "rewound" and len(history) == job.span.first:
            ledger.keep(job.span.first, state)
        ledger.write_partial(index, state, history)
        _tell(job, "epoch_done", index, history)

    if len(history) < span.last - span.first:
        _train(job, index, masks, span, state, span.first + len(history), on_epoch)
    _record(job, ledger, index, masks, state, history)


def _record(job: Job, ledger: Ledger, index: int, masks: Masks, state: State, history: tuple[Epoch, ...]) -> None:
    """Tests a round's result and completes the round in the ledger."""
    test = _evaluated(job, "test", state)
    result = Round(
        index=index,
        layers=_layers(job, masks),
        history=history,
        test=test,
        seconds=sum(epoch.seconds for epoch in history),
        finished_ms=history[-1].finished_ms,
    )
    ledger.write(result, state, masks, job.environment)
    for sentence in job.dataset.notes():
        _tell(job, "note", sentence)


def _train(
    job: Job, index: int, masks: Masks, span: Span, start: State, first_epoch: int,
    on_epoch: Callable[[Epoch, State], None],
) -> None:  # fmt: skip
    job.ranks.agree(digest(masks), f"the masks of round {index}")
    train_round(
        job.network,
        job.dataset,
        classes=job.classes,
        training=job.training,
        span=span,
        masks=masks,
        key=(job.seed, index),
        start=start,
        first_epoch=first_epoch,
        on_epoch=on_epoch,
        on_batch=lambda batches: _tell(job, "batch_done", batches, span.steps_per_epoch),
    )


def _evaluated(job: Job, split: Split, state: State) -> dict[str, float]:
    return evaluate(job.network, job.dataset, classes=job.classes, split=split, training=job.training, state=state)


def ledger_of(job: Job, index: int) -> Ledger:
    """Where a round lives: round 0 is the dense network's, which runs share."""
    return job.dense if index == 0 else job.ledger


def _complete(job: Job, index: int) -> Round:
    done = job.ledger.read(index)
    assert done is not None
    return done


def _alive(job: Job) -> dict[str, Tensor]:
    """Masks before any pruning, in parameter order: the order that decides between equal scores.

    Filters go with what reads them and with their biases and normalisation, so those have masks too.
    """
    if not job.groups:
        return _ones(job, prunable(job.network, job.pruning.exclude))
    vectors = {part.parameter for group in job.groups for part in group.vectors}
    return _ones(job, [*prunable(job.network), *sorted(vectors)])


def _whole(job: Job) -> dict[str, Tensor]:
    """Masks of the dense network, whatever this run prunes of it."""
    return _ones(job, prunable(job.network))


def _ones(job: Job, names: Sequence[str]) -> dict[str, Tensor]:
    parameters = dict(job.network.named_parameters())
    return ones_like({name: parameters[name] for name in names})


def _in_order(masks: Masks, like: Masks) -> dict[str, Tensor]:
    return {name: masks[name] for name in like}


def _layers(job: Job, masks: Masks) -> tuple[Any, ...]:
    parameters = dict(job.network.named_parameters())
    sizes = {name: parameters[name].numel() for name in weight_layers(job.network)}
    return layer_costs(sizes, job.positions, masks)


def _tell(job: Job, event: str, *arguments: Any, **named: Any) -> None:
    for watcher in job.watchers:
        getattr(watcher, event)(*arguments, **named)
