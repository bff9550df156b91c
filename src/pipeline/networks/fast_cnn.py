"""A wide, shallow network of 3x3 convolutions that trains fast, after those of the CIFAR-10 speed records.

Jordan 2024, *94% on CIFAR-10 in 3.29 seconds on a single GPU* (airbench), and tysam-code's *hlb-CIFAR10*; with ReLU in
the place of GELU, which leaves zeros that a small processor need not compute.
"""

from collections.abc import Sequence

from torch import Tensor, nn

FILTERS = 8
"""Filters of the first convolution for each channel of the images."""


def fast_cnn(
    shape: tuple[int, int, int],
    classes: int,
    widths: Sequence[int] = (64, 256, 256),
    score_scale: float = 1 / 9,
    batchnorm_momentum: float = 0.4,
) -> nn.Module:
    """A convolution that ``model.whitened`` may fix, two convolutions for each of ``widths``, a linear layer.

    Raises:
        ValueError: if the images are too small for a halving by each block.
    """
    height, width = shape[1:]
    for _ in widths:
        height, width = (height - 1) // 2, (width - 1) // 2
    if min(height, width) < 1:
        raise ValueError(f"images of {shape[1]}x{shape[2]} pixels are too small for {len(widths)} halvings")
    return FastCnn(shape[0], classes, widths, (height, width), score_scale, batchnorm_momentum)


class FastCnn(nn.Module):
    """Images (N, channels, H, W) to scores (N, classes), which are ``score_scale`` of what the last layer gives: so a
    high rate does not make them extreme.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        widths: Sequence[int],
        last_map: tuple[int, int],
        score_scale: float,
        batchnorm_momentum: float,
    ) -> None:
        super().__init__()
        filters = FILTERS * channels
        self.patches = nn.Conv2d(channels, filters, 3, padding=1, bias=False)
        inputs = [filters, *widths[:-1]]
        blocks = [block(*each, batchnorm_momentum) for each in zip(inputs, widths, strict=True)]
        self.features = nn.Sequential(nn.ReLU(), *blocks, nn.MaxPool2d(last_map))
        self.output = nn.Linear(widths[-1], classes, bias=False)
        self.score_scale = score_scale

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.features(self.patches(x)).flatten(1)) * self.score_scale


def block(inputs: int, outputs: int, momentum: float) -> nn.Sequential:
    """Two convolutions, each normalised; the first halves the size."""
    return nn.Sequential(
        convolution(inputs, outputs),
        nn.MaxPool2d(3, 2),
        normalisation(outputs, momentum),
        nn.ReLU(),
        convolution(outputs, outputs),
        normalisation(outputs, momentum),
        nn.ReLU(),
    )


def convolution(inputs: int, outputs: int) -> nn.Conv2d:
    """A 3x3 convolution whose first filters begin as the identity of its inputs."""
    layer = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    nn.init.dirac_(layer.weight[:inputs].detach())
    return layer


def normalisation(channels: int, momentum: float) -> nn.BatchNorm2d:
    """BatchNorm that learns a shift and no scale."""
    layer = nn.BatchNorm2d(channels, momentum=momentum)
    layer.weight.requires_grad_(False)
    return layer
