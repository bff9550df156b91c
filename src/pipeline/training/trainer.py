"""A fresh Lightning ``Trainer`` for every training: of the package that the module comes from, by the settings."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from pipeline.ground.errors import SettingsError, one_line, where
from pipeline.ground.packages import package_of, quiet
from pipeline.settings.groups import Training

Factory = Callable[..., Any]
"""Makes a Trainer of the keywords that the pipeline needs, as ``lambda **needed: Trainer(**needed, logger=mine)``."""


@dataclass(frozen=True)
class TrainerSettings:
    """How trainings are run: ``training`` and ``arguments`` from the settings, or a ``factory`` of the user's.

    ``deterministic`` is the pipeline's own choice, which a network that cannot has taken back. ``distributed_sampler``
    says whether Lightning deals batches out to processes, ``logger`` whether there is one, which keeps nothing, for
    callbacks and modules that ask for it. ``may_skip_layers`` is true of a network whose steps need not use all layers.
    """

    training: Training
    arguments: Mapping[str, Any] = field(default_factory=dict)
    factory: Factory | None = None
    deterministic: bool | Literal["warn"] = True
    distributed_sampler: bool = False
    reload_every_epoch: bool = True
    logger: bool = False
    may_skip_layers: bool = False


def make_trainer(module: nn.Module, settings: TrainerSettings, callbacks: Sequence[Any], epochs: int) -> Any:
    """A Trainer for one training to the end of epoch ``epochs``, or for one evaluation.

    Raises:
        SettingsError: if Lightning does not take the arguments, or the user's factory returns something else.
    """
    training, package = settings.training, package_of(module)
    quiet()
    # of no use to results, and up to a tenth of the time
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    strategy = "ddp_find_unused_parameters_true" if settings.may_skip_layers else "ddp"
    needed: dict[str, Any] = {
        "accelerator": "auto",
        "devices": training.devices,
        "num_nodes": training.nodes,
        "strategy": strategy if training.devices * training.nodes > 1 else "auto",
        "precision": "bf16-mixed" if training.precision == "bfloat16" else "32-true",
        "max_epochs": epochs,
        "callbacks": [*callbacks],
        "deterministic": settings.deterministic,
        "reload_dataloaders_every_n_epochs": int(settings.reload_every_epoch),
        "use_distributed_sampler": settings.distributed_sampler,
        "num_sanity_val_steps": 0,
        "inference_mode": False,  # metrics that outlive an evaluation are updated in training too
        "logger": package.loggers.logger.DummyLogger() if settings.logger else False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    if settings.factory is None:
        try:
            return package.Trainer(**{**needed, **settings.arguments})
        except (TypeError, ValueError, package.utilities.exceptions.MisconfigurationException) as error:
            raise SettingsError([f"trainer: got {dict(settings.arguments)}, but {one_line(error)}"]) from error
    try:
        trainer = settings.factory(**{**needed, **settings.arguments})
    except Exception as error:
        raise SettingsError([f"trainer: the function given fails{where(error)}: {one_line(error)}"]) from error
    if not isinstance(trainer, package.Trainer):
        raise SettingsError([f"trainer: got {trainer!r}, takes a function that returns a {package.__name__}.Trainer"])
    if missing := [each for each in callbacks if each not in trainer.callbacks]:
        raise SettingsError(
            [f"trainer: the Trainer lacks {type(missing[0]).__name__}; takes one made with the keywords given to it"]
        )
    fixed = {name: needed[name] for name in ("max_epochs", "reload_dataloaders_every_n_epochs")}
    fixed |= {"check_val_every_n_epoch": 1, "val_check_interval": 1.0}
    if other := [name for name, value in fixed.items() if getattr(trainer, name) != value]:
        raise SettingsError(
            [f"trainer: the Trainer has another {', '.join(other)}; takes those given to it: batches belong to their "
             "epoch, and a round is judged at the end of its last"]
        )  # fmt: skip
    return trainer
