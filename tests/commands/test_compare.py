"""The comparison of real runs in a real store, as a user types it."""

import shutil

import pytest
from mlflow import MlflowClient

from tests import conftest
from tests.commands.test_sweep import typed  # noqa: F401
from tests.conftest import SMALL

DOCUMENT = "# Ours\n\n<!-- comparison of digits -->\nold\n<!-- end -->\n\nwords\n"


@pytest.fixture
def compared(typed, tmp_path):  # noqa: F811
    """Two methods over two seeds, run; then types ``task=compare`` with what more is given."""
    assert typed("-m", *SMALL, "retraining=lr_rewinding,fine_tuning", "seed=0,1")[0] == 0

    def compare(*arguments):
        return typed(*SMALL, "task=compare", f"artifacts={tmp_path}", *arguments)

    return compare


def test_a_comparison_is_written_shown_tracked_once_and_put_into_a_document(compared, tmp_path):
    document = tmp_path / "ours.md"
    document.write_text(DOCUMENT)
    for _ in range(2):
        status, out = compared(f"compare.document={document}")
        assert status == 0
    folder = tmp_path / "comparison"
    table = (folder / "comparison.md").read_text()
    assert "| density | fine_tuning | lr_rewinding |" in table
    assert table.split("comparison.png)\n\n")[1] in document.read_text()
    assert document.read_text().startswith("# Ours\n")
    assert document.read_text().endswith("<!-- end -->\n\nwords\n")
    assert (tmp_path / "digits-comparison.png").stat().st_size > 10_000
    assert "old" not in document.read_text()
    assert table.split("comparison.png)\n\n")[1] in out
    client = MlflowClient(f"sqlite:///{tmp_path / 'runs' / 'mlflow' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("digits")
    (run,) = client.search_runs([experiment.experiment_id], "tags.kind = 'comparison'")
    assert run.info.status == "FINISHED"
    assert {each.path for each in client.list_artifacts(run.info.run_id)} == {
        "comparison.png", "comparison.md", "comparison.csv", "rounds.csv", "comparison.html",
    }  # fmt: skip
    # what was compared are the figures of the runs themselves
    jobs = client.search_runs([experiment.experiment_id], "tags.kind = 'job' and tags.method = 'lr_rewinding'")
    last = sorted(job.data.metrics["test/accuracy"] * 100 for job in jobs)
    assert f"({last[0]:.2f} to {last[1]:.2f})" in table
    # the ledgers' records give the same tables, without a store
    shutil.copytree(tmp_path / "runs", tmp_path / "kept", ignore=shutil.ignore_patterns("mlflow", "*.safetensors"))
    status, out = compared(f"compare.ledgers={tmp_path / 'kept'}")
    assert status == 0
    assert table.split("comparison.png)\n\n")[1] in out
    # a choice of runs, in MLflow's words
    status, out = compared("compare.where=\"params.seed = '1'\"")
    assert status == 0
    assert "of 1 seeds" in out


def test_a_report_has_a_table_for_each_score_and_the_pictures_of_its_own_run(tmp_path, capsys):
    job = [*SMALL, "training.epochs=1", "training.max_steps=4", "pruning.rounds=1", f"runs={tmp_path / 'runs'}"]
    by_loss = ["seed=1", "objective.score=loss"]
    assert conftest.typed(*job) == conftest.typed(*job, *by_loss) == 0
    for own, other, score in (([], "loss", "accuracy"), (by_loss, "accuracy", "loss")):
        capsys.readouterr()
        assert conftest.typed(*job, *own, "task=report", f"artifacts={tmp_path}") == 0
        files = capsys.readouterr().out.splitlines()
        assert str(tmp_path / "report" / f"{score}_vs_sparsity.png") in files
        assert not [each for each in (tmp_path / "report").iterdir() if other in each.name]
        assert not [each for each in files if f"{other}_vs" in each]
    accuracy, loss = (tmp_path / "runs" / "digits.md").read_text().split("Test loss")
    assert accuracy.startswith("Test accuracy in %")
    assert "seed 0" in accuracy
    assert "seed 1" not in accuracy
    assert "seed 1" in loss
    assert "seed 0" not in loss
    assert {each.name for each in (tmp_path / "runs").glob("*.png")} == {"digits-accuracy.png", "digits-loss.png"}


@pytest.mark.slow
def test_faults_of_a_comparison_are_sentences(compared, typed, tmp_path):  # noqa: F811
    document = tmp_path / "none.md"
    for arguments, status, words in (
        (["compare.where=seed is 1"], 2, "compare.where: got 'seed is 1', but MLflow says: "),
        (["compare.where=\"params.seed = '9'\""], 1, "has no complete round of experiment 'digits' where "),
        (
            ["compare.where=x", "compare.ledgers=y"],
            2,
            "compare.where: got 'x', a filter of MLflow's, beside compare.ledgers",
        ),
        ([f"compare.ledgers={tmp_path}"], 1, "no complete round of experiment 'digits' in "),
        (["name=other"], 1, "has no complete round of experiment 'other': run it"),
        ([f"compare.document={document}"], 2, "compare.document: got "),
    ):
        got, out = compared(*arguments)
        assert (got, words in out) == (status, True), out
    assert typed(*SMALL, "training.epochs=2", "seed=2", "pruning.rounds=1")[0] == 0
    status, out = compared()
    assert status == 1
    assert "cannot be compared: training.epochs is 3 in 4 runs (" in out
