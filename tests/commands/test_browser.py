"""What a person sees of a sweep in the MLflow UI and on the comparison's page, in a real Chromium."""

import getpass
import html
import os
import shutil
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests import servers
from tests.conftest import SMALL
from tests.processes import forked, terminal

QUIET = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
PAGE = "/#/experiments/1/runs?workflowType=machine_learning&searchFilter=tags.kind%20!%3D%20%22round%22"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two methods over two seeds, with bytes, their comparison, and a bundle."""
    folder = tmp_path_factory.mktemp("browser")
    common = [*SMALL, "deploy.sizes=true", "deploy.max_score_drop=0.9", f"runs={folder}", f"artifacts={folder}"]
    for more in (["-m", "retraining=lr_rewinding,fine_tuning", "seed=0,1"], ["task=bundle", "deploy.kernels=[]"]):
        process = forked(*more, *common)
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, out + err
    return folder


@pytest.fixture(scope="module")
def ui(runs, tmp_path_factory):
    """The address of the MLflow UI as ``make ui`` serves it, to one reader."""
    port, mlflow = servers.free_port(), str(Path(sys.executable).with_name("mlflow"))
    command = [mlflow, "ui", "--backend-store-uri", f"sqlite:///{runs / 'mlflow' / 'mlflow.db'}", "--port", str(port)]
    command += ["--workers", "1"]
    server = servers.started(
        command, port, tmp_path_factory.mktemp("ui") / "log", MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false"
    )
    yield f"http://127.0.0.1:{port}"
    servers.stopped(server)


@pytest.fixture(scope="module")
def page():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        page = browser.new_page(viewport={"width": 1600, "height": 1000})
        page.set_default_timeout(60_000)
        yield page
        browser.close()


def keep(page, name):
    """Keeps a picture of the page in the folder that SCREENSHOTS names."""
    if folder := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png")


def names(runs):
    """The names of the parent runs."""
    client = MlflowClient(f"sqlite:///{runs / 'mlflow' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("digits").experiment_id
    return [run.info.run_name for run in client.search_runs([experiment], "tags.kind = 'job'")]


def open_runs(page, ui):
    """The page that a run names at its end."""
    page.goto(ui + PAGE)
    page.get_by_text("matching runs").wait_for()


def test_runs_tell_method_seed_and_density_and_two_of_them_compare(page, ui, runs):
    open_runs(page, ui)
    shown = names(runs)
    assert len(shown) == 4
    for name in shown:
        page.get_by_text(name, exact=True).first.wait_for()
    keep(page, "mlflow-runs")
    chosen = ["64% lr_rewinding s0", "64% fine_tuning s0"]
    for name in chosen:
        row = page.locator("[role=row]", has_text=name).first.get_attribute("row-index")
        page.locator(f"[role=row][row-index='{row}'] input[type=checkbox]").first.click()
    page.get_by_role("button", name="Compare", exact=True).click()
    page.get_by_text("Comparing 2 Runs from 1 Experiment").wait_for()
    text = page.inner_text("body")
    assert all(name in text for name in chosen)
    row = next(line for line in text.splitlines() if line.startswith("retraining.rate\t"))
    assert sorted(row.split()[1:]) == ["hold", "replay"]
    assert "test/accuracy" in text
    keep(page, "mlflow-compare")


def test_charts_show_accuracy_and_density_of_all_runs_by_round(page, ui, runs):
    open_runs(page, ui)
    page.goto(f"{ui}{PAGE}&compareRunsMode=CHART")
    page.get_by_text("Model metrics").first.wait_for()
    for name in names(runs):
        page.get_by_text(f"{name} (pruning/density)").first.wait_for()
    keep(page, "mlflow-charts")


def test_a_parents_charts_show_accuracy_and_sparsity_by_round(page, ui, runs):
    open_runs(page, ui)
    page.get_by_text("64% lr_rewinding s0", exact=True).first.click()
    page.get_by_role("tab", name="Model metrics").click()
    for metric in ("pruning/sparsity", "test/accuracy"):
        page.get_by_placeholder("Search metric charts").fill(metric)
        page.get_by_text(f"64% lr_rewinding s0 ({metric})").first.wait_for()
    keep(page, "mlflow-run")


def test_a_run_shows_what_it_is_who_made_it_of_which_data_and_its_model(page, ui, runs):
    open_runs(page, ui)
    page.get_by_text("64% lr_rewinding s0", exact=True).first.click()
    page.get_by_text("pruned and retrained round by round").first.wait_for()
    for shown in ("python -m pipeline", getpass.getuser(), "digits (", "digits-"):
        page.get_by_text(shown).first.wait_for()
    keep(page, "mlflow-overview")
    page.goto(f"{ui}/#/models/digits/versions/1")
    page.get_by_text("of the weights").first.wait_for()
    keep(page, "mlflow-model")


def test_the_comparisons_page_draws_every_method_against_every_cost(page, runs):
    page.goto((runs / "comparison" / "comparison.html").as_uri())
    page.locator(".scatterlayer .trace").first.wait_for()
    assert page.locator(".scatterlayer .trace").count() == 2 * 5
    legend = page.locator(".legendtext").all_text_contents()
    assert legend == ["fine_tuning", "lr_rewinding"]
    keep(page, "comparison-page")


@pytest.mark.parametrize("columns", [80, 120])
def test_a_run_fits_a_terminal_and_says_at_once_that_it_starts(columns, page, tmp_path):
    screen = terminal(columns, 45, *SMALL, "deploy.sizes=true", "runs=runs", cwd=tmp_path)
    lines = [line.rstrip() for line in screen.display]
    assert lines[0].startswith("composing settings, loading")
    assert lines[1].startswith("network small_cnn: 980 weights")
    heads = [number for number, line in enumerate(lines) if line.split()[:2] == ["round", "density"]]
    assert [lines[number + 1].split()[:2] for number in heads] == [["0", "1.0000"]] * 2, "no line of a table is broken"
    assert any(line.startswith("chosen  round 2, 1.56 times fewer weights") for line in lines)
    text = "\n".join(lines).rstrip()
    page.set_viewport_size({"width": 10 * columns, "height": 20 * len(text.splitlines()) + 40})
    page.set_content(f"<pre style='font: 15px/20px monospace; margin: 8px'>{html.escape(text)}</pre>")
    keep(page, f"terminal-{columns}")
