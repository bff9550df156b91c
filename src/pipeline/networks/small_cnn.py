"""A convolutional network small enough to train in seconds on one core."""

from torch import Tensor, nn


def small_cnn(shape: tuple[int, int, int], classes: int, width: int = 16) -> nn.Module:
    """Three 3x3 convolutions with BatchNorm (the second halves the size), mean pooling, a linear layer."""
    return SmallCnn(shape[0], classes, width)


class SmallCnn(nn.Module):
    """Images (N, channels, H, W) to scores (N, classes)."""

    def __init__(self, channels: int, classes: int, width: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *convolution(channels, width, stride=1),
            *convolution(width, 2 * width, stride=2),
            *convolution(2 * width, 2 * width, stride=1),
        )
        self.output = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.features(x).mean((2, 3)))


def convolution(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
    """A 3x3 convolution, its BatchNorm and ReLU."""
    return [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
