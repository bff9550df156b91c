"""ResNet for 32x32 images (He et al. 2015, section 4.2) with 1x1 projection shortcuts, as the pruning papers use it."""

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
        x = F.relu(self.norm(self.conv(x)))
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
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))
