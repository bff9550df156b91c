"""The call in a real notebook: a bar while it runs, the lines of its rounds, and a table for its result."""

import nbformat
import pytest
from nbclient import NotebookClient

CELL = """
from pipeline import prune_by_rewinding
from tests.own_data import Digits, Flat

done = prune_by_rewinding(
    Flat, Digits(), "training.epochs=2", "pruning.rounds=1", "deploy.sizes=false", "runs={runs}"
)
done
"""


@pytest.mark.slow
def test_a_notebook_shows_progress_and_the_result(tmp_path):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL.format(runs=tmp_path))])
    client = NotebookClient(notebook, timeout=300)
    client.execute()
    outputs = notebook.cells[0].outputs
    assert any("application/vnd.jupyter.widget-view+json" in each.get("data", {}) for each in outputs)
    printed = "".join(each.get("data", {}).get("text/plain", each.get("text", "")) for each in outputs)
    assert "compression" in printed
    (result,) = [each for each in outputs if each.output_type == "execute_result"]
    assert result.data["text/markdown"].startswith("| round | density |")
    assert not [each for each in outputs if each.output_type == "stream" and each.name == "stderr"]
    assert (tmp_path / "mlflow").is_dir()
