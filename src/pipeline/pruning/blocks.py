"""Blocks of neighbouring output filters that keep or lose a weight together, so that one load serves them all.

A block is the weights of some filters at one input and place of the kernel. In the steps of ``prune`` and ``keep`` it
is one entry with one score, which stands for as many weights as it has.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Blocks:
    """How a weight is divided: its ``axis`` of output filters, by ``length`` within each ``filters`` that read the same
    inputs. Where these do not divide, the last block is shorter.
    """

    axis: int
    filters: int
    length: int

    def sums(self, tensor: Tensor) -> Tensor:
        """Of a tensor of the weight's shape over each block: (blocks of filters, all other places)."""
        rows = tensor.movedim(self.axis, 0).reshape(-1, self.filters, tensor.numel() // tensor.shape[self.axis])
        full = F.pad(rows, (0, 0, 0, -self.filters % self.length))
        return full.unflatten(1, (-1, self.length)).sum(2).flatten(0, 1)

    def spread(self, entries: Tensor, shape: torch.Size) -> Tensor:
        """What each block has, for all its weights: of the weight's ``shape``."""
        blocks = -(-self.filters // self.length)
        rows = entries.unflatten(0, (-1, blocks)).repeat_interleave(self.length, 1)[:, : self.filters]
        others = [side for axis, side in enumerate(shape) if axis != self.axis]
        return rows.reshape(shape[self.axis], *others).movedim(0, self.axis).contiguous()

    def norms(self, weight: Tensor, mask: Tensor, power: int) -> Tensor:
        """The generalised mean of the magnitudes in each block that are alive: ``power`` 1 for L1, 2 for L2."""
        total = self.sums(weight.abs().to(torch.promote_types(weight.dtype, torch.float32)) ** power * mask)
        return (total / self.sums(mask.long()).clamp(min=1)) ** (1 / power)
