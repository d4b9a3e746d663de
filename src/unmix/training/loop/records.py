"""What a run records of its epochs: `metrics.csv`, made of what its checkpoints hold."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unmix.errors import UserError
from unmix.files import atomic_write

__all__ = ["Records"]


class Records:
    """The rows of `metrics.csv`, one an epoch.

    They are part of a run's checkpoints, and the file is always written whole, so that it holds
    what an undisturbed run's would hold, wherever the run was stopped.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []

    def add(self, row: Mapping[str, Any]) -> None:
        """Add an epoch's row."""
        self.rows.append(dict(row))

    def read(self) -> list[dict[str, Any]]:
        """The rows that the file has.

        Raises:
            UserError: if it is damaged.
        """
        if not self.path.exists():
            return []
        try:
            with self.path.open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
        except (UnicodeDecodeError, csv.Error):
            raise UserError(
                f"{self.path}: is damaged; remove it to go on without the earlier epochs' rows."
            ) from None
        return [{name: value for name, value in row.items() if name and value} for row in rows]

    def drop_after(self, step: int) -> None:
        """Forget rows of steps that are not done, which a file can have but no checkpoint."""
        self.rows = [row for row in self.rows if int(row.get("step") or 0) <= step]

    def write(self) -> None:
        """Write the file, whole or not at all.

        Raises:
            UserError: if it cannot be written.
        """
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        text = io.StringIO()
        table = csv.DictWriter(text, columns, lineterminator="\n")
        table.writeheader()
        table.writerows(self.rows)
        atomic_write(self.path, text.getvalue().encode())
