"""What a figure is drawn from, and what comes out."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from unmix.commands.finished import Say
from unmix.names import json_bytes, shown_cell

__all__ = ["Drawn", "Request"]


@dataclass(frozen=True)
class Request:
    """What was asked for.

    Attributes:
        name: Of the figure.
        runs: The run folders, or encoder files.
        options: The options of the figure that are given.
        width: "column", "page", or inches.
        theme: light or dark.
        say: Prints a line.
    """

    name: str
    runs: tuple[Path, ...]
    options: dict[str, Any] = field(default_factory=dict)
    width: str | float = "page"
    theme: str = "light"
    say: Say = print

    def option(self, name: str, default: Any = None) -> Any:
        """The value of an option, or the figure's default."""
        value = self.options.get(name)
        return default if value is None else value

    @property
    def how(self) -> dict[str, Any]:
        """Keywords that every figure takes."""
        return {"width": self.width, "theme": self.theme}


@dataclass(frozen=True)
class Drawn:
    """A figure and the numbers behind it.

    Attributes:
        figure: The figure.
        columns: Names of the columns of its table.
        rows: The table.
        caption: How it was made, with every parameter.
    """

    figure: Figure
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str = ""

    def csv(self) -> bytes:
        """The table as CSV; numbers have the digits that tell two values apart.

        Names are as by `unmix.names.shown_cell`.
        """
        text = io.StringIO(newline="")
        table = csv.writer(text, lineterminator="\n")
        table.writerow(self.columns)
        table.writerows([_cell(value) for value in row] for row in self.rows)
        return json_bytes(text.getvalue())


def _cell(value: Any) -> Any:
    if isinstance(value, str):
        return shown_cell(value)
    return f"{value:.7g}" if isinstance(value, float) else value
