"""Analysis of a study's cells: table, comparisons, and verdicts in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from unmix.busy import TAKEN, cores_missed, machine_of
from unmix.display import DASH, counted, measure_name, percents
from unmix.errors import UserError
from unmix.studies.baselines import Baselines, read_baselines
from unmix.studies.cells import FROM, read_cells, result_settings
from unmix.studies.comparisons import Comparison, computed_in
from unmix.studies.course import course_rows, courses, turns
from unmix.studies.findings import Findings, Measured
from unmix.studies.images import notes_on_images
from unmix.studies.plan import Study
from unmix.studies.summary import over_rows

__all__ = ["StudyResults", "read_study"]

_PLACES = ("data", "data_dir", "train_folder", "test_folder", "seed")


@dataclass(frozen=True)
class StudyResults:
    """A study and the cells that were measured.

    Attributes:
        study: The plan.
        cells: Content of each cell's JSON file; only of the study's conditions and seeds.
        baselines: What needs no training: for its name and protocol, the accuracy by seed.
        beside: Names of the cells in its folder that the study does not plan.
    """

    study: Study
    cells: Sequence[Mapping[str, Any]]
    baselines: Baselines = field(default_factory=dict)
    beside: Sequence[str] = ()

    def of(self, condition: str) -> list[Mapping[str, Any]]:
        """The cells of a condition, by seed."""
        found = [c for c in self.cells if c["condition"] == condition]
        return sorted(found, key=lambda cell: cell["seed"])

    def accuracies(self, condition: str, protocol: str) -> dict[int, float]:
        """Accuracy in percent by seed."""
        return {
            cell["seed"]: float(cell["accuracies"][protocol])
            for cell in self.of(condition)
            if protocol in cell["accuracies"]
        }

    @cached_property
    def findings(self) -> Findings:
        """The conditions with what was measured, and their comparisons."""
        return Findings(
            {name: self._measured(name) for name in self.study.conditions},
            self.study.protocols,
            self.study.comparisons,
            exploratory=self.study.exploratory,
        )

    def _measured(self, condition: str) -> Measured:
        cells = self.of(condition)
        # All cells of a condition cost the same; those of an earlier version may not say it.
        cost: Mapping[str, Any] = next((cell["cost"] for cell in cells if cell["cost"]), {})
        each, images = cost.get("forward_equivalents"), cost.get("images_per_epoch")
        return Measured(
            condition,
            {protocol: self.accuracies(condition, protocol) for protocol in self.study.protocols},
            seeds=[cell["seed"] for cell in cells],
            epochs=[cell["epochs"] for cell in cells],
            seconds=_seconds(cells),
            busy=sum(cores_missed(cell, cell.get("hardware", {})) is not None for cell in cells),
            machines=frozenset(machine_of(cell.get("hardware", {})) for cell in cells),
            forward_equivalents=each,
            images=None if images is None else images * cells[0]["epochs"],
            computed=computed_in(
                (cell["seed"], cell["settings"], cell.get("hardware") or {}) for cell in cells
            ),
        )

    def comparisons(self) -> list[Comparison]:
        """All comparisons, each family corrected per protocol."""
        return self.findings.comparisons

    def missing(self) -> list[str]:
        """Cells that were not measured."""
        have = {(cell["condition"], cell["seed"]) for cell in self.cells}
        order = list(self.study.conditions)
        planned = sorted(self.study.cells, key=lambda cell: order.index(cell[0]))
        return [f"{name}, seed {seed}" for name, seed in planned if (name, seed) not in have]

    def marks(self) -> list[str]:
        """Notes on the cells: other studies', different settings, images or versions of code."""
        notes = []
        for study, count in sorted(Counter(c[FROM] for c in self.cells if c.get(FROM)).items()):
            notes.append(
                f"{counted(count, 'cell')} measured by study {study}, with the same settings, seed "
                "and code"
            )
        code = {cell["code"].get("sources") for cell in self.cells}
        if len(code) > 1:
            notes.append(f"cells of {len(code)} versions of the code are in this table")
        for name in self.study.conditions:
            settings = [
                {k: v for k, v in cell["settings"].items() if k != "seed"} for cell in self.of(name)
            ]
            if len({cell["code"].get("own") for cell in self.of(name)}) > 1:
                notes.append(f"the seeds of {name} were trained by several versions of your code")
            if any(other != settings[0] for other in settings[1:]):
                notes.append(f"the seeds of {name} were not trained with the same settings")
            elif settings and (changes := self._changes(name, settings[0])):
                notes.append(f"{name} was measured with other settings: {', '.join(changes)}")
        return [*notes, *notes_on_images(self)]

    def _changes(self, name: str, measured: Mapping[str, Any]) -> list[str]:
        """What the study states of a condition and its cells, kept from before, have otherwise."""
        condition = self.study.conditions[name]
        stated = self.study.stated(name)
        try:
            planned = result_settings(self.study.resolved(name, self.study.seeds_of(name)[0]))
        except UserError:  # such as of data that is not on this machine
            return []
        other = {*_PLACES, *(["epochs"] if condition.like else [])}
        return [
            f"{key} {measured[key]}, not {planned[key]}"
            for key in stated
            if key not in other and key in measured and key in planned
            and measured[key] != planned[key]
        ]  # fmt: skip

    def as_dict(self) -> dict[str, Any]:
        """The study, each condition's accuracies by seed, and every number of the comparisons."""
        return {
            "study": self.study.content(),
            "accuracies": {
                name: {p: self.accuracies(name, p) for p in self.study.protocols}
                for name in self.study.conditions
            },
            "courses": {
                name: {p: own for p in self.study.protocols if (own := courses(self.of(name), p))}
                for name in self.study.conditions
            },
            "baselines": dict(self.baselines),
            "comparisons": [c.as_dict(self.study.exploratory) for c in self.comparisons()],
            "answer": asdict(self.findings.answer()),
            "over_rows": [over.as_dict() for over in over_rows(self)],
            "notes": self.marks(),
            "missing": self.missing(),
            "beside": list(self.beside),
        }

    def verdicts(self) -> list[str]:
        """All comparisons in words."""
        found = self.findings.words()
        for over in over_rows(self):
            found += over.words(measure_name(over.protocol))
        return found

    def notes(self) -> list[str]:
        """What a reader must know of the cells."""
        found = [
            f"note: {key} was chosen from {counted(trials, 'trial')} of each condition, as the "
            "study file states"
            for key, trials in self.study.tuned.items()
        ]
        found += [f"note: {note}" for note in self.marks()]
        if gone := self.missing():
            found.append(f"note: {len(gone)} cells are missing: {_some(gone)}")
        if beside := self.beside:
            found.append(
                f"note: {len(beside)} cells in the folder are of other conditions or seeds than "
                f"the study's, and do not count: {_some(beside)}"
            )
        return found

    def columns(self) -> list[str]:
        """Headings of the table."""
        return [*self.findings.columns(), *(["published"] if self.study.published else [])]

    def rows(self) -> list[list[str]]:
        """What needs no training, then the conditions: what each cost, and its accuracies."""
        found = []
        for name, by_protocol in self.baselines.items():
            spreads = [percents([*by_protocol.get(p, {}).values()]) for p in self.study.protocols]
            seeds = str(max(map(len, by_protocol.values())))
            found.append([name, *[DASH] * 4, seeds, *spreads])
        found += [[cell.text for cell in row] for row in self.findings.rows()]
        if self.study.published:
            found = [[*row, self.study.published.get(row[0], "")] for row in found]
        return found

    def markdown(self) -> str:
        """The verdicts and what they cost, then the table, then the course of the accuracies."""
        costs = filter(None, (self.findings.cost(*pair) for pair in self.findings.compared))
        first = (*self.verdicts(), *costs, *self.notes())
        text = "\n".join([*(f"- {line}" for line in first), "", self.table()])
        return "\n\n".join(filter(None, [text, self.course()])) + "\n"

    def course(self) -> str:
        """Who is ahead during training, and a table by epoch; "" where only the end is known."""
        head, rows = course_rows(self)
        if not rows:
            return ""
        lines = "\n".join(f"- {line}" for line in turns(self))
        return "\n\n".join(filter(None, [lines, _table(head, rows)]))

    def table(self) -> str:
        """The conditions as a table of Markdown, without times where none is known."""
        columns = [
            column
            for column in zip(self.columns(), *self.rows(), strict=True)
            if column[0] != "time per run" or any(text != DASH for text in column[1:])
        ]
        head, *rows = zip(*columns, strict=True)
        return _table(head, rows)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{'; '.join(names[:3])}{more}"


def _seconds(cells: Sequence[Mapping[str, Any]]) -> list[float]:
    """Times of the trainings, if it is known of all whether other processes slowed them down."""
    if not all(TAKEN in cell for cell in cells):
        return []
    return [float(cell["seconds"]) for cell in cells if cell.get("seconds")]


def read_study(folder: Path) -> StudyResults:
    """Read a study's folder: `study.yaml` and `cells/`.

    Raises:
        UserError: if it is not a study folder, or a cell is damaged.
    """
    if not (folder / "study.yaml").is_file():
        raise UserError(f"{folder}: is not a study's folder; it has no study.yaml.")
    study = Study.load(folder / "study.yaml")
    planned, cells, beside = set(study.cells), [], []
    for cell in read_cells(folder):
        if (cell["condition"], cell["seed"]) in planned:
            cells.append(cell)
        else:
            beside.append(f"{cell['condition']}, seed {cell['seed']}")
    return StudyResults(study, cells, read_baselines(folder), beside)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join([_row(head), _row(["---"] * len(head)), *map(_row, rows)])


def _row(words: Sequence[str]) -> str:
    return "| " + " | ".join(word.replace("|", "\\|") for word in words) + " |"
