"""Medians, wins, densities reached and what may be compared, on runs made by hand; against numpy and by counting."""

import csv
import dataclasses
import io
import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.commands.conformance import papers_settings
from pipeline.ground.errors import PipelineError
from pipeline.report import comparison, conformance
from pipeline.report.comparison import RunRecord
from pipeline.report.pictures import methods_figure, methods_page
from tests.conftest import settings

SETTINGS = {
    "model.network": "resnet", "data.dataset": "cifar10", "data.source": "here", "training.epochs": "10",
    "training.precision": "auto", "precision": "float32", "data_digest": "abc", "pruning.fraction": "0.2",
    "pruning.criterion": "magnitude", "pruning.rounds": "3", "retraining.rate": "replay", "retraining.length": "0.6",
}  # fmt: skip


def run(method="lr", seed=0, accuracies=(0.9, 0.91, 0.89, 0.8), started_ms=0, **changed):
    rounds = tuple(
        {"density": 0.8**index, "test_accuracy": accuracy, "validation_accuracy": accuracy - 0.01,
         "macs_kept": 1e6 * 0.8**index, "macs_dense": 1e6, "int8_bytes": 5000 - index}
        for index, accuracy in enumerate(accuracies)
    )  # fmt: skip
    known = SETTINGS | {"retraining.rate": method} | {key.replace("__", "."): value for key, value in changed.items()}
    return RunRecord(f"{method}, seed {seed}", method, seed, known, rounds, started_ms)


@given(st.lists(st.lists(st.floats(0, 1), min_size=3, max_size=3), min_size=1, max_size=6))
def test_points_are_numpys_medians_and_extremes(accuracies):
    (method,) = comparison.methods([run(seed=seed, accuracies=each) for seed, each in enumerate(accuracies)])
    for point, column in zip(method.points, np.array(accuracies).T, strict=True):
        got = point.score
        assert (got.least, got.most) == (column.min(), column.max())
        assert got.median == pytest.approx(np.median(column), abs=1e-12)
        assert point.seeds == len(accuracies)


def test_a_value_that_is_no_number_leaves_no_median_wherever_it_stands():
    for values in itertools.permutations([0.1, 0.91, math.nan]):
        assert all(map(math.isnan, dataclasses.astuple(comparison.spread(values))))


@pytest.mark.parametrize(
    ("accuracies", "densities"),
    [
        ((0.9, 0.91, 0.89, 0.8), (0.8, 0.8, 0.64)),
        ((0.9, 0.895, 0.9, 0.891), (0.64, 0.64, 0.512)),
        ((0.9, 0.5, 0.5, 0.5), (1.0, 1.0, 1.0)),
    ],
)
def test_the_smallest_density_within_a_loss(accuracies, densities):
    (method,) = comparison.methods([run(accuracies=accuracies)])
    assert [method.reached(loss).density for loss in comparison.LOSSES] == pytest.approx(densities)


def test_wins_are_counted_at_equal_seed_and_density_without_round_0():
    one, other = comparison.methods(
        [
            run("a", 0, (0.9, 0.8, 0.8, 0.8)), run("a", 1, (0.9, 0.8, 0.8)), run("a", 7),
            run("b", 0, (0.9, 0.7, 0.8, 0.9)), run("b", 1, (0.9, 0.7, 0.7, 0.7)),
        ]
    )  # fmt: skip
    assert comparison.wins(one, other) == (3, 5)
    assert comparison.wins(other, one) == (1, 5)


def test_no_share_is_told_of_bytes_that_the_dense_network_has_not():
    whole = run("a")
    bare = tuple({key: value for key, value in each.items() if key != "int8_bytes"} for each in whole.rounds[:1])
    (method,) = comparison.methods([dataclasses.replace(whole, rounds=bare + whole.rounds[1:])])
    (row,) = [line for line in comparison.markdown([method]).splitlines() if line.endswith("0.512 | 0.512 | - |")]
    assert row.startswith("| a | 3 |")


@pytest.mark.parametrize(("share", "pairs"), [(1.0, 3), (0.995, 3), (0.98, 0)])
def test_densities_that_are_a_few_weights_apart_meet(share, pairs):
    blocks = run("b", accuracies=(0.9, 0.7, 0.7, 0.7))
    lower = tuple(
        {**each, "density": each["density"] * share if index else 1.0} for index, each in enumerate(blocks.rounds)
    )
    one, other = comparison.methods([run("a"), dataclasses.replace(blocks, rounds=lower)])
    assert comparison.wins(one, other) == (pairs, pairs)
    table = [line for line in comparison.scores([one, other]).splitlines() if line.startswith("| 0")]
    assert [line.split("|")[1].strip() for line in table[:: 1 if pairs else 2]] == ["0.8000", "0.6400", "0.5120"]
    assert sum("-" in line for line in table) == (0 if pairs else 6)


