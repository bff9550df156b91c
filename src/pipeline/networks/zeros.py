"""Whether a pruned weight is a zero of what its layer multiplies by, of layers with a forward of their own."""

import copy
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pipeline.ground.randomness import undisturbed
from pipeline.networks.layers import PRUNABLE, weight_layers

BY_WEIGHT = ("linear", *(f"conv{way}{sides}d" for way in ("", "_transpose") for sides in (1, 2, 3)))
"""Functions of PyTorch whose second argument is a weight."""
OF_TWO = ("matmul", "__matmul__", "mm", "addmm", "einsum")
"""Those that multiply any two."""
OWN = ("forward", "_conv_forward")


def restored(network: nn.Module, names: Collection[str]) -> list[str]:
    """Those of the weights called ``names`` that are not zero any more where their layers multiply by them.

    A layer that standardises its weight is of that kind: no file and no board could leave a pruned weight of it out.
    Every layer with a forward of its own is called once, alone, on noise, with half of its weight zero. Of one that
    cannot be called so nothing is known, and it is not among them.
    """
    layers = {name: layer for name, layer in weight_layers(network).items() if name in names}
    with undisturbed(), torch.no_grad():
        return [name for name, layer in layers.items() if _has_own_forward(layer) and _restores(layer)]


def _has_own_forward(layer: nn.Module) -> bool:
    if not isinstance(layer, PRUNABLE):
        return False
    of_torch = next(each for each in type(layer).__mro__ if each.__module__.startswith("torch.nn."))
    return any(
        name in vars(layer) or getattr(type(layer), name, None) is not getattr(of_torch, name, None) for name in OWN
    )


def _restores(layer: Any) -> bool:
    try:
        tried = copy.deepcopy(layer).cpu().eval()
        weight = tried.weight
        weight.copy_(torch.randn(weight.shape) * (torch.rand(weight.shape) < 0.5))
        seen = _Multiplied(weight)
        with seen:
            tried(torch.randn(_shape_for(tried), dtype=weight.dtype))
    except Exception:  # whose arguments are others, or which needs what is around it
        return False
    dead = weight == 0
    return any(all(bool(way[dead].any()) for way in ways) for ways in seen.found)


def _shape_for(layer: Any) -> tuple[int, ...]:
    """Of an input that a layer takes, and that is as large as no weight of it."""
    if isinstance(layer, nn.Linear):
        return (layer.in_features + layer.out_features + 1, layer.in_features)
    sides = [(side - 1) * gap + 3 for side, gap in zip(layer.kernel_size, layer.dilation, strict=True)]
    return (2, layer.in_channels, *sides)


class _Multiplied(TorchFunctionMode):
    """Keeps what is multiplied by within the block and has a weight's shape, in each way that it can be that weight."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.shape, self.found = weight.shape, list[list[Tensor]]()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        given = [args[1] if len(args) > 1 else kwargs.get("weight")] if name in BY_WEIGHT else []
        given += [*args, *kwargs.values()] if name in OF_TWO else []
        for each in given:
            ways = [each, each.mT] if isinstance(each, Tensor) and each.ndim == 2 else [each]
            if fitting := [way for way in ways if isinstance(way, Tensor) and way.shape == self.shape]:
                self.found.append(fitting)
        return function(*args, **kwargs)
