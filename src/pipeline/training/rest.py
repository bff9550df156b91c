"""What a module and its Trainer remember beside weights and optimizers: kept as bytes, and given back."""

import io
from typing import Any

import torch

from pipeline.ground.errors import PipelineError, one_line
from pipeline.training.state import make_room, unkept
from pipeline.training.tape import numbers_of, set_numbers


def captured(trainer: Any, *, all_of_it: bool) -> bytes:
    """What the data module remembers, and (``all_of_it``) parameter groups, schedulers, callbacks, hooks and precision,
    beside weights and optimizers; nothing where that is nothing."""
    data = trainer.datamodule.state_dict()
    if not all_of_it:
        return _written({"data": data}) if data else b""
    module, hooks = trainer.lightning_module, {"state_dict": trainer.lightning_module.state_dict()}
    theirs = [each for each in trainer.callbacks if not type(each).__module__.startswith("pipeline.")]
    for callback in theirs:
        callback.on_save_checkpoint(trainer, module, hooks)
    module.on_save_checkpoint(hooks)
    kept = {
        "groups": [numbers_of(optimizer.param_groups) for optimizer in trainer.optimizers],
        "schedulers": [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs],
        "callbacks": {each.state_key: each.state_dict() for each in theirs},
        "precision": trainer.precision_plugin.state_dict(),
        "data": data,
        "buffers": unkept(module),
        "trained": [name for name, each in module.named_parameters() if each.requires_grad],
        "hooks": hooks,
    }
    return _written(kept)


def _written(kept: Any) -> bytes:
    written = io.BytesIO()
    torch.save(kept, written)
    return written.getvalue()


def _read(rest: bytes, device: torch.device) -> Any:
    return torch.load(io.BytesIO(rest), map_location=device, weights_only=True)


TOO_MUCH = "the data, a scheduler, callback or hook keeps more than tensors, numbers and text"


def too_much(rest: bytes) -> str | None:
    """Why a round could not go on from this; None where it could."""
    try:
        if rest:
            _read(rest, torch.device("cpu"))
    except Exception as error:
        return f"{TOO_MUCH} ({one_line(error)})"
    return None


def give_back(trainer: Any, module: Any, rest: bytes) -> None:
    """Gives data, schedulers, callbacks, hooks and precision what ``captured`` has kept.

    Raises:
        PipelineError: if a part of it is more than numbers, tensors and text.
    """
    try:
        kept = _read(rest, module.device)
    except Exception as error:
        raise PipelineError(
            f"{TOO_MUCH} ({one_line(error)}): this round cannot go on from its last epoch; delete its "
            "partial.safetensors to train it from its start"
        ) from error
    trainer.datamodule.load_state_dict(kept["data"])
    if "hooks" not in kept:
        return
    for optimizer, numbers in zip(trainer.optimizers, kept["groups"], strict=True):
        set_numbers(optimizer.param_groups, numbers)
    for config, state in zip(trainer.lr_scheduler_configs, kept["schedulers"], strict=True):
        config.scheduler.load_state_dict(state)
    hooks = kept["hooks"]
    for callback in trainer.callbacks:
        if callback.state_key in kept["callbacks"]:
            callback.on_load_checkpoint(trainer, module, hooks)
            callback.load_state_dict(kept["callbacks"][callback.state_key])
    module.on_load_checkpoint(hooks)
    make_room(module, kept["buffers"])
    for name, buffer in unkept(module).items():
        if name in kept["buffers"]:
            buffer.copy_(kept["buffers"][name])
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in kept["trained"])
    trainer.precision_plugin.load_state_dict(kept["precision"])
