"""Prunes a network of the `transformers` package to a tenth: a factory, batches by name, an output with ``logits``.

    python examples/hugging_face.py [runs=FOLDER] [seed=1] [any other setting]

The task: handwritten digits (scikit-learn's), 8 x 8 pixels, by a small vision transformer made from its configuration;
nothing is downloaded. The weights of attention and linear layers are pruned, and those of the patches' convolution.

The same by the command line, in this folder:

    python -m pipeline model=custom model.network=hugging_face.vit data.module=hugging_face.Digits SETTINGS
"""

import sys

import pytorch_lightning as lightning
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import ViTConfig, ViTForImageClassification

from pipeline import prune_by_rewinding


def vit(width: int = 48, layers: int = 3) -> ViTForImageClassification:
    """A vision transformer on 16 patches of 2 x 2 pixels, with ten classes."""
    return ViTForImageClassification(
        ViTConfig(
            image_size=8, patch_size=2, num_channels=1, hidden_size=width, intermediate_size=4 * width,
            num_hidden_layers=layers, num_attention_heads=4, num_labels=10,
        )
    )  # fmt: skip


class Digits(lightning.LightningDataModule):
    """1,197 digits train, 200 validate, 400 test, as ``{"pixel_values": (1, 8, 8), "labels": ()}``."""

    def setup(self, stage: str) -> None:
        bunch = load_digits()
        images = torch.tensor(bunch.images / 8 - 1, dtype=torch.float32)[:, None]
        named = [{"pixel_values": x, "labels": y} for x, y in zip(images, torch.tensor(bunch.target), strict=True)]
        order = torch.randperm(len(named), generator=torch.Generator().manual_seed(0)).tolist()
        self.train, self.validation, self.test = (
            [named[n] for n in rows] for rows in (order[:1197], order[1197:1397], order[1397:])
        )

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return DataLoader(self.train, batch_size=64, shuffle=True)

    def val_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return DataLoader(self.validation, batch_size=200)

    def test_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return DataLoader(self.test, batch_size=200)


SETTINGS = (
    "training/optimizer=adamw",
    "training.optimizer.rate=3e-3",
    "training/schedule=one_cycle",
    "training.epochs=30",
    "pruning.fraction=0.37",
    "pruning.rounds=null",
    "pruning.target_density=0.1",
)

if __name__ == "__main__":
    done = prune_by_rewinding(vit, Digits(), *SETTINGS, *sys.argv[1:])
    print(done.table())
