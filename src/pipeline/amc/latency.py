"""Milliseconds of a network on this machine, layer by layer: ONNX Runtime's, one thread, measured once and kept.

Each layer is measured alone at a few widths; between them the table is interpolated, and it never falls when a width
rises. The sum leaves out what is between the layers, so it ranks choices rather than foretelling the whole.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from filelock import FileLock
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from pipeline.amc.costs import Product, Width
from pipeline.deploy.board.run import processor
from pipeline.deploy.runtime import latencies, session
from pipeline.ground.files import write_file

LEVELS = 6
"""Widths of a dimension that are measured."""
FLOAT = onnx.TensorProto.FLOAT
SECONDS = 0.02
"""How long one of them is measured."""


@dataclass(frozen=True)
class Geometry:
    """Where a layer stands: its input map (0, 0: none, a linear layer), kernel, stride, padding; depthwise or not."""

    height: int
    width: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    depthwise: bool

    def key(self, outputs: int, inputs: int) -> str:
        """A name for the layer at these widths."""
        kind = "depthwise" if self.depthwise else "dense"
        numbers = (outputs, inputs, self.height, self.width, *self.kernel, *self.stride, *self.padding)
        return " ".join([kind, *map(str, numbers)])


Table = dict[str, float]
"""``Geometry.key`` -> milliseconds."""


def latency(
    products: Sequence[Product], places: Mapping[str, Geometry], choices: Sequence[Sequence[int]], table: Table,
    told: Callable[[str], None] = lambda _: None,
) -> Callable[[Sequence[int]], float]:  # fmt: skip
    """Milliseconds of a choice of counts. What ``table`` misses is measured and put into it."""
    grids = {}
    for number, product in enumerate(products):
        told(f"measuring layer {number + 1} of {len(products)}")
        rows, columns = (_levels(width, choices) for width in (product.rows, product.columns))
        grids[product.name] = rows, columns, _grid(places[product.name], rows, columns, table)

    def total(counts: Sequence[int]) -> float:
        return sum(_between(*grids[p.name], p.rows.of(counts), p.columns.of(counts)) for p in products)

    return total


def file_here() -> str:
    """Name of the file for what is measured with this processor and this onnxruntime."""
    key = hashlib.sha256(f"{processor()} {onnxruntime.__version__}".encode()).hexdigest()[:12]
    return f"latency-{key}.json"


def read_table(path: Path) -> Table:
    """The table of a file; empty if there is none."""
    return json.loads(path.read_text()) if path.exists() else {}


def add_to_table(path: Path, table: Table) -> None:
    """Adds a table to that of a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        write_file(path, json.dumps(read_table(path) | table, indent=1).encode())


def measured(place: Geometry, outputs: int, inputs: int) -> float:
    """Median milliseconds of one inference of a layer, without those of a call that does nothing."""
    if place.height == 0:
        shape, weight = [1, inputs], [inputs, outputs]
        node = helper.make_node("MatMul", ["x", "w"], ["y"])
    else:
        read = outputs if place.depthwise else inputs
        shape, weight = [1, read, place.height, place.width], [outputs, inputs, *place.kernel]
        node = helper.make_node(
            "Conv", ["x", "w"], ["y"],
            strides=place.stride, pads=[*place.padding, *place.padding], group=outputs if place.depthwise else 1,
        )  # fmt: skip
    nothing = helper.make_node("Identity", ["x"], ["y"])
    running = {"busy": _running(node, shape, weight), "idle": _running(nothing, shape, None)}
    one = {"x": np.random.default_rng(0).standard_normal(shape, dtype=np.float32)}
    taken = latencies(running, one, 2 * SECONDS)["milliseconds"]
    return max(0.0, taken["busy"] - taken["idle"])


def _running(node: onnx.NodeProto, shape: Sequence[int], weight: Sequence[int] | None) -> onnxruntime.InferenceSession:
    """A model of one node."""
    draws = np.random.default_rng(0)
    values = [] if weight is None else [numpy_helper.from_array(draws.standard_normal(weight, dtype=np.float32), "w")]
    given, made = (helper.make_tensor_value_info(*each) for each in (("x", FLOAT, shape), ("y", FLOAT, None)))
    graph = helper.make_graph([node], "layer", [given], [made], values)
    return session(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10))


def _levels(width: Width, choices: Sequence[Sequence[int]]) -> list[int]:
    """A few widths from the least to the whole."""
    if len(width.terms) == 1:
        step, copies = width.terms[0]
        possible = sorted({width.constant + copies * count for count in choices[step]})
    else:
        least, most = (width.of([each[end] for each in choices]) for end in (0, -1))
        possible = list(range(least, most + 1))
    chosen = np.linspace(0, len(possible) - 1, min(LEVELS, len(possible))).round().astype(int)
    return [possible[each] for each in chosen]


def _grid(place: Geometry, rows: Sequence[int], columns: Sequence[int], table: Table) -> NDArray[np.float64]:
    for outputs in rows:
        for inputs in columns:
            key = place.key(outputs, inputs)
            if key not in table:
                table[key] = measured(place, outputs, inputs)
    times = np.array([[table[place.key(outputs, inputs)] for inputs in columns] for outputs in rows])
    rising: NDArray[np.float64] = np.maximum.accumulate(np.maximum.accumulate(times, 0), 1)
    return rising


def _between(rows: Sequence[int], columns: Sequence[int], grid: NDArray[np.float64], row: int, column: int) -> float:
    """Bilinear interpolation."""
    across = [np.interp(column, columns, line) for line in grid]
    return float(np.interp(row, rows, across))
