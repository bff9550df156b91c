"""One network in the forms that are compared: exported, quantised, packed; and what is wrong with them."""

import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import ModelProto
from torch import Tensor, nn

from pipeline.data.dataset import AnySplit, Dataset
from pipeline.deploy import kernels
from pipeline.deploy.export import exported, lean
from pipeline.deploy.folding import folded
from pipeline.deploy.node import one_node, opened
from pipeline.deploy.pack import PackedTensor, packed, unpacked
from pipeline.deploy.quantize import quantised, with_float_activations
from pipeline.deploy.runtime import optimised_operators, scores, session
from pipeline.deploy.shrink import macs, shrunk
from pipeline.ground.errors import PipelineError, one_line

TOLERANCE = 1e-4
"""Largest difference of the float model's scores from the masked network's."""
BATCH = 50
"""Inputs at a time, so that activations stay small."""


@dataclass(frozen=True)
class Models:
    """One network in the forms that are compared. ``plain`` is as PyTorch exports it; packed ones have ``facts``.

    ``uncovered`` says why the sparse engine cannot compute a packed model; None where it can.
    ``macs`` are the multiply-adds of one input without dead channels.
    """

    plain: ModelProto
    dense: ModelProto
    float32: ModelProto
    int8: ModelProto
    float32_facts: Mapping[str, PackedTensor]
    int8_facts: Mapping[str, PackedTensor]
    uncovered: Mapping[str, str | None]
    macs: int

    @property
    def size_bytes(self) -> dict[str, int]:
        """Bytes of the files: the plain export, and the two packed models."""
        return {"dense": self.plain.ByteSize(), "float32": self.float32.ByteSize(), "int8": self.int8.ByteSize()}


def models(
    network: nn.Module,
    dataset: Dataset,
    calibration_images: int,
    multiple: int,
    metadata: Mapping[str, str] | None = None,
) -> Models:
    """Exports, quantises and packs a network that has its pruned weights at zero; dead channels go before.

    ``multiple`` as of ``shrunk``.
    """
    calibration = [piece for batch, _ in first(dataset.raw("train"), calibration_images) for piece in _pieces(batch)]
    inputs = torch.from_numpy(calibration[0])
    plain, smallest, smaller = _exports(network, dataset, inputs, multiple)
    source = folded(smallest)
    float32, float32_facts = packed(lean(source, metadata))
    int8, int8_facts = packed(lean(quantised(source, calibration), metadata))
    (float32, float32_fault), (int8, int8_fault) = one_node(float32), one_node(int8)
    uncovered = {"float32": float32_fault, "int8": int8_fault}
    computed = macs(smaller, dataset.preprocessing.apply(inputs[:1]))
    return Models(plain, lean(plain, metadata), float32, int8, float32_facts, int8_facts, uncovered, computed)


def _exports(
    network: nn.Module, dataset: Dataset, inputs: Tensor, multiple: int
) -> tuple[ModelProto, ModelProto, nn.Module]:
    """The network as PyTorch exports it, whole and without dead channels, and the latter itself."""
    apply = dataset.preprocessing.apply
    plain = exported(network, apply, inputs)
    smaller = shrunk(network, apply(inputs), multiple)
    return plain, plain if smaller is network else exported(smaller, apply, inputs), smaller


def check(found: Models, network: nn.Module, dataset: Dataset, inputs: NDArray[Any]) -> list[str]:
    """What is wrong with the models, a sentence each; ``inputs`` (N, ...) are compared on."""
    faults = []
    for name, model, facts in (("float32", found.float32, found.float32_facts), ("int8", found.int8, found.int8_facts)):
        try:
            onnx.checker.check_model(model, full_check=True)
        except Exception as error:
            faults.append(f"{name}: the ONNX checker refuses it: {error}")
            continue
        dense = unpacked(opened(model))
        answer, expected = (scores(session(each), [inputs])[0] for each in (model, dense))
        if not np.array_equal(answer, expected):
            faults.append(f"{name}: packed and unpacked models do not give the same scores")
        if facts and optimised_operators(model) != optimised_operators(dense):
            more = optimised_operators(model) - optimised_operators(dense)
            faults.append(f"{name}: weights are unpacked at every inference ({', '.join(sorted(more))})")
    with torch.no_grad():
        expected = network.eval()(dataset.preprocessing.apply(torch.from_numpy(inputs))).numpy()
    difference = float(np.abs(scores(session(found.float32), [inputs])[0] - expected).max())
    if not difference <= TOLERANCE * max(1.0, float(np.abs(expected).max())):
        faults.append(f"float32: its scores differ by {difference:.3g} from the network's, takes {TOLERANCE:g}")
    return faults


def unrounded(model: ModelProto, inputs: NDArray[Any]) -> NDArray[Any]:
    """What the sparse engine has to answer: scores of a packed model with activations that are not rounded."""
    return scores(session(with_float_activations(unpacked(opened(model)))), [inputs])[0]


def engine_fault(model: ModelProto, inputs: NDArray[Any]) -> str | None:
    """Why this machine's library of the sparse engine does not compute a model of one node; None where it does.

    And where none is for this processor, or can be built.
    """
    target = kernels.target_here()
    try:
        library = None if target is None else kernels.library(target)
    except PipelineError:
        library = None
    if target is None or library is None:
        return None
    expected = unrounded(model, inputs)
    try:
        answer = scores(session(model, library=library), [inputs])[0]
    except Exception as error:  # onnxruntime has no class of its own for what a library refuses
        return one_line(error)
    difference = float(np.abs(answer - expected).max())
    if not difference <= kernels.TOLERANCE[target.precision] * float(np.abs(expected).max()):
        return f"it computes something else: its scores differ by {difference:.3g}"
    return None


def accuracies(found: Models, network: nn.Module, dataset: Dataset, split: AnySplit) -> dict[str, float]:
    """Share of a split's inputs that each form of the network gets right."""
    right = {"masked": 0, "float32": 0, "int8": 0}
    sessions = {"float32": session(found.float32), "int8": session(found.int8)}
    count = 0
    for inputs, labels in dataset.raw(split):
        with torch.no_grad():
            masked = [network(dataset.preprocessing.apply(piece)) for piece in inputs.split(BATCH)]
        answers = {"masked": torch.cat(masked).numpy()}
        answers |= {name: np.concatenate(scores(each, _pieces(inputs.numpy()))) for name, each in sessions.items()}
        for name, each in answers.items():
            right[name] += int((each.argmax(1) == labels.numpy()).sum())
        count += len(labels)
    return {name: each / count for name, each in right.items()}


def positions(facts: Mapping[str, PackedTensor]) -> dict[str, float]:
    """Bytes of all positions, and the fewest that these densities allow."""
    return {
        "bytes": sum(each.position_bytes for each in facts.values()),
        "entropy_bytes": round(sum(each.entropy_bytes for each in facts.values()), 1),
    }


def first(batches: Iterable[tuple[Tensor, Tensor]], count: int | None) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """The first inputs of a split (None: all) and their labels, batch by batch."""
    left = sys.maxsize if count is None else count
    for inputs, labels in batches:
        yield inputs[:left].contiguous().numpy(), labels[:left].numpy()
        left -= len(inputs)
        if left <= 0:
            return


def _pieces(batch: NDArray[Any]) -> list[NDArray[Any]]:
    return np.split(batch, range(BATCH, len(batch), BATCH))
