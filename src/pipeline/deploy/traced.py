"""PyTorch's export of a network, whose slow part is done once for all weights that the network gets.

Rounds differ in the values of parameters and buffers alone, which a trace never sees. So the graph is kept as it is
before anything is folded into weights, and a later round's are put in.
"""

import io
import pickle
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from types import CodeType, FunctionType
from typing import Any

import onnx_ir
import torch
from onnx import ModelProto
from torch import Tensor, nn
from torch.onnx import ONNXProgram

KEPT = 4
"""Graphs that are kept, each with the weights that it was made with."""
Key = tuple[bytes, tuple[Any, ...]]

graphs: OrderedDict[Key, onnx_ir.Model] = OrderedDict()
"""The graphs of this process by what they were traced of, the one that served last at the end."""


def traced(
    whole: nn.Module, inputs: Mapping[str, Tensor], outputs: Sequence[str], shapes: Any, *, anew: bool = False
) -> tuple[ModelProto, bool]:
    """A module in evaluation as PyTorch exports it, and whether its graph was made for other weights.

    ``inputs`` are its arguments by the names that the model has for them, ``shapes`` PyTorch's ``dynamic_shapes``.
    ``anew`` traces it whatever is kept. Raises whatever PyTorch does.
    """
    free = {**dict(whole.named_parameters(remove_duplicate=False)), **dict(whole.named_buffers(remove_duplicate=False))}
    key = _key((whole, inputs, outputs, shapes), [*inputs.values(), *free.values()])
    graph = None if key is None or anew else graphs.get(key)
    other = graph is not None
    if graph is None:
        program = torch.onnx.export(
            whole,
            tuple(inputs.values()),
            dynamo=True,
            dynamic_shapes=shapes,
            verbose=False,
            optimize=False,
        )
        assert program is not None
        graph = program.model
    if key is not None:
        graphs[key] = graph
        graphs.move_to_end(key)
        if len(graphs) > KEPT:
            graphs.popitem(last=False)
    made = ONNXProgram(graph.clone(), None)
    made.apply_weights({name: each for name, each in free.items() if name in graph.graph.initializers})
    made.optimize()
    ends = zip([*made.model.graph.inputs, *made.model.graph.outputs], [*inputs, *outputs], strict=True)
    for value, name in ends:
        value.name = name
    return made.model_proto, other


def _key(asked: Any, free: Sequence[Tensor]) -> Key | None:
    """All that a trace may depend on but the values of ``free`` tensors; None where that cannot be told."""
    written = io.BytesIO()
    told = _Told(written, free)
    try:
        told.dump(asked)
    except Exception:  # a network of a user's holds what cannot be written, and may raise anything where it is tried
        return None
    return written.getvalue(), tuple(told.code)


class _Told(pickle.Pickler):
    """Writes an object with its code by identity, and ``free`` tensors as their shapes and which are the same."""

    def __init__(self, file: io.BytesIO, free: Sequence[Tensor]) -> None:
        super().__init__(file)
        self.free = {id(each): place for place, each in reversed(list(enumerate(free)))}
        self.code: list[type | CodeType] = []

    def persistent_id(self, written: Any) -> str | None:
        if isinstance(written, Tensor) and id(written) in self.free:
            return f"tensor {self.free[id(written)]} {_like(written)}"
        if isinstance(written, type | CodeType):
            self.code.append(written)
            return f"code {len(self.code)}"
        return None

    def reducer_override(self, written: Any) -> Any:
        if isinstance(written, FunctionType):
            cells = [each.cell_contents for each in written.__closure__ or ()]
            return tuple, ([written.__code__, written.__defaults__, written.__kwdefaults__, cells],)
        if isinstance(written, Tensor):
            return tuple, ([_like(written), written.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()],)
        return NotImplemented


def _like(tensor: Tensor) -> str:
    return f"{type(tensor).__name__} {tuple(tensor.shape)} {tensor.stride()} {tensor.dtype} {tensor.device}"
