"""The sparse engine beside ONNX Runtime's float on this machine: milliseconds of an inference of one image.

Weights are random, and so are those that are left; what each layer has left is what an Erdos-Renyi kernel gives it
(Evci et al. 2020, section 3), in proportion to (inputs + outputs + height + width) / (inputs x outputs x height x
width): the early layers stay dense, as global magnitude pruning leaves them.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import ModelProto
from torch import Tensor, nn

from pipeline.deploy.board.run import milliseconds
from pipeline.deploy.export import exported, lean
from pipeline.deploy.kernels import library, target_here
from pipeline.deploy.node import with_nodes
from pipeline.deploy.pack import packed
from pipeline.deploy.runtime import session
from pipeline.networks import NETWORKS
from pipeline.networks.costs import positions
from pipeline.networks.layers import filters_of, weight_layers
from pipeline.pruning.blocks import Blocks

NETS = {
    "ResNet-20, 32x32": ("cifar_resnet", {"depth": 20}, 32, 10),
    "VGG-16, 32x32": ("vgg16", {}, 32, 10),
    "ResNet-50, 224x224": ("imagenet_resnet", {"depth": 50}, 224, 1000),
}
FLOAT = "ONNX Runtime"


def densities(shapes: Mapping[str, Sequence[int]], density: float) -> dict[str, float]:
    """What share of its weights each layer keeps, at most 1, so that ``density`` of all are kept."""
    sizes = {name: float(np.prod(shape)) for name, shape in shapes.items()}
    raw = {name: sum(shape) / sizes[name] for name, shape in shapes.items()}
    low, high = 0.0, max(1 / each for each in raw.values())
    for _ in range(100):
        scale = (low + high) / 2
        kept = sum(min(1.0, scale * raw[name]) * size for name, size in sizes.items())
        low, high = (scale, high) if kept < density * sum(sizes.values()) else (low, scale)
    return {name: min(1.0, high * each) for name, each in raw.items()}


def network(name: str, density: float, block: int) -> tuple[nn.Module, Tensor]:
    """A network with its zeros, and one image of it (1, 3, height, width)."""
    kind, arguments, size, classes = NETS[name]
    torch.manual_seed(0)
    made = NETWORKS[kind](shape=(3, size, size), classes=classes, **arguments).eval()
    thin(made, density, block)
    return made, torch.randint(0, 256, (1, 3, size, size), dtype=torch.uint8)


def thin(made: nn.Module, density: float, block: int = 1) -> None:
    """Zeroes weights of a network at random, so many filters' together, so that ``density`` of them are left."""
    layers = weight_layers(made)
    weights = {each: made.get_parameter(each) for each in layers}
    with torch.no_grad():
        for each, share in densities({each: weight.shape for each, weight in weights.items()}, density).items():
            blocks = Blocks(*filters_of(layers[each], weights[each]), block)
            alive = torch.rand(blocks.sums(weights[each]).shape) < share
            weights[each].mul_(blocks.spread(alive, weights[each].shape))


def macs_left(name: str, density: float, block: int) -> float:
    """Share of the multiply-adds that is left."""
    made, image = network(name, density, block)
    used = positions(made, image.float())
    left = sum(int(made.get_parameter(each).count_nonzero()) * count for each, count in used.items())
    return left / sum(made.get_parameter(each).numel() * count for each, count in used.items())


def contestants(name: str, density: float, block: int, threads: Sequence[int]) -> dict[str, Callable[[], float]]:
    """Milliseconds of an inference: float by ONNX Runtime on one thread, the engine on each of ``threads``."""
    target = target_here()
    assert target is not None, "no library is for this processor"
    made, image = network(name, density, block)
    model = exported(made, lambda pixels: pixels.float() / 255, torch.cat([image, image]))
    node, reason = with_nodes(packed(lean(model))[0])
    assert reason is None, reason
    found = {FLOAT: timed(lean(model), image.numpy(), 1, None)}
    for count in threads:
        found[engine(count)] = timed(node, image.numpy(), count, library(target))
    return found


def engine(threads: int) -> str:
    """What the engine on so many threads is called."""
    return f"engine, {threads} thread{'s' if threads > 1 else ''}"


def timed(model: ModelProto, image: NDArray[Any], threads: int, library: Path | None) -> Callable[[], float]:
    """What takes the milliseconds of an inference of one image."""
    return partial(milliseconds, session(model, threads=threads, library=library), {"input": image})
