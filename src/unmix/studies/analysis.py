"""Analysis of a study's cells: table, comparisons, and verdicts in words."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from unmix.display import DASH, duration, measure_name, percents, ratio
from unmix.errors import UserError
from unmix.statistics import Outcome, PairedComparison, compare_paired, holm, outcome, verdict
from unmix.studies.baselines import Baselines, read_baselines
from unmix.studies.cells import read_cells
from unmix.studies.plan import Study
from unmix.studies.summary import over_rows

__all__ = ["Comparison", "StudyResults", "compare_conditions", "read_study"]


@dataclass(frozen=True)
class Comparison:
    """Two conditions by one protocol.

    Attributes:
        family: Comparisons that Holm's correction is over.
        result: None if the two have no seed in common.
    """

    family: str
    candidate: str
    reference: str
    protocol: str
    result: PairedComparison | None

    def short(self) -> str:
        """The mean difference to the reference with its interval, for a figure."""
        if self.result is None or self.result.interval is None or self.outcome == "too few":
            return f"too few seeds against {self.reference}"
        low, high = self.result.interval
        interval = f"95% interval {low:+.1f} to {high:+.1f}"
        return f"{self.result.mean:+.1f} ({interval}) against {self.reference}"

    @property
    def outcome(self) -> Outcome:
        """What it shows, in a word."""
        return outcome(self.result)

    def verdict(self, exploratory: bool = False) -> str:
        """The result in words, without the names of the conditions."""
        if exploratory and self.result is not None:
            return (
                f"{self.result.mean:+.1f} points over {self.result.pairs} paired seeds; this study "
                "is exploratory and gives no verdict"
            )
        return verdict(self.result)

    def words(self, exploratory: bool = False) -> str:
        """The comparison as a sentence."""
        pair = f"{self.candidate} against {self.reference}"
        return f"{pair}, {measure_name(self.protocol)}: {self.verdict(exploratory)}"


def compare_conditions(
    families: Mapping[str, Sequence[tuple[str, str]]],
    protocols: Sequence[str],
    accuracies: Callable[[str, str], Mapping[int, float]],
) -> list[Comparison]:
    """Compare conditions seed by seed, each family corrected per protocol.

    Args:
        families: For each family its pairs (candidate, reference).
        protocols: To compare by.
        accuracies: From a condition and a protocol to its accuracy by seed.
    """
    found = []
    for protocol in protocols:
        for family, pairs in families.items():
            results = [
                compare_paired(accuracies(a, protocol), accuracies(b, protocol)) for a, b in pairs
            ]
            # The planned comparisons count, also those whose runs are still missing.
            corrected = iter(holm([r for r in results if r is not None], len(pairs)))
            for (a, b), result in zip(pairs, results, strict=True):
                shown = None if result is None else next(corrected)
                found.append(Comparison(family, a, b, protocol, shown))
    return found


@dataclass(frozen=True)
class StudyResults:
    """A study and the cells that were measured.

    Attributes:
        study: The plan.
        cells: Content of each cell's JSON file; only of the study's conditions.
        baselines: What needs no training: for its name and protocol, the accuracy by seed.
    """

    study: Study
    cells: Sequence[Mapping[str, Any]]
    baselines: Baselines = field(default_factory=dict)

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

    def comparisons(self) -> list[Comparison]:
        """All comparisons, each family corrected per protocol."""
        return compare_conditions(self.study.comparisons, self.study.protocols, self.accuracies)

    def missing(self) -> list[str]:
        """Cells that were not measured."""
        have = {(cell["condition"], cell["seed"]) for cell in self.cells}
        order = list(self.study.conditions)
        planned = sorted(self.study.cells, key=lambda cell: order.index(cell[0]))
        return [f"{name}, seed {seed}" for name, seed in planned if (name, seed) not in have]

    def marks(self) -> list[str]:
        """Notes on the cells: different settings or versions of the code among them."""
        notes = []
        code = {cell["code"].get("sources") for cell in self.cells}
        if len(code) > 1:
            notes.append(f"cells of {len(code)} versions of the code are in this table")
        for name in self.study.conditions:
            settings = [
                {k: v for k, v in cell["settings"].items() if k != "seed"} for cell in self.of(name)
            ]
            if any(other != settings[0] for other in settings[1:]):
                notes.append(f"the seeds of {name} were not trained with the same settings")
        return notes

    def as_dict(self) -> dict[str, Any]:
        """The study, each condition's accuracies by seed, and every number of the comparisons."""
        return {
            "study": self.study.content(),
            "accuracies": {
                name: {p: self.accuracies(name, p) for p in self.study.protocols}
                for name in self.study.conditions
            },
            "baselines": dict(self.baselines),
            "comparisons": [
                {
                    "family": c.family,
                    "candidate": c.candidate,
                    "reference": c.reference,
                    "protocol": c.protocol,
                    **({} if c.result is None else asdict(c.result)),
                    "words": c.words(self.study.exploratory),
                }
                for c in self.comparisons()
            ],
            "over_rows": [over.as_dict() for over in over_rows(self)],
            "notes": self.marks(),
            "missing": self.missing(),
        }

    def verdicts(self) -> list[str]:
        """All comparisons in words."""
        found = [c.words(self.study.exploratory) for c in self.comparisons()]
        for over in over_rows(self):
            found += over.words(measure_name(over.protocol))
        return found

    def notes(self) -> list[str]:
        """What a reader must know of the cells."""
        found = [f"note: {note}" for note in self.marks()]
        if gone := self.missing():
            more = f" and {len(gone) - 3} more" if len(gone) > 3 else ""
            found.append(f"note: {len(gone)} cells are missing: {'; '.join(gone[:3])}{more}")
        return found

    def columns(self) -> list[str]:
        """Headings of the table."""
        titles = [measure_name(p) for p in self.study.protocols]
        head = ["condition", "epochs", "forward-equivalents", "cost", "time per run", "seeds"]
        return [*head, *titles, *(["published"] if self.study.published else [])]

    def rows(self) -> list[list[str]]:
        """What needs no training, then the conditions: what each cost, and its accuracies."""
        cheapest = self._cheapest()
        found = []
        for name, by_protocol in self.baselines.items():
            spreads = [percents([*by_protocol.get(p, {}).values()]) for p in self.study.protocols]
            seeds = str(max(map(len, by_protocol.values())))
            published = [""] if self.study.published else []
            found.append([name, *[DASH] * 4, seeds, *spreads, *published])
        return found + [self._condition_row(name, cheapest) for name in self.study.conditions]

    def markdown(self) -> str:
        """The verdicts, then the table."""
        columns = self.columns()
        lines = [*(f"- {line}" for line in (*self.verdicts(), *self.notes())), "", _row(columns)]
        lines += [_row(["---"] * len(columns)), *map(_row, self.rows())]
        return "\n".join(lines) + "\n"

    def _cheapest(self) -> float:
        spent = [_spent(cell) for cell in self.cells]
        return min([s for s in spent if s], default=0.0)

    def _condition_row(self, name: str, cheapest: float) -> list[str]:
        cells = self.of(name)
        if not cells:
            return [name, *[DASH] * (5 + len(self.study.protocols)), *self._published(name)]
        seconds = [c["seconds"] for c in cells if c.get("seconds")]
        spent = _spent(cells[0])
        return [
            name,
            ", ".join(str(e) for e in sorted({c["epochs"] for c in cells})),
            f"{cells[0]['cost'].get('forward_equivalents', 0):.1f}",
            ratio(spent / cheapest) if cheapest else DASH,
            duration(statistics.median(seconds)) if seconds else DASH,
            str(len(cells)),
            *(percents([*self.accuracies(name, p).values()]) for p in self.study.protocols),
            *self._published(name),
        ]

    def _published(self, name: str) -> list[str]:
        return [self.study.published.get(name, "")] if self.study.published else []


def read_study(folder: Path) -> StudyResults:
    """Read a study's folder: `study.yaml` and `cells/`.

    Raises:
        UserError: if it is not a study folder, or a cell is damaged.
    """
    if not (folder / "study.yaml").is_file():
        raise UserError(f"{folder}: is not a study's folder; it has no study.yaml.")
    study = Study.load(folder / "study.yaml")
    cells = [c for c in read_cells(folder) if c["condition"] in study.conditions]
    return StudyResults(study, cells, read_baselines(folder))


def _spent(cell: Mapping[str, Any]) -> float:
    """Cost of a cell's training: forward-equivalents of all its images."""
    cost = cell["cost"]
    images = float(cost.get("images_per_epoch", 0)) * cell["epochs"]
    return float(cost.get("forward_equivalents", 0)) * images


def _row(words: Sequence[str]) -> str:
    return "| " + " | ".join(word.replace("|", "\\|") for word in words) + " |"
