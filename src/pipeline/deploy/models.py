"""One network in the forms that are compared: exported, quantised, packed; and what is wrong with them."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import torch
from onnx import ModelProto
from torch import Tensor, from_numpy, nn

from pipeline.deploy import kernels
from pipeline.deploy.batch_first import batch_first
from pipeline.deploy.board.run import difference, sizes_of
from pipeline.deploy.export import TOLERANCE, Axes, exported, lean
from pipeline.deploy.folding import folded
from pipeline.deploy.node import computed_by_the_engine, left_to_onnxruntime, opened, with_nodes
from pipeline.deploy.pack import PackedTensor, packed, unpacked
from pipeline.deploy.quantize import Calibrated, with_float_activations
from pipeline.deploy.runtime import BATCH, Arrays, answers, arrays, optimised_operators, session
from pipeline.deploy.runtime import TOLERANCE as ROUNDED
from pipeline.deploy.shrink import macs, shrunk
from pipeline.deploy.subject import INPUT, OUTPUT, Form, Subject
from pipeline.ground.errors import PipelineError, first_cause, one_line
from pipeline.ground.structures import filled, first_row, named_tensors, pieces


@dataclass(frozen=True)
class Models:
    """One network in the forms that are compared. ``plain`` is as PyTorch exports it; packed ones have ``facts``.

    ``float_layers`` names those that the int8 model has in float. ``uncovered`` says why the sparse engine cannot
    compute a packed model; None where it can. ``macs`` are the multiply-adds of one input without dead channels.
    """

    plain: ModelProto
    dense: ModelProto
    float32: ModelProto
    int8: ModelProto
    float32_facts: Mapping[str, PackedTensor]
    int8_facts: Mapping[str, PackedTensor]
    float_layers: tuple[str, ...]
    uncovered: Mapping[str, str | None]
    macs: int
    calibrated: Calibrated
    metadata: Mapping[str, str] | None

    @property
    def size_bytes(self) -> dict[str, int]:
        """Bytes of the files: the plain export, and the two packed models."""
        return {"dense": self.plain.ByteSize(), "float32": self.float32.ByteSize(), "int8": self.int8.ByteSize()}


def models(
    subject: Subject,
    calibration_images: int,
    multiple: int,
    metadata: Mapping[str, str] | None = None,
    dynamic_axes: Axes | None = None,
) -> Models:
    """Exports, quantises and packs a network that has its pruned weights at zero; dead channels go before.

    ``multiple`` as of ``shrunk``, ``dynamic_axes`` as of ``exported``.

    Raises:
        PipelineError: if a library cannot do it with this network.
        SettingsError: as ``exported``.
    """
    calibration = [piece for each in subject.examples("train", calibration_images) for piece in pieces(each, BATCH)]
    plain, smallest, smaller = _exports(subject, calibration[0], multiple, dynamic_axes)
    source = folded(batch_first(smallest))
    float32, facts = packed(lean(source, metadata))
    float32, fault = with_nodes(float32)
    with _to_int8():
        calibrated = Calibrated(source, map(arrays, calibration))
    made = Models(
        plain=plain,
        dense=lean(plain, metadata),
        float32=float32,
        int8=float32,
        float32_facts=facts,
        int8_facts=facts,
        float_layers=(),
        uncovered={"float32": fault},
        macs=macs(smaller, subject.preprocess(first_row(calibration[0]))),
        calibrated=calibrated,
        metadata=metadata,
    )
    return with_float_layers(made, ())


def with_float_layers(found: Models, layers: Collection[str]) -> Models:
    """The same with another int8 model, in which these layers compute in float.

    Raises:
        PipelineError: as ``models``.
    """
    with _to_int8():
        int8 = lean(found.calibrated.quantised(layers), found.metadata)
    model, facts = packed(int8)
    model, fault = with_nodes(model)
    uncovered = {**found.uncovered, "int8": fault}
    return replace(found, int8=model, int8_facts=facts, uncovered=uncovered, float_layers=tuple(layers))


@contextmanager
def _to_int8() -> Iterator[None]:
    """What ONNX Runtime's tools for int8 raise, which have no class of their own for it, as a sentence."""
    try:
        yield
    except PipelineError:
        raise
    except Exception as error:
        raise PipelineError(f"the network cannot be brought to int8: {one_line(first_cause(error))}") from error


def _exports(
    subject: Subject, inputs: Any, multiple: int, dynamic_axes: Axes | None
) -> tuple[ModelProto, ModelProto, nn.Module]:
    """The network as PyTorch exports it, whole and without dead channels, and the latter itself."""
    preprocess = subject.dataset.preprocessing.apply  # the subject's own would tell a trace of all its data
    plain = exported(subject.network, preprocess, inputs, dynamic_axes)
    smaller = shrunk(subject.network, subject.preprocess(inputs), multiple, subject.block)
    if smaller is subject.network:
        return plain, plain, smaller
    return plain, exported(smaller, preprocess, inputs, dynamic_axes), smaller


