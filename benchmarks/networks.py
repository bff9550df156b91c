"""Networks that people put on small boards, as their papers describe them, and small forms of each for the tests."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

Activation = Callable[[], nn.Module]


def block(
    inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1, activation: Activation = nn.SiLU
) -> nn.Sequential:
    """Convolution, normalisation, activation."""
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), activation())


class Gate(nn.Module):
    """Squeeze and excitation (Hu et al. 2018)."""

    def __init__(self, channels: int, hidden: int, activation: Activation, gate: Activation) -> None:
        super().__init__()
        layers = [nn.Conv2d(channels, hidden, 1), activation(), nn.Conv2d(hidden, channels, 1), gate()]
        self.squeeze = nn.Sequential(nn.AdaptiveAvgPool2d(1), *layers)

    def forward(self, planes: Tensor) -> Tensor:
        gated: Tensor = planes * self.squeeze(planes)
        return gated


class Inverted(nn.Module):
    """An inverted bottleneck (Sandler et al. 2018), perhaps with a gate."""

    def __init__(
        self, inputs: int, wide: int, outputs: int, kernel: int, stride: int, activation: Activation, gate: Gate | None
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [] if wide == inputs else [block(inputs, wide, 1, activation=activation)]
        layers.append(block(wide, wide, kernel, stride, wide, activation))
        layers += [gate] if gate else []
        self.body = nn.Sequential(*layers, nn.Conv2d(wide, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, planes: Tensor) -> Tensor:
        made: Tensor = self.body(planes)
        return planes + made if self.residual else made


def mobilenet_v3(
    rows: Sequence[tuple[int, int, int, bool, bool, int]], first: int, last: int, hidden: int, classes: int
) -> nn.Sequential:
    """Howard et al. 2019, table 2: kernel, expansion, outputs, gate, h-swish (else Relu), stride of each row."""
    layers: list[nn.Module] = [block(3, first, stride=2, activation=nn.Hardswish)]
    inputs = first
    for kernel, wide, outputs, gated, swish, stride in rows:
        activation: Activation = nn.Hardswish if swish else nn.ReLU
        gate = Gate(wide, max(wide // 4, 1), nn.ReLU, nn.Hardsigmoid) if gated else None
        layers.append(Inverted(inputs, wide, outputs, kernel, stride, activation, gate))
        inputs = outputs
    layers += [block(inputs, last, 1, activation=nn.Hardswish), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(last, hidden), nn.Hardswish(), nn.Linear(hidden, classes))


def efficientnet(rows: Sequence[tuple[int, int, int, int, int]], first: int, last: int, classes: int) -> nn.Sequential:
    """Tan and Le 2019, table 1: expansion, outputs, layers, stride, kernel of each row."""
    layers: list[nn.Module] = [block(3, first, stride=2)]
    inputs = first
    for expansion, outputs, count, stride, kernel in rows:
        for step in [stride] + [1] * (count - 1):
            wide = inputs * expansion
            gate = Gate(wide, max(inputs // 4, 1), nn.SiLU, nn.Sigmoid)
            layers.append(Inverted(inputs, wide, outputs, kernel, step, nn.SiLU, gate))
            inputs = outputs
    layers += [block(inputs, last, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(last, classes)]
    return nn.Sequential(*layers)


class Crossed(nn.Module):
    """A stage of YOLO: half of the channels through bottlenecks, and all that was on the way in one string."""

    def __init__(self, inputs: int, outputs: int, count: int) -> None:
        super().__init__()
        half = outputs // 2
        self.enter, self.leave = block(inputs, 2 * half, 1), block((2 + count) * half, outputs, 1)
        self.steps = nn.ModuleList(nn.Sequential(block(half, half), block(half, half)) for _ in range(count))

    def forward(self, planes: Tensor) -> Tensor:
        parts = list(self.enter(planes).chunk(2, 1))
        for step in self.steps:
            parts.append(parts[-1] + step(parts[-1]))
        made: Tensor = self.leave(torch.cat(parts, 1))
        return made


class Yolo(nn.Module):
    """SiLU, Concat, Resize by two, MaxPool 5x5, outputs of three scales: after the smallest of Ultralytics' YOLOv8."""

    def __init__(self, widths: Sequence[int], counts: Sequence[int], outputs: int) -> None:
        super().__init__()
        self.first = block(3, widths[0], stride=2)
        self.stages = nn.ModuleList(
            nn.Sequential(block(inputs, width, stride=2), Crossed(width, width, count))
            for (inputs, width), count in zip(pairwise(widths), counts, strict=True)
        )
        third, fourth, fifth = widths[-3:]
        self.pools = nn.ModuleList(nn.MaxPool2d(5, 1, 2) for _ in range(3))
        self.enter, self.mix = block(fifth, fifth // 2, 1), block(2 * fifth, fifth, 1)
        self.up = nn.Upsample(scale_factor=2)
        self.middle, self.fine = Crossed(fifth + fourth, fourth, 1), Crossed(fourth + third, third, 1)
        self.heads = nn.ModuleList(
            nn.Sequential(block(width, width), nn.Conv2d(width, outputs, 1)) for width in (third, fourth, fifth)
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        found = [self.first(images)]
        for stage in self.stages:
            found.append(stage(found[-1]))
        parts = [self.enter(found[-1])]
        for pool in self.pools:
            parts.append(pool(parts[-1]))
        deep = self.mix(torch.cat(parts, 1))
        middle = self.middle(torch.cat([self.up(deep), found[-2]], 1))
        fine = self.fine(torch.cat([self.up(middle), found[-3]], 1))
        return [head(planes).flatten(2) for head, planes in zip(self.heads, (fine, middle, deep), strict=True)]


class Growing(nn.Module):
    """A layer of DenseNet-BC: normalisation first, a bottleneck, and what came in strung before what it makes."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        before = [nn.BatchNorm2d(inputs), nn.ReLU(), nn.Conv2d(inputs, 4 * growth, 1, bias=False)]
        after = [nn.BatchNorm2d(4 * growth), nn.ReLU(), nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)]
        self.body = nn.Sequential(*before, *after)

    def forward(self, planes: Tensor) -> Tensor:
        return torch.cat([planes, self.body(planes)], 1)


def densenet(growth: int, counts: Sequence[int], classes: int) -> nn.Sequential:
    """DenseNet-BC (Huang et al. 2017) for small images; ``counts`` layers a stage."""
    inputs = 2 * growth
    layers: list[nn.Module] = [nn.Conv2d(3, inputs, 3, padding=1, bias=False)]
    for stage, count in enumerate(counts):
        if stage:
            half = [nn.BatchNorm2d(inputs), nn.ReLU(), nn.Conv2d(inputs, inputs // 2, 1, bias=False), nn.AvgPool2d(2)]
            layers, inputs = [*layers, *half], inputs // 2
        for _ in range(count):
            layers.append(Growing(inputs, growth))
            inputs += growth
    last = [nn.BatchNorm2d(inputs), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes)]
    return nn.Sequential(*layers, *last)


class UNet(nn.Module):
    """Ronneberger et al. 2015, with padding: a class for every place."""

    def __init__(self, widths: Sequence[int], classes: int) -> None:
        super().__init__()

        def two(inputs: int, outputs: int) -> nn.Sequential:
            return nn.Sequential(
                block(inputs, outputs, activation=nn.ReLU), block(outputs, outputs, activation=nn.ReLU)
            )

        self.down = nn.ModuleList(two(*pair) for pair in pairwise((3, *widths)))
        self.pool = nn.MaxPool2d(2)
        self.up = nn.ModuleList(nn.ConvTranspose2d(deep, fine, 2, 2) for fine, deep in pairwise(widths))
        self.join = nn.ModuleList(two(2 * fine, fine) for fine, _ in pairwise(widths))
        self.last = nn.Conv2d(widths[0], classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        found = [self.down[0](images)]
        for stage in list(self.down)[1:]:
            found.append(stage(self.pool(found[-1])))
        planes = found.pop()
        for up, join in list(zip(self.up, self.join, strict=True))[::-1]:
            planes = join(torch.cat([found.pop(), up(planes)], 1))
        scores: Tensor = self.last(planes)
        return scores


def keywords(widths: Sequence[int], kernel: int, stride: int, classes: int) -> nn.Sequential:
    """1-D convolutions over sound: M5 of Dai et al. 2017."""
    layers: list[nn.Module] = [nn.Conv1d(1, widths[0], kernel, stride), nn.BatchNorm1d(widths[0]), nn.ReLU()]
    for inputs, outputs in pairwise(widths):
        layers += [nn.MaxPool1d(4), nn.Conv1d(inputs, outputs, 3), nn.BatchNorm1d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(widths[-1], classes))


class Vision(nn.Module):
    """DeiT (Touvron et al. 2021), with the mean of all pieces of an image in place of a token of its own."""

    def __init__(self, size: int, piece: int, width: int, heads: int, layers: int, classes: int) -> None:
        super().__init__()
        self.pieces = nn.Conv2d(3, width, piece, piece)
        self.places = nn.Parameter(0.02 * torch.randn(1, (size // piece) ** 2, width))
        block = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.last = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        sequence = self.pieces(images).flatten(2).transpose(1, 2) + self.places
        scores: Tensor = self.last(self.blocks(sequence).mean(1))
        return scores


SMALL_V3 = (
    (3, 16, 16, True, False, 2), (3, 72, 24, False, False, 2), (3, 88, 24, False, False, 1), (5, 96, 40, True, True, 2),
    (5, 240, 40, True, True, 1), (5, 240, 40, True, True, 1), (5, 120, 48, True, True, 1), (5, 144, 48, True, True, 1),
    (5, 288, 96, True, True, 2), (5, 576, 96, True, True, 1), (5, 576, 96, True, True, 1),
)  # fmt: skip
B0 = (
    (1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3), (6, 112, 3, 1, 5), (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)  # fmt: skip
Networks = dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]]
"""What makes each, and the shape of its input."""
FULL: Networks = {
    "MobileNetV3-small": (lambda: mobilenet_v3(SMALL_V3, 16, 576, 1024, 1000), (3, 224, 224)),
    "EfficientNet-B0": (lambda: efficientnet(B0, 32, 1280, 1000), (3, 224, 224)),
    "YOLO": (lambda: Yolo((16, 32, 64, 128, 256), (1, 2, 2, 1), 84), (3, 320, 320)),
    "DenseNet-BC-100": (lambda: densenet(12, (16, 16, 16), 10), (3, 32, 32)),
    "U-Net": (lambda: UNet((16, 32, 64, 128), 2), (3, 128, 128)),
    "keywords": (lambda: keywords((128, 128, 256, 512), 80, 4, 35), (1, 16_000)),
    "DeiT-Ti": (lambda: Vision(224, 16, 192, 3, 12, 1000), (3, 224, 224)),
}
SMALL: Networks = {
    "MobileNetV3": (
        lambda: mobilenet_v3(((3, 8, 8, True, False, 1), (5, 24, 8, True, True, 1), (5, 32, 16, False, True, 2)),
                             8, 32, 32, 10),
        (3, 16, 16),
    ),
    "EfficientNet": (lambda: efficientnet(((1, 8, 1, 1, 3), (3, 8, 2, 2, 5)), 8, 32, 10), (3, 16, 16)),
    "YOLO": (lambda: Yolo((4, 8, 8, 16), (1, 1, 1), 7), (3, 32, 32)),
    "DenseNet": (lambda: densenet(4, (2, 2), 10), (3, 16, 16)),
    "U-Net": (lambda: UNet((4, 8, 16), 2), (3, 16, 16)),
    "keywords": (lambda: keywords((16, 16, 24), 9, 4, 12), (1, 256)),
    "DeiT": (lambda: Vision(16, 4, 16, 2, 2, 10), (3, 16, 16)),
}  # fmt: skip
