"""The documentation as a site: it builds strictly, and its reference has every setting."""

import ast
import html
import json
import re
import runpy
import statistics
import subprocess
import sys

import pytest
import yaml

from pipeline.settings.composition import CONF
from tests.conftest import PROJECT

EVIDENCE = PROJECT / "docs" / "evidence" / "cifar10_fast-143f7a2c"
SOURCE = PROJECT / "src" / "pipeline" / "settings" / "groups.py"
GROUPS = {
    "Settings": ("", "config"), "Model": ("model.", "model/digits_cnn"), "ImagesInMemory": ("data.", "data/digits"),
    "ImagesOnDisk": ("data.", "data/imagefolder"), "OwnData": ("data.", "data/own"),
    "StepDecay": ("training.schedule.", "training/schedule/step"), "Cosine": ("training.schedule.", "training/schedule/cosine"),
    "OneCycle": ("training.schedule.", "training/schedule/one_cycle"), "Sgd": ("training.optimizer.", "training/optimizer/sgd"),
    "AdamW": ("training.optimizer.", "training/optimizer/adamw"),
    "Supervised": ("objective.", "objective/classification"), "OwnObjective": ("objective.", "objective/own"),
    "Training": ("training.", "training/digits"), "Pruning": ("pruning.", "pruning/iterative"),
    "Retraining": ("retraining.", "retraining/lr_rewinding"), "Amc": ("amc.", "amc/reference"),
    "Tracking": ("tracking.", "config"), "Deploy": ("deploy.", "deploy/arm"), "Compare": ("compare.", "config"),
}  # fmt: skip
"""Each group of settings: the beginning of their names, and the file in conf/ that has their defaults."""


def settings():
    """(class, setting, docstring) of every setting, read off the source."""
    for node in ast.parse(SOURCE.read_text()).body:
        if isinstance(node, ast.ClassDef):
            for field, after in zip(node.body, [*node.body[1:], None], strict=True):
                if isinstance(field, ast.AnnAssign):
                    told = ast.literal_eval(after.value) if isinstance(after, ast.Expr) else ""
                    yield node.name, field.target.id, " ".join(told.replace("``", "").split())


def text_of(markup):
    return " ".join(html.unescape(re.sub(r"<[^>]*>", "", markup)).split())


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder],
        cwd=PROJECT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_page_of_settings_is_what_the_sources_say():
    made = runpy.run_path(str(PROJECT / "docs" / "settings.py"))["page"]()
    assert (PROJECT / "docs" / "settings.md").read_text() == made, "`make docs` makes it anew"


def test_every_setting_has_a_docstring_and_stands_on_the_site_with_its_default(site):
    page = (site / "settings.html").read_text()
    cells = [[text_of(cell) for cell in re.findall(r"<td.*?>(.*?)</td>", row, re.DOTALL)] for row in page.split("<tr>")]
    rows = [(row[0], row[3], row[1]) for row in cells if len(row) == 4]
    heads = {text_of(head).rstrip("¶") for head in re.findall(r"<h2.*?>(.*?)</h2>", page)}
    found = list(settings())
    assert {name for name, *_ in found} == set(GROUPS)
    for name, setting, docstring in found:
        assert docstring, f"{name}.{setting}"
        prefix, file = GROUPS[name]
        if prefix + setting in heads:
            assert docstring in text_of(page)
        else:
            value = default(prefix + setting, file)
            shown = [cell for *row, cell in rows if row == [prefix + setting, docstring]]
            assert value in [*map(yaml.safe_load, shown), *shown] or (shown, value) == (["(none)"], "???"), setting
    assert len(heads) > len({prefix for prefix, _ in GROUPS.values()})


def default(name, file):
    """What a file in conf/ says of a setting, or config.yaml under the name of its group."""
    content, common = (yaml.safe_load((CONF / f"{each}.yaml").read_text()) for each in (file, "config"))
    group, _, setting = name.rpartition(".")
    return content[setting] if setting in content else common[group][setting]


def test_the_front_page_is_the_readme_and_its_links_hold(site):
    front = (site / "index.html").read_text()
    opening = (PROJECT / "README.md").read_text().split("\n\n")[1]
    assert " ".join(opening.split()) in text_of(front)
    assert 'href="quickstart.html"' in front
    assert 'src="front.png"' in front
    assert "<code>examples/quickstart.ipynb</code>" in front
    assert 'href="examples' not in front


def test_the_picture_of_the_front_page_is_what_the_evidence_says():
    (axes,) = runpy.run_path(str(PROJECT / "docs" / "front.py"))["figure"]().axes
    drawn = axes.lines[0].get_xydata()
    seeds = [json.loads(path.read_text()) for path in EVIDENCE.glob("seed-*/round-15/round.json")]
    last = seeds[0]
    kept, weights = (sum(layer[name] for layer in last["layers"] if layer["prunable"]) for name in ("kept", "weights"))
    assert len(drawn) == 16
    accuracy = statistics.median(each["test"]["test_accuracy"] for each in seeds)
    assert tuple(drawn[-1]) == pytest.approx((100 * kept / weights, 100 * accuracy))


def test_the_call_and_its_result_are_explained(site):
    page = text_of((site / "api.html").read_text())
    for words in (
        "prune_by_rewinding",
        "Trains, prunes and retrains a network in rounds.",
        "data (Any)",
        "comparison_figure",
    ):
        assert words in page
