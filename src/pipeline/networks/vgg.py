"""VGG-16 for CIFAR (Simonyan and Zisserman 2014, with BatchNorm and one linear layer), as the pruning papers use it."""

from collections.abc import Iterator

from torch import Tensor, nn

BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
"""Channels and convolutions of each block; a max pooling that halves the size follows each."""


def vgg16(
    shape: tuple[int, int, int], classes: int, batchnorm_eps: float = 1e-5, batchnorm_momentum: float = 0.1
) -> nn.Module:
    """Thirteen 3x3 convolutions and a linear layer.

    Raises:
        ValueError: if the images are smaller than 32 pixels, which five halvings take.
    """
    if min(shape[1:]) < 32:
        raise ValueError(f"images of {shape[1]}x{shape[2]} pixels are too small for five halvings, which take 32")
    network = Vgg(shape[0], classes)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps, module.momentum = batchnorm_eps, batchnorm_momentum
        elif isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
    return network


class Vgg(nn.Module):
    """Images (N, channels, H, W) to scores (N, classes)."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(*convolutions(channels))
        self.output = nn.Linear(BLOCKS[-1][0], classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.features(x).mean((2, 3)))


def convolutions(inputs: int) -> Iterator[nn.Module]:
    """The layers of all blocks in order."""
    for outputs, count in BLOCKS:
        for _ in range(count):
            yield from (nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))
            inputs = outputs
        yield nn.MaxPool2d(2)
