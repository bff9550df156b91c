"""The bundles that the project carries, as they lie in ``zoo/``: on this machine and on emulated boards."""

import json
import subprocess
import sys

import pytest
from PIL import Image

from pipeline.deploy import arm
from pipeline.ground.environment import CHECKOUT
from tests.conftest import arrays
from tests.deploy.test_arm import root  # noqa: F401

BUNDLES = sorted(path.parent for path in (CHECKOUT / "zoo").glob("*/manifest.json"))
LARGEST = 250_000

pytestmark = pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)


def run(bundle, *arguments):
    done = subprocess.run(
        [sys.executable, "run.py", *arguments], cwd=bundle, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_gives_its_golden_answers_here_and_is_as_small_as_it_says(bundle):
    differences = json.loads(run(bundle, "check", "--json"))
    assert differences["model.onnx"] == 0
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["models"]["model.onnx"]["kind"] == "int8"
    size = (bundle / "model.onnx").stat().st_size
    assert size == manifest["size_bytes"]["int8"] <= LARGEST
    assert size * 25 <= manifest["size_bytes"]["dense"]
    assert manifest["scores"]["test"]["float32"] - manifest["scores"]["test"]["int8"] < 0.003
    assert manifest["engine"]["uncovered"] == {"model.onnx": None}


def test_it_names_what_is_on_an_image(bundle, tmp_path):
    golden = arrays(bundle / "golden.npz")
    classes = json.loads((bundle / "manifest.json").read_text())["classes"]
    for number, (pixels, scores) in enumerate(zip(golden["inputs/input"], golden["model.onnx/scores"], strict=True)):
        Image.fromarray(pixels.transpose(1, 2, 0)).save(tmp_path / f"{number}.png")
        said = run(
            bundle, "predict", str(tmp_path / f"{number}.png"), "--engine", "onnxruntime"
        )  # it rounds, as golden
        assert classes[scores.argmax()] in said.splitlines()[0]


@pytest.mark.slow
@pytest.mark.parametrize("processor", arm.PROCESSORS, ids=lambda each: each.name)
def test_it_gives_its_golden_answers_on_emulated_boards(root, bundle, processor):  # noqa: F811
    assert json.loads(arm.emulated(processor, ["run.py", "check", "--json"], bundle))["model.onnx"] == 0
