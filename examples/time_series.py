"""Prunes a forecaster of 1-D convolutions and a GRU to a tenth: a score that falls, a rate set by a plateau.

    python examples/time_series.py [runs=FOLDER] [seed=1] [any other setting]

The task: the carbon dioxide over Mauna Loa, measured every week from 1958 to 2001 (statsmodels ships it). From two
years of weeks the network says the next 13. Training ends in 1986, validation in 1993; the score is the mean absolute
error in parts per million. The matrices of the GRU are pruned too.

The same by the command line, in this folder:

    python -m pipeline model.module=time_series.Forecaster data.module=time_series.CarbonDioxide SETTINGS
"""

import sys

import pytorch_lightning as lightning
import torch
from statsmodels.datasets import co2
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from pipeline import prune_by_rewinding

PAST, FUTURE = 104, 13


class CarbonDioxide(lightning.LightningDataModule):
    """Windows of weeks, (104) to (13), each less its last known value; gaps are filled by a straight line."""

    def setup(self, stage: str) -> None:
        weeks = torch.tensor(co2.load_pandas().data["co2"].interpolate().to_numpy(), dtype=torch.float32)
        ends = {"train": (0, 1450), "validation": (1450, 1850), "test": (1850, len(weeks))}
        self.parts = {}
        for name, (first, last) in ends.items():
            windows = weeks[first:last].unfold(0, PAST + FUTURE, 1)
            windows = windows - windows[:, PAST - 1 : PAST]
            self.parts[name] = TensorDataset(windows[:, :PAST].contiguous(), windows[:, PAST:].contiguous())

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.parts["train"], batch_size=32, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.parts["validation"], batch_size=256)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.parts["test"], batch_size=256)


class Forecaster(lightning.LightningModule):
    """Past weeks (N, 104) to the next (N, 13)."""

    def __init__(self, width: int = 32, rate: float = 5e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.look = nn.Sequential(
            nn.Conv1d(1, width, 5, 2, 2), nn.ReLU(), nn.Conv1d(width, width, 5, 2, 2), nn.ReLU(),
        )  # fmt: skip
        self.remember = nn.GRU(width, width, batch_first=True)
        self.say = nn.Linear(width, FUTURE)

    def forward(self, past: Tensor) -> Tensor:
        seen = self.look(past[:, None]).transpose(1, 2)
        return self.say(self.remember(seen)[0][:, -1])

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        past, future = batch
        loss = F.smooth_l1_loss(self(past), future)
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: list[Tensor], _: int) -> None:
        past, future = batch
        self.log("val_mae", (self(past) - future).abs().mean())

    def test_step(self, batch: list[Tensor], _: int) -> None:
        past, future = batch
        self.log("test_mae", (self(past) - future).abs().mean())

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=self.hparams.rate)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val_mae"}}


SETTINGS = (
    "objective.score=val_mae",
    "objective.better=lower",
    "training.epochs=15",
    "training.precision=float32",
    "pruning.include=[remember.*]",
    "pruning.fraction=0.37",
    "pruning.rounds=null",
    "pruning.target_density=0.1",
)

if __name__ == "__main__":
    done = prune_by_rewinding(Forecaster, CarbonDioxide(), *SETTINGS, *sys.argv[1:])
    print(done.table())
