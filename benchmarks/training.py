"""Images a second of masked retraining: here, by a bare PyTorch loop, and by Lightning's stock pruning callback; and of
a user's own module here and under a bare Trainer.

ResNet-20, batches of 128 images of 32x32, SGD with momentum. Each measurement trains for ``STEPS`` steps of an epoch,
of which the last ``TIMED`` count.
"""

import copy
import dataclasses
import logging
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as lightning
import torch
from pytorch_lightning.callbacks import ModelPruning
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.served import Served
from pipeline.data.dataset import Shard
from pipeline.data.memory import Images, InMemory
from pipeline.data.module import RoundData
from pipeline.networks.layers import prunable
from pipeline.pruning.masks import Masks, ones_like
from pipeline.pruning.prune import prune
from pipeline.rounds.building import build_job
from pipeline.rounds.job import Job
from pipeline.settings.build import build
from pipeline.settings.composition import composed
from pipeline.training.optimizer import make_optimizer
from pipeline.training.retraining import Span
from pipeline.training.speed import keep_freed_memory
from pipeline.training.state import State, UnderWay
from pipeline.training.tape import Tape, scheduled_tape
from pipeline.training.train import RoundPlan, Trainable, train_round

STEPS, TIMED = 25, 20
DENSITY = 0.1
Clock = Callable[[int], None]
"""Is told the number of steps done."""


def contestant(who: str, source: Path, precision: str) -> Served:
    """Measures images/s when it is called; ``ready`` says what ``auto`` has become."""
    return Served(who, [sys.executable, "-m", "benchmarks.training", who, str(source), precision])


def serve(who: str, source: Path, precision: str) -> None:
    """Says what ``auto`` has become, then measures once for every line that comes in."""
    answers, sys.stdout = sys.stdout, sys.stderr
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    overrides = ["+experiment=resnet20", f"data.source={source}", f"training.precision={precision}"]
    job, _ = build_job(build(composed(overrides)), runs=source)
    print(f"{job.training.precision}, compile {job.training.compile}", file=answers, flush=True)
    for _ in sys.stdin:
        print(CONTESTANTS[who](job), file=answers, flush=True)


def rate_of(train: Callable[[Clock], object]) -> float:
    """Images/s over the last ``TIMED`` steps that ``train`` makes."""
    moments: dict[int, float] = {}

    def clock(done: int) -> None:
        if done in (STEPS - TIMED, STEPS):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            moments[done] = time.perf_counter()

    train(clock)
    return TIMED * 128 / (moments[STEPS] - moments[STEPS - TIMED])


def pipeline_rate(job: Job) -> float:
    """A round as a job trains it: Lightning, the rewind-aware schedule, masks, metrics."""
    keep_freed_memory()
    masks = masks_of(job)
    span = dataclasses.replace(job.dense_span, last=1, total_steps=STEPS)
    assert isinstance(job.dataset, InMemory)
    few = Images(job.dataset.validation.pixels[:1], job.dataset.validation.labels[:1])
    dataset = dataclasses.replace(job.dataset, validation=few, _on={})
    trainable = dataclasses.replace(
        job.trainable, data=lambda key, span: RoundData(dataset, batch_size=128, steps=span.steps, key=key)
    )
    assert job.schedule is not None
    return round_rate(job, trainable, span, masks, job.schedule())


def masks_of(job: Job) -> Masks:
    """Of the initial weights all but the share ``DENSITY`` of the highest magnitudes."""
    weights = {name: job.initial(0)[name] for name in prunable(job.network)}
    return prune({n: w.abs() for n, w in weights.items()}, ones_like(weights), fraction=1 - DENSITY)


def round_rate(job: Job, trainable: Trainable, span: Span, masks: Masks, tape: Tape) -> float:
    """Images/s of a round from the job's initial weights, on a tape."""
    plan, start = RoundPlan(span, masks, 0, 1, tape), UnderWay(State(job.initial(0), {}))
    return rate_of(
        lambda clock: train_round(trainable, plan, start, first_epoch=0, on_epoch=lambda *_: None, on_batch=clock)
    )


def bare_rate(job: Job, compiled: bool) -> float:
    """The same batches, precision, memory layout and optimizer; no masks, no Lightning, no metrics."""
    keep_freed_memory()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = initial_network(job, torch.channels_last).to(device)
    if compiled:
        network.compile(dynamic=False)
    optimizer = make_optimizer(network, job.training.optimizer)
    lower = job.training.precision == "bfloat16"
    assert isinstance(job.dataset, InMemory)
    batches = job.dataset.training(128, STEPS, (0, 1, 0), Shard(device=device))

    def train(clock: Clock) -> None:
        for done, batch in enumerate(batches, start=1):
            optimizer.zero_grad()
            with torch.autocast(device.type, torch.bfloat16) if lower else nullcontext():
                loss = F.cross_entropy(network(batch.inputs).float(), batch.labels)
            loss.backward()
            optimizer.step()
            clock(done)

    return rate_of(train)


