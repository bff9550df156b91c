"""What stands in a real MLflow store (SQLite) after runs that end, stop and go on."""

import dataclasses
import json
import re
import shutil
from functools import partial
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipeline.ground.errors import SettingsError, Stopped
from pipeline.report import comparison
from pipeline.rounds.ledger import weights_digest
from pipeline.settings.identity import flat
from pipeline.tracking import store
from tests.conftest import SHORT, SMALL, settings, some_fast, typed
from tests.processes import forked
from tests.rounds.test_loop import Stop


@pytest.fixture
def command(tmp_path):
    """Runs the command line in this process; returns its exit status."""
    return partial(typed, *SMALL, f"runs={tmp_path}")


@pytest.fixture
def client(tmp_path):
    store.make_embedded_store(tmp_path)
    return MlflowClient(f"sqlite:///{tmp_path / 'mlflow' / 'mlflow.db'}")


def runs(client, kind, name="digits"):
    experiment = client.get_experiment_by_name(name)
    return client.search_runs([experiment.experiment_id], f"tags.kind = '{kind}'", order_by=["tags.round ASC"])


def history(client, run):
    """Every metric with every step: equal for equal trainings, but for clocks."""
    return {
        key: [(m.step, m.value) for m in sorted(client.get_metric_history(run.info.run_id, key), key=lambda m: m.step)]
        for key in run.data.metrics
        if "seconds" not in key
    }


def everything(client):
    """Name, status, metrics and artifacts of every run."""
    return [
        (run.info.run_name, run.info.status, history(client, run), artifacts(client, run))
        for kind in ("job", "round")
        for run in runs(client, kind)
    ]


def artifacts(client, run):
    return {artifact.path for artifact in client.list_artifacts(run.info.run_id)}


@pytest.mark.parametrize("case", ["patterns", "figures"])
def test_whatever_users_call_patterns_and_figures_arrives(case, client, tmp_path):
    arguments = {
        "patterns": ["pruning.shares={features.*: 0.5, output: 1.0}"],
        "figures": ["model.module=tests.own_modules.Oddly", "objective.score='val/acc@1 (%)'", "objective.better=higher", "name=digits"],
    }[case]  # fmt: skip
    assert typed(*SHORT, f"runs={tmp_path}", *arguments, "pruning.rounds=1") == 0
    (parent,) = runs(client, "job")
    assert parent.info.status == "FINISHED"
    assert [each.info.status for each in runs(client, "round")] == ["FINISHED"] * 2
    (record,) = store.Store(settings(*SMALL, f"runs={tmp_path}"), tmp_path).runs(None)
    assert len(record.rounds) == 2
    if case == "patterns":
        assert parent.data.params["pruning.shares.features._2a_"] == "0.5"
    else:
        assert "val/acc_40_1 _28__25__29_" in parent.data.metrics
        assert all("val/acc@1 (%)" in each for each in record.rounds)


