"""What a call from Python gives: rounds, networks, tables, pictures, a bundle."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from torch import nn

from pipeline.report import pictures, sheet, table
from pipeline.report.comparison import Method, RunRecord, markdown, methods
from pipeline.rounds.choice import chosen, network_after, wanted
from pipeline.rounds.job import Job, Site
from pipeline.rounds.ledger import Round
from pipeline.settings.groups import Settings
from pipeline.settings.identity import flat


@dataclass(frozen=True)
class Pruned:
    """A run that has ended. A notebook shows its table."""

    job: Job
    site: Site
    settings: Settings
    rounds: tuple[Round, ...]
    """From the dense network (round 0) on."""

    @property
    def chosen(self) -> Round:
        """The smallest round within ``pruning.max_score_drop``, or the last."""
        return chosen(self.rounds, self.job)

    @property
    def folder(self) -> Path:
        """Where the rounds are on disk."""
        return self.site.ledger.folder

    def network(self, index: int | None = None) -> nn.Module:
        """A copy of the network as a round ended, in evaluation; of the ``chosen`` round unless said otherwise.

        Raises:
            SettingsError: if there is no such round.
        """
        return network_after(self.job, self.site, wanted(self.rounds, index, self.job).index)

    def table(self) -> str:
        """The rounds as a table, in Markdown."""
        return table.markdown(self.rounds, self.job.score)

    def figure(self) -> Figure:
        """The test score against the weights that are left."""
        return next(iter(sheet.curves(self.rounds, (), self.job.score, self._title).values()))

    def compare(self, others: "Sequence[Pruned]") -> str:
        """This run and others side by side, as tables in Markdown.

        Raises:
            PipelineError: if they differ in more than how they were pruned.
        """
        return markdown(self._methods(others))

    def comparison_figure(self, others: "Sequence[Pruned]") -> Figure:
        """The same as a picture."""
        return pictures.methods_figure(self._methods(others), self.settings.name)

    def bundle(self, path: str | Path, index: int | None = None) -> Path:
        """Writes what goes to a board into a folder: the round's network as ONNX, with a program that runs it.

        Raises:
            PipelineError: if the network cannot be exported.
        """
        from pipeline.commands.bundle import bundled

        bundled(self.job, self.site, self.settings, wanted(self.rounds, index, self.job), Path(path), lambda _: None)
        return Path(path)

    def _methods(self, others: "Sequence[Pruned]") -> list[Method]:
        return methods([each._record() for each in (self, *others)])

    def _record(self) -> RunRecord:
        return RunRecord(
            name=self.folder.parent.name,
            method=self.job.method,
            seed=self.job.seed,
            settings={key: str(value) for key, value in flat(self.site.ledger.identity).items()},
            rounds=tuple(each.figures for each in self.rounds),
            started_ms=self.rounds[0].finished_ms,
            score=self.job.score,
        )

    @property
    def _title(self) -> str:
        return f"{self.settings.name}, seed {self.job.seed}, {self.job.method}"

    def __repr__(self) -> str:
        lines = [table.header(self.job.score), *(table.row(each, self.job.score) for each in self.rounds)]
        return "\n".join([*lines, f"rounds  {self.folder}"])

    def _repr_markdown_(self) -> str:
        return f"{self.table()}\n`{self.folder}`"
