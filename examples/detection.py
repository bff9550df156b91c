"""Prunes a small object detector to a tenth of its weights: a loss of its own, targets of different length, mAP.

    python examples/detection.py [runs=FOLDER] [seed=1] [any other setting]

The task: one to three handwritten digits, placed on pieces of two photographs (both scikit-learn's), to be found
with box and class. The network looks once at 64 x 64 pixels and says for each of 8 x 8 cells whether the middle of a
digit is there, which, and where exactly. mAP is COCO's (pycocotools, over IoU from 0.5 to 0.95). The last layer is not
pruned: a box takes small numbers, so its weights are the first to go, and with them the place of every digit.

The same by the command line, in this folder:

    python -m pipeline model.module=detection.Detector data.module=detection.DigitsOnPhotos SETTINGS
"""

import contextlib
import io
import sys
from itertools import pairwise

import numpy as np
import pytorch_lightning as lightning
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from sklearn.datasets import load_digits, load_sample_images
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchmetrics import Metric

from pipeline import prune_by_rewinding

SIZE, CELLS = 64, 8
CELL = SIZE // CELLS
Target = dict[str, Tensor]
"""``boxes`` (n, 4): left, top, width, height in pixels; ``labels`` int64 (n)."""


class DigitsOnPhotos(lightning.LightningDataModule):
    """1,200 scenes an epoch to train on, new ones each time; 300 fixed ones to validate and 300 to test."""

    def setup(self, stage: str) -> None:
        bunch, photos = load_digits(), load_sample_images().images
        order = np.random.default_rng(0).permutation(len(bunch.target))
        train, validation, test = (
            Scenes(bunch.images[rows], bunch.target[rows], photos) for rows in np.split(order, [1197, 1497])
        )
        self.train = train
        self.validation, self.test = ([part.drawn(n) for n in range(300)] for part in (validation, test))

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train, batch_size=32, collate_fn=together)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.validation, batch_size=100, collate_fn=together)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.test, batch_size=100, collate_fn=together)


class Scenes(Dataset):
    """Pieces of photographs with one to three digits on each, in any place, brightness and size."""

    def __init__(self, digits: np.ndarray, labels: np.ndarray, photos: list[np.ndarray]) -> None:
        self.digits, self.labels, self.photos = torch.tensor(digits / 16, dtype=torch.float32), labels, photos

    def __len__(self) -> int:
        return 1200

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        return self.drawn(np.random.randint(2**31))

    def drawn(self, seed: int) -> tuple[Tensor, Target]:
        """The scene of this seed."""
        draws = np.random.default_rng(seed)
        photo = self.photos[draws.integers(len(self.photos))]
        top, left = (draws.integers(side - SIZE) for side in photo.shape[:2])
        scene = torch.tensor(photo[top : top + SIZE, left : left + SIZE]).permute(2, 0, 1).float() / 255
        boxes, names = [], []
        for which in draws.integers(len(self.labels), size=draws.integers(1, 4)):
            side = int(draws.integers(14, 25))
            x, y = draws.integers(0, SIZE - side, size=2).tolist()
            if any(abs(x - a) < 20 and abs(y - b) < 20 for a, b, _, _ in boxes):
                continue
            ink = F.interpolate(self.digits[which][None, None], (side, side), mode="bilinear")[0, 0]
            scene[:, y : y + side, x : x + side].lerp_(torch.tensor(draws.uniform(0.8, 1), dtype=torch.float32), ink)
            boxes.append((x, y, side, side))
            names.append(int(self.labels[which]))
        return scene, {"boxes": torch.tensor(boxes, dtype=torch.float32), "labels": torch.tensor(names)}


def together(pairs: list[tuple[Tensor, Target]]) -> tuple[Tensor, list[Target]]:
    """A batch: images (N, 3, 64, 64), and for each what is on it."""
    return torch.stack([image for image, _ in pairs]), [target for _, target in pairs]