def test_what_a_run_leaves_in_mlflow(command, client, tmp_path, capsys):
    assert command("seed=3") == 0
    (parent,) = runs(client, "job")
    assert (parent.info.run_name, parent.info.status) == ("64% lr_rewinding s3", "FINISHED")
    every = flat(dataclasses.asdict(settings(*SMALL, f"runs={tmp_path}", "seed=3")))
    assert parent.data.params.items() <= {key: str(value) for key, value in every.items()}.items()
    assert {key.split(".")[0] for key in every.keys() - parent.data.params.keys()} == {
        "task", "debug", "runs", "record", "artifacts", "amc", "compare", "deploy", "pruning", "retraining",
    }  # fmt: skip
    for key in ("fingerprint", "data_digest", "git_commit", "method", "final_density", "chosen_round"):
        assert parent.data.tags[key]
    by_round = history(client, parent)
    assert {
        "pruning/density", "pruning/sparsity", "pruning/compression_ratio", "validation/accuracy", "validation/loss",
        "test/accuracy", "test/loss", "cost/macs_dense", "cost/macs_kept", "train/loss", "train/epochs",
    } <= by_round.keys()  # fmt: skip
    assert all([step for step, _ in values] == [0, 1, 2] for values in by_round.values())
    assert [value for _, value in by_round["pruning/density"]] == pytest.approx([1, 0.8, 0.64], abs=1e-3)
    assert {
        "accuracy_vs_sparsity.png",
        "rounds.csv",
        "rounds.md",
        "settings.yaml",
        "environment.txt",
    } <= artifacts(client, parent)
    children = runs(client, "round")
    assert [run.info.run_name for run in children] == ["round 00", "round 01", "round 02"]
    for child in children:
        assert child.info.status == "FINISHED"
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
        curves = history(client, child)
        for key in (
            "train/loss",
            "train/accuracy",
            "validation/loss",
            "validation/accuracy",
            "train/learning_rate",
        ):
            assert [step for step, _ in curves[key]] == [1, 2, 3]
        assert [step for step, _ in curves["pruning/density"]] == [3]
        assert artifacts(client, child) == {
            "weights.safetensors",
            "masks.safetensors",
            "layers.csv",
            "layers.png",
        }
    table = capsys.readouterr().out
    assert len([line for line in table.splitlines() if line.strip().startswith(("0 ", "1 ", "2 "))]) == 3


@pytest.mark.slow
def test_bytes_that_are_measured_anew_are_those_that_count(command, client, tmp_path):
    """However few they were before; and a setting that has its first value again has not changed."""
    pruned = ["pruning.rounds=1", "pruning.fraction=0.93", "deploy.sizes=true"]
    seen = []
    for multiple in (16, 1, 16):
        assert command(*pruned, f"deploy.width_multiple={multiple}") == 0
        (parent,) = runs(client, "job")
        (stored,) = (json.loads(path.read_text()) for path in tmp_path.glob("digits-*/seed-0/round-01/sizes.json"))
        for run in (parent, runs(client, "round")[-1]):
            assert run.data.metrics["size/int8_bytes"] == stored["int8_bytes"]
            assert run.data.metrics["size/bytes_compression"] == stored["dense_bytes"] / stored["int8_bytes"]
        seen.append(stored["int8_bytes"])
        changed = {key: value for key, value in parent.data.tags.items() if key.startswith("changed.")}
        assert changed == ({"changed.deploy.width_multiple": "1"} if multiple == 1 else {})
    assert seen[0] == seen[2] > seen[1]


def test_syncing_what_is_finished_leaves_it_finished(command, client):
    assert command("pruning.rounds=1") == 0
    assert command("pruning.rounds=3", "task=sync") == 0
    assert [run.info.status for run in runs(client, "job")] == ["FINISHED"]


@pytest.mark.parametrize("how", [Path.rename, shutil.copytree])
def test_a_folder_that_was_moved_or_copied_has_its_files_beside_its_store(how, tmp_path):
    before, after = tmp_path / "of one", tmp_path / "of another"
    first = forked(*SMALL, "pruning.rounds=1", f"runs={before}")  # MLflow remembers places as long as a process lives
    first.communicate(300)
    assert first.returncode == 0
    how(before, after)
    there = {path: path.stat().st_mtime_ns for path in before.rglob("*")}
    assert typed(*SMALL, "pruning.rounds=2", f"runs={after}") == 0
    assert there == {path: path.stat().st_mtime_ns for path in before.rglob("*")}
    client = MlflowClient(f"sqlite:///{after / 'mlflow' / 'mlflow.db'}")
    assert "rounds.md" in artifacts(client, *runs(client, "job"))
    assert [len(artifacts(client, run)) for run in runs(client, "round")] == [4] * 3
    for run in (*runs(client, "job"), *runs(client, "round")):
        assert run.info.artifact_uri.startswith(f"{(after / 'mlflow' / 'artifacts' / 'digits').as_uri()}/")


def test_a_second_method_gets_round_0_too(command, client):
    assert command() == command("retraining=fine_tuning") == 0
    first, second = sorted(runs(client, "job"), key=lambda run: run.info.run_name)
    assert history(client, first)["test/accuracy"][0] == history(client, second)["test/accuracy"][0]
    assert len(runs(client, "round")) == 6


