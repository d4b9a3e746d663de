"""`metrics.csv`: one row per epoch, kept in the checkpoints too."""

from __future__ import annotations

import csv
import errno
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unmix.errors import UserError
from unmix.files import atomic_write, read_rows
from unmix.schema import Count, Epoch, checked

__all__ = ["Records"]


_REMEDY = "Remove it to go on without the rows of earlier epochs."


@dataclass(frozen=True)
class _Row:
    """What a row must hold, if it does; the rest is written again as it is."""

    epoch: Epoch | None = None
    step: Count | None = None


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


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
        rows = []
        try:
            for line, row in read_rows(self.path):
                numbers = {key: _number(row[key]) for key in ("epoch", "step") if key in row}
                checked(_Row, numbers, f"{self.path}: line {line}", _REMEDY)
                rows.append(dict[str, Any](row))
        except OSError as error:
            reason = error.strerror or str(error)
            raise UserError(f"{self.path}: cannot be read ({reason}). {_REMEDY}") from None
        except UserError as error:
            text = str(error)
            raise UserError(text if text.endswith(_REMEDY) else f"{text} {_REMEDY}") from None
        return rows

    def drop_after(self, step: int) -> None:
        """Drop rows of later steps, which the file may have when the checkpoint does not."""
        self.rows = [row for row in self.rows if int(float(row.get("step") or 0)) <= step]

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
