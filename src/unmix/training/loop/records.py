"""`metrics.csv`: one row per epoch, kept in the checkpoints too."""

from __future__ import annotations

import csv
import errno
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unmix.errors import UserError
from unmix.files import atomic_write

__all__ = ["Records"]


class Records:
    """The rows of `metrics.csv`, one per epoch.

    They are part of the checkpoints, and the file is always written from them as a whole, so that
    a resumed run has the same file as an uninterrupted one.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []

    def add(self, row: Mapping[str, Any]) -> None:
        """Add the row of an epoch."""
        self.rows.append(dict(row))

    def read(self) -> list[dict[str, Any]]:
        """Read the rows of the file.

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
                f"{self.path}: is damaged; remove it to go on without the rows of earlier epochs."
            ) from None
        return [{name: value for name, value in row.items() if name and value} for row in rows]

    def drop_after(self, step: int) -> None:
        """Drop rows of later steps, which the file may have when the checkpoint does not."""
        self.rows = [row for row in self.rows if int(row.get("step") or 0) <= step]

    def write(self) -> None:
        """Write the file atomically.

        Raises:
            UserError: if it cannot be written.
        """
        if not self.path.parent.is_dir():
            # It is not made again: whoever removed it may have begun another run there.
            gone = FileNotFoundError(errno.ENOENT, "its folder was removed")
            raise UserError(f"{self.path}: cannot be written ({gone.strerror}).") from gone
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        text = io.StringIO()
        table = csv.DictWriter(text, columns, lineterminator="\n")
        table.writeheader()
        table.writerows(self.rows)
        atomic_write(self.path, text.getvalue().encode())
