"""The loop over rounds. Read this first; in pseudo-code it is

    round 0: train the dense network                         (once for all runs that share it)
    round r = 1, 2, ...:
        masks = prune(weights at the end of round r - 1)     the lowest 20% of what is left go
        start = by method: those very weights, round 0's at the rewind point, or fresh ones
        train from start through the last t epochs of the schedule, pruned weights held at zero
        evaluate, record
        stop at the target density, at the number of rounds, or under the floor of the score

(Renda, Frankle and Carbin 2020, section 2). A round whose record exists is skipped, a round under way goes on from its
last finished epoch, and so typing the same command again continues.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from torch import Tensor

from pipeline.data.dataset import Split
from pipeline.ground.errors import PipelineError
from pipeline.ground.randomness import derived_seed
from pipeline.ground.tensors import remedy
from pipeline.pruning.cut import least_share
from pipeline.pruning.masks import Masks, digest, kept
from pipeline.pruning.prune import emptied
from pipeline.rounds.choice import finished, removes_nothing
from pipeline.rounds.job import Job, Site
from pipeline.rounds.ledger import AGAIN, Round, partial_name, round_0_is_gone
from pipeline.training.average import mean_of
from pipeline.training.gradual import Gradual
from pipeline.training.retraining import retraining_tape
from pipeline.training.state import Epoch, State, UnderWay, masked
from pipeline.training.tape import Tape
from pipeline.training.train import RoundPlan, evaluate, renewed, train_round

NO_TRAINING = 0.01
"""A held rate below this share of the highest is told about."""


def run(job: Job, site: Site) -> list[Round]:
    """Runs or continues the loop to its end and returns all rounds, from round 0 on.

    Raises:
        PipelineError: if another process holds the ledger, the ledger is of other settings, or training diverges.
    """
    with site.ledger.locked():
        _check_dense(site)
        for sentence in job.notes:
            site.watcher.note(sentence)
        masks: Masks = job.alive()
        rounds = [dense_round(job, site)]
        _tell_of_a_low_rate(job, site)
        while not finished(rounds, job):
            index = len(rounds)
            if trained := site.ledger.read(index) is None:
                pruned = _next_masks(job, site, index, masks)
                if removes_nothing(job, masks, pruned):
                    break
                _train_round(job, site, _plan(job, site, index, masks, pruned), partial(start_state, job, site, index))
            else:
                _check_parent(site, index)
                site.ledger.clear(index)
            found = site.ledger.masks(index)
            masks = {name: found[name] for name in masks}
            done = site.ledger.read(index)
            assert done is not None
            rounds.append(done)
            site.watcher.round_done(done, site.ledger.path(index), trained=trained)
    return rounds


def _plan(job: Job, site: Site, index: int, masks: Masks, pruned: Masks) -> RoundPlan:
    """What round ``index`` trains: under the masks that are pruned, or from those before to as few weights."""
    tape = retraining_tape(job.retraining, recorded_tape(job, site), job.span.epochs)
    match job.training.teacher:
        case None:
            teacher = None
        case "dense":
            teacher = site.dense.state(0).network
        case "previous":
            teacher = site.ledger_of(index - 1).state(index - 1).network
    if job.pruning.schedule == "at_once":
        return RoundPlan(job.span, pruned, job.seed, index, tape, None, teacher)
    left = job.asked(index, masks) if job.pruning.structure == "block" else pruned
    gradual = Gradual(kept(left), partial(job.cut_to, index, masks, left))
    return RoundPlan(job.span, masks, job.seed, index, tape, gradual, teacher)


def _check_dense(site: Site) -> None:
    """Refuses rounds whose round 0 is gone: another would be trained in its place."""
    if site.dense.read(0) is None and site.ledger.read(1) is not None:
        raise PipelineError(round_0_is_gone(site.ledger.folder, site.dense.folder))


def _check_parent(site: Site, index: int) -> None:
    """Refuses a round that was pruned from other weights than those of the round before it."""
    recorded, before = site.ledger.parent(index), site.ledger_of(index - 1).digest(index - 1)
    if recorded is not None and recorded != before:
        raise PipelineError(
            f"{site.ledger.path(index)} was pruned from another round {index - 1} (its weights were {recorded[:12]}, "
            f"are {before[:12]}); {remedy(site.ledger.path(index))}"
        )


def dense_round(job: Job, site: Site) -> Round:
    """Round 0, trained by this run or another. What this run excludes from pruning is told apart afterwards."""
    trained = False
    if site.dense.read(0) is None:
        with site.dense.locked(wait=lambda holder: site.watcher.note(f"waiting for round 0, which {holder} trains")):
            if trained := site.dense.read(0) is None:
                if job.trained is None:
                    plan = RoundPlan(job.dense_span, job.whole(), job.seed, 0)
                    _train_round(job, site, plan, lambda: State(job.initial(0), {}))
                else:
                    _take_trained(job, site, job.trained)
    site.dense.clear(0)
    dense = site.dense.read(0)
    assert dense is not None
    dense = dataclasses.replace(dense, layers=job.layers(job.alive()))
    site.watcher.round_done(dense, site.dense.path(0), trained=trained)
    return dense


def _tell_of_a_low_rate(job: Job, site: Site) -> None:
    """Holding the last rate of a schedule that ends near zero is no training at all."""
    if job.retraining.rate == "hold" and job.retraining.hold == "last":
        share = recorded_tape(job, site).end_share()
        if share < NO_TRAINING:
            site.watcher.note(
                f"warning: fine-tuning holds the schedule's last rate, which is {share:.1g} of its highest: next to no "
                "training; retraining.hold=0.1 holds a tenth of the highest"
            )


def recorded_tape(job: Job, site: Site) -> Tape:
    """The tape of round 0; of one that recorded none (it was given trained, or is of before), that of its schedule."""
    if (tape := site.dense.tape()) is not None:
        return tape
    if job.schedule is None:
        raise PipelineError(f"{site.dense.path(0)} has no tape of the rates; {remedy(site.dense.path(0))}")
    return job.schedule()


def start_state(job: Job, site: Site, index: int) -> State:
    """Weights and optimizer state that a round starts from, before its masks are applied: a row of REFERENCE's table.

    final: the end of the last round. rewound: round 0 at the rewind point. fresh: new random weights.
    """
    match job.retraining.weights:
        case "final":
            state = site.ledger_of(index - 1).state(index - 1)
        case "rewound":
            state = _rewind_point(job, site, job.span.first)
        case "fresh":
            state = State(job.initial(index), {})
    return state if job.retraining.optimizer_state == "keep" else State(state.network, {})


def _next_masks(job: Job, site: Site, index: int, masks: Masks) -> Masks:
    """The masks of a round, from the weights at the end of the one before."""
    weights = site.ledger_of(index - 1).state(index - 1).network
    try:
        pruned = site.ranks.from_leader(lambda: job.cut(weights, masks, index))
    except ValueError as error:
        setting = " (pruning.empty_layer)" if least_share(job.pruning) else ""
        raise PipelineError(f"round {index}: {error}{setting}") from error
    if job.pruning.schedule == "at_once":
        _tell_of_emptied(job, site, index, masks, pruned)
    return pruned


def _tell_of_emptied(job: Job, site: Site, index: int, before: Masks, after: Masks) -> None:
    """Tells of layers that a round leaves nothing of.

    Raises:
        PipelineError: if there are such, and ``pruning.empty_layer`` is "error".
    """
    if names := emptied(before, after):
        sentence = f"round {index} removes the last weight of {', '.join(names)}"
        remedy = "pruning.empty_layer=0.01 would keep a hundredth of every layer, pruning.exclude all of the named"
        if job.pruning.empty_layer == "error":
            raise PipelineError(f"{sentence}, and pruning.empty_layer=error: {remedy}")
        site.watcher.note(f"warning: {sentence}; {remedy}")


def _take_trained(job: Job, site: Site, weights: Mapping[str, Tensor]) -> None:
    """Round 0 of a network that comes trained: validated and tested, as after an epoch 0."""
    state = State(weights, {})
    metrics = _evaluated(job, "validation", state)
    validated = Epoch(number=0, rate=0.0, metrics=metrics, seconds=0.0, finished_ms=time.time_ns() // 1_000_000)
    _record(job, site, 0, job.whole(), UnderWay(state), (validated,), copies=0)


def _rewind_point(job: Job, site: Site, epoch: int) -> State:
    """Round 0 after ``epoch`` epochs: kept, or trained again from the nearest point before it, bit for bit."""
    dense = site.dense
    if (state := dense.rewind_point(epoch)) is not None:
        return state
    if epoch == 0:
        return State(job.initial(0), {})
    with dense.locked(wait=lambda holder: site.watcher.note(f"waiting for round 0, which {holder} uses")):
        if (state := dense.rewind_point(epoch)) is not None:
            return state
        known = [] if job.trainable.own else dense.rewind_points()  # what callbacks remember is not kept there
        nearest = max([0, *(each for each in known if each < epoch)])
        start = UnderWay(dense.rewind_point(nearest) or State(job.initial(0), {}))
        if (again := dense.partial(0, AGAIN)) is not None and nearest < again[1][-1].number <= epoch:
            start, nearest = again[0], again[1][-1].number
        site.watcher.note(f"training round 0 again from epoch {nearest} to {epoch}, the rewind point that was not kept")
        if nearest < epoch:
            span = dataclasses.replace(job.dense_span, last=epoch)
            plan = RoundPlan(span, job.whole(), job.seed, 0, recorded_tape(job, site))
            start = _train(
                job, site, plan, start, nearest, lambda done, reached: dense.write_partial(0, reached, (done,), AGAIN)
            )
        dense.keep_rewind_point(epoch, start.state)
        dense.clear(0, AGAIN)
        return start.state


def _train_round(job: Job, site: Site, plan: RoundPlan, start: Callable[[], State]) -> None:
    """Trains a round, each of its copies from its start or from its last finished epoch, and completes it in the
    ledger."""
    index, span, ledger = plan.index, plan.span, site.ledger_of(plan.index)
    copies = range(job.retraining.copies if index else 1)
    begun = [
        ledger.partial(index, partial_name(copy)) or (UnderWay(masked(start(), plan.masks)), ()) for copy in copies
    ]
    site.watcher.round_started(index, len(copies) * span.epochs, _one_after_another(begun))
    for copy in copies:

        def on_epoch(epoch: Epoch, reached: UnderWay, copy: int = copy) -> None:
            begun[copy] = reached, (*begun[copy][1], epoch)
            if index == 0 and job.retraining.weights == "rewound" and epoch.number == job.span.first:
                ledger.keep_rewind_point(job.span.first, reached.state)
            ledger.write_partial(index, *begun[copy], partial_name(copy))
            site.watcher.epoch_done(index, _one_after_another(begun))

        under_way, history = begun[copy]
        if len(history) < span.epochs:
            seed = derived_seed(plan.seed, "copy", copy) if copy else plan.seed
            _train(job, site, dataclasses.replace(plan, seed=seed), under_way, span.first + len(history), on_epoch)
    reached, history = begun[0] if len(copies) == 1 else _averaged(job, site, plan, begun)
    if plan.gradual is not None:  # which weights went was decided within the training
        _tell_of_emptied(job, site, index, plan.masks, reached.masks)
    _record(job, site, index, reached.masks or plan.masks, reached, history, copies=len(copies))


Begun = tuple[UnderWay, tuple[Epoch, ...]]
"""What a training goes on from, and the epochs that are done."""


def _one_after_another(begun: Sequence[Begun]) -> tuple[Epoch, ...]:
    """The epochs of all copies, counted through."""
    epochs = [epoch for _, history in begun for epoch in history]
    return tuple(dataclasses.replace(epoch, number=number) for number, epoch in enumerate(epochs, 1))


def _averaged(job: Job, site: Site, plan: RoundPlan, copies: Sequence[Begun]) -> Begun:
    """The mean of a round's copies with running statistics of its own, and behind their epochs its validation."""
    started, epochs = time.perf_counter(), _one_after_another(copies)
    own = renewed(job.trainable, plan, mean_of([reached.state for reached, _ in copies]))
    state = site.ranks.from_leader(lambda: own)  # each process has seen its part of the batches
    metrics = _evaluated(job, "validation", state)
    seconds, now = time.perf_counter() - started, time.time_ns() // 1_000_000
    return UnderWay(state), (*epochs, Epoch(len(epochs) + 1, 0.0, metrics, seconds, now))


