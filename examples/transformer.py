"""Prunes a small transformer to a tenth of its weights: nothing in the method is bound to convolutions or to images.

    python examples/transformer.py [runs=FOLDER] [seed=1] [any other setting]

The task: handwritten digits (scikit-learn's, embedded) as sequences of 16 patches of four pixels in five grey levels.
The network has embeddings, attention, linear layers and LayerNorm; the weights of attention and linear layers are
pruned.

The same by the command line, in this folder:

    python -m pipeline model=custom model.network=transformer.Transformer data.module=transformer.DigitPatches SETTINGS
"""

import sys

import pytorch_lightning as lightning
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from pipeline import prune_by_rewinding


class Transformer(nn.Module):
    """Patches of grey levels, int64 (N, 16, 4) in [0, 5), to scores (N, 10)."""

    def __init__(self, width: int = 32, layers: int = 2) -> None:
        super().__init__()
        self.level, self.place = nn.Embedding(5, width // 4), nn.Embedding(16, width)
        block = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.output = nn.Linear(width, 10)

    def forward(self, patches: Tensor) -> Tensor:
        x = self.level(patches).flatten(2) + self.place(torch.arange(16, device=patches.device))
        return self.output(self.blocks(x).mean(1))


class DigitPatches(lightning.LightningDataModule):
    """1,197 digits train, 200 validate, 400 test: a fixed shuffle, the same each time."""

    def setup(self, stage: str) -> None:
        bunch = load_digits()
        order = torch.randperm(len(bunch.target), generator=torch.Generator().manual_seed(0))
        patches = (
            (torch.from_numpy(bunch.images) / 4)
            .round()
            .long()
            .unfold(1, 2, 2)
            .unfold(2, 2, 2)
            .reshape(-1, 16, 4)[order]
        )
        labels = torch.from_numpy(bunch.target).long()[order]
        parts = zip(patches.split([1197, 200, 400]), labels.split([1197, 200, 400]), strict=True)
        self.train, self.validation, self.test = (TensorDataset(*part) for part in parts)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train, batch_size=64, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.validation, batch_size=200)

    def test_dataloader(self) -> DataLoader:
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
    done = prune_by_rewinding(Transformer, DigitPatches(), *SETTINGS, *sys.argv[1:])
    dense, last = done.rounds[0], done.rounds[-1]
    print(f"density {last.density:.3f}: test accuracy {last.test['test_accuracy']:.2%}, ", end="")
    print(f"dense {dense.test['test_accuracy']:.2%}")