def check(found: Models, subject: Subject, inputs: Any, dynamic_axes: Axes | None = None) -> list[str]:
    """What is wrong with the models, a sentence each; ``inputs`` (N, ...) are compared on.

    And one of them at another size, where ``dynamic_axes`` may have any.
    """
    faults = []
    given = arrays(inputs)
    for name, model, facts in (("float32", found.float32, found.float32_facts), ("int8", found.int8, found.int8_facts)):
        try:
            onnx.checker.check_model(model, full_check=True)
        except Exception as error:
            faults.append(f"{name}: the ONNX checker refuses it: {error}")
            continue
        dense = unpacked(opened(model))
        answer, expected = (answers(session(each), given) for each in (model, dense))
        if any(not np.array_equal(each, expected[key], equal_nan=True) for key, each in answer.items()):
            faults.append(f"{name}: packed and unpacked models do not give the same outputs")
        if facts and optimised_operators(model) != optimised_operators(dense):
            more = optimised_operators(model) - optimised_operators(dense)
            faults.append(f"{name}: weights are unpacked at every inference ({', '.join(sorted(more))})")
    faults += _differing(found, subject, inputs)
    if dynamic_axes and not faults:
        faults = _at_another_size(found, subject, first_row(inputs), dynamic_axes)
    return faults


def _differing(found: Models, subject: Subject, inputs: Any) -> list[str]:
    """Where the float model's outputs are not the network's, a sentence each."""
    expected = {name: each.numpy() for name, each in named_tensors(subject.answered(inputs), OUTPUT).items()}
    return [
        f"float32: its {name} differ by {differing:.3g} of the largest from the network's, takes {TOLERANCE:g}"
        for name, each in answers(session(found.float32), arrays(inputs)).items()
        if not (differing := difference({name: each}, {name: expected[name]})) <= TOLERANCE
    ]


def _at_another_size(found: Models, subject: Subject, example: Any, dynamic_axes: Axes) -> list[str]:
    """What is wrong where the axes that may have any size are twice as long; half, where the network refuses that."""

    def resized(tensor: Tensor, axes: Collection[int], *, longer: bool) -> Tensor:
        for axis in axes:
            half = tensor.narrow(axis, 0, (tensor.shape[axis] + 1) // 2)
            tensor = torch.cat([tensor, tensor], axis) if longer else half
        return tensor

    refused = ""
    for longer in (True, False):
        given = named_tensors(example, INPUT)
        tensors = [resized(each, dynamic_axes.get(name, ()), longer=longer) for name, each in given.items()]
        other = filled(example, tensors)
        try:
            subject.answered(other)
        except Exception as error:  # a network of a user's may raise anything
            refused = refused or one_line(error)
            continue
        try:
            faults = _differing(found, subject, other)
            answers(session(found.int8), arrays(other))
        except Exception as error:  # onnxruntime has no class of its own for what a graph cannot compute
            faults = [one_line(error)]
        return [f"deploy.dynamic_axes: with {sizes_of(arrays(other))}: {fault}" for fault in faults]
    return [
        f"deploy.dynamic_axes: got {', '.join(dynamic_axes)}, but the network takes neither twice nor half that size: "
        f"{refused}"
    ]


def unrounded(model: ModelProto, inputs: Arrays) -> Arrays:
    """What the sparse engine has to answer: outputs of a packed model with activations that are not rounded."""
    return answers(session(unrounded_model(model)), inputs)


def between(model: ModelProto) -> float:
    """How far a model's outputs by the sparse engine may be off, relative to the largest, for what stands between its
    nodes: where that rounds to int8, a value that differs in its last bit may come to differ by a step.
    """
    return ROUNDED["int8"] if "QuantizeLinear" in left_to_onnxruntime(model) else 0.0


def unrounded_model(model: ModelProto) -> ModelProto:
    """The dense graph that computes what a packed model does by the sparse engine."""
    return with_float_activations(unpacked(opened(model)), computed_by_the_engine(model))


def engine_fault(model: ModelProto, inputs: Arrays) -> str | None:
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
        answer = answers(session(model, library=library), inputs)
    except Exception as error:  # onnxruntime has no class of its own for what a library refuses
        return one_line(error)
    if not (differing := difference(answer, expected)) <= max(kernels.TOLERANCE[target.precision], between(model)):
        return f"it computes something else: its outputs differ by {differing:.3g} of the largest"
    return None


def form(model: ModelProto, subject: Subject) -> Form:
    """A model in ONNX Runtime as a form of the network."""
    running = session(model)
    return structured(lambda inputs: answers(running, inputs), subject)


def structured(answer: Callable[[Arrays], Arrays], subject: Subject) -> Form:
    """A form of the network, in the structure of whose answers, from what gives them by name to inputs by name."""
    template = subject.template
    names = list(named_tensors(template, OUTPUT))

    def answered(inputs: Any) -> Any:
        found = answer(arrays(inputs))
        return filled(template, (_tensor(found[name]) for name in names))

    return answered


def _tensor(array: Any) -> Tensor:
    return from_numpy(np.ascontiguousarray(array))


def positions(facts: Mapping[str, PackedTensor]) -> dict[str, float]:
    """Bytes of all positions, and the fewest that these densities allow."""
    return {
        "bytes": sum(each.position_bytes for each in facts.values()),
        "entropy_bytes": round(sum(each.entropy_bytes for each in facts.values()), 1),
    }