class Detector(lightning.LightningModule):
    """Images (N, 3, 64, 64) to (N, 15, 8, 8): for each cell whether, where (4) and which (10)."""

    def __init__(self, width: int = 32, rate: float = 1e-2) -> None:
        super().__init__()
        self.save_hyperparameters()
        widths = [3, width, 2 * width, 3 * width]
        blocks = [block(a, b, stride=2) for a, b in pairwise(widths)]
        self.body = nn.Sequential(*blocks, block(widths[-1], widths[-1], stride=1))
        self.head = nn.Conv2d(widths[-1], 15, 1)
        self.precision = nn.ModuleDict({"val": AveragePrecision(), "test": AveragePrecision()})

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(2 * images - 1)).float()

    def training_step(self, batch: tuple[Tensor, list[Target]], _: int) -> Tensor:
        images, targets = batch
        loss = self.loss(self(images), targets)
        self.log("train/loss", loss, on_step=False, on_epoch=True, batch_size=len(images))
        return loss

    def loss(self, cells: Tensor, targets: list[Target]) -> Tensor:
        """Cross-entropies of whether and which, and the distance of the boxes of those that are there."""
        image = torch.cat([torch.full((len(t["labels"]),), n) for n, t in enumerate(targets)])
        boxes, labels = (torch.cat([t[name] for t in targets]) for name in ("boxes", "labels"))
        middles = boxes[:, :2] + boxes[:, 2:] / 2
        column, row = (middles / CELL).long().clamp(0, CELLS - 1).unbind(1)
        there = torch.zeros_like(cells[:, 0])
        there[image, row, column] = 1
        at = cells[image, :, row, column]
        wanted = torch.cat([middles / CELL - torch.stack([column, row], 1), boxes[:, 2:] / 20], 1)
        whether = F.binary_cross_entropy_with_logits(cells[:, 0], there, reduction="sum") / len(labels)
        return whether + 5 * F.l1_loss(at[:, 1:5], wanted) + F.cross_entropy(at[:, 5:], labels)

    def found(self, cells: Tensor) -> list[dict[str, Tensor]]:
        """Boxes, scores and labels of every image, the best of those that overlap."""
        y, x = torch.meshgrid(torch.arange(CELLS), torch.arange(CELLS), indexing="ij")
        sides = cells[:, 3:5].clamp_min(0.1) * 20
        middles = (cells[:, 1:3] + torch.stack([x, y]).to(cells)) * CELL
        boxes = torch.cat([middles - sides / 2, sides], 1).flatten(2).transpose(1, 2)
        which = cells[:, 5:].softmax(1).flatten(2)
        scores = cells[:, 0].sigmoid().flatten(1) * which.max(1).values
        found = []
        for at, score, label in zip(boxes, scores, which.argmax(1), strict=True):
            kept = best(at, score)
            found.append({"boxes": at[kept], "scores": score[kept], "labels": label[kept]})
        return found

    def validation_step(self, batch: tuple[Tensor, list[Target]], _: int) -> None:
        self.evaluate(batch, "val")

    def test_step(self, batch: tuple[Tensor, list[Target]], _: int) -> None:
        self.evaluate(batch, "test")

    def evaluate(self, batch: tuple[Tensor, list[Target]], split: str) -> None:
        images, targets = batch
        cells = self(images)
        self.log(f"{split}/loss", self.loss(cells, targets), batch_size=len(images))
        self.precision[split].update(self.found(cells), targets)
        self.log(f"{split}/mAP", self.precision[split], on_epoch=True, batch_size=len(images))

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams.rate, weight_decay=0.01)
        total = self.trainer.estimated_stepping_batches
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.hparams.rate, total_steps=total, pct_start=0.2)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """A 3x3 convolution, its BatchNorm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


def best(boxes: Tensor, scores: Tensor, least: float = 0.05, overlap: float = 0.4) -> Tensor:
    """Non-maximum suppression: which boxes (n, 4) stay."""
    kept: list[int] = []
    for index in scores.argsort(descending=True).tolist():
        if scores[index] < least:
            break
        if not kept or float(overlaps(boxes[index], boxes[kept]).max()) < overlap:
            kept.append(index)
    return torch.tensor(kept, dtype=torch.int64)


def overlaps(box: Tensor, boxes: Tensor) -> Tensor:
    """Intersection over union of one box with others."""
    low, high = torch.maximum(box[:2], boxes[:, :2]), torch.minimum(box[:2] + box[2:], boxes[:, :2] + boxes[:, 2:])
    shared = (high - low).clamp_min(0).prod(1)
    return shared / (box[2:].prod() + boxes[:, 2:].prod(1) - shared)


class AveragePrecision(Metric):
    """COCO's mAP by its own code. (That of torchmetrics takes torchvision, which this project does without.)"""

    higher_is_better = True

    def __init__(self) -> None:
        super().__init__()
        self.add_state("found", default=[], dist_reduce_fx="cat")
        self.add_state("there", default=[], dist_reduce_fx="cat")
        self.images = 0

    def update(self, found: list[dict[str, Tensor]], targets: list[Target]) -> None:
        for one, target in zip(found, targets, strict=True):
            number = self.images
            self.images += 1
            self.found.append(rows(number, one["boxes"], one["labels"], one["scores"]))
            self.there.append(rows(number, target["boxes"], target["labels"], torch.ones(len(target["labels"]))))

    def compute(self) -> Tensor:
        found, there = (torch.cat(list(each)) if len(each) else torch.zeros(0, 7) for each in (self.found, self.there))
        if not len(found) or not len(there):
            return torch.tensor(0.0)
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO()
            truth.dataset = {
                "images": [{"id": n} for n in range(self.images)],
                "categories": [{"id": n} for n in range(10)],
                "annotations": [
                    {"id": n + 1, "image_id": int(i), "category_id": int(c), "bbox": [x, y, w, h], "area": w * h,
                     "iscrowd": 0}
                    for n, (i, c, _, x, y, w, h) in enumerate(there.tolist())
                ],
            }  # fmt: skip
            truth.createIndex()
            order = [0, 3, 4, 5, 6, 2, 1]  # image, box, score, class
            answers = truth.loadRes(found.double().numpy()[:, order])
            judged = COCOeval(truth, answers, "bbox")
            judged.evaluate()
            judged.accumulate()
            judged.summarize()
        return torch.tensor(float(judged.stats[0]))

    def reset(self) -> None:
        super().reset()
        self.images = 0


def rows(number: int, boxes: Tensor, labels: Tensor, scores: Tensor) -> Tensor:
    """Image, class, score and box of each, as one tensor (n, 7)."""
    columns = [torch.full((len(labels),), float(number)), labels.float(), scores.float()]
    return torch.cat([torch.stack(columns, 1).cpu(), boxes.float().cpu()], 1)


SETTINGS = (
    "objective.score=val/mAP",
    "objective.better=higher",
    "training.epochs=16",
    "training.precision=float32",
    "pruning.exclude=[head]",
    "pruning.fraction=0.44",
    "pruning.rounds=null",
    "pruning.target_density=0.1",
)

if __name__ == "__main__":
    done = prune_by_rewinding(Detector, DigitsOnPhotos(), *SETTINGS, *sys.argv[1:])
    print(done.table())
