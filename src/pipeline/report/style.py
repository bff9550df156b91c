"""The look of every picture: one size, one font, and colours that differ in grey and to the colour-blind too."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

WIDTH = 8.0
"""Of every picture, in inches. Shown 800 pixels wide, letters of 7 points have 10 pixels."""
STYLE: dict[Any, Any] = {
    "text.parse_math": False,  # what users call things is no formula, whatever stands between two dollar signs
    "font.size": 9,
    "figure.titlesize": 10,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.title_fontsize": 8,
    "legend.frameon": False,
    "legend.handlelength": 3.5,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.alpha": 0.3,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 150,
}
"""matplotlib's settings of every picture."""
SMALL = 7
"""Points of the smallest letters: labels inside a frame."""
COLOURS: Mapping[str, str] = {
    "dense_control": "#000000",
    "gradual": "#661100",
    "lr_rewinding": "#004488",
    "weight_rewinding_low_rate": "#6b5200",
    "reinitialisation": "#117733",
    "fine_tuning": "#bb5566",
    "reinitialisation_low_rate": "#c06a9a",
    "weight_rewinding": "#cc8800",
    "lottery_ticket": "#77b5e8",
}
"""Of retraining methods, from dark to light: each is lighter than the one before (hues after Tol's schemes)."""
OTHER = "#777777"
"""Of a method that is none of these."""
MARKERS: Mapping[str, str] = {"weight": "o", "block": "D", "filter": "s"}
"""By what is pruned."""
DASHES = ("-", "--", ":", "-.")
"""Of methods that have colour and marker in common."""
FORMS = (("#004488", "o", "-"), ("#cc8800", "s", "--"), ("#bb5566", "D", "-."))
"""Colour, marker and dashes of the forms of one network."""
DENSE: Mapping[str, Any] = {"color": "black", "linestyle": (0, (1, 2)), "linewidth": 1.0}
"""The dense network's score, as a line."""
OPEN: Mapping[str, Any] = {"color": "#dddddd", "linewidth": 0.0, "zorder": 0}
"""What the test set leaves open around it, as a band."""

warnings.filterwarnings("ignore", "Glyph .* missing from")  # for good: pictures are saved beside other threads
_ALONE = RLock()


@contextmanager
def style() -> Iterator[None]:
    """Within it, and in a function that it decorates, matplotlib draws in this style.

    Its settings are those of the process, and rounds are drawn in a thread of their own: one draws at a time.
    """
    with _ALONE, rc_context(STYLE):
        yield


@style()
def save(figure: Figure, path: Path) -> None:
    """Writes a picture; a character that the font lacks becomes a box."""
    figure.savefig(path)
