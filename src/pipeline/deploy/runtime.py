"""ONNX Runtime on this machine: scores, the graph that it really runs, and time."""

import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto

from pipeline.deploy.board.run import options
from pipeline.deploy.export import INPUT, operators

Session = Any
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
    return onnxruntime.InferenceSession(model.SerializeToString(), chosen, providers=["CPUExecutionProvider"])


def scores(running: Session, batches: Iterable[NDArray[Any]]) -> list[NDArray[Any]]:
    """Scores (N, classes) of inputs (N, ...), batch by batch."""
    return [running.run(None, {INPUT: batch})[0] for batch in batches]


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


def latencies(sessions: Mapping[str, Session], one: NDArray[Any], seconds: float = 2.0) -> dict[str, Any]:
    """Milliseconds of one inference by session (median), and ratios to the first: they take turns."""
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for each in sessions.values():
        scores(each, [one] * 3)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for name, each in sessions.items():
            begin = time.perf_counter()
            each.run(None, {INPUT: one})
            times[name].append(time.perf_counter() - begin)
    first, *_ = times.values()
    return {
        "milliseconds": {name: round(statistics.median(each) * 1000, 4) for name, each in times.items()},
        "ratio": {name: round(float(np.median(np.array(each) / np.array(first))), 3) for name, each in times.items()},
    }
