"""What users call experiments and folders, through whole commands: ledger, MLflow, pictures, comparison, bundle."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipeline.tracking.store import Store, embedded_uri, make_embedded_store
from tests import conftest
from tests.conftest import SMALL, settings

JOB = [*SMALL, "training.epochs=1", "training.max_steps=4", "pruning.rounds=1", "data.test_images=50"]
NAMES = ["x" * 200, "😀 Größe", "$x_{$ & (1); a=b!", "007", "1e3", "-rf ~", "@a,b;", "null.", "null"]
FOLDERS = ["a?b=c&d", "a#b", "a%20b", "a b", "100%", "é😀", "a;b", "it's", 'say "so"', "$HOME", "?", "-x", "a:b@c", "~"]


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """An empty store."""
    folder = tmp_path_factory.mktemp("empty")
    make_embedded_store(folder)
    return folder


def typed(*arguments):
    return conftest.typed(*arguments, *JOB)


def files(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    "name", [pytest.param(each, marks=() if n == 2 else pytest.mark.slow) for n, each in enumerate(NAMES)]
)
def test_a_name_goes_through_everything(name, empty, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(empty, tmp_path / "runs")
    quoted = name.replace("\\", "\\\\").replace('"', '\\"')
    job = [f'name="{quoted}"', "runs=runs", "artifacts=out"]
    assert typed(*job) == 0, capsys.readouterr()
    (ledger,) = (path.parent.name for path in (tmp_path / "runs").glob("*/seed-0") if path.parent.parent.name == "runs")
    assert re.fullmatch(re.escape(name) + "-[0-9a-f]{8}", ledger)
    document = tmp_path / "document.md"
    document.write_text(f"<!-- comparison of {name} -->\n<!-- end -->\n")
    for task in ("report", "compare", "sync"):
        assert typed(*job, f"task={task}", "compare.document=document.md") == 0, capsys.readouterr()
    told = "".join(capsys.readouterr())
    assert "not drawn" not in told
    assert "Warning" not in told
    assert (tmp_path / "runs" / f"{name}.png").stat().st_size > 10_000
    assert (tmp_path / f"{name}-comparison.png").exists()
    client = MlflowClient(embedded_uri(tmp_path / "runs"))
    experiment = client.get_experiment_by_name(name)
    found = client.search_runs([experiment.experiment_id])
    assert len(found) == 1 + 2 + 1
    assert {run.data.params["name"] for run in found if run.data.params} == {name}
    assert {each.parent.parent.parent.name for each in (tmp_path / "runs" / "mlflow").rglob("environment.txt")} == {
        name
    }
    assert not (tmp_path / "mlruns").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", [*NAMES[1:3], NAMES[4]])
def test_a_name_is_that_of_a_model_too(name, empty, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(empty, tmp_path / "runs")
    job = [f"name='{name}'", "runs=runs", "artifacts=out", "deploy.max_score_drop=0.9", "deploy.kernels=[]"]
    assert typed(*job) == 0, capsys.readouterr()
    for _ in range(2):
        assert typed(*job, "task=bundle") == 0, capsys.readouterr()
    client = MlflowClient(embedded_uri(tmp_path / "runs"))
    (version,) = client.search_model_versions(f"name = '{name}'")
    assert client.get_model_version_by_alias(name, "arm").version == version.version
    assert list(Path(client.download_artifacts(version.run_id, "bundle", str(tmp_path))).glob("model.onnx"))


@pytest.mark.parametrize("called", FOLDERS)
def test_the_store_lies_in_the_runs_folder_whatever_that_is_called(called, empty, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / called
    shutil.copytree(empty, folder)
    before = len(files(folder))
    chosen = settings(*JOB)
    store = Store(chosen, folder, make=True)
    run = store.opened({"kind": "job"}, "a run", reopen=True)
    store.client.log_text(run.info.run_id, "words", "a/b.txt")
    assert len(files(folder)) == before + 1
    assert [path.name for path in tmp_path.iterdir()] == [called]
    assert store._run_with({"kind": "job"}).info.run_id == run.info.run_id
    words = shlex.split(store.where.splitlines()[0])
    assert words[1:3] == ["ui", "--backend-store-uri"]
    (found,) = MlflowClient(words[3]).search_runs([store.experiment_id])
    assert found.info.run_id == run.info.run_id
    copy = store.client.download_artifacts(run.info.run_id, "a/b.txt", str(tmp_path))
    assert Path(copy).read_text() == "words"


@pytest.mark.slow
@pytest.mark.parametrize("called", ["a?b=c&d", "100%", 'it\'s "so"; $HOME #1'])
def test_a_sweep_and_its_store_lie_there_too(called, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert typed("-m", f"runs={called}", "name=1e3,2_0") == 0, capsys.readouterr()
    assert [path.name for path in tmp_path.iterdir()] == [called]
    client = MlflowClient(embedded_uri(tmp_path / called))
    names = {each.name for each in client.search_experiments()}
    assert names == {"Default", "1e3", "2_0"}