def _record(
    job: Job, site: Site, index: int, masks: Masks, reached: UnderWay, history: tuple[Epoch, ...], copies: int
) -> None:
    """Tests a round's result and completes the round in the ledger; so many ``copies`` were trained.

    Raises:
        PipelineError: if the score was not logged in the last epoch.
    """
    if job.score.validation not in history[-1].metrics:
        raise PipelineError(
            f"objective.score: {job.score.validation} was not logged in the last epoch of round {index}; takes one "
            "that every epoch logs"
        )
    if math.isnan(history[-1].metrics[job.score.validation]):
        site.watcher.note(f"warning: {job.score.validation} of round {index} is nan")
    span = job.span if index else job.dense_span
    test = _evaluated(job, "test", reached.state)
    result = Round(
        index=index,
        layers=job.layers(masks),
        history=history,
        epochs=copies * span.epochs,
        examples=None if (shown := job.examples(span)) is None else copies * shown,
        test=test,
        seconds=sum(epoch.seconds for epoch in history),
        finished_ms=history[-1].finished_ms,
    )
    parent = site.ledger_of(index - 1).digest(index - 1) if index else None
    facts = {"score": job.score.text(), "parent": parent, "environment": site.environment}
    site.ledger_of(index).write(result, reached, masks, facts)
    site.ledger_of(index).clear(index)
    for sentence in job.dataset.notes():
        if sentence not in job.notes:
            site.watcher.note(sentence)


def _train(
    job: Job,
    site: Site,
    plan: RoundPlan,
    start: UnderWay,
    first_epoch: int,
    on_epoch: Callable[[Epoch, UnderWay], None],
) -> UnderWay:
    site.ranks.agree(digest(plan.masks), f"the masks of round {plan.index}")
    return train_round(
        job.trainable,
        plan,
        start,
        first_epoch=first_epoch,
        on_epoch=on_epoch,
        on_batch=lambda batches: site.watcher.batch_done(batches, plan.span.steps_per_epoch),
    )


def _evaluated(job: Job, split: Split, state: State) -> dict[str, float]:
    return evaluate(job.trainable, split, state)
