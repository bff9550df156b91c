"""Pictures of rounds, for people who would rather look than read."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from math import exp, isfinite, isnan, log
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from pipeline.objective.score import Score
from pipeline.report.comparison import TRAINING, Method, Spread, titles
from pipeline.report.sizes import INT8_SCORE
from pipeline.report.style import COLOURS, DASHES, DENSE, FORMS, MARKERS, OPEN, OTHER, SMALL, WIDTH, style
from pipeline.report.testset import examples_behind, standard_error
from pipeline.rounds.ledger import Round


@dataclass(frozen=True)
class Cost:
    """What a score is drawn against: a figure with its factor. ``scored`` is the figure that says the score of what
    costs it; None where it is that of the masked network.
    """

    figure: str
    factor: float
    scored: str | None = None


COSTS = {
    "weights kept (%)": Cost("density", 100.0),
    "kB of the int8 file (score: int8)": Cost("int8_bytes", 1e-3, INT8_SCORE),
    "kB of the int8 file (score: float network)": Cost("int8_bytes", 1e-3),
    "million multiply-adds kept": Cost("macs_kept", 1e-6),
    "time here (% of dense)": Cost("latency_ratio", 100.0),
    "time here, sparse engine (% of dense)": Cost("sparse_latency_ratio", 100.0),
    "most ms on a Raspberry Pi 4, foretold": Cost("board_ms_most", 1.0),
    "most ms on a Raspberry Pi 4, foretold, sparse engine": Cost("sparse_board_ms_most", 1.0),
    "million ARM instructions": Cost("instructions", 1e-6),
    "million ARM instructions, sparse engine": Cost("sparse_instructions", 1e-6),
    "epochs of training, all rounds": Cost("training_epochs", 1.0),
    "training, all rounds (PFLOP)": Cost("training_flops", 1e-15),
}
"""By label. Of two that have a figure in common the first is drawn that every method has."""
SPENT = {label for label, cost in COSTS.items() if cost.figure in TRAINING}
"""Costs that rise from round to round."""
JOINED = 2
"""Up to so many points are points with bars: a line would tell of what lies between them."""
NARROWEST = 0.02
"""Of a score that is drawn: two points where it is a share of 1, else this share of the dense network's."""


@style()
def score_by_cost(lines: Mapping[str, Sequence[tuple[float, float]]], cost: str, score: Score, title: str) -> Figure:
    """A score against what a network costs: a line a form of it, of (cost, score on its axis) from round 0 on.

    A form with one round is a star; the dense network's score is dotted.
    """
    figure = Figure(figsize=(WIDTH, 4.5))
    axes = figure.add_subplot()
    scores = [y for points in lines.values() for _, y in points]
    dense = _Dense(next(iter(lines.values()))[0][1], score, scores)
    handles: list[Artist] = []
    for (label, points), (colour, marker, dashes) in zip(lines.items(), FORMS, strict=False):
        form: dict[str, Any] = {"color": colour, "marker": marker, "linestyle": dashes}
        if len(points) == 1:
            form = {"color": "black", "marker": "*", "linestyle": "none", "markersize": 10}
        handles += axes.plot(*zip(*points, strict=True), label=label, **form)
    handles += dense.drawn(axes)
    axes.set(ylabel=score.axis, title=title, ylim=dense.frame(scores))
    _cost_axis(axes, cost, [x for points in lines.values() for x, _ in points])
    figure.legend(handles=handles, loc="outside lower center", ncols=min(3, len(handles)))
    return figure


@style()
def layer_sparsity(round_: Round) -> Figure:
    """Sparsity of every layer as bars, first layer on top; the number of weights left stands beside each."""
    figure = Figure(figsize=(WIDTH, 1.2 + 0.22 * len(round_.layers)))
    axes = figure.add_subplot()
    names = [layer.name + ("" if layer.prunable else " (excluded)") for layer in round_.layers]
    bars = axes.barh(names, [layer.sparsity * 100 for layer in round_.layers], color=FORMS[0][0])
    axes.bar_label(bars, [f"{layer.kept:,} left" for layer in round_.layers], padding=3, fontsize=SMALL)
    axes.axvline((1 - round_.density) * 100, **DENSE)
    axes.set(xlim=(0, 118), xlabel="weights pruned (%); dotted: of the whole network")
    axes.set(title=f"round {round_.index}, density {round_.density:.4f}")
    axes.set_xticks(range(0, 101, 20))
    axes.grid(visible=False, axis="y")
    axes.invert_yaxis()
    return figure


@style()
def methods_figure(methods: Sequence[Method], title: str) -> Figure:
    """Median test score of each method against each cost that was measured.

    Least to most over seeds is a band, and a bar at each point where a method has two points or fewer, which no line
    joins. The colour is that of the retraining, the marker that of what is pruned, dashes tell the rest apart; a letter
    stands at each line's end, and where a line leaves the frame an arrow, with the score that it goes to. Of lines that
    are equal the lower is the thicker.
    """
    costs, looks = _measured(methods), _looks(methods)
    columns = len(costs) if len(costs) in (1, 3) else 2
    rows = -(-len(costs) // columns)
    abreast = 1 if max(len(look.name) for look in looks) > 40 else 2
    figure = Figure(figsize=(WIDTH, 1.2 + (2.6 if rows > 1 else 3.2) * rows + 0.17 * -(-len(looks) // abreast)))
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).flatten()
    for axes in panels[len(costs) :]:
        axes.remove()
    score = methods[0].score
    dense = _Dense(methods[0].points[0].score.median * score.scale, score, _scores(methods))
    handles: list[Artist] = []
    for axes, cost in zip(panels, costs, strict=False):
        handles = dense.drawn(axes)
        lines = [_line(method, cost) for method in methods]
        for number, (line, look) in enumerate(zip(lines, looks, strict=True)):
            _draw(axes, *line, look, below=lines[number + 1 :].count(line))
        _cost_axis(axes, cost, [x for xs, _ in lines for x in xs])
    panels[0].set(ylim=_shown(methods, dense))
    for axes in panels[: len(costs) : columns]:
        axes.set(ylabel=score.axis)
    figure.suptitle(title)
    words = {
        "letters: ends of lines": len(methods) > 1,
        "bands and bars: least to most of the seeds": _several(methods),
    }
    told = "; ".join(each for each, there in words.items() if there)
    handles = [*(Line2D([], [], label=f"{look.key}  {look.name}".strip(), **look.form) for look in looks), *handles]
    figure.legend(handles=handles, title=told, loc="outside lower center", ncols=abreast)
    figure.draw_without_rendering()  # the layout is made: labels find their places in it
    for axes, cost in zip(panels, costs, strict=False):
        _mark_ends(axes, [_line(method, cost) for method in methods], looks, score, points=72 / figure.dpi)
    return figure


def methods_page(methods: Sequence[Method], title: str) -> str:
    """The same as a page that answers to the mouse, in one file that needs no network."""
    import plotly.graph_objects as plotly
    from plotly.subplots import make_subplots

    costs, score = _measured(methods), methods[0].score
    dense = _Dense(methods[0].points[0].score.median * score.scale, score, _scores(methods))
    figure = make_subplots(1, len(costs), shared_yaxes=True, horizontal_spacing=0.03)
    for column, label in enumerate(costs, 1):
        for method, look in zip(methods, _looks(methods), strict=True):
            xs, scores = _line(method, label)
            figure.add_trace(
                plotly.Scatter(
                    x=xs,
                    y=[each.median for each in scores],
                    error_y={
                        "array": [each.most - each.median for each in scores],
                        "arrayminus": [each.median - each.least for each in scores],
                        "thickness": 1,
                    },
                    mode="lines+markers" if len(xs) > JOINED else "markers",
                    name=look.name,
                    legendgroup=look.name,
                    showlegend=column == 1,
                    line={"color": look.colour, "dash": PAGE[look.dashes]},
                    marker={"symbol": PAGE[look.marker], "size": 7},
                ),
                row=1,
                col=column,
            )
        direction = True if label in SPENT else "reversed"
        figure.update_xaxes(title=label, type="log", autorange=direction, row=1, col=column)
    if dense.examples is not None:
        figure.add_hrect(*dense.band, line_width=0, fillcolor=OPEN["color"], layer="below")
    figure.add_hline(dense.value, line={"color": "black", "dash": "dot", "width": 1})
    figure.update_yaxes(range=_shown(methods, dense))
    figure.update_yaxes(title=score.axis, col=1)
    figure.update_layout(title=title, template="plotly_white", legend={"orientation": "h", "y": -0.2})
    return str(figure.to_html(include_plotlyjs=True))


PAGE = {
    "none": "solid", "-": "solid", "--": "dash", ":": "dot", "-.": "dashdot",
    "o": "circle", "D": "diamond", "s": "square",
}  # fmt: skip
"""What plotly calls matplotlib's dashes and markers."""


@dataclass(frozen=True)
class _Dense:
    """The dense network's score on its axis, and around it what the test set leaves open.

    ``scores`` are all that are drawn: where they are accuracies they tell how many examples test.
    """

    value: float
    score: Score
    scores: Sequence[float]

    @cached_property
    def examples(self) -> int | None:
        if not (self.score.percent and "accuracy" in self.score.label):
            return None
        return examples_behind(each / self.score.scale for each in self.scores)

    @property
    def band(self) -> tuple[float, float]:
        """One standard error to both sides, of a single network; nothing where that is not known."""
        if (examples := self.examples) is None:
            return self.value, self.value
        error = standard_error(self.value / self.score.scale, examples) * self.score.scale
        return self.value - error, min(self.value + error, self.score.scale)

    def drawn(self, axes: Axes) -> list[Artist]:
        """Line and band, as the legend takes them."""
        handles: list[Artist] = [axes.axhline(self.value, label="dense network", **DENSE)]
        if self.examples is not None:
            axes.axhspan(*self.band, **OPEN)
            label = f"± one standard error of {self.examples:,} test examples"
            handles.append(Patch(label=label, **OPEN))
        return handles

    def frame(self, scores: Iterable[float]) -> tuple[float, float]:
        """The range of scores to draw: those that are given, the band, and never less than ``NARROWEST``."""
        finite = [each for each in (*scores, *self.band) if isfinite(each)] or [0.0]
        low, high = min(finite), max(finite)
        margin = 0.05 * (high - low)
        whole = self.score.scale if self.score.percent else abs(self.value)
        narrowest = NARROWEST * (whole if isfinite(whole) and whole else 1.0)
        missing = max(0.0, narrowest - (high - low) - 2 * margin) / 2
        low, high = low - margin - missing, high + margin + missing
        beyond = max(0.0, high - self.score.scale - margin) if self.score.percent else 0.0
        return low - beyond, high - beyond


@dataclass(frozen=True)
class _Look:
    """How a method is drawn: its letter (none of one alone), what the legend calls it, and the rest."""

    key: str
    name: str
    colour: str
    marker: str
    dashes: str

    @property
    def form(self) -> dict[str, Any]:
        """The same as matplotlib takes it."""
        return {"color": self.colour, "marker": self.marker, "linestyle": self.dashes}


def _looks(methods: Sequence[Method]) -> list[_Look]:
    found: list[_Look] = []
    drawn = [[(point.figures, point.score) for point in method.points] for method in methods]
    for number, (method, name) in enumerate(zip(methods, titles(methods).values(), strict=True)):
        key = "" if len(methods) == 1 else chr(ord("A") + number) if number < 26 else str(number + 1)
        if (first := drawn.index(drawn[number])) < number:
            name += f" (same as {found[first].name})"
        title = next(iter(method.runs.values())).method
        retraining = max((each for each in COLOURS if title.startswith(each)), key=len, default="")
        colour, marker = COLOURS.get(retraining, OTHER), MARKERS[method.structure]
        alike = sum((look.colour, look.marker) == (colour, marker) for look in found)
        dashes = DASHES[alike % len(DASHES)] if len(method.points) > JOINED else "none"
        found.append(_Look(key, name, colour, marker, dashes))
    return found


def _draw(axes: Axes, xs: Sequence[float], scores: Sequence[Spread], look: _Look, below: int) -> None:
    """A method's points; thicker, if equal lines are to lie upon it: ``below`` how many it lies."""
    medians, least, most = ([getattr(each, which) for each in scores] for which in ("median", "least", "most"))
    form = look.form | {"label": look.name, "markersize": 4.5 + 3 * below}
    if len(xs) > JOINED:
        axes.plot(xs, medians, linewidth=1.6 + 2.4 * below, **form)
        axes.fill_between(xs, least, most, color=look.colour, alpha=0.12, linewidth=0)
    else:
        bars = [[m - each for m, each in zip(medians, least, strict=True)],
                [each - m for m, each in zip(medians, most, strict=True)]]  # fmt: skip
        axes.errorbar(xs, medians, bars, elinewidth=1.2 + 2.4 * below, **form | {"linestyle": "none"})


def _mark_ends(
    axes: Axes,
    lines: Sequence[tuple[Sequence[float], Sequence[Spread]]],
    looks: Sequence[_Look],
    score: Score,
    points: float,
) -> None:
    """The letter of each line at its end; where it leaves the frame an arrow and the score that it goes to.

    A pixel of the layout has so many ``points``.
    """
    frame, labels = axes.get_ylim(), list[_Label]()
    for (xs, scores), look in zip(lines, looks, strict=True):
        known = [(x, each.median) for x, each in zip(xs, scores, strict=True) if not isnan(each.median)]
        if not known:
            continue
        xs, ys = zip(*known, strict=True)
        for x, edge, value in _exits(xs, ys, frame, logarithmic=axes.get_xscale() == "log"):
            arrow = "v" if edge == frame[0] else "^"
            axes.plot([x], [edge], arrow, color=look.colour, markersize=7, clip_on=False, zorder=4, label="_exit")
            labels.append((x, edge, f"{look.key}: {value:.2f}" if score.percent else f"{look.key}: {value:.3g}", look))
        if look.key and frame[0] <= ys[-1] <= frame[1]:
            labels.append((xs[-1], ys[-1], look.key, look))
    _put(axes, labels, points)


def _exits(
    xs: Sequence[float], ys: Sequence[float], frame: tuple[float, float], *, logarithmic: bool
) -> Iterator[tuple[float, float, float]]:
    """Where a line leaves the frame: the place of that on the axis, the edge, and the farthest that it gets there."""
    low, high = frame
    for n, y in enumerate(ys):
        within = [low <= each <= high for each in ys[max(0, n - 1) : n + 1]]
        if within[-1] or (n and not within[0]):
            continue
        edge, beyond = (low, min) if y < low else (high, max)
        farthest = beyond(takewhile(lambda each: not low <= each <= high, ys[n:]))
        if n == 0 or len(xs) <= JOINED:
            yield xs[n], edge, farthest
            continue
        share = (edge - ys[n - 1]) / (y - ys[n - 1])
        before, after = (log(xs[n - 1]), log(xs[n])) if logarithmic else (xs[n - 1], xs[n])
        place = before + share * (after - before)
        yield exp(place) if logarithmic else place, edge, farthest


_Label = tuple[float, float, str, _Look]


def _put(axes: Axes, labels: Sequence[_Label], points: float) -> None:
    """Labels beside their points, moved up or down until none lies on another; left of them where the frame ends."""
    gap = 11.0
    bottom, top = axes.bbox.y0 * points + gap / 2, axes.bbox.y1 * points - gap / 2
    taken: list[tuple[float, float, float]] = []
    for x, y, text, look in sorted(labels, key=lambda label: -label[1]):
        at = axes.transData.transform((x, y)) * points
        width, near = 5.0 * len(text) + 5, min(max(at[1], bottom), top)
        aside = 8 if at[0] + 8 + width <= axes.bbox.x1 * points + gap / 2 else -8 - width
        left = at[0] + aside
        heights = [near + step * gap for step in sorted(range(-40, 41), key=abs)]
        height = next(
            (
                each
                for each in heights
                if bottom <= each <= top
                and all(abs(each - h) >= gap or left >= r + w or r >= left + width for r, h, w in taken)
            ),
            near,
        )
        taken.append((left, height, width))
        leader = {"arrowstyle": "-", "color": look.colour, "linewidth": 0.6}
        label = axes.annotate(
            text,
            (x, y),
            xytext=(aside, height - at[1]),
            textcoords="offset points",
            va="center",
            fontsize=SMALL,
            annotation_clip=False,
            bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": look.colour, "linewidth": 0.8},
            arrowprops=leader if abs(height - at[1]) > gap / 2 else None,
            zorder=5,
        )
        label.set_in_layout(False)


def _several(methods: Sequence[Method]) -> bool:
    return any(len(method.runs) > 1 for method in methods)


def _scores(methods: Sequence[Method]) -> list[float]:
    """Every test score of every run, on its axis."""
    test, scale = methods[0].score.test, methods[0].score.scale
    return [figures[test] * scale for m in methods for run in m.runs.values() for figures in run.rounds]


def _shown(methods: Sequence[Method], dense: _Dense) -> tuple[float, float]:
    """The range of scores that is drawn. One method that falls far behind all others leaves the picture."""
    score = methods[0].score
    sign = score.scale if score.better == "higher" else -score.scale
    every = [[sign * each for point in m.points for each in (point.score.least, point.score.most)] for m in methods]
    ends = [finite for each in every if (finite := list(filter(isfinite, each)))]
    if not ends:
        return dense.frame(())
    lows, top = sorted(map(min, ends)), max(map(max, ends))
    bottom = lows[1] if len(lows) > 2 and lows[1] - lows[0] > top - lows[1] else lows[0]
    return dense.frame((bottom, top) if score.better == "higher" else (-top, -bottom))


def _cost_axis(axes: Axes, label: str, costs: Sequence[float]) -> None:
    """Costs fall to the right, those of training rise; they are spaced by their logarithms where some are over three
    times others. Two ticks at least have a number."""
    axes.set(xlabel=label)
    axes.margins(x=0.1)
    if max(costs) > 3 * min(costs):
        axes.set(xscale="log")
    low, high = sorted(axes.get_xlim())
    decades = LogLocator(subs=(1, 2, 5))
    few = axes.get_xscale() == "linear" or sum(low <= tick <= high for tick in decades.tick_values(low, high)) < 3
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=(1, 2, 2.5, 5, 10)) if few else decades)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    if label not in SPENT:
        axes.invert_xaxis()


def _measured(methods: Sequence[Method]) -> list[str]:
    """The costs that every method has a figure of at its end; of one method alone not what was spent."""
    known: dict[str, str] = {}
    for label, cost in COSTS.items():
        if all({cost.figure, cost.scored or cost.figure} <= m.points[-1].figures.keys() for m in methods):
            known.setdefault(cost.figure, label)
    return [label for label in known.values() if len(methods) > 1 or label not in SPENT]


def _line(method: Method, label: str) -> tuple[list[float], list[Spread]]:
    """What a method costs at the points where that is known, and its test scores."""
    cost, scale = COSTS[label], method.score.scale
    scored = cost.scored or method.score.test
    known = [point.figures for point in method.points if {cost.figure, scored} <= point.figures.keys()]
    return [each[cost.figure].median * cost.factor for each in known], [each[scored] * scale for each in known]
