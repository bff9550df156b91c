"""The core without the extras, really: a folder with the distributions that it asks for and no others."""

import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from pipeline.ground.errors import SettingsError
from pipeline.ground.extras import EXTRAS, missing, needed
from tests.conftest import PROJECT, SMALL

DECLARED = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]


def closure(requirements):
    """The distributions that requirements ask for, and what those ask for in turn, by name."""
    found, asked = {}, [Requirement(each) for each in requirements]
    while asked:
        one = asked.pop()
        key = re.sub(r"[-_.]+", "-", one.name).lower(), frozenset(one.extras)
        if key in found:
            continue
        found[key] = importlib.metadata.distribution(one.name)
        for other in map(Requirement, found[key].requires or ()):
            if other.marker is None or any(other.marker.evaluate({"extra": each}) for each in ("", *one.extras)):
                asked.append(other)
    return {name: each for (name, _), each in found.items()}


def test_what_an_extra_brings_is_declared():
    for extra, names in EXTRAS.items():
        assert {Requirement(each).name for each in DECLARED["optional-dependencies"][extra]} >= set(names)
        assert missing(extra) is None
        needed(extra, "data.source")


def test_a_missing_extra_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(EXTRAS, "hub", ("no_such_package", "numpy"))
    with pytest.raises(SettingsError) as error:
        needed("hub", "data.source=x")
    assert error.value.faults == ["data.source=x: takes no_such_package: pip install 'rewind-pipeline[hub]'"]


def test_the_core_has_nothing_of_the_extras():
    core = closure(DECLARED["dependencies"])
    extras = {Requirement(each).name for names in DECLARED["optional-dependencies"].values() for each in names}
    assert not extras & set(core)


@pytest.fixture(scope="module")
def core(tmp_path_factory):
    """A folder that has the core's distributions alone."""
    place = tmp_path_factory.mktemp("core")
    for each in closure(DECLARED["dependencies"]).values():
        for path in each.files:
            shared = not (Path(each.locate_file(path.parts[0])) / "__init__.py").exists()  # by several distributions
            name = Path(*path.parts[: 2 if shared else 1])
            if path.parts[0] != ".." and not (place / name).exists():
                (place / name).parent.mkdir(exist_ok=True)
                (place / name).symlink_to(each.locate_file(name))
    return place


@pytest.mark.slow
def test_the_core_alone_prunes_and_says_what_else_takes_more(core, tmp_path):
    def said(*arguments):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{core}:{PROJECT / 'src'}"}
        command = [
            sys.executable,
            "-S",
            "-m",
            "pipeline",
            *arguments,
            f"runs={tmp_path / 'runs'}",
            f"artifacts={tmp_path}",
        ]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout, done.stderr

    job = [*SMALL, "pruning.rounds=1", "deploy.sizes=true"]
    status, out, err = said(*job)
    assert (status, err) == (0, "")
    assert "bytes are not measured: deploy.sizes=true takes onnx, onnxruntime, onnxscript: pip install" in out
    assert len(list((tmp_path / "runs").glob("digits-*/seed-0/round-01/round.json"))) == 1
    for arguments, extra in (
        ([*job, "task=bundle"], "deploy"),
        ([*job, "task=compare"], "compare"),
        (["data=imagefolder", f"data.source={tmp_path}"], "hub"),
    ):
        status, out, err = said(*arguments)
        assert (status, out) == (2, ""), err
        assert re.fullmatch(rf"\S+: takes [\w, ]+: pip install 'rewind-pipeline\[{extra}\]'\n", err)
    for task in ("report", "plan", "sync"):
        status, out, err = said(*job, f"task={task}")
        assert (status, err) == (0, "")


def test_a_python_without_the_core_says_which_it_is():
    command = [sys.executable, "-S", "-m", "pipeline"]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT / "src")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert (
        done.stderr
        == f"{sys.executable} has no hydra: activate the environment that has it, here . .venv/bin/activate\n"
    )
