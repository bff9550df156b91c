"""Which layers an int8 model has in float: the fewest that hold the score."""

import numpy as np

from pipeline.deploy.export import lean
from pipeline.deploy.models import Models, form, with_float_layers
from pipeline.deploy.runtime import BATCH, Arrays, answers, arrays, session
from pipeline.deploy.subject import Subject


def within(found: Models, subject: Subject, reference: float, allowed: float) -> Models:
    """The int8 model with as few float layers as hold the validation score within ``allowed`` of ``reference``.

    Layers are ranked by how far the outputs are from the float model's where that one alone is in int8; then the first
    few of these are in float, as few as do. Where none do, the models are as they were.
    """
    layers = list(found.calibrated.layers)
    given = arrays(next(iter(subject.examples("validation", BATCH))))
    expected = answers(session(found.float32), given)

    def damage(layer: str) -> float:
        alone = lean(found.calibrated.quantised([each for each in layers if each != layer]))
        return _error(answers(session(alone), given), expected)

    ranking = sorted(layers, key=damage, reverse=True)

    def holds(count: int) -> bool:
        model = lean(found.calibrated.quantised(ranking[:count]))
        return subject.score.drop(subject.judged(form(model, subject), "validation"), reference) <= allowed

    enough, too_few = len(ranking), 0
    while enough - too_few > 1:
        count = (enough + too_few) // 2
        enough, too_few = (count, too_few) if holds(count) else (enough, count)
    return with_float_layers(found, ranking[:enough]) if enough < len(ranking) else found


def _error(answer: Arrays, expected: Arrays) -> float:
    """The largest root mean square error of an output, relative to its own root mean square."""
    return max(
        float(np.sqrt(np.mean((answer[name] - each) ** 2) / max(float(np.mean(each**2)), 1e-30)))
        if answer[name].shape == each.shape
        else np.inf
        for name, each in ((name, np.asarray(each, np.float64)) for name, each in expected.items())
    )
