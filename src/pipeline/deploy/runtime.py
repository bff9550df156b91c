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

from pipeline.deploy.export import INPUT, operators
from pipeline.ground.environment import processor_features

Session = Any
EXACT = {"session.x64quantprecision": "1"}
"""Of a session: x86 without VNNI adds int8 products in 16 bits, which overflow, unless it is told not to.

With VNNI the sums are exact anyway, and this would double the time of int8.
"""
VNNI = frozenset({"avx512_vnni", "avx_vnni"})


def session(model: ModelProto, *, threads: int = 1, save: Path | None = None, library: Path | None = None) -> Session:
    """A model, ready to run; ``save`` names a file that the graph that really runs is written to.

    With a ``library`` of the sparse engine that computes what it covers.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if VNNI.isdisjoint(processor_features()):
        for key, value in EXACT.items():
            options.add_session_config_entry(key, value)
    if library is not None:
        options.register_custom_ops_library(str(library))
    if save is not None:
        options.optimized_model_filepath = str(save)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def scores(running: Session, batches: Iterable[NDArray[Any]]) -> list[NDArray[Any]]:
    """Scores (N, classes) of inputs (N, ...), batch by batch."""
    return [running.run(None, {INPUT: batch})[0] for batch in batches]


def optimised_operators(model: ModelProto) -> Counter[str]:
    """How many nodes of which operator the graph has that ONNX Runtime makes of a model."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "optimised.onnx"
        session(model, save=file)
        return operators(onnx.load(file))


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