def test_typed_again_nothing_doubles_and_more_rounds_reopen_the_run(command, client, capsys):
    assert command() == 0
    before = everything(client)
    assert command() == 0
    assert everything(client) == before
    assert "nothing was trained" in capsys.readouterr().out
    assert command("pruning.rounds=3") == 0
    (parent,) = runs(client, "job")
    assert [step for step, _ in history(client, parent)["pruning/density"]] == [0, 1, 2, 3]
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["changed.pruning.rounds"] == "3"


@pytest.mark.parametrize(
    ("shorter", "sizes"),
    [
        pytest.param(["pruning.rounds=1"], True, marks=pytest.mark.slow),
        (["pruning.rounds=0"], False),
        pytest.param(["pruning.rounds=1", "task=sync"], False, marks=pytest.mark.slow),
    ],
)
def test_a_shorter_call_changes_nothing_of_what_a_longer_one_recorded(
    shorter, sizes, command, client, tmp_path, capsys
):
    def recorded():
        (parent,) = runs(client, "job")
        names = ("rounds.csv", "rounds.md", "settings.yaml")
        texts = [Path(client.download_artifacts(parent.info.run_id, name)).read_text() for name in names]
        texts = [re.sub("(?m)^task: .*$", "", text) for text in texts]
        tags = {key: value for key, value in parent.data.tags.items() if key != "changed.task"}
        return everything(client), parent.data.params, tags, texts

    command(f"deploy.sizes={sizes}")
    before = recorded()
    drawn = {path.name: path.read_bytes() for path in tmp_path.glob("digits-*/seed-0/*.png")}
    capsys.readouterr()
    assert command(*shorter, f"deploy.sizes={sizes}") == 0
    shown = capsys.readouterr().out
    assert "warning" not in shown
    assert recorded() == before
    assert {path.name: path.read_bytes() for path in tmp_path.glob("digits-*/seed-0/*.png")} == drawn
    if len(shorter) == 1:
        rows = re.findall(r"(?m)^ *(\d+) .*%\s", shown.partition("all rounds asked")[0])
        assert rows == [str(index) for index in range(int(shorter[0][-1]) + 1)], "what was asked for is shown"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """What stands in MLflow of a run that nothing stopped."""
    runs = tmp_path_factory.mktemp("whole")
    assert typed(*SMALL, f"runs={runs}") == 0
    return everything(MlflowClient(f"sqlite:///{runs / 'mlflow' / 'mlflow.db'}"))


