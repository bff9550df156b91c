"""Make neural networks small: iterative magnitude pruning with learning-rate rewinding, every round tracked.

from pipeline import prune_by_rewinding
done = prune_by_rewinding(MyNetwork, data_module, "training.epochs=10", "pruning.rounds=5")
"""

import os
from typing import TYPE_CHECKING, Any

from pipeline.ground.environment import name_the_user
from pipeline.ground.loading import loading

if TYPE_CHECKING:
    from pipeline.commands.python_call import prune_by_rewinding

__all__ = ["prune_by_rewinding"]
name_the_user()
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # else each process speaks of layers that no step skips


def __getattr__(name: str) -> Any:
    """Loads what the package offers when it is asked for, so that the command line starts without it."""
    if name == "prune_by_rewinding":
        with loading():
            from pipeline.commands.python_call import prune_by_rewinding

        return prune_by_rewinding
    raise AttributeError(f"module 'pipeline' has no attribute {name!r}")
