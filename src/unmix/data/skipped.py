"""The image files that could not be read, collected for one line at the end of a run."""

from __future__ import annotations

from pathlib import Path

from unmix.data.decoding import BrokenImage

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

    def add(self, error: BrokenImage) -> None:
        """Note a broken file; a file that is noted already is not counted again.

        Raises:
            BrokenImage: `error` itself, if strict.
        """
        if self.strict:
            raise error
        self._errors.setdefault(error.path, error)

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
        if len(self) == 1:
            return f"Skipped 1 image file that cannot be read: {first}"
        return f"Skipped {len(self):,} image files that cannot be read, first {first}"
