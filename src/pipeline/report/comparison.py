"""Methods side by side over seeds, the way a paper does: medians with least and most, at equal density.

Pure: records of runs in, methods and their tables out. All have one score, such as accuracy.
"""

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from pipeline.ground import tables
from pipeline.ground.errors import PipelineError
from pipeline.objective.score import ACCURACY, Score
from pipeline.report.sizes import INT8_SCORE
from pipeline.settings.identity import LATER, LENGTHENS, NO_NUMBERS

LOSSES = (0.0, 0.005, 0.01)
"""Losses against the dense network for which the density reached is told: points of a share, else shares of it."""
FIGURES = (
    "density", "macs_kept", "macs_dense", "int8_bytes", "float32_bytes", INT8_SCORE,
    "latency_ratio", "instructions", "board_ms_most", "sparse_latency_ratio", "sparse_instructions",
    "sparse_board_ms_most", "epochs", "examples",
)  # fmt: skip
"""What a comparison reads of a round, beside the score."""
TRAINING = ("training_epochs", "training_flops")
"""What was spent on training up to a round, all before it included."""
FLOPS = 6
"""Of training, for a multiply-add of the dense network and an example: 2 forward, 4 backward. Zeros are computed."""
FLOPS_OF_A_TEACHER = 2
SAME = 0.01
"""Densities that differ by no more than this share are the same place: blocks and filters end a few weights lower."""
NOT_COMPARED = {f"{group}.{name}" for group, names in NO_NUMBERS.items() for name in names} - {"model.weights"} | {
    "training.precision",
    "training.compile",
    "training.ema",
}
"""Settings of network, data and training that may differ: a method's name tells of an EMA, and what became of precision
and compilation stands under their bare names."""
ALWAYS = {"training.label_smoothing"}
"""Settings that earlier runs had and that are gone."""
Recipe = tuple[tuple[str, str], ...]
"""What tells methods apart: names of settings with their values."""


@dataclass(frozen=True)
class RunRecord:
    """A run, from its ledger or from MLflow: its settings, and the figures of its complete rounds, from round 0 on."""

    name: str
    method: str
    seed: int
    settings: Mapping[str, str]
    """Flat names of settings (and of what they became on the machine) to values, as text."""
    rounds: tuple[Mapping[str, float], ...]
    started_ms: int
    score: Score = ACCURACY


@dataclass(frozen=True)
class Spread:
    """Median, least and most of repeated measurements."""

    median: float
    least: float
    most: float

    def __format__(self, spec: str) -> str:
        return f"{self.median:{spec}} ({self.least:{spec}} to {self.most:{spec}})"

    def __mul__(self, factor: float) -> "Spread":
        return Spread(self.median * factor, self.least * factor, self.most * factor)


