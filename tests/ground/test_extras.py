"""The core without the extras, really: a folder with the distributions that it asks for and no others."""

import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from mlflow import MlflowClient
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
        assert {name.lower() for name in closure(DECLARED["optional-dependencies"][extra])} >= set(names)
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


def command_with(place, requirements, cwd):
    """``python -m pipeline`` with the distributions alone that requirements ask for, which come to lie in a folder."""
    for each in closure(requirements).values():
        for path in each.files:
            shared = not (Path(each.locate_file(path.parts[0])) / "__init__.py").exists()  # by several distributions
            name = Path(*path.parts[: 2 if shared else 1])
            if path.parts[0] != ".." and not (place / name).exists():
                (place / name).parent.mkdir(exist_ok=True)
                (place / name).symlink_to(each.locate_file(name))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{place}:{PROJECT / 'src'}"}

    def said(*arguments):
        command = [sys.executable, "-S", "-m", "pipeline", *arguments, f"runs={cwd / 'runs'}", f"artifacts={cwd}"]
        done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout, done.stderr

    return said


@pytest.mark.slow
def test_the_core_alone_prunes_and_says_what_else_takes_more(tmp_path_factory, tmp_path):
    said = command_with(tmp_path_factory.mktemp("core"), DECLARED["dependencies"], tmp_path)
    job = [*SMALL, "pruning.rounds=1", "deploy.sizes=true"]
    status, out, err = said(*job)
    assert (status, err) == (0, "")
    assert "bytes are not measured: deploy.sizes=true takes onnx, onnxruntime, onnxscript, pandas: " in out
    assert "pip install 'rewind-pipeline[deploy]'\n" in out
    assert "runs/mlflow/mlflow.db: pip install 'rewind-pipeline[ui]' has the program that shows it" in out
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


@pytest.mark.slow
def test_the_core_with_deploy_makes_and_registers_a_bundle(tmp_path_factory, tmp_path):
    requirements = [*DECLARED["dependencies"], *DECLARED["optional-dependencies"]["deploy"]]
    said = command_with(tmp_path_factory.mktemp("deploy"), requirements, tmp_path)
    job = [*SMALL, "pruning.rounds=1", "deploy.max_score_drop=0.9", "deploy.kernels=[]"]
    for task in ("run", "bundle"):
        status, out, err = said(*job, f"task={task}")
        assert status == 0, out + err
    client = MlflowClient(f"sqlite:///{tmp_path / 'runs' / 'mlflow' / 'mlflow.db'}")
    assert len(client.search_model_versions("name = 'digits'")) == 1


def test_a_python_without_the_core_says_which_it_is():
    command = [sys.executable, "-S", "-m", "pipeline"]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT / "src")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert (
        done.stderr
        == f"{sys.executable} has no hydra: activate the environment that has it, here . .venv/bin/activate\n"
    )