@pytest.mark.parametrize(
    ("death", "exit_status", "run_status"),
    [
        pytest.param(Stopped(2), 130, "KILLED", id="Ctrl-C"),
        pytest.param(Stopped(15), 143, "KILLED", id="SIGTERM", marks=pytest.mark.slow),
        pytest.param(OSError("disk full"), 1, "FAILED", id="no space", marks=pytest.mark.slow),
        pytest.param(Stop(), None, "FAILED", id="a bug"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("epoch", [2, pytest.param(5, marks=pytest.mark.slow)])
def test_a_run_that_dies_has_its_true_status_and_goes_on_to_the_same_content(
    death, exit_status, run_status, epoch, undisturbed, command, client, monkeypatch
):
    from pipeline.report.display import Display

    epoch_done, epochs = Display.epoch_done, []

    def dying(self, index, history):
        epochs.append(index)
        if len(epochs) == epoch:
            raise death
        epoch_done(self, index, history)

    with monkeypatch.context() as patched:
        patched.setattr(Display, "epoch_done", dying)
        if exit_status is None:
            with pytest.raises(Stop):
                command()
        else:
            assert command() == exit_status
    (parent,) = runs(client, "job")
    assert parent.info.status == run_status
    assert runs(client, "round")[-1].info.status == run_status
    assert command() == 0
    assert everything(client) == undisturbed


@pytest.mark.slow
def test_another_store_by_setting_or_environment(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where MLflow keeps the artifacts of such a store
    by_setting = f"sqlite:///{tmp_path / 'one.db'}"
    assert command(f"tracking.uri={by_setting}") == 0
    assert len(runs(MlflowClient(by_setting), "job")) == 1
    assert not (tmp_path / "mlflow" / "mlflow.db").exists()


@pytest.mark.parametrize("place", ["file:{}", "{}", "mlruns"])
@pytest.mark.parametrize("by", ["tracking.uri", "MLFLOW_TRACKING_URI"])
def test_a_store_of_plain_files_is_refused(by, place, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    uri = place.format(tmp_path / "files")
    if by == "MLFLOW_TRACKING_URI":
        monkeypatch.setenv(by, uri)
    asked = settings(*([f"tracking.uri={uri}"] if by == "tracking.uri" else []))
    with pytest.raises(SettingsError, match=f"{by}: got {re.escape(uri)}, a store of plain files"):
        store.Store(asked, tmp_path, make=True)
    assert not list(tmp_path.iterdir())


def test_a_server_that_is_not_there_ends_in_a_sentence(command, monkeypatch, capsys):
    monkeypatch.setattr(store, "PATIENCE", 1.0)
    assert command("tracking.uri=http://127.0.0.1:9") == 1
    error = capsys.readouterr().err
    assert error.startswith("MLflow at http://127.0.0.1:9 fails:")
    assert "Traceback" not in error


def test_a_password_in_the_stores_address_is_neither_kept_nor_shown(command, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(store, "PATIENCE", 1.0)
    assert command("tracking.uri='http://me:hush@127.0.0.1:9'") == 1
    told = capsys.readouterr()
    assert "MLflow at http://me:***@127.0.0.1:9 fails:" in told.err
    database = f"sqlite:///{tmp_path / 'one.db'}?password=hush"
    monkeypatch.chdir(tmp_path)
    assert command(f"tracking.uri='{database}'", "pruning.rounds=0") == 0
    client = MlflowClient(database)
    (parent,) = runs(client, "job")
    assert parent.data.params["tracking.uri"].endswith("one.db?password=***")
    kept = client.download_artifacts(parent.info.run_id, "settings.yaml", str(tmp_path))
    told = told.err + told.out + "".join(capsys.readouterr()) + Path(kept).read_text() + str(parent.data.tags)
    assert "hush" not in told


FAILING = ["matplotlib.figure.Figure.savefig", "pipeline.report.sheet.curves", "pipeline.report.sizes.measured"]


@pytest.mark.parametrize("failing", some_fast(zip(FAILING), [("pipeline.report.sheet.curves",)]))
def test_what_fails_after_the_last_round_costs_no_finished_run(failing, command, client, monkeypatch, capsys):
    def fails(*arguments, **named):
        raise ZeroDivisionError("no such luck")

    monkeypatch.setattr(failing, fails)
    monkeypatch.setattr("pipeline.tracking.outbox.SECONDS_BETWEEN_TRIES", 0.01)
    monkeypatch.setattr("pipeline.tracking.tracker.PATIENCE", 0.1)
    assert command("pruning.rounds=1", "deploy.sizes=true") == 0
    told = capsys.readouterr()
    assert "ZeroDivisionError: no such luck" in told.out
    assert "Traceback" not in told.out + told.err
    monkeypatch.undo()
    assert command("pruning.rounds=1", "deploy.sizes=true") == 0
    (parent,) = runs(client, "job")
    assert parent.info.status == "FINISHED"
    assert [each.info.status for each in runs(client, "round")] == ["FINISHED"] * 2
    assert "validation/accuracy" in parent.data.metrics


def test_ctrl_c_in_the_last_delivery_leaves_a_complete_run_finished(command, client, monkeypatch):
    from pipeline.tracking.tracker import Tracker

    def stopped(self):
        raise Stopped(2)

    with monkeypatch.context() as patched:
        patched.setattr(Tracker, "delivered", stopped)
        assert command("pruning.rounds=1") == 130
    (parent,) = runs(client, "job")
    assert parent.info.status == "FINISHED"
    assert "RUNNING" not in [each.info.status for each in runs(client, "round")]
    assert command("pruning.rounds=1") == 0
    assert [each.info.status for each in runs(client, "round")] == ["FINISHED"] * 2


def test_a_deleted_experiment_is_named(command, client, capsys):
    assert command("pruning.rounds=0") == 0
    client.delete_experiment(client.get_experiment_by_name("digits").experiment_id)
    assert command("pruning.rounds=0") == 1
    assert "the MLflow experiment 'digits'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_round_trained_anew_is_a_new_run(command, client, tmp_path):
    assert command() == 0
    (old,) = runs(client, "job")
    before = history(client, old)
    for folder in tmp_path.glob("digits-*/seed-0/round-02"):
        shutil.rmtree(folder)
    assert command() == 0
    (new,) = runs(client, "job")
    (kept,) = runs(client, "job, trained anew later")
    assert kept.info.run_id == old.info.run_id != new.info.run_id
    assert history(client, client.get_run(old.info.run_id)) == before
    data = [[each.dataset for each in run.inputs.dataset_inputs] for run in (old, new)]
    assert data[0] == data[1] != []
    assert all([step for step, _ in values] == [0, 1, 2] for values in history(client, new).values())
    children = [run for run in runs(client, "round") if run.data.tags["mlflow.parentRunId"] == new.info.run_id]
    assert [run.info.status for run in children] == ["FINISHED"] * 3
    (folder,) = tmp_path.glob("digits-*/seed-0")
    for index in (1, 2):
        assert children[index].data.tags["weights"] == weights_digest(folder / f"round-{index:02d}")
    assert command() == 0
    assert len(runs(client, "job")) == 1
    assert len(runs(client, "round")) == 6


@pytest.mark.parametrize(
    ("overrides", "used", "unused"),
    [
        ([], ["training.optimizer.rate", "pruning.fraction", "deploy.calibration_images"], ["pruning.block", "deploy.host"]),
        (["pruning.structure=block"], ["pruning.block", "pruning.norm"], ["pruning.mac_strength"]),
        (["pruning.criterion=magnitude_per_mac"], ["pruning.mac_strength"], ["pruning.norm"]),
        (["retraining=fine_tuning"], ["retraining.hold"], ["amc.episodes"]),
        (["pruning.policy=search"], ["amc.episodes"], ["compare.where"]),
        (
            ["model.module=tests.own_modules.Oddly", "objective.score=val/acc", "objective.better=higher"],
            ["training.epochs"],
            ["training.batch_size", "training.optimizer.rate", "training.schedule.kind"],
        ),
    ],
)  # fmt: skip
def test_parameters_are_those_that_the_run_uses(overrides, used, unused):
    found = store.parameters(settings(*overrides))
    assert found.keys() >= set(used)
    assert not found.keys() & set(unused)


def test_a_run_that_recorded_settings_it_did_not_use_is_compared_with_those_of_today(client, tmp_path):
    own = ["model.module=tests.own_modules.Oddly", "objective.score='val/acc@1 (%)'", "objective.better=higher"]
    for seed in (0, 1):
        assert typed(*SHORT, *own, f"runs={tmp_path}", "name=digits", "pruning.rounds=1", f"seed={seed}") == 0
    client.log_param(runs(client, "job")[0].info.run_id, "training.batch_size", 64)
    (method,) = comparison.methods(store.Store(settings(*SMALL, f"runs={tmp_path}"), tmp_path).runs(None))
    assert len(method.runs) == 2


@pytest.mark.slow
def test_the_use_of_the_machine_is_recorded_for_who_asks(command, client, monkeypatch):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
    assert command("pruning.rounds=1", "tracking.system_metrics=true") == 0
    (parent,) = runs(client, "job")
    used = client.get_metric_history(parent.info.run_id, "system/cpu_utilization_percentage")
    assert len(used) > 1
    assert all(0 <= each.value <= 100 for each in used)
    assert command("pruning.rounds=2", "tracking.system_metrics=true") == 0
    again = client.get_metric_history(parent.info.run_id, "system/cpu_utilization_percentage")
    assert sorted(each.step for each in again) == list(range(len(again)))
    assert len(again) > len(used)