def spread(values: Sequence[float]) -> Spread:
    """Median, least and most; not a number where a value is none."""
    if any(map(math.isnan, values)):
        return Spread(math.nan, math.nan, math.nan)
    return Spread(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Point:
    """A method at one round: figures by name over the seeds that have that round."""

    index: int
    seeds: int
    figures: Mapping[str, Spread]
    score: Spread
    """The test score."""

    @property
    def density(self) -> float:
        return self.figures["density"].median


@dataclass(frozen=True)
class Method:
    """A method: its runs by seed."""

    name: str
    runs: Mapping[int, RunRecord]

    @property
    def score(self) -> Score:
        """What its runs are scored by."""
        return next(iter(self.runs.values())).score

    @cached_property
    def points(self) -> list[Point]:
        """The method at each round."""
        longest = max(len(run.rounds) for run in self.runs.values())
        return [self._point(index) for index in range(longest)]

    def _point(self, index: int) -> Point:
        rounds = [costed[index] for costed in self._costed if index < len(costed)]
        wanted = (*FIGURES, *TRAINING, self.score.validation, self.score.test)
        known = [name for name in wanted if all(name in figures for figures in rounds)]
        figures = {name: spread([figures[name] for figures in rounds]) for name in known}
        return Point(index, len(rounds), figures, figures[self.score.test])

    @cached_property
    def control(self) -> bool:
        """Whether nothing is pruned: its rounds are cycles of training alone."""
        return self._setting("pruning.fraction") in ("0", "0.0") and self._setting("pruning.shares") == "None"

    @property
    def structure(self) -> str:
        """What goes when it prunes: weight, block or filter."""
        return self._setting("pruning.structure")

    @property
    def taught(self) -> bool:
        """Whether its rounds learn from a teacher, too."""
        return any(self._setting(f"{group}.teacher") != "None" for group in ("training", "retraining"))

    @property
    def from_scratch(self) -> bool:
        """Whether its rounds need nothing of the dense network's training: weights go within one from initial ones."""
        weights, length = self._setting("retraining.weights"), self._setting("retraining.length")
        initial = weights == "fresh" or (weights == "rewound" and float(length) >= 1)
        return initial and self._setting("pruning.schedule") == "cubic" and not self.taught

    def _setting(self, key: str) -> str:
        group, name = key.split(".")
        return next(iter(self.runs.values())).settings.get(key, str(LATER.get(group, {}).get(name)))

    @cached_property
    def _costed(self) -> list[list[dict[str, float]]]:
        """Of each run, the figures of its rounds with what was spent on training up to each."""
        taught = FLOPS_OF_A_TEACHER if self.taught else 0
        found = []
        for run in self.runs.values():
            spent = dict.fromkeys(TRAINING, 0.0)
            found.append([dict(figures) for figures in run.rounds])
            for index, figures in enumerate(found[-1]):
                macs, examples = (figures.get(key, math.nan) for key in ("macs_dense", "examples"))
                flops = (FLOPS + (taught if index else 0)) * macs * examples
                spent = {
                    "training_epochs": spent["training_epochs"] + figures.get("epochs", math.nan),
                    "training_flops": spent["training_flops"] + flops,
                }
                figures |= {key: value for key, value in spent.items() if not math.isnan(value)}
                if index == 0 and self.from_scratch:
                    spent = dict.fromkeys(TRAINING, 0.0)
        return found

    def reached(self, loss: float) -> Point | None:
        """The smallest density at which the median score is at most ``loss`` worse than the dense network's."""
        dense = self.points[0].score.median
        most = (loss if self.score.percent else loss * abs(dense)) + 1e-9
        return ([None] + [each for each in self.points if self.score.drop(each.score.median, dense) <= most])[-1]

    @property
    def epochs_a_round(self) -> int:
        """Epochs of one retraining."""
        length, epochs = (float(self._setting(key)) for key in ("retraining.length", "training.epochs"))
        return int(self._setting("retraining.copies")) * max(1, round(length * epochs))


def each_alone(runs: Sequence[RunRecord]) -> list[Method]:
    """Every run as a method of its own, whatever it was made with, called by what tells it apart from the others."""
    recipes: dict[str, list[Recipe]] = {}
    for run in runs:
        recipes.setdefault(run.method, []).append(_recipe(run))
    names = [", ".join([run.method, *_apart(_recipe(run), recipes[run.method]), f"seed {run.seed}"]) for run in runs]
    found = [
        Method(name if names.count(name) == 1 else f"{name} ({run.name})", {run.seed: run})
        for name, run in zip(names, runs, strict=True)
    ]
    return sorted(found, key=lambda method: method.name)


def by_score(methods: Sequence[Method]) -> list[list[Method]]:
    """The methods, those of one score together."""
    parts: dict[Score, list[Method]] = {}
    for method in methods:
        parts.setdefault(method.score, []).append(method)
    return list(parts.values())


def methods(runs: Sequence[RunRecord]) -> list[Method]:
    """The runs by method: by what pruning and retraining they had. Of two of one seed the longer or later one counts.

    Raises:
        PipelineError: if the runs are not comparable, naming the settings that differ.
    """
    if differing := list(_differing(runs)):
        raise PipelineError(
            "these runs cannot be compared: " + "; ".join(differing) + "; compare.where narrows the choice, such as "
            "compare.where=\"params.`training.epochs` = '20'\""
        )
    groups: dict[Recipe, dict[int, RunRecord]] = {}
    for run in sorted(runs, key=lambda run: (len(run.rounds), run.started_ms)):
        groups.setdefault(_recipe(run), {})[run.seed] = run
    named: dict[str, list[Recipe]] = {}
    for recipe, group in groups.items():
        named.setdefault(next(iter(group.values())).method, []).append(recipe)
    found = [
        Method(", ".join([name, *_apart(recipe, recipes)]), groups[recipe])
        for name, recipes in named.items()
        for recipe in recipes
    ]
    return sorted(found, key=lambda method: method.name)


def _recipe(run: RunRecord) -> Recipe:
    """What tells methods apart. A policy has its name in the method's: the file is another for each seed."""
    later = {f"{part}.{key}": str(LATER[part][key]) for part in ("pruning", "retraining") for key in LATER[part]}
    known = later | dict(run.settings)
    kept = {key: value for key, value in known.items() if key.split(".")[0] in ("pruning", "retraining")}
    passed = (*LENGTHENS, "policy")
    recipe = sorted((key, value) for key, value in kept.items() if key.split(".")[-1] not in passed)
    return (("method", run.method), *recipe)


def _apart(recipe: Recipe, recipes: Sequence[Recipe]) -> list[str]:
    """The settings that tell a recipe apart from others of the same name."""
    return [
        f"{key.split('.')[-1]} {value}"
        for key, value in recipe
        if any(dict(other).get(key, value) != value for other in recipes)
    ]


def _differing(runs: Sequence[RunRecord]) -> Iterator[str]:
    """A sentence for each setting of network, data or training that is not the same in all runs."""
    if len({run.score for run in runs}) > 1:
        yield f"scores are {', '.join(sorted({run.score.test for run in runs}))}"
    for key in sorted({key for run in runs for key in run.settings}):
        group, _, name = key.partition(".")
        if (
            key in ALWAYS
            or group not in (*NO_NUMBERS, "data_digest", "precision", "compile")
            or f"{group}.{name}" in NOT_COMPARED
        ):
            continue
        values: dict[str, list[str]] = {}
        before = LATER.get(group, {})
        unknown = str(before[name]) if name in before else ""
        for run in sorted(runs, key=lambda run: run.started_ms):
            values.setdefault(run.settings.get(key, unknown), []).append(run.name)
        if len(values) > 1:
            told = (f"{value[:20] or 'not known'} in {_some(names)}" for value, names in values.items())
            yield f"{key} is {', '.join(told)}"


def _some(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} runs ({names[0]}, ...)"


def wins(one: Method, other: Method) -> tuple[int, int]:
    """At how many points of equal seed and density ``one`` has the better test score, and how many there are.

    Round 0, which the methods share, does not count. A control, of which nothing is pruned, is held against rounds of
    equal number.
    """
    won, of, test = 0, 0, one.score.test
    by_round = one.control or other.control
    for seed in one.runs.keys() & other.runs.keys():
        both = [method.runs[seed].rounds for method in (one, other)]
        place_of = _meeting(each["density"] for rounds in both for each in rounds)
        ours, theirs = (
            {index if by_round else place_of[each["density"]]: each[test] for index, each in enumerate(rounds) if index}
            for rounds in both
        )
        for place in ours.keys() & theirs.keys():
            of += 1
            won += one.score.is_better(ours[place], theirs[place])
    return won, of


def _meeting(densities: Iterable[float]) -> dict[float, float]:
    """What stands for each density: the largest of those that are the same place."""
    found: dict[float, float] = {}
    largest = math.inf
    for density in sorted(set(densities), reverse=True):
        largest = largest if density >= largest * (1 - SAME) else density
        found[density] = largest
    return found


def titles(methods: Sequence[Method]) -> dict[str, str]:
    """What a table calls each method: those with fewer seeds than others are marked."""
    most = max(len(method.runs) for method in methods)
    return {
        method.name: method.name
        + ("" if len(method.runs) == most else f" ({len(method.runs)} of {most} seeds)")
        + (" (at density 1, by round)" if method.control else "")
        for method in methods
    }


def markdown(methods: Sequence[Method]) -> str:
    """The tables: scores by density, what each method reaches, and wins at equal density."""
    parts = [scores(methods), _reached(methods), _spent(methods), _ends(methods), _wins(methods)]
    return "\n".join(part for part in parts if part)


def scores(methods: Sequence[Method]) -> str:
    """Test scores by density; by round where no two runs meet at a density."""
    names = titles(methods)
    place_of = _meeting(point.density for method in methods for point in method.points)
    by_density = {
        method.name: {place_of[point.density]: point for point in method.points}
        for method in methods
        if not method.control
    }
    longest = max((m for m in methods if not m.control), key=lambda method: len(method.points), default=None)
    for control in (method for method in methods if method.control):
        beside = (longest or control).points
        by_density[control.name] = {
            place_of[theirs.density]: own for theirs, own in zip(beside, control.points, strict=False)
        }
    densities = sorted({density for points in by_density.values() for density in points}, reverse=True)
    if len(densities) > 2 * max(len(method.points) for method in methods):  # filters meet no density to the weight
        return _by_round(methods)
    rows = [
        [f"{density:.4f}", *(_cell(by_density[method.name].get(density), method) for method in methods)]
        for density in densities
    ]
    return f"{_title(methods)}: {_median_of(methods)}.\n\n" + tables.markdown(["density", *names.values()], rows)


def _by_round(methods: Sequence[Method]) -> str:
    most = max(len(method.points) for method in methods)
    head, rows = ["method", *(f"round {index}" for index in range(most))], []
    for method, name in zip(methods, titles(methods).values(), strict=True):
        points = [*method.points, *[None] * (most - len(method.points))]
        rows.append([name, *(_cell(point, method) for point in points)])
    return f"{_title(methods)} by round: {_median_of(methods)}.\n\n" + tables.markdown(head, rows, left=[0])


def _median_of(methods: Sequence[Method]) -> str:
    seeds = max(len(method.runs) for method in methods)
    return f"median (least to most) of {seeds} seeds; a number in brackets: of so many"


def _title(methods: Sequence[Method]) -> str:
    score = methods[0].score
    return score.heading + (" in %" if score.percent else f" ({score.better} is better)")


def _cell(point: Point | None, method: Method) -> str:
    if point is None:
        return "-"
    return _number(point, method.score) + (f" [{point.seeds}]" if point.seeds < len(method.runs) else "")


def _number(point: Point, score: Score) -> str:
    value, spec = point.score * score.scale, ".2f" if score.percent else ".4g"
    return format(value if point.seeds > 1 else value.median, spec)


def _reached(methods: Sequence[Method]) -> str:
    score = methods[0].score
    unit = " points" if score.percent else "%"
    losses = ["no loss" if not loss else f"{loss * 100:g}{unit}" for loss in LOSSES]
    head, rows = ["method", "epochs a round", *losses, "MACs kept there", "bytes there, int8"], []
    for method, name in zip(methods, titles(methods).values(), strict=True):
        points = [method.reached(loss) for loss in LOSSES]
        cells = ["-" if point is None or not point.index else f"{point.density:.4f}" for point in points]
        last = points[-1]
        costs = last.figures if last and last.index else {}
        macs = f"{costs['macs_kept'].median / 1e6:.3f} M" if "macs_kept" in costs else "-"
        size = f"{costs['int8_bytes'].median:,.0f}" if "int8_bytes" in costs else "-"
        rows.append([name, str(method.epochs_a_round), *cells, macs, size])
    return (
        f"The smallest density at which the median {score.test_label} is no more than so much worse than the dense "
        "network's; "
        f"multiply-adds and bytes are those at {losses[-1]}.\n\n" + tables.markdown(head, rows, left=[0])
    )


def _spent(methods: Sequence[Method]) -> str:
    """What training cost up to the end of the runs, where it is known."""
    head, rows = ["method", "rounds", "density", methods[0].score.test_label, "epochs", "training, PFLOP"], []
    for method, name in zip(methods, titles(methods).values(), strict=True):
        last = method.points[-1]
        epochs, flops = (last.figures.get(key) for key in TRAINING)
        if epochs is not None:
            operations = "-" if flops is None else f"{flops.median / 1e15:.3g}"
            rows.append(
                [
                    name,
                    str(last.index),
                    f"{last.density:.4f}",
                    _number(last, method.score),
                    f"{epochs.median:g}",
                    operations,
                ]
            )
    if not rows:
        return ""
    return (
        "What was spent on training, all rounds and copies counted, and the dense network's where a method needs it. A "
        f"multiply-add of the dense network and an example is {FLOPS} operations: zeros are computed too.\n\n"
        + tables.markdown(head, rows, left=[0])
    )


ENDS: Mapping[str, tuple[str, str | None]] = {
    "weights": ("density", None),
    "multiply-adds": ("macs_kept", "macs_kept"),
    "bytes, int8": ("int8_bytes", "int8_bytes"),
    "time here": ("latency_ratio", None),
    "time here, engine": ("sparse_latency_ratio", None),
    "ARM instructions": ("instructions", "instructions"),
    "ARM, engine": ("sparse_instructions", "instructions"),
}
"""Costs at the end of a run: a label, its figure, and that of the dense network it is a share of (None: it is one)."""


def _ends(methods: Sequence[Method]) -> str:
    measured = {figure for each in methods for figure in each.points[-1].figures}
    known = {label: end for label, end in ENDS.items() if end[0] in measured}
    head, rows = ["method", "rounds", methods[0].score.test_label, *known], []
    for method, name in zip(methods, titles(methods).values(), strict=True):
        last, dense = method.points[-1], method.points[0].figures
        shares = [
            f"{last.figures[figure].median / (dense[of].median if of else 1):.3f}"
            if figure in last.figures and (of is None or of in dense)
            else "-"
            for figure, of in known.values()
        ]
        rows.append([name, str(last.index), _number(last, method.score), *shares])
    return (
        "What is left at the end of the runs, as shares of the dense network's (medians). Time is that of ONNX "
        "Runtime's float model on one thread of the machine that measured it, instructions those of one inference on "
        "an emulated Raspberry Pi 4, both also by the sparse engine (task=measure takes them).\n\n"
        + tables.markdown(head, rows, left=[0])
    )


def _wins(methods: Sequence[Method]) -> str:
    names = titles(methods)
    head, rows = ["wins against", *names.values()], []
    for one in methods:
        counts = [wins(one, other) if other is not one else (0, 0) for other in methods]
        rows.append([names[one.name], *(f"{won} of {of}" if of else "-" for won, of in counts)])
    return (
        f"How often the method of the row has the better {methods[0].score.test_label} than that of the column, of all "
        "pairs of equal seed and density.\n\n" + tables.markdown(head, rows, left=[0])
    )


def medians_csv(methods: Sequence[Method]) -> str:
    """A line for each method and round: its seeds, and every figure's median, least and most."""
    rows = [
        {"method": method.name, "round": point.index, "seeds": point.seeds}
        | {
            f"{name}_{which}": getattr(spread, which)
            for name, spread in point.figures.items()
            for which in ("median", "least", "most")
        }
        for method in methods
        for point in method.points
    ]
    return tables.as_csv(rows)


def rounds_csv(methods: Sequence[Method]) -> str:
    """A line for each round of each run."""
    rows = [
        {"method": method.name, "seed": seed, "round": index}
        | {name: figures[name] for name in (*FIGURES, run.score.validation, run.score.test) if name in figures}
        for method in methods
        for seed, run in sorted(method.runs.items())
        for index, figures in enumerate(run.rounds)
    ]
    return tables.as_csv(rows)
