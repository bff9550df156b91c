"""What MLflow shows of where a run comes from: its kind, description, maker, command and data."""

import sys

import pytest
from mlflow import MlflowClient

from pipeline.tracking.origin import origin
from tests.conftest import SMALL, typed
from tests.tracking.test_tracker import runs


def test_a_run_says_what_it_is_who_made_it_how_and_of_which_data(tmp_path):
    assert typed(*SMALL, "seed=1", "pruning.rounds=1", f"runs={tmp_path}") == 0
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("digits")
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    assert experiment.tags["mlflow.note.content"]
    (parent,) = runs(client, "job")
    tags = parent.data.tags
    assert {tags["mlflow.source.type"], tags["mlflow.source.name"]} == {"LOCAL", "python -m pipeline"}
    assert tags["mlflow.user"]
    assert tags["command"] == " ".join(["python -m pipeline", *SMALL, "seed=1", "pruning.rounds=1"])
    note = tags["mlflow.note.content"]
    assert tags["command"] in note
    rows = [line.split("|")[1].strip() for line in note.splitlines() if line.startswith("|")]
    assert rows[0] == "round"
    assert rows[2:] == ["0", "1"]
    (data,) = parent.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("digits", tags["data_digest"][:32])


@pytest.mark.slow
def test_the_first_command_stays_that_of_the_run(tmp_path):
    for more in ([], ["pruning.rounds=3"], ["task=sync"]):
        assert typed(*SMALL, "pruning.rounds=1", *more, f"runs={tmp_path}") == 0
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow' / 'mlflow.db'}")
    (parent,) = runs(client, "job")
    assert parent.data.tags["command"].endswith("pruning.rounds=1")
    assert len(parent.inputs.dataset_inputs) == 1
    assert "\n| 3 " in parent.data.tags["mlflow.note.content"]


@pytest.mark.parametrize("program", ["rewind", "/somewhere/pipeline/__main__.py"])
def test_a_command_holds_no_password_and_no_place(program, monkeypatch):
    monkeypatch.setattr(
        sys,
        "argv",
        [
            program,
            "++seed=1",
            "++runs=/tmp/a b",
            "tracking.uri=http://me:hush@host",
            "task=sync",
            "hydra.sweep.dir=/tmp/a",
        ],
    )
    assert origin()["command"] == "python -m pipeline seed=1 'tracking.uri=http://me:***@host'"


def test_another_program_is_named_as_it_is(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--password=hush"])
    assert "command" not in origin()
