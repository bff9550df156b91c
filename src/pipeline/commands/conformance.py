"""``task=conformance``: the tracked runs with the paper's settings, against its figures."""

import dataclasses
from pathlib import Path

from pipeline.ground.environment import artifacts_folder
from pipeline.ground.errors import PipelineError
from pipeline.ground.tables import show
from pipeline.report import conformance
from pipeline.settings.build import build
from pipeline.settings.composition import composed
from pipeline.settings.groups import Settings
from pipeline.settings.identity import LENGTHENS, NO_NUMBERS, flat
from pipeline.tracking.store import Store


def main(settings: Settings, runs: Path) -> None:
    """Holds the tracked runs with the paper's settings against its figures; a sentence for each run that is left out.

    Raises:
        PipelineError: if a measured median lies outside.
    """
    file = artifacts_folder(settings.artifacts) / "conformance" / "conformance.md"
    store = Store(dataclasses.replace(settings, name=conformance.EXPERIMENT), runs)
    known = store.runs(settings.compare.where)
    same, sentences = conformance.of_the_paper(known, papers_settings())
    cells = conformance.cells(same)
    text = "\n".join([conformance.markdown(cells), *sentences])
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{text}\n")
    if known:
        store.put("conformance", "conformance with the paper", file.parent)
    show(text)
    print(file)
    if outside := sum(cell.verdict == "outside" for cell in cells):
        raise PipelineError(f"{outside} of the measured medians lie outside")


def papers_settings() -> dict[str, str]:
    """What a run must have been made with to be held against the paper: flat names of settings to values, as text."""
    paper = build(composed([f"+experiment={conformance.EXPERIMENT}", "data.source=any"]))
    settings = {key: str(value) for key, value in flat(dataclasses.asdict(paper)).items()}
    free = {"retraining.weights", "retraining.rate", "retraining.length"} | {
        f"{group}.{name}" for group, names in (NO_NUMBERS | {"pruning": set(LENGTHENS)}).items() for name in names
    }
    groups = ("model", "data", "training", "pruning", "retraining")
    return {key: value for key, value in settings.items() if key.split(".")[0] in groups and key not in free}
