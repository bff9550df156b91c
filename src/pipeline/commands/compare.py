"""``task=compare``: the tracked methods side by side, as tables, pictures and a page."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from pipeline.ground.environment import artifacts_folder, expanded
from pipeline.ground.errors import PipelineError, SettingsError
from pipeline.ground.tables import show
from pipeline.report import comparison, ledgers, pictures
from pipeline.report.comparison import RunRecord
from pipeline.report.style import save
from pipeline.settings.groups import Settings
from pipeline.tracking.store import Store


def main(settings: Settings, runs: Path) -> None:
    """Compares the methods of the settings' experiment, as MLflow or a folder of ledgers has them.

    Raises:
        PipelineError: if there is nothing to compare, or runs that cannot be compared.
        SettingsError: if ``compare.where`` or ``compare.document`` is not what it takes.
    """
    document = settings.compare.document and expanded(settings.compare.document)
    if document:
        _parts(document, settings.name)
    store = None if settings.compare.ledgers is not None else Store(settings, runs)
    compared(settings, _records(settings, store), store)


def compared(settings: Settings, records: Sequence[RunRecord], store: Store | None) -> None:
    """Sets the methods of runs side by side: prints tables and writes files, which MLflow gets too.

    Raises:
        PipelineError: if the runs cannot be compared.
    """
    document = settings.compare.document and expanded(settings.compare.document)
    folder = artifacts_folder(settings.artifacts) / "comparison"
    methods = comparison.methods(records)
    number = sum(len(each.runs) for each in methods)
    title = f"{settings.name}: {_counted(len(methods), 'method')}, {_counted(number, 'run')}"
    folder.mkdir(parents=True, exist_ok=True)
    save(pictures.methods_figure(methods, title), folder / "comparison.png")
    tables = comparison.markdown(methods)
    texts = {
        "comparison.md": f"# {title}\n\n![{methods[0].score.heading}](comparison.png)\n\n{tables}",
        "comparison.csv": comparison.medians_csv(methods),
        "rounds.csv": comparison.rounds_csv(methods),
        "comparison.html": pictures.methods_page(methods, title),
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    if store is not None:
        store.put("comparison", f"comparison, {len(methods)} methods", folder)
    files = [folder / name for name in ("comparison.png", *texts)]
    if document:
        picture = document.with_name(f"{settings.name}-comparison.png")
        shutil.copyfile(folder / "comparison.png", picture)
        before, after = _parts(document, settings.name)
        document.write_text(
            f"{before}\n![{methods[0].score.heading} of the methods]({picture.name})\n\n{tables}\n{after}"
        )
        files += [document, picture]
    show(tables)
    print("\n".join(map(str, files)))


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def _records(settings: Settings, store: Store | None) -> list[RunRecord]:
    """The runs of the settings' experiment, as MLflow or a folder of ledgers has them."""
    if store is None:
        assert settings.compare.ledgers is not None
        return ledgers.records(expanded(settings.compare.ledgers), settings.name, measured=True)
    found = store.runs(settings.compare.where)
    if not found:
        told = f" where {settings.compare.where}" if settings.compare.where else ""
        raise PipelineError(
            f"MLflow at {store.uri} has no complete round of experiment {settings.name!r}{told}: run it"
        )
    return found


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
