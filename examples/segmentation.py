"""Prunes a small U-Net to a tenth of its weights: skip connections, up-sampling, intersection over union.

    python examples/segmentation.py [runs=FOLDER] [seed=1] [any other setting]

The task: handwritten digits, written in ink of any colour on pieces of two photographs (both scikit-learn's): which
pixels are ink? The network is plain; its loss, metrics and score are the row ``objective=segmentation``.

The same by the command line, in this folder:

    python -m pipeline model=custom model.network=segmentation.UNet data.module=segmentation.Ink SETTINGS
"""

import sys

import numpy as np
import pytorch_lightning as lightning
import torch
from sklearn.datasets import load_digits, load_sample_images
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from pipeline import prune_by_rewinding

SIZE = 48


class Ink(lightning.LightningDataModule):
    """Images (3, 48, 48) and for each pixel 0 or 1: 800 train, 150 validate, 150 test, each with digits of its own."""

    def setup(self, stage: str) -> None:
        digits, photos = load_digits(), load_sample_images().images
        order = np.random.default_rng(0).permutation(len(digits.target))
        parts = {"train": (order[:1197], 800), "validation": (order[1197:1397], 150), "test": (order[1397:], 150)}
        self.parts = {
            name: TensorDataset(*scenes(np.random.default_rng(seed), digits.images[rows], photos, count))
            for seed, (name, (rows, count)) in enumerate(parts.items())
        }

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.parts["train"], batch_size=32, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.parts["validation"], batch_size=75)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.parts["test"], batch_size=75)


def scenes(draws, digits, photos, count: int) -> tuple[Tensor, Tensor]:
    """Pieces of photographs, each with two digits in one colour, and where their ink is."""
    images, inks = [], []
    for _ in range(count):
        photo = photos[draws.integers(len(photos))]
        top, left = (draws.integers(side - SIZE) for side in photo.shape[:2])
        image = torch.tensor(photo[top : top + SIZE, left : left + SIZE]).permute(2, 0, 1).float() / 255
        ink = torch.zeros(SIZE, SIZE)
        for which in draws.integers(len(digits), size=2):
            side = int(draws.integers(16, 29))
            x, y = draws.integers(0, SIZE - side, size=2)
            digit = torch.tensor(digits[which] / 16, dtype=torch.float32)[None, None]
            drawn = F.interpolate(digit, (side, side), mode="bilinear")[0, 0]
            ink[y : y + side, x : x + side] = torch.maximum(ink[y : y + side, x : x + side], drawn)
        colour = torch.tensor(draws.uniform(size=3), dtype=torch.float32)[:, None, None]
        images.append(image * (1 - ink) + colour * ink)
        inks.append((ink > 0.5).long())
    return torch.stack(images) * 2 - 1, torch.stack(inks)


class UNet(nn.Module):
    """Images (N, 3, H, W) to scores (N, 2, H, W): down twice, up twice, each level joined to its own."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.down = nn.ModuleList([block(3, width), block(width, 2 * width), block(2 * width, 4 * width)])
        self.up = nn.ModuleList([block(6 * width, 2 * width), block(3 * width, width)])
        self.output = nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        passed = []
        for level, part in enumerate(self.down):
            x = part(F.max_pool2d(x, 2) if level else x)
            passed.append(x)
        for part, across in zip(self.up, passed[-2::-1], strict=True):
            x = part(torch.cat([F.interpolate(x, scale_factor=2.0), across], 1))
        return self.output(x)


def block(inputs: int, outputs: int) -> nn.Sequential:
    """Two 3x3 convolutions, each with its BatchNorm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True),
        nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True),
    )  # fmt: skip


SETTINGS = (
    "objective=segmentation",
    "training/optimizer=adamw",
    "training.optimizer.rate=5e-3",
    "training/schedule=one_cycle",
    "training.epochs=8",
    "training.precision=float32",
    "pruning.fraction=0.37",
    "pruning.rounds=null",
    "pruning.target_density=0.1",
)

if __name__ == "__main__":
    done = prune_by_rewinding(UNet, Ink(), *SETTINGS, *sys.argv[1:])
    print(done.table())
