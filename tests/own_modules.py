"""LightningModules as people write them, for tests that hand them to the pipeline by dotted path."""

import lightning
import pytorch_lightning
import torch
from torch import nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy

from pipeline.networks.small_cnn import small_cnn
from pipeline.settings.groups import StepDecay
from pipeline.training.schedule import scheduled

BATCHES, EPOCHS = 19, 3
"""Of the digits at 64 images a batch."""


class Lit(pytorch_lightning.LightningModule):
    """What the shipped classifier does, written as one's own."""

    def __init__(self, width=4, epochs=EPOCHS):
        super().__init__()
        self.save_hyperparameters()
        self.network = small_cnn((1, 8, 8), 10, width=width)
        self.accuracy = MulticlassAccuracy(10, average="micro")
        self.test_accuracy = MulticlassAccuracy(10, average="micro")

    def forward(self, images):
        return self.network(images)

    def training_step(self, batch, _):
        images, labels = batch
        loss = F.cross_entropy(self(images), labels)
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch, _):
        images, labels = batch
        self.accuracy(self(images), labels)
        self.log("val_accuracy", self.accuracy)

    def test_step(self, batch, _):
        images, labels = batch
        self.test_accuracy(self(images), labels)
        self.log("test_accuracy", self.test_accuracy)

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, fused=True)
        total = self.hparams.epochs * BATCHES
        rate = scheduled(StepDecay("step", (0.5, 0.75), 0.1, 0.0), 1.0, total)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(min(step, total - 1)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Plain(lightning.LightningModule):
    """The same in the other package, with whatever optimizer and schedulers a subclass has."""

    def __init__(self, width=4):
        super().__init__()
        self.network = small_cnn((1, 8, 8), 10, width=width)
        self.seen = []

    def forward(self, images):
        return self.network(images)

    def training_step(self, batch, _):
        images, labels = batch
        loss = F.cross_entropy(self(images), labels)
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch, _):
        images, labels = batch
        scores = self(images)
        self.log("val_loss", F.cross_entropy(scores, labels))
        self.log("val/accuracy", (scores.argmax(1) == labels).float().mean())

    def test_step(self, batch, _):
        images, labels = batch
        self.log("test/accuracy", (self(images).argmax(1) == labels).float().mean())

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


class CycledMomentum(Plain):
    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        total = self.trainer.estimated_stepping_batches
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=total)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class OnPlateau(Plain):
    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0, threshold=0.9)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val_loss"}}


class TwoByHand(Plain):
    """Manual optimisation, two optimizers, a schedule of steps and one of epochs."""

    def __init__(self, width=4):
        super().__init__(width)
        self.automatic_optimization = False

    def training_step(self, batch, _):
        loss = super().training_step(batch, _)
        body, head = self.optimizers()
        body.zero_grad()
        head.zero_grad()
        self.manual_backward(loss)
        self.clip_gradients(body, gradient_clip_val=1.0)
        body.step()
        head.step()
        first, second = self.lr_schedulers()
        first.step()
        if self.trainer.is_last_batch:
            second.step()

    def configure_optimizers(self):
        head = list(self.network.output.parameters())
        body = [p for p in self.network.parameters() if all(p is not each for each in head)]
        optimizers = [torch.optim.SGD(body, lr=0.05, momentum=0.9), torch.optim.AdamW(head, lr=1e-2)]
        schedulers = [
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizers[0], T_max=100),
            torch.optim.lr_scheduler.ExponentialLR(optimizers[1], 0.5),
        ]
        return optimizers, schedulers


class Averaged(Plain):
    """Ends with the running average of its weights."""

    def configure_callbacks(self):
        from lightning.pytorch.callbacks import EMAWeightAveraging

        return [EMAWeightAveraging(decay=0.9)]


class Oddly(Plain):
    """Has names for its figures that MLflow does not take, arguments or not."""

    def __init__(self, width=4):
        super().__init__(width)

    def validation_step(self, batch, _):
        images, labels = batch
        self.log("val/acc@1 (%)", 100 * (self(images).argmax(1) == labels).float().mean())
        self.log("//val", 0.0)

    def test_step(self, batch, _):
        images, labels = batch
        self.log("test/acc@1 (%)", 100 * (self(images).argmax(1) == labels).float().mean())


