"""``task=compare`` and ``task=conformance``: from the tracking server to tables, pictures and a page."""

import dataclasses
import shutil
from pathlib import Path

from pipeline.ground.environment import expanded
from pipeline.ground.errors import PipelineError, SettingsError
from pipeline.report import comparison, conformance, pictures
from pipeline.settings.composition import composed
from pipeline.settings.groups import LENGTHENS, NO_NUMBERS, Settings, build, flat
from pipeline.tracking.store import Store


def compare(settings: Settings, runs: Path, folder: Path) -> tuple[str, list[Path]]:
    """Compares the methods of the settings' experiment; returns the tables and the files, which MLflow gets too.

    Raises:
        PipelineError: if there is nothing to compare, or runs that cannot be compared.
        SettingsError: if ``compare.where`` or ``compare.document`` is not what it takes.
    """
    document = settings.compare.document and expanded(settings.compare.document)
    if document:
        _parts(document, settings.name)
    store = Store(settings, runs)
    found = store.runs(settings.compare.where)
    if not found:
        told = f" where {settings.compare.where}" if settings.compare.where else ""
        raise PipelineError(
            f"MLflow at {store.uri} has no complete round of experiment {settings.name!r}{told}: run it"
        )
    methods = comparison.methods(found)
    title = f"{settings.name}: {len(methods)} methods, {sum(len(method.runs) for method in methods)} runs"
    folder.mkdir(parents=True, exist_ok=True)
    figure = pictures.methods_figure(methods, title)
    figure.savefig(folder / "comparison.png", dpi=150)
    tables = comparison.markdown(methods)
    texts = {
        "comparison.md": f"# {title}\n\n![Test accuracy](comparison.png)\n\n{tables}",
        "comparison.csv": comparison.medians_csv(methods),
        "rounds.csv": comparison.rounds_csv(methods),
        "comparison.html": pictures.methods_page(methods, title),
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    store.put("comparison", f"comparison, {len(methods)} methods", folder)
    files = [folder / name for name in ("comparison.png", *texts)]
    if document:
        picture = document.with_name(f"{settings.name}-comparison.png")
        shutil.copyfile(folder / "comparison.png", picture)
        before, after = _parts(document, settings.name)
        document.write_text(f"{before}\n![Test accuracy of the methods]({picture.name})\n\n{tables}\n{after}")
        files += [document, picture]
    return tables, files


def conform(settings: Settings, runs: Path, folder: Path) -> tuple[str, list[Path], int]:
    """Holds the tracked runs with the paper's settings against its figures.

    Returns the table with a sentence for each run that is left out, the file, and how many figures lie outside.
    """
    store = Store(dataclasses.replace(settings, name=conformance.EXPERIMENT), runs)
    known = store.runs(settings.compare.where)
    same, sentences = conformance.of_the_paper(known, papers_settings())
    cells = conformance.cells(same)
    text = "\n".join([conformance.markdown(cells), *sentences])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "conformance.md").write_text(f"{text}\n")
    if known:
        store.put("conformance", "conformance with the paper", folder)
    return text, [folder / "conformance.md"], sum(cell.verdict == "outside" for cell in cells)


def papers_settings() -> dict[str, str]:
    """What a run must have been made with to be held against the paper: flat names of settings to values, as text."""
    paper = build(composed([f"+experiment={conformance.EXPERIMENT}", "data.source=any"]))
    settings = {key: str(value) for key, value in flat(dataclasses.asdict(paper)).items()}
    free = {"retraining.weights", "retraining.rate", "retraining.length"} | {
        f"{group}.{name}" for group, names in (NO_NUMBERS | {"pruning": set(LENGTHENS)}).items() for name in names
    }
    groups = ("model", "data", "training", "pruning", "retraining")
    return {key: value for key, value in settings.items() if key.split(".")[0] in groups and key not in free}


def _parts(document: Path, name: str) -> tuple[str, str]:
    """What stands before and after the place of the tables, marks included."""
    mark, end = f"<!-- comparison of {name} -->\n", "<!-- end -->"
    takes = f"takes a Markdown file that has the lines {mark.strip()} and {end}"
    try:
        before, rest = document.read_text().split(mark)
        _, after = rest.split(end, 1)
    except OSError as error:
        raise SettingsError([f"compare.document: got {document}, but {error.strerror}; {takes}"]) from error
    except ValueError as error:
        raise SettingsError([f"compare.document: got {document}, {takes}"]) from error
    return before + mark, end + after
