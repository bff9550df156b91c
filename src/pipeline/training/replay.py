"""The callbacks that record the tape in round 0, and replay it from round 1 on."""

from collections.abc import Callable
from typing import Any

import pytorch_lightning as lightning

from pipeline.ground.errors import PipelineError
from pipeline.training.tape import Recorder, Tape, set_numbers


class _EachStep(lightning.Callback):
    """Calls ``at_step`` for every optimizer step, when its gradients are there and before it uses its numbers."""

    epoch = 0

    def on_fit_start(self, trainer: Any, module: Any) -> None:
        self.taken, self.stepping = [0] * len(trainer.optimizers), set[int]()
        for index, optimizer in enumerate(trainer.optimizers):
            optimizer.register_step_pre_hook(self._before_step(index))
            optimizer.register_step_post_hook(lambda *_, index=index: self.stepping.discard(index))

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        self.epoch, self.taken = trainer.current_epoch, [0] * len(trainer.optimizers)

    def _before_step(self, index: int) -> Callable[..., Any]:
        def before(optimizer: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
            if index in self.stepping:  # a step within a step: that of the optimizer's parent class
                return None
            self.stepping.add(index)
            step = self.taken[index]
            self.taken[index] += 1
            closure = arguments[1] if len(arguments) > 1 else named.get("closure")
            if closure is None:
                self.at_step(index, step, optimizer.param_groups)
                return None

            def closed() -> Any:
                loss = closure()
                self.at_step(index, step, optimizer.param_groups)
                return loss

            self.before_closure(index, step, optimizer.param_groups)
            return (arguments[0], closed), {key: value for key, value in named.items() if key != "closure"}

        return before

    def before_closure(self, optimizer: int, step: int, groups: list[dict[str, Any]]) -> None:
        """Where the optimizer computes its gradients itself: before it does."""

    def at_step(self, optimizer: int, step: int, groups: list[dict[str, Any]]) -> None:
        raise NotImplementedError


class RewindAwareSchedule(_EachStep):
    """Replays the tape: every step uses the numbers of its position in round 0, wherever the round began."""

    def __init__(self, tape: Tape) -> None:
        self.tape = tape

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        for index, optimizer in enumerate(trainer.optimizers):
            self.at_step(index, self.taken[index], optimizer.param_groups)

    def before_closure(self, optimizer: int, step: int, groups: list[dict[str, Any]]) -> None:
        self.at_step(optimizer, step, groups)

    def at_step(self, optimizer: int, step: int, groups: list[dict[str, Any]]) -> None:
        set_numbers(groups, self.tape.at(optimizer, self.epoch, step))

    def on_fit_start(self, trainer: Any, module: Any) -> None:
        super().on_fit_start(trainer, module)
        if len(trainer.optimizers) != self.tape.optimizers:
            raise PipelineError(
                f"the module has {len(trainer.optimizers)} optimizers, round 0 had {self.tape.optimizers}"
            )


class Recording(_EachStep):
    """Records the tape, behind what is on it already."""

    def __init__(self, so_far: Tape | None) -> None:
        self.recorder = Recorder(so_far)

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        super().on_train_epoch_start(trainer, module)
        self.recorder.epoch(len(trainer.optimizers), trainer.global_step)

    def at_step(self, optimizer: int, step: int, groups: list[dict[str, Any]]) -> None:
        self.recorder.step(optimizer, groups)
