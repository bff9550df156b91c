"""What pictures show: the records' figures, frames that make no cliff of an image, ticks, ends, colours in grey."""

import dataclasses
import math
import runpy

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_rgb

from pipeline.objective.score import Score
from pipeline.report import comparison, sheet
from pipeline.report.pictures import methods_figure, methods_page, score_by_cost
from pipeline.report.sizes import Sizes
from pipeline.report.style import COLOURS, FORMS, STYLE, WIDTH, save
from pipeline.report.testset import examples_behind, standard_error
from pipeline.rounds import loop
from pipeline.training.retraining import NAMES
from tests.conftest import PROJECT
from tests.report.test_comparison import costed, run

LOSS = Score("validation_loss", "test_loss", "lower", "loss", percent=False)
ACCURACY = Score("validation_accuracy", "test_accuracy", "higher", "accuracy", percent=True)


def figure_of(*runs):
    return methods_figure(comparison.methods(runs), "t")


def panel(figure, words):
    (axes,) = [axes for axes in figure.axes if words in axes.get_xlabel()]
    return axes


def drawn(axes, name):
    """The line of a method, as it is drawn."""
    (line,) = [line for line in axes.get_lines() if line.get_label() == name]
    return line


def lightness(colour):
    """CIE 1976 L*, which a picture in grey keeps (ISO/CIE 11664-4), from sRGB (IEC 61966-2-1)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    y = float(np.dot((0.2126, 0.7152, 0.0722), linear))
    return 116 * y ** (1 / 3) - 16 if y > 216 / 24389 else 24389 / 27 * y


def test_the_standard_error_is_the_spread_of_draws():
    draws = np.random.default_rng(0).binomial(400, 0.99, 200_000) / 400
    assert standard_error(0.99, 400) == pytest.approx(draws.std(), rel=0.01)
    assert standard_error(0.5, 10_000) == 0.005


@given(st.integers(50, 50_000), st.lists(st.floats(0.01, 0.99), min_size=6, max_size=12, unique=True))
def test_shares_are_counts_of_the_number_of_test_examples_that_they_tell(examples, shares):
    counts = {round(share * examples) for share in shares} - {0, examples}
    known = [float(np.float32(count) / np.float32(examples)) for count in counts]
    found = examples_behind(known)
    if len(counts) < 3:
        assert found is None
        return
    assert found <= examples // math.gcd(examples, *counts)
    assert all(np.float32(round(share * found)) / np.float32(found) == np.float32(share) for share in known)


def test_the_number_of_test_examples_is_told_by_accuracies_in_float32():
    draws = np.random.default_rng(0)
    for examples in draws.integers(50, 50_000, 200).tolist():
        counts = draws.integers(1, examples, 8).tolist()
        told = examples_behind(float(np.float32(count) / np.float32(examples)) for count in counts)
        assert told == examples // math.gcd(examples, *counts)


def test_what_is_no_count_tells_no_number_of_examples():
    assert examples_behind(np.random.default_rng(0).random(8).tolist()) is None
    assert examples_behind([0.5, 0.25, 0.5, 1.0, 0.0]) is None


def test_colours_keep_apart_in_grey_and_every_method_has_one():
    ladder = [lightness(colour) for colour in COLOURS.values()]
    assert min(np.diff(ladder)) > 5
    assert set(NAMES.values()) | {"lottery_ticket", "gradual", "dense_control"} == set(COLOURS)
    assert max(ladder) < 75, "too light on white"
    assert min(abs(np.diff([lightness(colour) for colour, _, _ in FORMS]))) > 10


def test_letters_are_ten_pixels_high_in_a_picture_of_800():
    sizes = [value for key, value in STYLE.items() if key.endswith("size") and key.split(".")[0] != "lines"]
    assert min([*sizes, 7]) / 72 * 800 / WIDTH > 9


@pytest.mark.parametrize(
    "accuracies", [(0.99, 0.9925, 0.995, 0.99), (0.9, 0.7, 0.5, 0.3), (1.0, 1.0, 1.0, 1.0)], ids=str
)
def test_no_frame_is_narrower_than_two_points_of_accuracy(accuracies):
    low, high = figure_of(run(accuracies=accuracies)).axes[0].get_ylim()
    assert high - low >= 2 - 1e-9
    assert low <= min(accuracies) * 100 <= max(accuracies) * 100 <= high
    assert high <= 100 + 0.06 * (high - low)
    points = [(x, 100 * y) for x, y in enumerate(accuracies, 1)]
    low, high = score_by_cost({"masked network": points}, "weights kept (%)", ACCURACY, "t").axes[0].get_ylim()
    assert high - low >= 2 - 1e-9


def test_another_score_has_a_share_of_the_dense_networks():
    points = [(100.0, 0.4160), (80.0, 0.4161), (64.0, 0.4159)]
    low, high = score_by_cost({"masked network": points}, "weights kept (%)", LOSS, "t").axes[0].get_ylim()
    assert high - low == pytest.approx(0.02 * 0.4160)


@pytest.mark.parametrize("values", [(0.4, math.nan, 0.5), (math.nan, math.nan, math.nan), (0.0, 0.0, 0.0), (0.4, 0.5, math.inf)], ids=str)  # fmt: skip
@pytest.mark.parametrize("score", [LOSS, ACCURACY], ids=["loss", "accuracy"])
def test_what_is_no_number_costs_its_point_alone(values, score, tmp_path):
    rounds = tuple({"density": 0.8**index, score.test: value} for index, value in enumerate(values))
    figure = figure_of(dataclasses.replace(run(), rounds=rounds, score=score))
    save(figure, tmp_path / "methods.png")
    low, high = figure.axes[0].get_ylim()
    assert all(low <= value * score.scale <= high for value in values if math.isfinite(value))
    points = [(float(x), y * score.scale) for x, y in enumerate(values, 1)]
    save(score_by_cost({"masked network": points}, "weights kept (%)", score, "t"), tmp_path / "own.png")


def test_around_the_dense_networks_score_is_what_the_test_set_leaves_open():
    axes = figure_of(run(accuracies=(0.99, 0.9925, 0.995, 0.9975))).axes[0]
    (band,) = axes.patches
    error = 100 * math.sqrt(0.99 * 0.01 / 400)
    assert (band.get_y(), band.get_height()) == pytest.approx((99 - error, 2 * error))
    figure = figure_of(run(accuracies=(0.99, 0.9925, 0.995, 0.9975)))
    assert "± one standard error of 400 test examples" in [text.get_text() for text in figure.legends[0].get_texts()]


@pytest.mark.parametrize("most", [1.001, 1.25, 1.8, 2.9, 3.2, 5, 25, 1000])
def test_every_axis_has_two_numbers_at_least(most):
    """From a millionth more up to thousands of times: by steps and by logarithms."""
    costs = np.geomspace(5000 * most, 5000, 4)
    rounds = tuple({**each, "int8_bytes": cost} for each, cost in zip(run().rounds, costs, strict=True))
    axes = panel(figure_of(dataclasses.replace(run(), rounds=rounds)), "int8")
    low, high = sorted(axes.get_xlim())
    shown = [text.get_text() for text in axes.get_xticklabels() if low <= text.get_position()[0] <= high]
    assert len({text for text in shown if text}) >= 2


def test_what_stands_below_a_picture_is_not_cut():
    points = [(100.0, 85.0), (64.0, 85.5), (41.0, 84.75), (26.2, 84.5)]
    forms = {"packed float32": points, "packed int8": points, "plain export, dense": points[:1]}
    long = [run(f"lr_rewinding + 2 copies + dense teacher + EMA 0.9{n}", accuracies=(0.9, 0.8 + n / 100, 0.8, 0.75)) for n in range(9)]  # fmt: skip
    for figure in (score_by_cost(forms, "kB on disk", ACCURACY, "t"), figure_of(*long)):
        figure.draw_without_rendering()
        (legend,) = figure.legends
        box = legend.get_window_extent()
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1
        assert box.y1 < min(axes.get_tightbbox().y0 for axes in figure.axes)


def test_the_lines_are_the_records():
    runs = [run("lr_rewinding", seed, each) for seed, each in enumerate([(0.9, 0.91, 0.89, 0.8), (0.9, 0.93, 0.8, 0.7), (0.8, 0.9, 0.9, 0.9)])]  # fmt: skip
    line = drawn(panel(figure_of(*runs), "weights"), "lr_rewinding")
    assert line.get_xdata() == pytest.approx([100, 80, 64, 51.2])
    assert line.get_ydata() == pytest.approx(np.median([[90, 91, 89, 80], [90, 93, 80, 70], [80, 90, 90, 90]], axis=0))


def test_two_points_are_no_line_and_have_bars_from_least_to_most():
    runs = [run("lr_rewinding", seed, (0.9, last)) for seed, last in enumerate((0.8, 0.85, 0.88))]
    axes = figure_of(*runs).axes[0]
    (bars,) = axes.containers
    assert bars.lines[0].get_linestyle() == "None"
    (segments,) = (lines.get_segments() for lines in bars.lines[2])
    assert segments[1][:, 1] == pytest.approx([80, 88])
    assert not [each for each in axes.collections if "Poly" in type(each).__name__]


def test_a_line_that_leaves_the_frame_ends_in_an_arrow_with_its_score():
    fallen = run("fine_tuning", accuracies=(0.9, 0.89, 0.5, 0.3))
    axes = panel(figure_of(run("lr_rewinding", accuracies=(0.9, 0.91, 0.9, 0.89)), run("weight_rewinding", accuracies=(0.9, 0.91, 0.9, 0.88)), fallen), "weights")  # fmt: skip
    bottom = axes.get_ylim()[0]
    assert bottom > 85
    arrow = drawn(axes, "_exit")
    assert (arrow.get_marker(), list(arrow.get_ydata())) == ("v", [bottom])
    assert list(arrow.get_xdata()) == pytest.approx([np.interp(bottom, [50, 89], [64, 80])])
    assert sorted(text.get_text() for text in axes.texts) == ["A: 30.00", "B", "C"]


def test_labels_at_the_ends_do_not_lie_on_each_other():
    figure = figure_of(*[run(name, accuracies=(0.9, 0.9, 0.9, 0.9)) for name in COLOURS])
    figure.draw_without_rendering()
    for axes in figure.axes:
        boxes = [text.get_bbox_patch().get_window_extent() for text in axes.texts]
        assert len(boxes) == len(COLOURS)
        for n, box in enumerate(boxes):
            assert not any(box.overlaps(other) for other in boxes[n + 1 :])


def test_equal_runs_are_seen_and_told():
    figure = figure_of(run("lr_rewinding"), run("weight_rewinding"))
    lines = [drawn(figure.axes[0], name) for name in ("lr_rewinding", "weight_rewinding (same as lr_rewinding)")]
    assert lines[0].get_linewidth() > 2 * lines[1].get_linewidth()
    assert lines[0].get_markersize() > lines[1].get_markersize()
    assert figure.axes[0].get_lines().index(lines[0]) < figure.axes[0].get_lines().index(lines[1])


def test_colours_are_those_of_retraining_and_markers_those_of_what_goes():
    runs = [
        run("fine_tuning"), run("fine_tuning (filters)", accuracies=(0.9, 0.8, 0.8, 0.8), pruning__structure="filter"),
        run("fine_tuning (random pruning)", accuracies=(0.9, 0.7, 0.7, 0.7)),
        run("lr_rewinding (blocks of 4)", accuracies=(0.9, 0.6, 0.7, 0.7), pruning__structure="block"),
    ]  # fmt: skip
    methods = comparison.methods(runs)
    axes = methods_figure(methods, "t").axes[0]
    looks = [(line.get_color(), line.get_marker(), line.get_linestyle()) for line in (drawn(axes, each.name) for each in methods)]  # fmt: skip
    fine = COLOURS["fine_tuning"]
    assert looks == [(fine, "o", "-"), (fine, "s", "-"), (fine, "o", "--"), (COLOURS["lr_rewinding"], "D", "-")]
    page = methods_page(methods, "t")
    assert all(part in page for part in (f'"color":"{fine}","dash":"dash"', '"symbol":"diamond"', '"symbol":"square"'))


def test_one_method_alone_needs_no_letter_and_nothing_that_tells_methods_apart():
    alone, beside = (figure_of(*[costed(name) for name in names]) for names in (["lr_rewinding"], ["lr_rewinding", "fine_tuning"]))  # fmt: skip
    assert (len(alone.axes), len(beside.axes)) == (3, 5)
    assert not [text for axes in alone.axes for text in axes.texts]


def in_int8(record, scores):
    rounds = [{**each, "int8_score": score} for each, score in zip(record.rounds, scores, strict=True)]
    return dataclasses.replace(record, rounds=tuple(rounds))


def test_bytes_of_int8_have_the_score_of_int8_where_every_run_knows_it():
    one = in_int8(run(), (0.895, 0.905, 0.885, 0.7))
    axes = panel(figure_of(one), "int8 file")
    assert "(score: int8)" in axes.get_xlabel()
    assert drawn(axes, "lr").get_ydata() == pytest.approx([89.5, 90.5, 88.5, 70])
    axes = panel(figure_of(one, run("fine_tuning", seed=0)), "int8 file")
    assert "score: float network" in axes.get_xlabel()
    assert drawn(axes, "lr").get_ydata() == pytest.approx([90, 91, 89, 80])


def test_a_runs_own_curves_have_the_score_of_int8_at_its_bytes(small_job):
    job, site = small_job()
    rounds = loop.run(job, site)
    for scores, label in (([0.5, 0.4], "packed int8"), ([0.5, None], "packed int8 (score: float network)")):
        figures = [Sizes(9000, 7000 - n, 5000 - n, 20, int8_score=each).figures for n, each in enumerate(scores)]
        ((axes,),) = [
            curve.axes for name, curve in sheet.curves(rounds[:2], figures, ACCURACY, "t").items() if "bytes" in name
        ]
        network = [100 * each.figures["test_accuracy"] for each in rounds[:2]]
        assert drawn(axes, "packed float32").get_ydata() == pytest.approx(network)
        assert drawn(axes, label).get_ydata() == pytest.approx([50, 40] if None not in scores else network)


@pytest.fixture(scope="module")
def method():
    return runpy.run_path(str(PROJECT / "docs" / "method.py"))


def test_the_drawing_of_the_method_has_the_recipes_rates(method):
    dense = [0.1] * 10 + [0.01] * 5 + [0.001] * 5
    rounds = {"lr_rewinding": dense[8:], "weight_rewinding": dense[8:], "fine_tuning": [0.001] * 12}
    for name, again in rounds.items():
        trainings = method["rates"](name)
        assert [training[:: method["STEPS"]] for training in trainings] == [
            pytest.approx(each) for each in [dense, *[again] * 3]
        ]
    assert [int(mask.sum()) for mask in method["masks"]()] == [100, 80, 64, 51]


def test_the_drawing_of_the_method_points_to_where_weights_go_back_to(method):
    titles = {axes.get_title(loc="left").split(":")[0]: axes for axes in method["drawing"]().axes}
    ends = [text.xy[0] for text in titles["Weight rewinding"].texts if getattr(text, "arrow_patch", None)]
    assert ends == [8, 8, 8]
