"""What a run is: a job, which decides every number, and the site where it runs, which decides none."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from pipeline.data import AnyDataset
from pipeline.data.own import OwnBatches
from pipeline.ground.randomness import generator
from pipeline.networks.costs import LayerCost, layer_costs, positions
from pipeline.networks.layers import filters_of, prunable, weight_layers
from pipeline.objective.score import Score
from pipeline.pruning.blocks import Blocks
from pipeline.pruning.channels import ChannelGroup
from pipeline.pruning.cut import cut_blocks, cut_filters, cut_weights
from pipeline.pruning.masks import Masks, ones_like
from pipeline.rounds.ledger import Ledger, Round
from pipeline.settings.groups import Pruning, Retraining, Training
from pipeline.training.ranks import ALONE, Ranks
from pipeline.training.retraining import Span, retraining_span, run_title, training_span
from pipeline.training.state import Epoch
from pipeline.training.tape import Tape
from pipeline.training.train import Trainable


class Watcher:
    """What may look on: a display, a tracker. A watcher decides nothing; this one does nothing."""

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


SILENT = Watcher()


class Watchers(Watcher):
    """Several watchers as one: each hears of everything, in their order."""

    def __init__(self, *each: Watcher) -> None:
        self.each = each

    def round_started(self, index: int, epochs: int, done: tuple[Epoch, ...]) -> None:
        for watcher in self.each:
            watcher.round_started(index, epochs, done)

    def batch_done(self, batches: int, of: int) -> None:
        for watcher in self.each:
            watcher.batch_done(batches, of)

    def epoch_done(self, index: int, history: tuple[Epoch, ...]) -> None:
        for watcher in self.each:
            watcher.epoch_done(index, history)

    def round_done(self, result: Round, folder: Path, *, trained: bool) -> None:
        for watcher in self.each:
            watcher.round_done(result, folder, trained=trained)

    def note(self, sentence: str) -> None:
        for watcher in self.each:
            watcher.note(sentence)


@dataclass(frozen=True)
class Job:
    """All that decides a run's numbers.

    ``trainable`` is the network as it is trained, ``steps_per_epoch`` its batches. ``groups`` are the channels that may
    go where whole filters are pruned. ``initial(0)`` gives round 0's initial weights, ``initial(r)`` fresh ones for
    round r. ``trained`` are weights that take the place of round 0's training. ``schedule`` gives the tape that
    follows from the settings, where rates do. ``counted`` are uses of weights by an example, where ``forward`` alone
    does not show them. ``notes`` are sentences that a person should read before the run.
    """

    network: nn.Module
    dataset: AnyDataset
    trainable: Trainable
    score: Score
    steps_per_epoch: int
    training: Training
    pruning: Pruning
    groups: tuple[ChannelGroup, ...]
    retraining: Retraining
    seed: int
    initial: Callable[[int], Mapping[str, Tensor]]
    trained: Mapping[str, Tensor] | None
    schedule: Callable[[], Tape] | None
    counted: Mapping[str, int] | None = None
    notes: tuple[str, ...] = ()

    @property
    def method(self) -> str:
        """The run's name in a comparison."""
        return run_title(self.pruning, self.retraining, self.training.teacher, self.training.ema)

    @property
    def title(self) -> str:
        """What tells the run apart from those of its experiment."""
        return f"{self.method} s{self.seed}"

    @cached_property
    def positions(self) -> Mapping[str, int]:
        """How many times an input uses each weight of a layer, as ``costs.positions`` counts it."""
        if self.counted is not None:
            return self.counted
        return positions(self.network, self.dataset.example, self.pruning.include)

    @cached_property
    def blocks(self) -> Mapping[str, Blocks]:
        """How the filters of each weight that is pruned are divided, where blocks of them go together."""
        assert isinstance(self.pruning.block, int)
        layers = weight_layers(self.network, self.pruning.include)
        return {
            name: Blocks(*filters_of(layer, self.network.get_parameter(name)), self.pruning.block)
            for name, layer in layers.items()
        }

    @property
    def dense_span(self) -> Span:
        return training_span(self.training, self.steps_per_epoch)

    @property
    def span(self) -> Span:
        return retraining_span(self.retraining, self.dense_span)

    @property
    def epochs_a_round(self) -> int:
        """Epochs that a later round trains, all its copies together."""
        return self.retraining.copies * self.span.epochs

    def examples(self, span: Span) -> int | None:
        """How many examples a training shows, each time counted; None for data of one's own, which do not say."""
        if isinstance(self.dataset, OwnBatches):
            return None
        known = self.dataset.examples
        return sum(min(known, span.steps(e) * self.training.batch_size) for e in range(span.first, span.last))

    def alive(self) -> dict[str, Tensor]:
        """Masks before any pruning, in parameter order: the order that decides between equal scores.

        Filters go with what reads them and with their biases and normalisation, so those have masks too.
        """
        if not self.groups:
            return self._ones(prunable(self.network, self.pruning.exclude, self.pruning.include))
        vectors = {each.parameter for group in self.groups for each in group.vectors}
        return self._ones([*prunable(self.network), *sorted(vectors)])

    def whole(self) -> dict[str, Tensor]:
        """Masks of the dense network, whatever this run prunes of it."""
        return self._ones(prunable(self.network, include=self.pruning.include))

    def _ones(self, names: Sequence[str]) -> dict[str, Tensor]:
        return ones_like({name: self.network.get_parameter(name) for name in names})

    def cut(
        self, weights: Mapping[str, Tensor], masks: Masks, index: int, stay: Mapping[str, int] | None = None
    ) -> dict[str, Tensor]:
        """The masks of round ``index``, from weights and masks at the end of the round before.

        ``stay`` is how many weights of each layer stay, where the settings do not say it.

        Raises:
            ValueError: with a sentence, if there is not enough left to remove.
        """

        def draws(name: str) -> Generator:
            return generator(self.seed, index, "random criterion", name)

        if self.groups:
            return cut_filters(self.pruning, weights, masks, index, draws, self.groups, self.positions)
        if self.pruning.structure == "block":
            return cut_blocks(self.pruning, weights, masks, index, draws, self.positions, self.blocks, stay)
        return cut_weights(self.pruning, weights, masks, index, draws, self.positions, stay)

    def cut_to(
        self, index: int, before: Masks, after: Masks, weights: Mapping[str, Tensor], masks: Masks, number: int
    ) -> dict[str, Tensor]:
        """Masks of which ``number`` weights are left, from those of now, by the criterion and scope of the settings.

        Within round ``index``, which goes from as many weights as are in ``before`` to as many as in ``after``.
        """
        if self.pruning.scope == "layer":  # each as far on its way as all together
            start, end = ({name: int(mask.sum()) for name, mask in each.items()} for each in (before, after))
            left = (number - sum(end.values())) / max(1, sum(start.values()) - sum(end.values()))
            stay = {name: end[name] + round(left * (start[name] - end[name])) for name in masks}
            return self.cut(weights, masks, index, stay)
        density = number / sum(mask.numel() for mask in masks.values())
        pruning = dataclasses.replace(self.pruning, fraction=1.0, target_density=density)
        return dataclasses.replace(self, pruning=pruning).cut(weights, masks, index)

    def asked(self, index: int, masks: Masks) -> Masks:
        """Masks with as many weights as round ``index`` is to leave (by layer, where each is on its own): whole blocks
        may leave fewer."""
        single = dataclasses.replace(self.pruning, structure="weight")
        return dataclasses.replace(self, pruning=single).cut_of_zeros(masks, index)

    def cut_of_zeros(self, masks: Masks, index: int) -> Masks:
        """A cut of weights that are all zero, for those who want its counts alone."""
        return self.cut({name: torch.zeros(mask.shape) for name, mask in masks.items()}, masks, index)

    def layers(self, masks: Masks) -> tuple[LayerCost, ...]:
        """What each layer costs under masks."""
        sizes = {
            name: self.network.get_parameter(name).numel() for name in weight_layers(self.network, self.pruning.include)
        }
        return layer_costs(sizes, self.positions, masks)


@dataclass(frozen=True)
class Site:
    """Where a job runs: the ledgers that keep it, the machine, who looks on, and the processes that share it.

    ``dense`` keeps round 0, which runs share, ``ledger`` all later ones.
    """

    dense: Ledger
    ledger: Ledger
    environment: Mapping[str, Any]
    watcher: Watcher = SILENT
    ranks: Ranks = ALONE

    def ledger_of(self, index: int) -> Ledger:
        """Where a round lives."""
        return self.dense if index == 0 else self.ledger