def initial_network(job: Job, memory_format: torch.memory_format) -> nn.Module:
    """A copy of the job's network as it begins."""
    network = copy.deepcopy(job.network).cpu()
    network.load_state_dict(job.initial(0))
    return network.to(memory_format=memory_format)  # type: ignore[call-overload, no-any-return]


class StockModule(lightning.LightningModule):
    """As Lightning's introduction writes one."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)  # type: ignore[no-any-return]

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        loss = F.cross_entropy(self(images), labels)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        self.log("val_loss", F.cross_entropy(self(images), labels))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9, weight_decay=2e-4)


def own_loaders(job: Job) -> list[torch.utils.data.DataLoader[Any]]:
    """DataLoaders as a user has them: images that are ready, to train on, and one to validate."""
    assert isinstance(job.dataset, InMemory)
    count = STEPS * 128
    images = job.dataset.train.pixels[:count].float() / 255
    pairs = torch.utils.data.TensorDataset(images, job.dataset.train.labels[:count])
    return [
        torch.utils.data.DataLoader(pairs, batch_size=128, shuffle=True),
        torch.utils.data.DataLoader(torch.utils.data.Subset(pairs, range(1))),
    ]


def own_rate(job: Job) -> float:
    """A user's module and DataLoaders, as the pipeline trains them in a round."""
    keep_freed_memory()
    own = ["model.module=benchmarks.training.StockModule", "objective.score=val_loss", "objective.better=lower"]
    chosen = build(composed([*own, "data.module=given", "training.precision=float32"]))
    theirs, _ = build_job(chosen, Path(), StockModule(initial_network(job, torch.contiguous_format)), own_loaders(job))
    assert isinstance(theirs.trainable.module, StockModule)
    groups = theirs.trainable.module.configure_optimizers().param_groups
    tape = scheduled_tape(lambda _: 0.01, groups[0]["lr"], [STEPS], groups)
    return round_rate(theirs, theirs.trainable, Span(0, 1, STEPS, STEPS), masks_of(theirs), tape)


def own_bare_rate(job: Job) -> float:
    """The same module and DataLoaders under a bare Lightning Trainer."""
    train, validation = own_loaders(job)
    return rate_of(
        lambda clock: lightning.Trainer(
            max_epochs=1,
            callbacks=[Ticking(clock, epoch=0)],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(StockModule(initial_network(job, torch.contiguous_format)), train, validation)
    )


class StockImages(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """As PyTorch's tutorials write one: an image at a time, cropped, mirrored and standardised when it is asked for."""

    def __init__(self, images: Images) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = F.pad(self.images.pixels[index], (4, 4, 4, 4))
        top, left = torch.randint(9, (2,)).tolist()
        image = image[:, top : top + 32, left : left + 32].float() / 255
        if torch.rand(()) < 0.5:
            image = image.flip(2)
        return (image - image.mean()) / image.std().clamp_min(0.018), self.images.labels[index]


class Ticking(lightning.Callback):
    """Tells the clock how many steps of an epoch are done."""

    def __init__(self, clock: Clock, epoch: int) -> None:
        self.clock, self.epoch = clock, epoch

    def on_train_batch_end(self, trainer: lightning.Trainer, module: object, *_: object) -> None:
        if trainer.current_epoch == self.epoch:
            self.clock(trainer.global_step - self.epoch * STEPS)


def stock_rate(job: Job, workers: int) -> float:
    """The callback prunes at the end of the first epoch; the second is measured."""
    assert isinstance(job.dataset, InMemory)
    images = StockImages(job.dataset.train)
    loader = torch.utils.data.DataLoader(images, batch_size=128, shuffle=True, num_workers=workers)
    network = initial_network(job, torch.contiguous_format)
    return rate_of(
        lambda clock: lightning.Trainer(
            max_epochs=2,
            limit_train_batches=STEPS,
            callbacks=[ModelPruning("l1_unstructured", amount=1 - DENSITY), Ticking(clock, epoch=1)],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(StockModule(network), loader)
    )


BARE = {compiled: f"bare PyTorch loop, {how}" for compiled, how in ((False, "eager"), (True, "compiled"))}
OWN, OWN_BARE = "a module of one's own, this pipeline", "the same, a bare Lightning Trainer"
CONTESTANTS: dict[str, Callable[[Job], float]] = {
    "this pipeline": pipeline_rate,
    **{name: partial(bare_rate, compiled=compiled) for compiled, name in BARE.items()},
    "Lightning's ModelPruning, DataLoader with 0 workers": partial(stock_rate, workers=0),
    "Lightning's ModelPruning, DataLoader with 2 workers": partial(stock_rate, workers=2),
    OWN: own_rate,
    OWN_BARE: own_bare_rate,
}

if __name__ == "__main__":
    serve(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
