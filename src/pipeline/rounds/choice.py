"""When a run ends, which of its rounds are complete, and which of them counts."""

import copy
import itertools
import math
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from pipeline.deploy.subject import Subject
from pipeline.ground.errors import PipelineError, SettingsError
from pipeline.pruning.masks import Masks, kept
from pipeline.rounds.job import Job, Site
from pipeline.rounds.ledger import Round
from pipeline.rounds.planning import planned_rounds
from pipeline.training.state import load


def finished(rounds: Sequence[Round], job: Job) -> bool:
    """Whether a limit is reached: the number of rounds, or the floor on the validation score.

    The target density needs no word here: at the target a step removes nothing, and that ends the loop.
    """
    pruning = job.pruning
    if pruning.rounds is not None and len(rounds) > pruning.rounds:
        return True
    return not _within(rounds[-1], rounds[0], job)


def chosen(rounds: Sequence[Round], job: Job) -> Round:
    """The smallest round before the first under the floor of the score, or the last where there is no floor.

    Raises:
        PipelineError: if there is a floor, and the dense score is not a number.
    """
    return list(itertools.takewhile(lambda each: _within(each, rounds[0], job), rounds))[-1]


def wanted(rounds: Sequence[Round], index: int | None, job: Job) -> Round:
    """The round of ``deploy.round``; None for the ``chosen`` one of those that ``pruning.rounds`` asks for.

    Raises:
        SettingsError: if it is not complete.
    """
    if index is None:
        limit = job.pruning.rounds
        return chosen(rounds if limit is None else rounds[: limit + 1], job)
    if type(index) is not int or not 0 <= index < len(rounds):
        raise SettingsError(
            [f"deploy.round: got {index!r}, takes 0 to {len(rounds) - 1}, the rounds that are complete"]
        )
    return rounds[index]


def _within(round_: Round, dense: Round, job: Job) -> bool:
    floor = job.pruning.max_score_drop
    if floor is None:
        return True
    value, reference = (each.figures[job.score.validation] for each in (round_, dense))
    if math.isnan(reference):
        raise PipelineError(
            f"pruning.max_score_drop: got {floor}, but {job.score.validation} of the dense network is nan, below which "
            "there is nothing; takes null, or a score that is a number"
        )
    return job.score.drop(value, reference) <= floor + 1e-9


def ended(job: Job, site: Site, rounds: Sequence[Round]) -> bool:
    """Whether no further round is asked for, or there is nothing left that one could remove."""
    if finished(rounds, job):
        return True
    if job.groups and job.pruning.target_density is not None:
        last = rounds[-1]
        left = last.macs_kept / last.macs_dense if job.pruning.measure == "macs" else last.density
        return left <= job.pruning.target_density
    if job.pruning.structure == "block" and rounds[-1].density <= (job.pruning.target_density or 0):
        return True
    planned = planned_rounds(job)
    return len(rounds) > planned if planned is not None else _nothing_goes(job, site, len(rounds))


def removes_nothing(job: Job, before: Masks, after: Masks) -> bool:
    """Whether a step has nothing left to remove, which ends the loop; a control, which never removes any, goes on."""
    return kept(after) == kept(before) and job.pruning.fraction != 0


def _nothing_goes(job: Job, site: Site, index: int) -> bool:
    """Whether a round would remove nothing of what the one before it has left."""
    before = site.ledger_of(index - 1)
    found = before.masks(index - 1)
    masks = {name: found[name] for name in job.alive()}
    try:
        after = job.cut(before.state(index - 1).network, masks, index)
    except ValueError:  # less is left than has to go
        return False
    return removes_nothing(job, masks, after)


def recorded(site: Site) -> list[Round]:
    """The complete rounds at a site, from round 0 on; nothing is trained.

    Raises:
        PipelineError: if there is none, or not even its round 0.
    """
    dense = site.dense.read(0)
    rounds = [] if dense is None else [dense, *recorded_from(site, 1)]
    if len(rounds) < 2:
        raise PipelineError(
            f"no pruned round of these settings is complete in {site.ledger.folder}: "
            "run them first, by the same command with task=run"
        )
    return rounds


def recorded_from(site: Site, first: int) -> list[Round]:
    """The complete rounds from round ``first`` (1 or later) on, each pruned from the one before it."""
    rounds: list[Round] = []
    while (found := site.ledger.read(index := first + len(rounds))) is not None:
        parent, before = site.ledger.parent(index), site.ledger_of(index - 1)
        if before.read(index - 1) is None or parent not in (None, before.digest(index - 1)):
            break
        rounds.append(found)
    return rounds


def network_after(job: Job, site: Site, index: int) -> nn.Module:
    """A network of its own with the weights that a complete round ended with, in evaluation, on the CPU."""
    return _network_with(job, site.ledger_of(index).state(index).network)


def subject_of(job: Job, site: Site, index: int) -> Subject:
    """What is deployed of a complete round."""
    return _subject(job, network_after(job, site, index))


def subject_with(job: Job, weights: Mapping[str, Tensor]) -> Subject:
    """What would be deployed of the network with these weights."""
    return _subject(job, _network_with(job, weights))


def _network_with(job: Job, weights: Mapping[str, Tensor]) -> nn.Module:
    network = copy.deepcopy(job.network).cpu().eval()
    load(network, weights)
    return network


def _subject(job: Job, network: nn.Module) -> Subject:
    block = job.pruning.block if isinstance(job.pruning.block, int) else 1
    return Subject(network, job.dataset, job.trainable, job.score, block)
