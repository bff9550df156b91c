"""Settings that take text keep what was typed, whatever YAML or Hydra would make of it."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline.commands.sweep import planned
from pipeline.ground.errors import SettingsError
from pipeline.settings.build import build
from pipeline.settings.composition import composed, quoted, takes_text, understood
from tests.conftest import SMALL, settings, typed

TYPED = [
    "007", "1e3", "0x10", "yes", "on", "off", "true", "False", "2026-11-27", "1_000", "12:30:45", "nan", "-inf", "1.50",
    "+1", "-0", ".5", "0o17", "None", "a&b", "a;b", "a b", "Größe", "😀", "x=y", "a@b", "100%", "it's", 'say "so"', "a?b",
    "(1)", "$HOME", "~", "a\\b", 'a\\"b', "end\\", "!x", "#1", "a#1",
]  # fmt: skip
TEXTS = ["name", "runs", "record", "artifacts", "data.source", "tracking.uri", "compare.where", "deploy.host",
         "model.network", "pruning.policy", "objective.score"]  # fmt: skip


def at(mapping, setting):
    for key in setting.split("."):
        mapping = mapping[key]
    return mapping


@pytest.mark.parametrize(
    "typed", [pytest.param(each, marks=() if n % 3 == 0 else pytest.mark.slow) for n, each in enumerate(TYPED)]
)
def test_text_is_what_was_typed(typed):
    got = composed([f"{setting}={typed}" for setting in TEXTS])
    assert {at(got, setting) for setting in TEXTS} == {typed}
    assert at(composed([f"++name={typed}"]), "name") == typed
    assert at(composed([f"name={quoted(typed)}"]), "name") == typed


@pytest.mark.parametrize(
    ("typed", "found"),
    [("[0,2]", ["0", "2"]), ("[0]", ["0"]), ("[features.0,output]", ["features.0", "output"]), ("['1,2',3]", ["1,2", "3"]),
     ("[]", []), ("[1e1, 007]", ["1e1", "007"])],
)  # fmt: skip
def test_so_is_text_in_a_list(typed, found):
    assert at(composed([f"pruning.exclude={typed}"]), "pruning.exclude") == found


def test_null_stays_null_and_numbers_stay_numbers():
    got = composed(["tracking.uri=null", "seed=7", "pruning.fraction=0.5", "training.epochs=1_0", "deploy.sizes=false"])
    found = [at(got, key) for key in ("tracking.uri", "seed", "pruning.fraction", "training.epochs", "deploy.sizes")]
    assert found == [None, 7, 0.5, 10, False]


def test_each_job_of_a_sweep_has_the_name_that_was_typed():
    jobs = planned(understood([*SMALL, "name=1e3,2_0,007,on", "seed=1"])).settings
    assert [each.name for each in jobs] == ["1e3", "2_0", "007", "on"]


def test_layers_called_by_a_number_are_found_by_it():
    assert settings("pruning.shares={0: 0.5, output: 1.0}").pruning.shares == {"0": 0.5, "output": 1.0}


@pytest.mark.parametrize("got", [7, 1000.0, True, 0, -1])
def test_a_number_in_a_file_is_shown_as_it_was_read(got):
    with pytest.raises(SettingsError, match=r"^name: got .*, takes text, as a number in quotes is$"):
        build({**composed([]), "name": got})


@pytest.mark.parametrize(
    "name",
    ["a/b", "50%", "O'Brien", "two\nlines", "x" * 201, "😀" * 51, "..", ".hidden", " x", "", "Default", "a\\b", "a:b"],
)
def test_a_name_that_is_none_of_a_folder_and_a_model_is_refused(name):
    with pytest.raises(SettingsError, match=r"^name: got "):
        build({**composed([]), "name": name})


def test_which_settings_take_text():
    assert all(map(takes_text, [*TEXTS, "pruning.exclude", "objective.loss", "data.module"]))
    assert not any(map(takes_text, ["seed", "training.epochs", "model.arguments.width", "training", "no.such", "task"]))


@pytest.mark.parametrize("experiment", ["resnet20", "cifar10_methods", "digits"])
@pytest.mark.parametrize(
    ("method", "held"),
    [
        ("one_shot", {"fraction": None, "rounds": 1, "schedule": "at_once"}),
        ("gradual", {"fraction": None, "rounds": 1, "schedule": "cubic"}),
        ("dense_control", {"fraction": 0}),
    ],
)
def test_a_method_is_that_method_in_every_experiment_whichever_is_typed_first(experiment, method, held):
    typed = [f"+experiment={experiment}", f"+method={method}"]
    for arguments in (typed, typed[::-1]):
        assert held.items() <= composed(arguments)["pruning"].items()


def test_a_row_of_settings_needs_no_plus():
    assert composed(["experiment=resnet20", "method=gradual"]) == composed(["+experiment=resnet20", "+method=gradual"])


@pytest.mark.parametrize("sweep", [[], ["-m"]])
def test_an_option_that_a_group_does_not_have_hides_no_other_fault(sweep, capsys):
    assert typed(*sweep, "retraining=rewind", "training/optimizer=sdg", "seed=-1", "trainig.epochs=3") == 2
    told = capsys.readouterr().err.splitlines()
    assert [line.split(" Available")[0] for line in told] == [
        "command line: In 'config': Could not find 'retraining/rewind'",
        "command line: In 'training/digits': Could not find 'training/optimizer/sdg'",
        "trainig: unknown setting; did you mean training?",
        "seed: got -1, takes a whole number from 0",
    ]


def test_the_settings_of_a_sweeps_jobs_can_be_looked_at(capsys):
    assert typed("-m", "--cfg", "job", "seed=0,1", "method=lr_rewinding") == 0
    found = list(yaml.safe_load_all(capsys.readouterr().out))
    assert [each["seed"] for each in found] == [0, 1]
    assert found[0] == composed(["seed=0", "method=lr_rewinding"])


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("retr", "retraining="),
        ("retraining=lr", "retraining=lr_rewinding"),
        ("experiment=res", "experiment=resnet20"),
        ("training.ep", "training.epochs="),
    ],
)
def test_a_shell_completes_what_is_typed(line, offered, monkeypatch, capsys):
    monkeypatch.setenv("COMP_LINE", f"rewind {line}")
    assert typed("-sc", "query=bash") == 0
    assert offered in capsys.readouterr().out.split()


@pytest.mark.parametrize("asked", ["nonsense", "install=nosuch"])
def test_what_completion_does_not_know_is_a_sentence(asked, capsys):
    assert typed("-sc", asked) == 2
    assert capsys.readouterr().err.startswith("-sc: ")


def test_the_installed_command_installs_its_completion():
    command = Path(sys.executable).with_name("rewind")
    done = subprocess.run([command, "-sc", "install=bash"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "hydra_bash_completion rewind" in done.stdout