def test_runs_of_one_method_are_told_apart_by_their_pruning():
    found = comparison.methods([run(), run(seed=1), run(pruning__fraction="0.5"), run("fine", pruning__rounds="9")])
    assert [(method.name, sorted(method.runs)) for method in found] == [
        ("fine", [0]), ("lr, fraction 0.2", [0, 1]), ("lr, fraction 0.5", [0]),
    ]  # fmt: skip


def test_of_two_runs_of_a_seed_the_longer_and_then_the_later_counts():
    long, late = run(started_ms=1), run(accuracies=(0.9, 0.9, 0.9, 0.9), started_ms=2)
    assert comparison.methods([long, run(accuracies=(0.9,), started_ms=9)])[0].runs[0] == long
    assert comparison.methods([late, long])[0].runs[0] == late


@pytest.mark.parametrize(
    "changed",
    [{"training__epochs": "20"}, {"model__network": "vgg"}, {"data_digest": "xyz"}, {"data__dataset": "digits"},
     {"precision": "bfloat16"}],
    ids=str,
)  # fmt: skip
def test_what_is_not_comparable_is_refused_by_name(changed):
    (key, value) = next(iter(changed.items()))
    with pytest.raises(PipelineError) as caught:
        comparison.methods([run(), run(seed=1), run("fine", **changed)])
    key = key.replace("__", ".")
    assert f"{key} is {SETTINGS[key]} in 2 runs (lr, seed 0, ...), {value} in fine, seed 0;" in str(caught.value)


def test_runs_of_before_a_setting_compare_with_those_that_have_its_value_of_then():
    later = {"data__crop_fill": "zeros", "training__optimizer.rates": "{}", "model__whitened": "None"}
    assert len(comparison.methods([run(), run("b", **later)])) == 2
    with pytest.raises(PipelineError, match=r"data.crop_fill is zeros in lr, seed 0, reflect in b, seed 0"):
        comparison.methods([run(), run("b", data__crop_fill="reflect")])


def test_where_the_data_lie_and_how_far_a_run_goes_may_differ():
    assert len(comparison.methods([run(), run("b", data__source="there", pruning__rounds="8")])) == 2


def test_the_tables_mark_fewer_seeds():
    methods = comparison.methods([run(seed=0), run(seed=1), run("b", accuracies=(0.9, 0.95))])
    text = comparison.markdown(methods)
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert lines[0] == ["density", "b (1 of 2 seeds)", "lr"]
    assert lines[2:6] == [
        ["1.0000", "90.00", "90.00 (90.00 to 90.00)"],
        ["0.8000", "95.00", "91.00 (91.00 to 91.00)"],
        ["0.6400", "-", "89.00 (89.00 to 89.00)"],
        ["0.5120", "-", "80.00 (80.00 to 80.00)"],
    ]
    assert lines[8] == ["b (1 of 2 seeds)", "6", "0.8000", "0.8000", "0.8000", "0.800 M", "4,999"]
    assert lines[10] == ["method", "rounds", "test accuracy", "weights", "multiply-adds", "bytes, int8"]
    assert lines[12] == ["b (1 of 2 seeds)", "1", "95.00", "0.800", "0.800", "1.000"]
    assert lines[16] == ["b (1 of 2 seeds)", "-", "1 of 1"]
    rows = list(csv.DictReader(io.StringIO(comparison.medians_csv(methods))))
    assert len(rows) == 2 + 4
    assert float(rows[1]["test_accuracy_median"]) == 0.95
    assert len(comparison.rounds_csv(methods).splitlines()) == 1 + 2 + 8


def test_the_pictures_have_a_panel_for_each_cost_that_all_have():
    methods = comparison.methods([run(), run("b")])
    assert len(methods_figure(methods, "t").axes) == 3
    assert "weights kept" in methods_page(methods, "t")
    short = run("c")
    short = dataclasses.replace(
        short, rounds=tuple({"density": r["density"], "test_accuracy": 0.5} for r in short.rounds)
    )
    assert len(methods_figure(comparison.methods([run(), short]), "t").axes) == 1


def published(method, seed, shift=0.0, **changed):
    """A run with the paper's settings whose figures are the published ones, ``shift`` points higher."""
    figures = {1.0: conformance.DENSE} | conformance.PUBLISHED[method]
    lengths = papers_settings() | {"retraining.length": "1.0", "precision": "float32", "data_digest": "abc"}
    rounds = tuple(
        {"density": density, "test_accuracy": (value + shift) / 100, "validation_accuracy": (value + shift) / 100}
        for density, value in figures.items()
    )
    known = lengths | changed
    return RunRecord(f"{method}, seed {seed}", method, seed, known | {"retraining.rate": method}, rounds, 0)


