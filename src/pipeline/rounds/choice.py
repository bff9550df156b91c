"""When a run ends, which of its rounds are complete, and which of them counts."""

import copy
from collections.abc import Sequence

from torch import nn

from pipeline.ground.errors import PipelineError, SettingsError
from pipeline.rounds.job import Job, Site
from pipeline.rounds.ledger import Round
from pipeline.rounds.planning import planned_rounds
from pipeline.settings.groups import Pruning


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


def recorded(site: Site) -> list[Round]:
    """The complete rounds at a site, from round 0 on; nothing is trained.

    Raises:
        PipelineError: if there is none, or not even its round 0.
    """
    found = [site.dense.read(0)]
    while found[-1] is not None:
        found.append(site.ledger.read(len(found)))
    rounds = [each for each in found if each is not None]
    if len(rounds) < 2:
        raise PipelineError(
            f"no pruned round of these settings is complete in {site.ledger.folder}: "
            "run them first, by the same command with task=run"
        )
    return rounds


def network_after(job: Job, site: Site, index: int) -> nn.Module:
    """A network of its own with the weights that a complete round ended with, in evaluation, on the CPU."""
    network = copy.deepcopy(job.network).cpu().eval()
    network.load_state_dict(dict(site.ledger_of(index).state(index).network))
    return network
