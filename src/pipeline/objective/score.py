"""The score: the one figure that choices are made by and that tables show, with its direction."""

import dataclasses
import json
import re
from dataclasses import dataclass

from pipeline.settings.groups import Better


@dataclass(frozen=True)
class Score:
    """``validation`` and ``test`` are the names that the figure has there; ``label`` is what tables call it.

    ``percent`` says that it is a share of 1, which people read as a percentage.
    """

    validation: str
    test: str
    better: Better
    label: str
    percent: bool

    def drop(self, value: float, reference: float) -> float:
        """By how much a value is worse than another; below 0 if it is better."""
        return reference - value if self.better == "higher" else value - reference

    def is_better(self, value: float, other: float) -> bool:
        """Whether a value is better than another."""
        return self.drop(value, other) < 0

    def shown(self, value: float | None) -> str:
        """A value as tables show it."""
        if value is None:
            return "-"
        return f"{value:.2%}" if self.percent else f"{value:.4g}"

    def shown_drop(self, drop: float) -> str:
        """A difference in words."""
        return f"{drop * 100:g} points" if self.percent else f"{drop:g}"

    @property
    def scale(self) -> float:
        """What a value is multiplied by on an axis."""
        return 100.0 if self.percent else 1.0

    @property
    def test_label(self) -> str:
        """What the test figure is called: it may be that of validation."""
        return self.label if self.test == self.validation else f"test {self.label}"

    @property
    def heading(self) -> str:
        """The same at the start of a sentence."""
        return self.test_label[:1].upper() + self.test_label[1:]

    @property
    def axis(self) -> str:
        """What the axis of the test figure is called."""
        return f"{self.test_label} (%)" if self.percent else self.test_label

    @property
    def slug(self) -> str:
        """What a file is called that draws it."""
        return re.sub(r"\W+", "_", self.label).strip("_").lower()

    def text(self) -> str:
        """The score as one line, for ``read``."""
        return json.dumps(dataclasses.asdict(self))

    @staticmethod
    def read(text: str | None) -> "Score":
        """The score of a record or a tracked run; accuracy for those of before there were others."""
        return ACCURACY if text is None else Score(**json.loads(text))


ACCURACY = Score("validation_accuracy", "test_accuracy", "higher", "accuracy", percent=True)
"""The score of runs that say nothing of one: of those before there were others."""
