"""What is deployed: a trained network, what it gets as a user has it, and how its answers are judged.

A deployed form of it is judged as the network was: by the objective's own evaluation, in which the form takes the place
of the network's ``forward``.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.data import AnyDataset
from pipeline.data.dataset import AnySplit, Split
from pipeline.data.own import OwnBatches
from pipeline.ground.errors import PipelineError
from pipeline.ground.structures import called, each_tensor, first_row, given_to, leaves, named_tensors, rows_in, uneven
from pipeline.objective.score import Score
from pipeline.training.state import capture
from pipeline.training.train import Trainable, evaluate

INPUT, OUTPUT = "input", "scores"
"""What a tensor is called that has no name: where it is the only one, or in a sequence, with its place."""
RECORDED = 1000
"""Examples of a split that are kept of what a user's module gives its forward."""
SAME = 1e-3
"""How far inputs of a forward may be from those that the data give, relative to the largest."""

Form = Callable[[Any], Any]
"""Answers of a deployed form: from inputs as a user has them to what the network returns, in any structure."""


class Elsewhere(Exception):
    """Why a module's score does not follow from what its ``forward`` returns, in a phrase."""


@dataclass(frozen=True)
class Subject:
    """A network with its pruned weights at zero, in evaluation, on the CPU; its data; what it was trained by.

    ``block`` is how many neighbouring filters lose weights together.
    """

    network: nn.Module
    dataset: AnyDataset
    trainable: Trainable
    score: Score
    block: int = 1
    _seen: dict[Split, list[Any]] = field(default_factory=dict, compare=False)

    @property
    def classes(self) -> Sequence[str] | None:
        """Names of the classes that answers are scores of (empty: they have none); None where they are none."""
        answers = list(named_tensors(self.template, OUTPUT).values())
        labelled = not isinstance(self.dataset, OwnBatches) or (not self.trainable.own and self.dataset.has_labels)
        if not labelled or len(answers) != 1 or answers[0].ndim != 2:
            return None
        names = tuple(self.dataset.classes)
        return names if len(names) in (0, answers[0].shape[1]) else None

    @cached_property
    def template(self) -> Any:
        """Answers to one example, in their structure."""
        return self.answered(first_row(next(iter(self.inputs("validation")))))

    def preprocess(self, inputs: Any) -> Any:
        """Inputs as a user has them to inputs of the network."""
        return self.dataset.preprocessing.apply(inputs)

    def answered(self, inputs: Any) -> Any:
        """What the network itself returns, in float32."""
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            return called(self.network, self.preprocess(inputs))

    def inputs(self, split: AnySplit) -> Iterable[Any]:
        """Inputs of a split as a user has them, tensors (N, ...) in any structure, batch by batch.

        Of a user's module with its own data they are what its evaluation gives ``forward``, of validation for training;
        where it does not call that, what batches have.
        """
        if isinstance(self.dataset, OwnBatches) and self.trainable.own:
            asked: Split = "validation" if split == "train" else split
            if asked not in self._seen:
                self._seen[asked] = self._recorded(asked) or self.dataset.inputs(asked)
            return self._seen[asked]
        return (inputs for inputs, _ in self.dataset.raw(split))

    def examples(self, split: AnySplit, count: int) -> Iterator[Any]:
        """The first inputs of a split, batch by batch.

        Raises:
            PipelineError: if a batch does not have one row an example in each of its tensors.
        """
        left = count
        for inputs in self.inputs(split):
            if told := uneven(inputs):
                raise PipelineError(f"the network cannot be deployed: {told}")
            yield each_tensor(inputs, lambda tensor, left=left: tensor[:left].contiguous())  # type: ignore[misc]
            left -= rows_in(inputs)
            if left <= 0:
                return

    def _recorded(self, split: Split) -> list[Any]:
        found: list[Any] = []

        def look(inputs: Any) -> Any:
            found.append(inputs)
            return self.answered(inputs)

        with suppress(Elsewhere):
            self._evaluated(split, look, RECORDED)
        return found

    def judged(self, form: Form, split: Split, rows: int | None = None) -> float:
        """The score that a deployed form has on a split, or (``rows``) on its first examples.

        Raises:
            Elsewhere: if it does not follow from what ``forward`` returns.
        """
        figures = self._evaluated(split, form, rows)
        name = self.score.validation if split == "validation" else self.score.test
        if name not in figures:
            raise Elsewhere(f"its {split} step logs no {name}")
        return figures[name]

    def _evaluated(self, split: Split, form: Form, rows: int | None) -> Mapping[str, float]:
        own = isinstance(self.dataset, OwnBatches)
        raw = iter(()) if own else (inputs for inputs, _ in self.dataset.raw(split))
        calls = 0

        def forward(*arguments: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            given = given_to(self.network.forward, arguments, named)
            inputs = given if own else self._raw(next(raw, None), given)
            return each_tensor(form(each_tensor(inputs, lambda tensor: tensor.detach().cpu())), _like(given))

        figures = evaluate(self.trainable, split, capture(self.network), forward=forward, rows=rows)
        if not calls:
            raise Elsewhere(f"its {split} step does not call forward")
        return figures

    def _raw(self, raw: Any, given: Any) -> Any:
        """The inputs of which ``given``, what a forward got, was made.

        Raises:
            Elsewhere: if it was made of others.
        """
        tensor = next((each for each in leaves(given) if isinstance(each, Tensor)), None)
        if raw is not None and tensor is not None and len(tensor) <= len(raw):
            raw = raw[: len(tensor)]
            made = self.preprocess(raw)
            if made.shape == tensor.shape:
                difference = (made - tensor.detach().cpu()).abs().max()
                if difference <= SAME * made.abs().max():
                    return raw
        raise Elsewhere("its forward gets other inputs than the data give")


def _like(given: Any) -> Callable[[Tensor], Tensor]:
    device = next(each for each in leaves(given) if isinstance(each, Tensor)).device
    return lambda tensor: tensor.to(device)
