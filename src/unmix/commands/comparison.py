"""Result of `compare`, for Python and notebooks."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from unmix.display import Answer
from unmix.figures.table import ResultsTable
from unmix.html import escaped
from unmix.results import RunResults

__all__ = ["Comparison"]


@dataclass(frozen=True)
class Comparison:
    """Runs side by side; also a path, that of its folder.

    Attributes:
        folder: Where its files are: `report.html`, the figures, `softness.json`.
        results: Of the runs.
        table: All runs in one table; `table.text()` is for a terminal.
        figures: Title to PNG file.
        notes: What could not be made of these runs, or does not compare.
        verdicts: Which conditions are better, by how much and how sure, in sentences.
        conditions: Runs that differ in the seed alone as one row, with their cost.
        settings: The settings that differ between conditions; None if none do.
        answer: Which condition is better, by how much, how sure and at what cost.
    """

    folder: Path
    results: tuple[RunResults, ...]
    table: ResultsTable
    figures: Mapping[str, Path]
    notes: tuple[str, ...] = ()
    verdicts: tuple[str, ...] = ()
    conditions: ResultsTable | None = None
    settings: ResultsTable | None = None
    answer: Answer | None = None

    def __fspath__(self) -> str:
        return os.fspath(self.folder)

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    def _repr_html_(self) -> str:
        """In a notebook: the table, the notes and the figures; nothing is loaded from elsewhere."""
        parts = [f"<p>{escaped(line)}</p>" for line in self.verdicts]
        if self.answer is not None and self.answer.cost:
            parts.append(f"<p>{escaped(self.answer.cost)}</p>")
        tables = (self.settings, self.conditions)
        parts += [table._repr_html_() for table in tables if table is not None]
        parts.append(self.table._repr_html_())
        parts += [f"<p>{escaped(note)}</p>" for note in self.notes]
        for title, path in self.figures.items():
            parts.append(f"<p><b>{escaped(title)}</b></p>")
            try:
                data = base64.b64encode(path.read_bytes()).decode()
            except OSError:
                parts.append(f"<p>{escaped(path)} is not there any more.</p>")
                continue
            source = f"data:image/png;base64,{data}"
            parts.append(f'<img src="{source}" alt="{escaped(title)}" style="max-width:100%">')
        return "".join([*parts, f"<p>{escaped(self.folder / 'report.html')}</p>"])
