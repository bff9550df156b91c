"""The score of a LightningModule of a user's: a figure that it logs itself."""

import re
from collections.abc import Iterable

from pipeline.ground.errors import SettingsError
from pipeline.objective.score import Score
from pipeline.settings.groups import OwnObjective

SPLIT = r"(?<![a-z])(val|valid|validation|train)(?![a-z])"
"""What a name of a figure has of its split."""


def own_score(objective: OwnObjective, logged: Iterable[str], module: str) -> Score:
    """The score that the settings name, held against what a ``module`` has logged in a rehearsal.

    Its test figure is that which the settings name, else the same name with ``test``, else the figure itself.

    Raises:
        SettingsError: if the module logs no such figure, or it is not said what is better.
    """
    names, faults = list(logged), []
    takes = f"takes one of those that {module} logs: {', '.join(names) or 'none, self.log(...) gives one'}"
    if objective.score is not None and re.search(r"(?<![a-z])test(?![a-z])", objective.score):
        faults.append(f"objective.score: got {objective.score!r}, a figure of the test split; takes one of validation")
    elif objective.score not in names:
        got = "null" if objective.score is None else repr(objective.score)
        faults.append(f"objective.score: got {got}, {takes}")
    if objective.better is None:
        faults.append("objective.better: got null, takes higher or lower: what is better of the score")
    if objective.test_score is not None and objective.test_score not in names:
        faults.append(f"objective.test_score: got {objective.test_score!r}, {takes}")
    if faults:
        raise SettingsError(faults)
    assert objective.score is not None
    assert objective.better is not None
    named = re.sub(SPLIT, "test", objective.score, count=1)
    test = objective.test_score or (named if named in names else objective.score)
    label = objective.score if test == objective.score else re.sub(rf"{SPLIT}\W?_?", "", objective.score, count=1)
    return Score(objective.score, test, objective.better, label or objective.score, percent=False)
