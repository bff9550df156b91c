"""LeNet-300-100 (LeCun et al. 1998), the fully connected network of the lottery-ticket paper."""

import math

from torch import nn


def lenet_300_100(shape: tuple[int, ...], classes: int) -> nn.Module:
    """Images of any shape, flattened, through 300 and 100 hidden units."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(math.prod(shape), 300),
        nn.ReLU(),
        nn.Linear(300, 100),
        nn.ReLU(),
        nn.Linear(100, classes),
    )
