"""Levels of a factor over several methods or data sets: mean difference and mean rank."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

from unmix.statistics import FEWEST_VALUES, Rank, mean_ranks

if TYPE_CHECKING:
    from unmix.studies.analysis import StudyResults

__all__ = ["OverRows", "over_rows"]

# Settings whose values are rows: what is compared is compared within each.
_ROWS = {"method": "methods", "data": "data sets"}


@dataclass(frozen=True)
class OverRows:
    """Levels compared over rows by one protocol.

    Attributes:
        rows: What the rows are, such as "methods".
        protocol: Of the accuracies.
        reference: The level that differences are to.
        ranks: By level; rows that lack a level are left out.
    """

    rows: str
    protocol: str
    reference: str
    ranks: Mapping[str, Rank]

    def words(self, title: str) -> list[str]:
        """A sentence for each level but the reference."""
        base = self.ranks[self.reference]
        many = f"over {base.rows} {self.rows}, {title}"
        found = []
        for level, rank in self.ranks.items():
            if level == self.reference:
                continue
            difference = f"{many}: {level} {rank.mean_difference:+.1f} points to {self.reference}"
            ranks = f"mean rank {rank.mean_rank:.1f} against {base.mean_rank:.1f}"
            if rank.difference_interval is None or rank.interval is None:
                found.append(
                    f"{difference}, {ranks}; an interval over {self.rows} needs {FEWEST_VALUES} or "
                    f"more of them, here {'is' if rank.rows == 1 else 'are'} {rank.rows}"
                )
                continue
            (low, high), (best, worst) = rank.difference_interval, rank.interval
            found.append(
                f"{difference} (95% interval over {self.rows} {low:+.1f} to {high:+.1f}), {ranks} "
                f"({best:.1f} to {worst:.1f}) of {len(self.ranks)}"
            )
        return found

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return {
            "rows": self.rows, "protocol": self.protocol, "reference": self.reference,
            "ranks": {level: asdict(rank) for level, rank in self.ranks.items()},
        }  # fmt: skip


def over_rows(results: StudyResults) -> list[OverRows]:
    """Compare the levels of a study whose conditions vary methods or data sets.

    A row's accuracy of a level is the mean over the seeds that all its levels have, but for those
    that are no pairs.

    Args:
        results: The study and its cells.

    Returns:
        For each protocol; empty if there are not two rows with two levels of the same names.
    """
    placed = _placed(results)
    rows = list(dict.fromkeys(row for row, _ in placed.values()))
    levels = list(dict.fromkeys(level for _, level in placed.values()))
    if len(rows) < 2 or len(levels) < 2:
        return []
    reference = _reference(results, placed) or levels[0]
    varied = [title for i, title in enumerate(_ROWS.values()) if len({row[i] for row in rows}) > 1]
    found = []
    for protocol in results.study.protocols:
        table: dict[str, dict[str, float]] = {}
        for row in rows:
            names = {level: name for name, (own, level) in placed.items() if own == row}
            accuracies = {level: results.accuracies(n, protocol) for level, n in names.items()}
            shared = set.intersection(*map(set, accuracies.values()))
            for a, b in combinations(names.values(), 2):
                shared -= set(results.findings.apart(a, b))
            if set(names) == set(levels) and shared:
                table[", ".join(row)] = {
                    level: sum(values[seed] for seed in shared) / len(shared)
                    for level, values in accuracies.items()
                }
        if table:
            ranks = mean_ranks(table, reference)
            found.append(OverRows(" and ".join(varied), protocol, reference, ranks))
    return found


def _reference(
    results: StudyResults, placed: Mapping[str, tuple[tuple[str, ...], str]]
) -> str | None:
    """The level that the study compares the others with, within rows; None without one."""
    pairs = [pair for own in results.study.comparisons.values() for pair in own]
    found = {placed[b][1] for a, b in pairs if placed[a][0] == placed[b][0]}
    return found.pop() if len(found) == 1 else None


def _placed(results: StudyResults) -> dict[str, tuple[tuple[str, ...], str]]:
    """For each condition its row, and the name of its level within the row.

    Crossed conditions are named by their levels, of which those of the row are left out: the words
    of its settings, and the places of the names that are one text within each row, as where
    methods were given names.
    """
    study = results.study
    rows = {
        name: tuple(str(study.stated(name).get(key, "")) for key in _ROWS)
        for name in study.conditions
    }
    parts = {name: name.split(", ") for name in rows}
    of_rows: set[int] = set()
    if len(set(map(len, parts.values()))) == 1:
        for place, texts in enumerate(zip(*parts.values(), strict=True)):
            if len(set(zip(rows.values(), texts, strict=True))) == len(set(rows.values())) and (
                len(set(texts)) > 1
            ):
                of_rows.add(place)
    return {
        name: (
            row,
            ", ".join(
                part
                for place, part in enumerate(parts[name])
                if place not in of_rows and part not in (*row, *_named(row))
            ),
        )
        for name, row in rows.items()
    }


def _named(row: tuple[str, ...]) -> list[str]:
    return [f"{key}={value}" for key, value in zip(_ROWS, row, strict=True)]
