"""Data modules as people write them, for tests that hand them to the pipeline by dotted path."""

import random

import lightning
import numpy as np
import pytorch_lightning
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, random_split


def digits():
    bunch = load_digits()
    return torch.from_numpy(bunch.images).float().unsqueeze(1)[:600] / 16, torch.from_numpy(bunch.target).long()[:600]


class Digits(lightning.LightningDataModule):
    """A split that is drawn in ``setup``, without a seed; targets as a subclass has them."""

    def targets(self, images, labels):
        return labels

    def setup(self, stage):
        images, labels = digits()
        whole = TensorDataset(images, self.targets(images, labels))
        self.train, self.validation, self.test = random_split(whole, [400, 100, 100])

    def train_dataloader(self):
        return DataLoader(self.train, batch_size=50, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.validation, batch_size=100)

    def test_dataloader(self):
        return DataLoader(self.test, batch_size=100)


class WithClasses(Digits):
    classes = tuple("0123456789")


class ManyLabels(Digits):
    def targets(self, images, labels):
        return torch.stack([labels % 2, labels // 5, (labels > 2).long()], 1).float()


class Brightness(Digits):
    def targets(self, images, labels):
        return images.mean((1, 2, 3))


class Pixels(Digits):
    def targets(self, images, labels):
        return (images[:, 0] > 0.5).long()


class Hooked(Digits):
    """Images that only its hooks make right: a pair the wrong way round, in other units."""

    def targets(self, images, labels):
        return labels

    def on_before_batch_transfer(self, batch, dataloader_idx):
        assert self.trainer is not None
        images, labels = batch
        return {"inputs": images * 1000, "labels": labels}

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        return {name: each.to(device) for name, each in batch.items()}

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return batch["inputs"] / 1000, batch["labels"]


class Augmented(Dataset):
    """Draws from Python's, NumPy's and torch's generators."""

    def __init__(self, images, labels):
        self.images, self.labels = images, labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        noise = 0.05 * (random.random() + np.random.rand() + float(torch.rand(1)))
        return self.images[index] + noise, self.labels[index]


class Noisy(pytorch_lightning.LightningDataModule):
    def __init__(self, workers=0, persistent=False, generator=False):
        super().__init__()
        self.workers, self.persistent = workers, persistent
        self.generator = torch.Generator().manual_seed(0) if generator else None

    def setup(self, stage):
        images, labels = digits()
        self.train = Augmented(images[:400], labels[:400])
        self.rest = TensorDataset(images[400:], labels[400:])

    def train_dataloader(self):
        return DataLoader(
            self.train, batch_size=50, shuffle=True, num_workers=self.workers,
            persistent_workers=self.persistent, generator=self.generator,
        )  # fmt: skip

    def val_dataloader(self):
        return DataLoader(self.rest, batch_size=100)

    def test_dataloader(self):
        return DataLoader(self.rest, batch_size=100)


class Stream(IterableDataset):
    def __iter__(self):
        images, labels = digits()
        yield from zip(images[:300], labels[:300], strict=True)


class NoLength(Noisy):
    def train_dataloader(self):
        return DataLoader(Stream(), batch_size=50)


class Endless(Noisy):
    def train_dataloader(self):
        return DataLoader(Forever(), batch_size=50)


class Forever(IterableDataset):
    def __iter__(self):
        images, labels = digits()
        while True:
            yield from zip(images[:300], labels[:300], strict=True)


class Named(Digits):
    """Batches by name, as tokenizers make them."""

    def collate(self, pairs):
        return {"left": torch.stack([x[:, :4] for x, _ in pairs]), "right": torch.stack([x[:, 4:] for x, _ in pairs]),
                "labels": torch.stack([y for _, y in pairs])}  # fmt: skip

    def train_dataloader(self):
        return DataLoader(self.train, batch_size=50, shuffle=True, collate_fn=self.collate)

    def val_dataloader(self):
        return DataLoader(self.validation, batch_size=100, collate_fn=self.collate)

    def test_dataloader(self):
        return DataLoader(self.test, batch_size=100, collate_fn=self.collate)


class Output(dict):
    """What the networks of ``transformers`` give."""

    @property
    def logits(self):
        return self["logits"]


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right, self.output = nn.Linear(32, 16), nn.Linear(32, 16), nn.Linear(16, 10)

    def forward(self, left, right):
        return Output(logits=self.output((self.left(left.flatten(1)) + self.right(right.flatten(1))).relu()))


class Flat(nn.Module):
    def __init__(self, outputs=10):
        super().__init__()
        self.hidden, self.output = nn.Linear(64, 24), nn.Linear(24, outputs)

    def forward(self, images):
        return self.output(self.hidden(images.flatten(1)).relu())


class CountsExamples(Flat):
    """Counts the examples that it is trained on."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.tensor(0))

    def forward(self, images):
        self.seen += len(images) * self.training
        return super().forward(images)


class PerPixel(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 2, 1)

    def forward(self, images):
        return self.two(self.one(images).relu())


class Volume(nn.Module):
    """A view of what is not in channels-last order, and a 3-D convolution."""

    def __init__(self):
        super().__init__()
        self.flat, self.deep = nn.Conv2d(1, 4, 3, padding=1), nn.Conv3d(1, 2, (4, 3, 3), padding=(0, 1, 1))
        self.output = nn.Linear(128, 10)

    def forward(self, images):
        x = self.flat(images)
        x = x.view(len(x), 1, 4, 64).view(len(x), 1, 4, 8, 8)
        return self.output(self.deep(x).flatten(1).relu())
