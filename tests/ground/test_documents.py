"""JSON that any reader takes, and figures as they were."""

import json
import math

import pytest

from pipeline.ground.documents import named, numbers, written


@pytest.mark.parametrize("figure", [math.inf, -math.inf, math.nan, 0.1, 3, -0.0, 1e308])
def test_a_figure_comes_back_as_it_was(figure):
    text = written({"figure": figure, "list": [figure, (figure,)]})
    read = json.loads(text, parse_constant=pytest.fail)
    assert str(numbers({"figure": read["figure"]})) == str({"figure": figure})
    assert named(named(figure)) == named(figure)


def test_files_of_before_are_read_too():
    assert numbers(json.loads('{"loss": Infinity, "rounds": 3}')) == {"loss": math.inf, "rounds": 3}
