"""The sparse engine beside ONNX Runtime's float on this machine: milliseconds of an inference of one image.

Weights are random, and so are those that are left; what each layer has left is what an Erdos-Renyi kernel gives it
(Evci et al. 2020, section 3), in proportion to (inputs + outputs + height + width) / (inputs x outputs x height x
width): the early layers stay dense, as global magnitude pruning leaves them.
"""

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper

from pipeline.deploy import kernels
from pipeline.deploy.export import exported, lean
from pipeline.deploy.pack import packed
from pipeline.deploy.program import one_node
from pipeline.deploy.runtime import session
from pipeline.networks import NETWORKS

NETS = {
    "ResNet-20, 32x32": ("cifar_resnet", {"depth": 20}, 32, 10),
    "VGG-16, 32x32": ("vgg16", {}, 32, 10),
    "ResNet-50, 224x224": ("imagenet_resnet", {"depth": 50}, 224, 1000),
}
ENGINE = "engine"


def densities(shapes: Sequence[Sequence[int]], density: float) -> list[float]:
    """What share of its weights each layer keeps, at most 1, so that ``density`` of all are kept."""
    sizes = [float(np.prod(shape)) for shape in shapes]
    raw = [sum(shape) / size for shape, size in zip(shapes, sizes, strict=True)]
    low, high = 0.0, max(1 / each for each in raw)
    for _ in range(100):
        scale = (low + high) / 2
        kept = sum(min(1.0, scale * each) * size for each, size in zip(raw, sizes, strict=True))
        low, high = (scale, high) if kept < density * sum(sizes) else (low, scale)
    return [min(1.0, high * each) for each in raw]


def network(name: str, density: float) -> tuple[ModelProto, NDArray[np.uint8]]:
    """A network as it is exported, with its zeros, and one image."""
    kind, arguments, size, classes = NETS[name]
    torch.manual_seed(0)
    made = NETWORKS[kind](shape=(3, size, size), classes=classes, **arguments).eval()
    image = torch.randint(0, 256, (1, 3, size, size), dtype=torch.uint8)
    model = exported(made, lambda pixels: pixels.float() / 255, torch.cat([image, image]))
    tensors = [tensor for tensor in model.graph.initializer if len(tensor.dims) in (2, 4)]
    random = np.random.default_rng(0)
    for tensor, share in zip(tensors, densities([tensor.dims for tensor in tensors], density), strict=True):
        weights = numpy_helper.to_array(tensor) * (random.random(tensor.dims) < share)
        tensor.CopyFrom(numpy_helper.from_array(weights.astype(np.float32), tensor.name))
    return model, image.numpy()


def contestants(name: str, density: float, threads: Sequence[int]) -> Mapping[str, Callable[[], float]]:
    """Each takes the milliseconds of its inference: the median of three."""
    target = kernels.target_here()
    assert target is not None, "no library is for this processor"
    model, image = network(name, density)
    node, reason = one_node(packed(lean(model))[0])
    assert reason is None, reason
    found = {"float": _timed(lean(model), image, None)}
    for count in threads:
        found[f"{ENGINE}, {count}"] = _timed(node, image, kernels.library(target), count)
    return found


def macs_left(name: str, density: float) -> float:
    """Share of the multiply-adds that is left: each layer's weights times the places of its output map."""
    model, _ = network(name, density)
    inferred = onnx.shape_inference.infer_shapes(model)
    shapes = {each.name: [d.dim_value for d in each.type.tensor_type.shape.dim] for each in inferred.graph.value_info}
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    left = whole = 0
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm"):
            places = int(np.prod(shapes.get(node.output[0], [])[2:])) if node.op_type == "Conv" else 1
            left += int(np.count_nonzero(weights[node.input[1]])) * places
            whole += weights[node.input[1]].size * places
    return left / whole


def _timed(model: ModelProto, image: NDArray[np.uint8], library: object, threads: int = 1) -> Callable[[], float]:
    running = session(model, threads=threads, library=library)  # type: ignore[arg-type]

    def measure() -> float:
        times = []
        for _ in range(3):
            begin = time.perf_counter()
            running.run(None, {"input": image})
            times.append(time.perf_counter() - begin)
        return sorted(times)[1] * 1000

    measure()
    return measure
