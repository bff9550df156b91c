"""ResNets (He et al. 2015): for 32x32 images, with the 1x1 projections of the pruning papers, and for ImageNet."""

from torch import Tensor, nn
from torch.nn import functional as F


def cifar_resnet(
    shape: tuple[int, int, int],
    classes: int,
    depth: int = 20,
    batchnorm_eps: float = 1e-5,
    batchnorm_momentum: float = 0.1,
) -> nn.Module:
    """A ResNet of 6n + 2 layers: three stages of n blocks with 16, 32 and 64 channels.

    Raises:
        ValueError: if ``depth`` is not 6n + 2.
    """
    blocks, rest = divmod(depth - 2, 6)
    if rest or blocks < 1:
        raise ValueError(f"depth={depth} is not 6n + 2, such as 20, 32, 44, 56 or 110")
    network = CifarResNet(shape[0], classes, blocks)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps, module.momentum = batchnorm_eps, batchnorm_momentum
        elif isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
    return network


class CifarResNet(nn.Module):
    """Images (N, channels, H, W) to scores (N, classes)."""

    def __init__(self, channels: int, classes: int, blocks: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.stage1 = stage(16, 16, blocks, stride=1)
        self.stage2 = stage(16, 32, blocks, stride=2)
        self.stage3 = stage(32, 64, blocks, stride=2)
        self.output = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(x)), inplace=True)
        x = self.stage3(self.stage2(self.stage1(x)))
        return self.output(x.mean((2, 3)))


def stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    """``blocks`` residual blocks, of which the first changes size and width."""
    first = Block(inputs, outputs, stride)
    return nn.Sequential(first, *(Block(outputs, outputs, 1) for _ in range(blocks - 1)))


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut, a 1x1 convolution where the size changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x), inplace=True)


IMAGENET_STAGES = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}


def imagenet_resnet(shape: tuple[int, int, int], classes: int, depth: int = 50) -> nn.Module:
    """ResNet-18, -34 or -50 (He et al. 2015, table 1), the stride of a bottleneck in its 3x3 convolution.

    State dicts have the names that torchvision and timm use, so that their trained weights load.

    Raises:
        ValueError: if ``depth`` is another.
    """
    if depth not in IMAGENET_STAGES:
        raise ValueError(f"depth={depth} is not one of {', '.join(map(str, IMAGENET_STAGES))}")
    network = ImagenetResNet(shape[0], classes, IMAGENET_STAGES[depth], Bottleneck if depth == 50 else BasicBlock)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network


class ImagenetResNet(nn.Module):
    """Images (N, channels, H, W) to scores (N, classes)."""

    def __init__(
        self, channels: int, classes: int, blocks: tuple[int, ...], block: "type[BasicBlock | Bottleneck]"
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 64, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        width = 64
        for index, count in enumerate(blocks):
            inner = 64 * 2**index
            layers = []
            for number in range(count):
                layers.append(block(width, inner, stride=2 if index and not number else 1))
                width = inner * block.expansion
            self.add_module(f"layer{index + 1}", nn.Sequential(*layers))
        self.fc = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x)), inplace=True), 3, 2, padding=1)
        for index in range(4):
            x = self.get_submodule(f"layer{index + 1}")(x)
        return self.fc(x.mean((2, 3)))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    expansion = 1

    def __init__(self, inputs: int, inner: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, inner, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.downsample = projection(inputs, inner, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True)))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)), inplace=True)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, the last four times as wide, and a shortcut."""

    expansion = 4

    def __init__(self, inputs: int, inner: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, 4 * inner, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * inner)
        self.downsample = projection(inputs, 4 * inner, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(y)), inplace=True)))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)), inplace=True)


def projection(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    """A 1x1 convolution for the shortcut, where size or width changes."""
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
