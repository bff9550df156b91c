"""Pictures of rounds, for people who would rather look than read."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from pipeline.ledger import Round


def accuracy_curves(curves: Mapping[str, Sequence[Round]], title: str) -> Figure:
    """Test accuracy against the share of weights kept, one line a name; the dense network's level is dashed."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for name, rounds in curves.items():
        (line,) = axes.plot(
            [r.density * 100 for r in rounds],
            [r.figures["test_accuracy"] * 100 for r in rounds],
            marker="o",
            markersize=4,
            label=name,
        )
        axes.axhline(rounds[0].figures["test_accuracy"] * 100, color=line.get_color(), linestyle=":", linewidth=1)
    axes.set(xscale="log", xlabel="weights kept (%)", ylabel="test accuracy (%)", title=title)
    shown = sorted({round(r.density * 100, 1) for rounds in curves.values() for r in rounds[::2]})
    axes.set_xticks(shown, [f"{each:g}" for each in shown])
    axes.set_xticks([], minor=True)
    axes.invert_xaxis()
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def accuracy_by_bytes(rounds: Sequence[Round], sizes: Sequence[Mapping[str, float]], title: str) -> Figure:
    """Test accuracy against bytes on disk: packed float and int8 of every round, and the plain dense export."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    accuracy = [r.figures["test_accuracy"] * 100 for r in rounds]
    for kind, label in (("float32_bytes", "packed float32"), ("int8_bytes", "packed int8")):
        axes.plot([each[kind] / 1000 for each in sizes], accuracy, marker="o", markersize=4, label=label)
    axes.plot(sizes[0]["dense_bytes"] / 1000, accuracy[0], "k*", markersize=10, label="plain export, dense")
    axes.set(xscale="log", xlabel="kB on disk", ylabel="test accuracy of the masked network (%)", title=title)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.invert_xaxis()
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    return figure


def layer_sparsity(round_: Round) -> Figure:
    """Sparsity of every layer as bars, first layer on top; the number of weights left stands beside each."""
    figure = Figure(figsize=(7, 1.2 + 0.22 * len(round_.layers)), layout="constrained")
    axes = figure.add_subplot()
    names = [layer.name + ("" if layer.prunable else " (excluded)") for layer in round_.layers]
    bars = axes.barh(names, [layer.sparsity * 100 for layer in round_.layers])
    axes.bar_label(bars, [f"{layer.kept:,} left" for layer in round_.layers], padding=3, fontsize=7)
    axes.axvline((1 - round_.density) * 100, color="black", linestyle=":", linewidth=1)
    axes.set(
        xlim=(0, 118),
        xlabel="weights pruned (%)",
        title=f"round {round_.index}, density {round_.density:.4f}",
    )
    axes.set_xticks(range(0, 101, 20))
    axes.tick_params(axis="y", labelsize=7)
    axes.invert_yaxis()
    return figure
