"""Every block of code that people read: Python and the notebook are run, commands are composed, the rest has its reason."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib

import nbformat
import pytest
from nbclient import NotebookClient

from pipeline.commands import sweep
from pipeline.settings.composition import understood
from tests.conftest import PROJECT, settings

PAGES = [PROJECT / "README.md", PROJECT / "CONTRIBUTING.md", *sorted((PROJECT / "docs").glob("*.md"))]
NOTEBOOK = PROJECT / "examples" / "quickstart.ipynb"
SHORT = ["training.epochs=1", "pruning.rounds=1", "deploy.sizes=false"]
NOT_RUN = {
    r"scp -r artifacts/bundle artifacts/verified.json \S+:": "a board; tests/deploy/test_arm.py copies and runs bundles on emulated ones",
    r"ssh pi@raspberrypi 'cd bundle && .*'": "a board, as above",
    r"python (zoo/\S+/)?run.py (check|bench|predict IMAGE|answer FILE.npz)": "run in tests/deploy/test_bundle.py and test_zoo.py",
    r'eval "\$\(rewind -sc install=bash\)"': "run in tests/settings/test_composition.py",
    r"for \w+ in .*; do for \w+ in .*; do": "a loop around a command, which is composed",
    r"done; done": "its end",
    r"dvc (exp|plots) .*": "run in tests/commands/test_dvc.py",
    r"source .venv/bin/activate": "what make makes; the tests run in it",
}
"""Lines of shell that no test here runs, and why."""


def blocks(page):
    """(language, text) of the fenced blocks of a page."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


def typed_lines(page):
    """What a page says to type, continued lines joined and comments off; of a loop's names the first values."""
    text = "".join(block for language, block in blocks(page) if language == "sh").replace("\\\n", " ")
    for name, value in re.findall(r"for (\w+) in (\S+)", text):
        text = text.replace(f"${name}", value)
    lines = (re.sub(r" +#.*", "", line).strip() for line in text.splitlines())
    return [line for line in lines if line]


def python_of(page):
    return "\n\n".join(text for language, text in blocks(page) if language == "python")


def test_a_block_is_of_a_kind_that_is_tested():
    kinds = [(page.name, language) for page in PAGES for language, _ in blocks(page)]
    assert {language for _, language in kinds} == {"sh", "python", "yaml", "nginx", ""}
    assert {name for name, language in kinds if language == "python"} == {
        "README.md",
        "quickstart.md",
        "own-network.md",
    }
    assert len(kinds) > 30


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=pytest.mark.slow if page.name == "results-tables.md" else (), id=page.name)
        for page in PAGES
        if typed_lines(page)
    ],
)
def test_what_a_page_says_to_type_can_be_typed(page):
    extras = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    makefile = (PROJECT / "Makefile").read_text()
    for line in typed_lines(page):
        words = shlex.split(line)
        if words[:3] == ["python", "-m", "pipeline"]:
            overrides = understood([each for each in words[3:] if each not in ("--cfg", "job")])
            if "-m" in overrides:
                overrides.remove("-m")
                assert len(sweep.planned(overrides).titles) > 1, line
            else:
                settings(*overrides)
        elif words[0] == "make":
            target, *given = words[1:]
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), line
            assert all(f"$({each.split('=')[0]})" in makefile for each in given), line
        elif words[:2] == ["pip", "install"]:
            assert set(words[-1].removeprefix(".[").removesuffix("]").split(",")) <= extras.keys(), line
        else:
            assert any(re.fullmatch(pattern, line) for pattern in NOT_RUN), line


@pytest.mark.parametrize("pattern", NOT_RUN)
def test_what_is_not_run_stands_on_a_page(pattern):
    assert any(re.fullmatch(pattern, line) for page in PAGES for line in typed_lines(page))


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """A folder where the package is no checkout, so that what it keeps lies there; and the environment of its commands."""
    folder = tmp_path_factory.mktemp("elsewhere")
    for name in ("src", "conf"):
        shutil.copytree(PROJECT / name, folder / "installed" / name, ignore=shutil.ignore_patterns("__pycache__"))
    found = {**os.environ, "PYTHONPATH": str(folder / "installed" / "src"), "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    return folder, found


def run(elsewhere, *words):
    folder, environment = elsewhere
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_python_of_the_pages_runs_in_the_order_in_which_they_are_read(elsewhere):
    folder, _ = elsewhere
    own = PROJECT / "docs" / "own-network.md"
    (folder / "my_package.py").write_text("\n\n".join(text for _, text in blocks(own) if "class My" in text))
    script = "\n\n".join(
        python_of(PROJECT / name) for name in ("docs/quickstart.md", "docs/own-network.md", "README.md")
    )
    (folder / "pages.py").write_text(script)
    printed = run(elsewhere, "pages.py")
    assert printed.count("| round | density |") == 4
    assert (folder / "score.png").stat().st_size > 10_000
    assert json.loads((folder / "board" / "manifest.json").read_text())["density"] == pytest.approx(0.1, abs=1e-3)
    commands = [line for line in typed_lines(own) if "-m pipeline" in line]
    assert len(commands) == 2
    for line in commands:
        assert "rounds  runs/my" in run(elsewhere, *shlex.split(line)[1:], *SHORT, "seed=1")


@pytest.mark.slow
def test_the_notebook_runs_and_has_what_it_prints(elsewhere, monkeypatch):
    folder, environment = elsewhere
    for name in ("PYTHONPATH", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, environment[name])
    kept = nbformat.read(NOTEBOOK, as_version=4)
    fresh = NotebookClient(kept.copy(), timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    codes = [(old, new) for old, new in zip(kept.cells, fresh.cells, strict=True) if old.cell_type == "code"]
    assert [old.execution_count for old, _ in codes] == list(range(1, len(codes) + 1)), "it is kept as it was run"
    for old, new in codes:
        assert [each.output_type for each in old.outputs] == [each.output_type for each in new.outputs]
    outputs = [each for _, new in codes for each in new.outputs]
    assert any("application/vnd.jupyter.widget-view+json" in each.get("data", {}) for each in outputs), "a bar"
    assert any(each.get("data", {}).get("text/markdown", "").startswith("| round | density |") for each in outputs)
    assert not [each for each in outputs if each.output_type == "stream" and each.name == "stderr"]
    assert (folder / "runs" / "mlflow").is_dir()
    tables = [re.findall(r"^\| \d+ \| [\d.]+ \|", str(each), re.MULTILINE) for each in (kept, fresh)]
    assert tables[0] == tables[1]
