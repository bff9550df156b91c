"""MobileNets: V1 (Howard et al. 2017, table 1) and V2 (Sandler et al. 2018, table 2)."""

from torch import Tensor, nn

V1_LAYERS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))
"""Output channels and stride of each depthwise-separable layer."""

V2_BLOCKS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Expansion, output channels, repetitions and first stride of each stage (the paper's t, c, n, s)."""


def mobilenet_v1(shape: tuple[int, int, int], classes: int, width: float = 1.0) -> nn.Module:
    """MobileNet with all channels multiplied by ``width``."""
    channels = [round(width * outputs) for outputs in (32, *(outputs for outputs, _ in V1_LAYERS))]
    features = convolution(shape[0], channels[0], 3, stride=2)
    for inputs, outputs, (_, stride) in zip(channels, channels[1:], V1_LAYERS, strict=False):
        features += [*convolution(inputs, inputs, 3, stride, groups=inputs), *convolution(inputs, outputs, 1)]
    return MobileNet(nn.Sequential(*features), nn.Linear(channels[-1], classes))


def mobilenet_v2(shape: tuple[int, int, int], classes: int, width: float = 1.0, dropout: float = 0.2) -> nn.Module:
    """MobileNetV2. State dicts have the names that torchvision uses, so that its trained weights load."""
    inputs, last = of_eight(32 * width), of_eight(1280 * max(1.0, width))
    features: list[nn.Module] = [nn.Sequential(*convolution(shape[0], inputs, 3, stride=2, activation=nn.ReLU6))]
    for expansion, channels, count, first_stride in V2_BLOCKS:
        for number in range(count):
            outputs = of_eight(channels * width)
            features.append(InvertedResidual(inputs, outputs, expansion, 1 if number else first_stride))
            inputs = outputs
    features.append(nn.Sequential(*convolution(inputs, last, 1, activation=nn.ReLU6)))
    return MobileNet(nn.Sequential(*features), nn.Sequential(nn.Dropout(dropout), nn.Linear(last, classes)))


class MobileNet(nn.Module):
    """Images (N, channels, H, W) to scores (N, classes)."""

    def __init__(self, features: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.features, self.classifier = features, classifier
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0, 0.01)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


class InvertedResidual(nn.Module):
    """1x1 expansion (unless it is 1), 3x3 depthwise, 1x1 linear; a shortcut where the shape stays."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int) -> None:
        super().__init__()
        inner = inputs * expansion
        expand = [nn.Sequential(*convolution(inputs, inner, 1, activation=nn.ReLU6))] if expansion > 1 else []
        depthwise = nn.Sequential(*convolution(inner, inner, 3, stride, groups=inner, activation=nn.ReLU6))
        self.conv = nn.Sequential(*expand, depthwise, nn.Conv2d(inner, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


def convolution(
    inputs: int,
    outputs: int,
    size: int,
    stride: int = 1,
    groups: int = 1,
    activation: type[nn.ReLU | nn.ReLU6] = nn.ReLU,
) -> list[nn.Module]:
    """A convolution that keeps the size (but for its stride), its BatchNorm and activation."""
    kernel = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, groups=groups, bias=False)
    return [kernel, nn.BatchNorm2d(outputs), activation(inplace=True)]


def of_eight(channels: float) -> int:
    """The nearest multiple of 8 that is no more than a tenth less (as the paper's code rounds channels)."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded
