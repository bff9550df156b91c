"""Pictures of rounds, for people who would rather look than read."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from pipeline.report.comparison import TRAINING, Method, Spread, titles
from pipeline.rounds.ledger import Round

COSTS = {
    "weights kept (%)": ("density", 100.0),
    "kB of the int8 file": ("int8_bytes", 1e-3),
    "million multiply-adds kept": ("macs_kept", 1e-6),
    "time here (% of dense)": ("latency_ratio", 100.0),
    "time here, sparse engine (% of dense)": ("sparse_latency_ratio", 100.0),
    "million ARM instructions": ("instructions", 1e-6),
    "million ARM instructions, sparse engine": ("sparse_instructions", 1e-6),
    "epochs of training, all rounds": ("training_epochs", 1.0),
    "training, all rounds (PFLOP)": ("training_flops", 1e-15),
}
"""What a score is drawn against: a label, and the figure with its factor."""
SPENT = {label for label, (figure, _) in COSTS.items() if figure in TRAINING}
"""Costs that rise from round to round."""


warnings.filterwarnings("ignore", "Glyph .* missing from")  # for good: pictures are saved beside other threads
plain_text = rc_context({"text.parse_math": False})
"""Of a function that makes a figure: what users call things is no formula, whatever stands between two dollar signs."""


def save(figure: Figure, path: Path) -> None:
    """Writes a picture; a character that the font lacks becomes a box."""
    figure.savefig(path, dpi=150)


@plain_text
def score_by_cost(lines: Mapping[str, Sequence[tuple[float, float]]], cost: str, axis: str, title: str) -> Figure:
    """A score against what a network costs: a line a form of it, of (cost, score) from round 0 on.

    A form with one round is a star; the dense network's score is dotted. ``axis`` is what the score is called.
    """
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for label, points in lines.items():
        form, size = ("o-", 4) if len(points) > 1 else ("k*", 10)
        axes.plot(*zip(*points, strict=True), form, markersize=size, label=label)
    axes.axhline(next(iter(lines.values()))[0][1], color="black", linestyle=":", linewidth=1)
    axes.set(ylabel=axis, title=title)
    _cost_axis(axes, cost, [x for points in lines.values() for x, _ in points])
    figure.legend(loc="outside lower center", ncols=len(lines))
    return figure


@plain_text
def layer_sparsity(round_: Round) -> Figure:
    """Sparsity of every layer as bars, first layer on top; the number of weights left stands beside each."""
    figure = Figure(figsize=(7, 1.2 + 0.22 * len(round_.layers)), layout="constrained")
    axes = figure.add_subplot()
    names = [layer.name + ("" if layer.prunable else " (excluded)") for layer in round_.layers]
    bars = axes.barh(names, [layer.sparsity * 100 for layer in round_.layers])
    axes.bar_label(bars, [f"{layer.kept:,} left" for layer in round_.layers], padding=3, fontsize=7)
    axes.axvline((1 - round_.density) * 100, color="black", linestyle=":", linewidth=1)
    axes.set(xlim=(0, 118), xlabel="weights pruned (%)", title=f"round {round_.index}, density {round_.density:.4f}")
    axes.set_xticks(range(0, 101, 20))
    axes.tick_params(axis="y", labelsize=7)
    axes.invert_yaxis()
    return figure


@plain_text
def methods_figure(methods: Sequence[Method], title: str) -> Figure:
    """Median test score of each method, least to most over seeds shaded, against each cost that was measured."""
    costs = _measured(methods)
    columns, rows = min(3, len(costs)), -(-len(costs) // 3)
    figure = Figure(figsize=(5.5 * columns, 1 + 4 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).flatten()
    for axes in panels[len(costs) :]:
        axes.remove()
    for axes, label in zip(panels, costs, strict=False):
        for method, name in zip(methods, titles(methods).values(), strict=True):
            xs, scores = _line(method, label)
            (line,) = axes.plot(xs, [each.median for each in scores], marker="o", markersize=3, label=name)
            axes.fill_between(
                xs,
                [each.least for each in scores],
                [each.most for each in scores],
                color=line.get_color(),
                alpha=0.15,
                linewidth=0,
            )
        axes.axhline(
            methods[0].points[0].score.median * methods[0].score.scale, color="black", linestyle=":", linewidth=1
        )
        _cost_axis(axes, label, [x for method in methods for x in _line(method, label)[0]])
    panels[0].set(ylim=_shown(methods))
    for axes in panels[::columns]:
        axes.set(ylabel=methods[0].score.axis)
    figure.suptitle(title)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def methods_page(methods: Sequence[Method], title: str) -> str:
    """The same as a page that answers to the mouse, in one file that needs no network."""
    import plotly.graph_objects as plotly
    from plotly.colors import DEFAULT_PLOTLY_COLORS
    from plotly.subplots import make_subplots

    costs = _measured(methods)
    figure = make_subplots(1, len(costs), shared_yaxes=True, horizontal_spacing=0.03)
    for column, label in enumerate(costs, 1):
        for number, (method, name) in enumerate(zip(methods, titles(methods).values(), strict=True)):
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
                    mode="lines+markers",
                    name=name,
                    legendgroup=name,
                    showlegend=column == 1,
                    line_color=DEFAULT_PLOTLY_COLORS[number % len(DEFAULT_PLOTLY_COLORS)],
                ),
                row=1,
                col=column,
            )
        direction = True if label in SPENT else "reversed"
        figure.update_xaxes(title=label, type="log", autorange=direction, row=1, col=column)
    figure.update_yaxes(range=_shown(methods))
    figure.update_yaxes(title=methods[0].score.axis, col=1)
    figure.update_layout(title=title, template="plotly_white", legend={"orientation": "h", "y": -0.2})
    return str(figure.to_html(include_plotlyjs=True))


def _shown(methods: Sequence[Method]) -> tuple[float, float]:
    """The range of scores that is drawn. One method that falls far behind all others leaves the picture."""
    score = methods[0].score
    sign = score.scale if score.better == "higher" else -score.scale
    ends = [[sign * each for point in m.points for each in (point.score.least, point.score.most)] for m in methods]
    lows, top = sorted(map(min, ends)), max(map(max, ends))
    bottom = lows[1] if len(lows) > 2 and lows[1] - lows[0] > top - lows[1] else lows[0]
    margin = 0.05 * (top - bottom) + 0.001 * score.scale
    low, high = bottom - margin, top + margin
    return (low, high) if score.better == "higher" else (-high, -low)


def _cost_axis(axes: Axes, label: str, costs: Sequence[float]) -> None:
    """Costs fall to the right, those of training rise; they are spaced by their logarithms where some are over three
    times others."""
    axes.set(xlabel=label)
    if max(costs) > 3 * min(costs):
        axes.set(xscale="log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_locator(NullLocator())
    if label not in SPENT:
        axes.invert_xaxis()
    axes.grid(alpha=0.3)


def _measured(methods: Sequence[Method]) -> list[str]:
    """The costs that every method has a figure of at its end."""
    return [label for label, (figure, _) in COSTS.items() if all(figure in m.points[-1].figures for m in methods)]


def _line(method: Method, label: str) -> tuple[list[float], list[Spread]]:
    """What a method costs at the points where that is known, and its test scores."""
    figure, factor = COSTS[label]
    known = [point for point in method.points if figure in point.figures]
    return [p.figures[figure].median * factor for p in known], [p.score * method.score.scale for p in known]
