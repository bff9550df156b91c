"""ONNX Runtime on this machine: scores, the graph that it really runs, and time."""

import statistics
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto

from pipeline.deploy.board.run import in_turns, joined, loaded, options
from pipeline.deploy.subject import INPUT
from pipeline.ground.structures import named_tensors

Session = Any
Arrays = Mapping[str, NDArray[Any]]
BATCH = 50
"""Inputs at a time, so that activations stay small."""
EXACT = frozenset(
    (
        "QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul", "QGemm", "QLinearAdd", "QLinearMul",
        "QLinearConcat", "QLinearAveragePool", "QLinearGlobalAveragePool",
        "Add", "Sub", "Mul", "Div", "Sqrt", "Abs", "Neg", "Relu", "Clip", "Max", "Min", "Cast",
        "MaxPool", "Concat", "Split", "Slice", "Pad", "Gather", "Expand", "Reshape", "Transpose", "Flatten", "Squeeze",
        "Unsqueeze", "Identity", "Shape", "Constant",
    )
)  # fmt: skip
"""Operators that give the same bits on every processor: sums of integers, single roundings, and what moves values."""
TOLERANCE = {"float32": 1e-4, "int8": 0.02}
"""Largest difference of other machines' outputs, relative to the largest output, where an operator is not exact."""


def session(model: ModelProto, *, threads: int = 1, save: Path | None = None, library: Path | None = None) -> Session:
    """A model, ready to run; ``save`` names a file that the graph that really runs is written to.

    With a ``library`` of the sparse engine that computes what it covers.
    """
    chosen = options(threads, library)
    if save is not None:
        chosen.optimized_model_filepath = str(save)
    return loaded(model.SerializeToString(), chosen)


def answers(running: Session, inputs: Arrays) -> dict[str, NDArray[Any]]:
    """Outputs by name of inputs (N, ...) by name, a few at a time where outputs have a row an example."""
    names = [each.name for each in running.get_outputs()]
    rows = len(next(iter(inputs.values())))
    sizes = {(each.shape or [None])[0] for each in (*running.get_inputs(), *running.get_outputs())}
    size = BATCH if len(sizes) == 1 and isinstance(sizes.pop(), str) else rows
    found = [
        running.run(names, {name: each[first : first + size] for name, each in inputs.items()})
        for first in range(0, rows, size)
    ]
    return {name: joined(parts) for name, *parts in zip(names, *found, strict=True)}


def arrays(structure: Any) -> dict[str, NDArray[Any]]:
    """A network's inputs of any structure by the names that its models have for them."""
    return {name: each.detach().contiguous().numpy() for name, each in named_tensors(structure, INPUT).items()}


def operators(model: ModelProto) -> Counter[str]:
    """How many nodes of which operator."""
    return Counter(node.op_type for node in model.graph.node)


def optimised_operators(model: ModelProto) -> Counter[str]:
    """How many nodes of which operator the graph has that ONNX Runtime makes of a model."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "optimised.onnx"
        session(model, save=file)
        return operators(onnx.load(file))


def tolerance(model: ModelProto, kind: str) -> float:
    """How far another machine's outputs of a float32 or int8 model may be from this one's, relative to the largest.

    Sums of floats are added in other orders elsewhere, and functions end in other bits. Between quantised operators
    that moves a value by a step now and then.
    """
    return 0.0 if optimised_operators(model).keys() <= EXACT else TOLERANCE[kind]


def latencies(sessions: Mapping[str, Session], one: Arrays, seconds: float = 2.0) -> dict[str, Any]:
    """Milliseconds of one inference by session of one thread (median), and ratios to the first, turn by turn."""
    turns = in_turns(sessions, one, seconds, stretch=seconds / 20)
    medians = {name: np.array([statistics.median(turn) for turn in each]) for name, each in turns.items()}
    first = next(iter(medians.values()))
    return {
        "milliseconds": {name: round(float(np.median(each)), 4) for name, each in medians.items()},
        "ratio": {name: round(float(np.median(each / first)), 3) for name, each in medians.items()},
    }