class StopsEarly(Plain):
    def configure_callbacks(self):
        return [lightning.pytorch.callbacks.EarlyStopping("val_loss")]


class Restless(torch.optim.SGD):
    """An optimizer whose step is not zero for a gradient of zero."""

    def step(self, closure=None):
        loss = super().step(closure)
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.add_(1e-3)
        return loss


class AnyOptimizer(Plain):
    def __init__(self, kind="SGD", width=4):
        super().__init__(width)
        self.kind = kind

    def configure_optimizers(self):
        kinds = {
            "SGD": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-2),
            "AdamW": lambda p: torch.optim.AdamW(p, lr=3e-3, weight_decay=0.1),
            "Adafactor": lambda p: torch.optim.Adafactor(p, lr=1e-2),
            "RMSprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.9),
            "Restless": lambda p: Restless(p, lr=0.05),
            "Muon": lambda p: torch.optim.Muon([each for each in p if each.ndim == 2], lr=0.05),
        }
        return kinds[self.kind](self.parameters())


class LongAndFrozen(nn.Module):
    """A network with a frozen first layer, a tied pair, a recurrent layer, and a submodule in evaluation."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv1d(8, 8, 3, padding=1)
        self.first.requires_grad_(False)
        self.norm = nn.BatchNorm1d(8)
        self.norm.eval()
        self.lstm = nn.LSTM(8, 12, batch_first=True, bidirectional=True)
        self.one, self.two = nn.Linear(24, 24), nn.Linear(24, 24)
        self.two.weight = self.one.weight
        self.output = nn.Linear(24, 10)

    @classmethod
    def built(cls):
        return cls()

    def forward(self, images):
        x, _ = self.lstm(self.norm(self.first(images.squeeze(1))).transpose(1, 2))
        return self.output(self.two(self.one(x.mean(1)).relu()))


class Nested:
    class Inner(LongAndFrozen):
        pass


def factory():
    return LongAndFrozen()


class LitAutoEncoder(lightning.LightningModule):
    """The autoencoder of Lightning's introduction, for digits, with the validation and test that it goes on to."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))
        self.decoder = nn.Sequential(nn.Linear(3, 64), nn.ReLU(), nn.Linear(64, 64))

    def training_step(self, batch, batch_idx):
        loss = self.reconstruction(batch)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.reconstruction(batch))

    def test_step(self, batch, batch_idx):
        self.log("test_loss", self.reconstruction(batch))

    def reconstruction(self, batch):
        x, _ = batch
        x = x.view(x.size(0), -1)
        return F.mse_loss(self.decoder(self.encoder(x)), x)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


class BuiltLate(Plain):
    """Has no layers before ``configure_model``."""

    def __init__(self):
        super().__init__()
        self.network = None

    def configure_model(self):
        if self.network is None:
            self.network = small_cnn((1, 8, 8), 10, width=4)


class Forgetful(Plain):
    """Draws its evaluation at random."""

    def validation_step(self, batch, _):
        images, labels = batch
        self.log("val/accuracy", (self(F.dropout(images, 0.5)).argmax(1) == labels).float().mean())


class GradientsByHand(Plain):
    """Sets gradients without a backward pass, so that no hook of a gradient is called."""

    def __init__(self, width=4):
        super().__init__(width)
        self.automatic_optimization = False

    def training_step(self, batch, _):
        loss = super().training_step(batch, _)
        parameters = list(self.parameters())
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = gradient
        self.optimizers().step()


class NoisyGradients(Plain):
    def on_before_optimizer_step(self, optimizer):
        for parameter in self.parameters():
            parameter.grad.add_(0.01)


class NoisyWeights(Plain):
    def on_train_batch_end(self, outputs, batch, batch_idx):
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.add_(0.001)


class DrawsAnew(Plain):
    def on_train_epoch_end(self):
        self.network.output.reset_parameters()


