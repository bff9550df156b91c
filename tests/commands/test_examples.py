"""The shipped examples, cut short: by Python and by the command line the same numbers, and deaths that leave no trace."""

import ast
import random
import time

import pytest

from tests.commands.test_command_line import store
from tests.conftest import PROJECT
from tests.processes import forked, script
from tests.rounds.test_loop import content
from tests.tracking.test_tracker import everything

EXAMPLES = PROJECT / "examples"
SHORT = [
    "training.epochs=2", "trainer.limit_train_batches=4", "trainer.limit_val_batches=1", "trainer.limit_test_batches=1",
    "pruning.rounds=1", "pruning.target_density=null", "deploy.sizes=false",
]  # fmt: skip
BY_COMMAND = {
    "detection": ["model.module=detection.Detector", "data.module=detection.DigitsOnPhotos"],
    "segmentation": ["model=custom", "model.network=segmentation.UNet", "data.module=segmentation.Ink"],
    "time_series": ["model.module=time_series.Forecaster", "data.module=time_series.CarbonDioxide"],
    "transformer": ["model=custom", "model.network=transformer.Transformer", "data.module=transformer.DigitPatches"],
    "hugging_face": ["model=custom", "model.network=hugging_face.vit", "data.module=hugging_face.Digits"],
}


def settings_of(example):
    """The settings that an example's file holds."""
    lines = ast.parse((EXAMPLES / f"{example}.py").read_text()).body
    (value,) = (
        line.value for line in lines if isinstance(line, ast.Assign) and ast.unparse(line.targets) == "SETTINGS"
    )
    return ast.literal_eval(value)


def end(*arguments):
    """A command in the examples' folder to its end."""
    process = forked(*arguments, cwd=EXAMPLES)
    _, err = process.communicate(timeout=500)
    assert process.returncode == 0, err


def figures(runs):
    """Weights, masks and figures of every round in a folder."""
    records = {name.parent.name: record for name, record in content(runs).items() if name.name == "round.json"}
    return {
        name: (record["digests"], record["test"], record["history"], record["layers"])
        for name, record in records.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("example", BY_COMMAND)
def test_an_example_gives_the_same_by_python_and_by_the_command_line(example, tmp_path):
    short = [*SHORT, "seed=2"]
    _, err = script(EXAMPLES / f"{example}.py", *short, f"runs={tmp_path / 'python'}", cwd=tmp_path)
    assert "Warning" not in err
    end(*BY_COMMAND[example], *settings_of(example), *short, f"runs={tmp_path / 'command'}")
    assert figures(tmp_path / "python").keys() == {"round-00", "round-01"}
    assert figures(tmp_path / "python") == figures(tmp_path / "command")


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("example", ["detection", "time_series"])
def test_an_example_that_was_killed_and_continued_ends_as_if_nothing_had_been(example, tmp_path):
    kills = 3
    job = [*BY_COMMAND[example], *settings_of(example), *SHORT, "training.epochs=3", "name=digits"]
    whole, begin = tmp_path / "whole", time.perf_counter()
    end(*job, f"runs={whole}")
    length = time.perf_counter() - begin
    files, mirrored = content(whole), everything(store(whole))
    moments, unlike = random.Random(17), 0
    for number in range(kills):
        runs = tmp_path / f"killed-{number}"
        process = forked(*job, f"runs={runs}", cwd=EXAMPLES)
        process.wait(length * moments.uniform(number + 0.2, number + 1) / kills)
        process.kill()
        process.wait()
        unlike += content(runs) != files
        end(*job, f"runs={runs}")
        assert content(runs) == files
        assert everything(store(runs)) == mirrored
    assert unlike >= kills // 2, "most kills should fall before the end of the work"