def test_conformance_says_within_outside_and_not_run():
    runs = [published("lr_rewinding", seed, shift) for seed, shift in enumerate((-3, 0.4, 5))]
    runs += [published("fine_tuning", 0, 0.6)]
    runs += [published("weight_rewinding", 0, -2, **{"retraining.length": "0.3"})]
    runs += [published("weight_rewinding", 0, 0.1, **{"retraining.length": "0.6"})]
    cells = conformance.cells(runs)
    by_method = {name: {c.verdict for c in cells if c.method == name} for name in ("dense", *conformance.PUBLISHED)}
    assert by_method == {
        "dense": {"within"}, "lr_rewinding": {"within"}, "weight_rewinding": {"within"}, "fine_tuning": {"outside"},
        "lottery_ticket": {"not run"},
    }  # fmt: skip
    assert len(cells) == 25
    text = conformance.markdown(cells)
    assert "| lr_rewinding | 0.1074 | 91.01 | 91.41 (88.01 to 96.01) | 3 | within |" in text
    assert "| fine_tuning | 0.8000 | 91.61 | 92.21 (92.21 to 92.21) | 1 of 3 | outside |" in text


def test_conformance_takes_the_papers_settings_alone():
    other = published("lr_rewinding", 1, **{"training.epochs": "3"})
    same, sentences = conformance.of_the_paper([published("lr_rewinding", 0), other], papers_settings())
    assert [run.seed for run in same] == [0]
    assert sentences == ["left out: lr_rewinding, seed 1: training.epochs is 3, not 182"]


def test_the_papers_settings_are_those_of_the_experiment_and_leave_the_method_free():
    paper = papers_settings()
    assert paper["training.max_steps"] == str(settings("+experiment=resnet20", "data.source=x").training.max_steps)
    assert not {"retraining.length", "retraining.weights", "pruning.rounds", "data.source"} & set(paper)


def test_runs_alone_are_called_by_what_tells_them_apart_and_then_by_their_own_names():
    alone = comparison.each_alone(
        [run(), run(seed=1), run(pruning__fraction="0.5"), run("fine"), run(training__epochs="9")]
    )
    assert [method.name for method in alone] == [
        "fine, seed 0", "lr, fraction 0.2, seed 0 (lr, seed 0)", "lr, fraction 0.2, seed 0 (lr, seed 0)",
        "lr, fraction 0.2, seed 1", "lr, fraction 0.5, seed 0",
    ]  # fmt: skip
    assert comparison.scores(alone).splitlines()[2].startswith("| density | fine, seed 0 | lr, fraction 0.2, seed 0")


def costed(method="lr", seed=0, epochs=(10, 6, 6, 6), **changed):
    known = run(method, seed, **changed)
    rounds = tuple({**r, "epochs": e, "examples": 100 * e} for r, e in zip(known.rounds, epochs, strict=True))
    return dataclasses.replace(known, rounds=rounds)


@pytest.mark.parametrize(
    ("changed", "epochs", "operations"),
    [
        ({}, (10, 16, 22, 28), 6),
        ({"retraining__teacher": "dense"}, (10, 16, 22, 28), 8),
        ({"training__teacher": "previous"}, (10, 16, 22, 28), 8),
        (
            {"pruning__schedule": "cubic", "retraining__weights": "rewound", "retraining__length": "1"},
            (10, 6, 12, 18),
            6,
        ),
        ({"pruning__schedule": "cubic", "retraining__weights": "final"}, (10, 16, 22, 28), 6),
    ],
    ids=str,
)
def test_what_training_cost_counts_all_rounds_and_the_dense_network_where_it_is_needed(changed, epochs, operations):
    (method,) = comparison.methods([costed(**changed), costed(seed=1, **changed)])
    assert [point.figures["training_epochs"].median for point in method.points] == list(epochs)
    for point, total in zip(method.points[1:], epochs[1:], strict=True):
        later = total - (epochs[0] if epochs[1] > epochs[0] else 0)
        expected = (6 * (total - later) + operations * later) * 100 * 1e6
        assert point.figures["training_flops"].median == expected
    assert "What was spent on training" in comparison.markdown([method])
    assert "What was spent on training" not in comparison.markdown(comparison.methods([run()]))


def test_a_control_stands_beside_rounds_of_the_same_number():
    control = run("dense_control", accuracies=(0.9, 0.93, 0.94, 0.95), pruning__fraction="0")
    control = dataclasses.replace(control, rounds=tuple({**r, "density": 1.0} for r in control.rounds))
    one, other = comparison.methods([run(), control])
    text = comparison.scores([one, other])
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert lines[0] == ["density", "dense_control (at density 1, by round)", "lr"]
    assert lines[2:] == [
        ["1.0000", "90.00", "90.00"], ["0.8000", "93.00", "91.00"], ["0.6400", "94.00", "89.00"],
        ["0.5120", "95.00", "80.00"],
    ]  # fmt: skip
    assert comparison.wins(one, other) == (3, 3)
    assert comparison.wins(other, one) == (0, 3)


def test_the_axes_of_training_rise():
    figure = methods_figure(comparison.methods([costed(), costed("b")]), "t")
    rising = {axes.get_xlabel(): not axes.xaxis_inverted() for axes in figure.axes}
    assert rising["epochs of training, all rounds"]
    assert rising["training, all rounds (PFLOP)"]
    assert not rising["weights kept (%)"]