class Remembers(Plain):
    """Has a buffer that no state dict holds, frozen weights that it frees, and a list of its own, which it saves."""

    def __init__(self, width=4):
        super().__init__(width)
        self.register_buffer("average", torch.zeros(()), persistent=False)
        self.network.output.bias.requires_grad_(False)
        self.losses = []

    def on_train_epoch_start(self):
        if self.current_epoch == 1:
            self.network.output.bias.requires_grad_(True)

    def training_step(self, batch, _):
        loss = super().training_step(batch, _)
        self.average.mul_(0.9).add_(loss.detach(), alpha=0.1)
        self.losses.append(float(loss.detach()))
        return loss * (1 + 0.1 * self.average) * (1 + 0.001 * len(self.losses))

    def on_save_checkpoint(self, checkpoint):
        checkpoint["losses"] = self.losses

    def on_load_checkpoint(self, checkpoint):
        self.losses = checkpoint["losses"]


class Counts(Plain):
    """Changes an attribute that nothing keeps."""

    def __init__(self, width=4):
        super().__init__(width)
        self.steps = 0

    def training_step(self, batch, _):
        self.steps += 1
        return super().training_step(batch, _) * (1 + 0.01 * self.steps)


class CompilesAPart(Plain):
    def __init__(self, width=4):
        super().__init__(width)
        self.network = torch.compile(self.network, backend="eager")


class Watched(Plain):
    """Has callbacks and code that want a logger."""

    def configure_callbacks(self):
        return [lightning.pytorch.callbacks.LearningRateMonitor()]

    def on_train_epoch_end(self):
        self.logger.experiment.add_scalar("x", 1.0)


class Averages(Plain):
    def configure_callbacks(self):
        return [lightning.pytorch.callbacks.StochasticWeightAveraging(swa_lrs=0.01)]


class Thaws(Plain):
    def configure_callbacks(self):
        class Unfreeze(lightning.pytorch.callbacks.BaseFinetuning):
            def freeze_before_training(self, module):
                self.freeze(module.network.output)

            def finetune_function(self, module, epoch, optimizer):
                if epoch == 1:
                    self.unfreeze_and_add_param_group(module.network.output, optimizer)

        return [Unfreeze()]


class PrunesItself(Plain):
    def configure_callbacks(self):
        return [lightning.pytorch.callbacks.ModelPruning("l1_unstructured", amount=0.5)]


class SecondOrder(Plain):
    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters())


class LogsOnce(Plain):
    def validation_step(self, batch, _):
        if self.current_epoch == 0:
            super().validation_step(batch, _)


class EndsInNan(Plain):
    def training_step(self, batch, _):
        loss = super().training_step(batch, _)
        return loss * float("nan") if self.current_epoch == 2 else loss


class Lazy(Plain):
    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(nn.Flatten(), nn.LazyLinear(10))


class LoadsInSetup(Plain):
    """Takes its weights from elsewhere when it is set up, as from a file."""

    def setup(self, stage=None):
        torch.manual_seed(7)
        self.network.load_state_dict(small_cnn((1, 8, 8), 10, width=4).state_dict())

    def test_step(self, batch, _):
        images, labels = batch
        self.log("test/accuracy", (self(images).argmax(1) == labels).float().mean())


class ReplacesInSetup(Plain):
    def setup(self, stage=None):
        self.network.output = torch.nn.Linear(self.network.output.in_features, 10)


class AddsInSetup(Plain):
    def setup(self, stage=None):
        self.network.register_buffer("mean", torch.zeros(3))


class ReplacesInConfigure(Plain):
    def configure_model(self):
        self.network = small_cnn((1, 8, 8), 10, width=4)


class CompilesLate(Plain):
    def on_fit_start(self):
        self.network = torch.compile(self.network, backend="eager")


class ReplacesLater(Plain):
    def on_train_epoch_start(self):
        if self.current_epoch == 1:
            self.network.output.weight = torch.nn.Parameter(self.network.output.weight.detach().clone())


class ShakesAtTheStart(Plain):
    def on_train_start(self):
        with torch.no_grad():
            self.network.output.weight.mul_(0.5)


class TestsByAnotherName(Plain):
    def test_step(self, batch, _):
        images, labels = batch
        self.log("final/hits", (self(images).argmax(1) == labels).float().mean())


class InfiniteGradients(Plain):
    """Gives weights that are zero a gradient of its choice."""

    def __init__(self, of_the_dead="0"):
        super().__init__()
        self.of_the_dead = float(of_the_dead)

    def on_fit_start(self):
        for weight in self.network.parameters():
            if weight.ndim > 1:
                weight.register_hook(lambda gradient, at=weight: torch.where(at == 0, self.of_the_dead, gradient))
