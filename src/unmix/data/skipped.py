"""The image files that could not be read, collected for one line at the end of a run."""

from __future__ import annotations

import csv
import io
import os
from contextlib import suppress
from pathlib import Path

from unmix.data.decoding import BrokenImage
from unmix.names import shown, stored

__all__ = ["Skipped"]


class Skipped:
    """Broken image files, each once, in the order in which they were met.

    A data worker is a process of its own with a copy of its own: send its errors back with the
    batch and `add` them where the run is.

    Args:
        strict: Whether the first broken file ends the run.
    """

    def __init__(self, strict: bool = False) -> None:
        self.strict = strict
        self._errors: dict[Path, BrokenImage] = {}
        self._file: Path | None = None

    def add(self, error: BrokenImage) -> None:
        """Note a broken file; a file that is noted already is not counted again.

        Raises:
            BrokenImage: `error` itself, if strict.
        """
        if self.strict:
            raise error
        if error.path not in self._errors:
            self._errors[error.path] = error
            self._write(error)

    def record(self, file: Path) -> None:
        """List all, also those to come, in a CSV of path and reason; several sets may share it.

        Paths are as `unmix.names.stored` gives them. A file that is listed already, as by the first
        part of a run, is not listed again.
        """
        self._file = file
        for error in self._errors.values():
            self._write(error)

    def _write(self, error: BrokenImage) -> None:
        if self._file is None:
            return
        place = stored(error.path)
        # A list that cannot be written shall not end a run; what trains says that the disk is full.
        with suppress(OSError, csv.Error):
            begun = self._file.is_file()
            if begun:
                with open(self._file, newline="", encoding="utf-8", errors="replace") as file:
                    if any(row[:1] == [place] for row in csv.reader(file)):
                        return
            text = io.StringIO(newline="")
            rows = csv.writer(text)
            if not begun:
                rows.writerow(["path", "reason"])
            rows.writerow([place, shown(error.reason)])
            # Appended in one piece, for several processes may write at once.
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
            descriptor = os.open(self._file, flags, 0o666)
            try:
                os.write(descriptor, text.getvalue().encode())
            finally:
                os.close(descriptor)

    @property
    def paths(self) -> tuple[Path, ...]:
        """The broken files."""
        return tuple(self._errors)

    def __len__(self) -> int:
        return len(self._errors)

    def line(self) -> str | None:
        """One line for the end of a run: how many, and the first; None if there are none."""
        if not self._errors:
            return None
        first = next(iter(self._errors.values()))
        where = "" if self._file is None else f"; listed in {shown(self._file)}"
        if len(self) == 1:
            return f"Skipped 1 image file that cannot be read: {first}{where}"
        return f"Skipped {len(self):,} image files that cannot be read, first {first}{where}"
