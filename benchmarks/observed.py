"""The command line with a watch on it: when its first step came, and how long it evaluated on test images.

python -m benchmarks.observed FILE ARGUMENTS...      runs ``python -m pipeline ARGUMENTS``, writes FILE as JSON
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from pipeline.ground.loading import loading


def main(file: Path) -> None:
    with loading():  # as the command does
        from torch.optim.optimizer import register_optimizer_step_pre_hook

        from pipeline.__main__ import main as command
        from pipeline.rounds import loop as rounds

    seen: dict[str, float] = {"evaluation": 0.0}
    evaluate = vars(rounds)["evaluate"]

    def first_step(*_: Any) -> None:
        seen["first_step"] = time.time()
        hook.remove()

    hook = register_optimizer_step_pre_hook(first_step)

    def timed(*arguments: Any, **named: Any) -> Any:
        begin = time.perf_counter()
        try:
            return evaluate(*arguments, **named)
        finally:
            seen["evaluation"] += time.perf_counter() - begin

    vars(rounds)["evaluate"] = timed
    command()
    file.write_text(json.dumps(seen))


if __name__ == "__main__":
    sys.argv, target = ["pipeline", *sys.argv[2:]], Path(sys.argv[1])
    main(target)
