"""Cells that were measured with other settings, data or code: refused, kept or measured again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from unmix.errors import UserError
from unmix.names import in_words
from unmix.studies.cells import Cell, changed_settings, code_of, read_cell, same_code
from unmix.studies.images import DATA, ImagesNow, unlike

__all__ = ["STALE", "missing_cells"]

STALE = ("refuse", "keep", "rerun")
"""What is done with cells that were measured with other settings, data or code."""


def missing_cells(
    cells: Iterable[Cell], stale: str, images: ImagesNow, say: Callable[[str], None]
) -> list[Cell]:
    """The cells without a result, after what is stale was refused, kept or set aside."""
    missing = []
    for cell in cells:
        if not cell.file.exists():
            missing.append(cell)
            continue
        reason = _why_stale(cell, images)
        if reason is None:
            continue
        if stale == "refuse":
            raise UserError(
                f"{cell.file}: was measured with other {reason}. Give --stale keep (tables mark "
                "it), --stale rerun, or another study folder."
            )
        say(f"{cell.name}: measured with other {reason}; {'kept' if stale == 'keep' else 'again'}")
        if stale == "rerun":
            _set_aside(cell.file)
            if cell.run.exists():  # it is complete, so its result would be taken for the new one
                _set_aside(cell.run)
            missing.append(cell)
    return missing


def _set_aside(path: Path) -> None:
    """Rename a result that is measured again; earlier ones are kept too.

    Raises:
        UserError: if it cannot be renamed.
    """
    number, aside = 1, path.with_name(f"{path.name}.old")
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}.old-{number}")
    try:
        path.rename(aside)
    except OSError as error:
        raise UserError(f"{path}: cannot be set aside ({error.strerror}).") from error


def _why_stale(cell: Cell, images: ImagesNow) -> str | None:
    content = read_cell(cell.file)
    if changes := changed_settings(content["settings"], cell.settings):
        return f"settings: {', '.join(changes)}"
    if content.get(DATA) and (splits := unlike(content[DATA], cell.now(images))):
        return f"data: the {in_words(splits)} images of {cell.settings['data']} have changed"
    before, now = content["code"], code_of(cell.settings)
    if not same_code(before, now):
        return f"code: {_code(before)}, not {_code(now)}"
    return None


def _code(version: Mapping[str, Any]) -> str:
    return " ".join(f"{key} {value}" for key, value in version.items() if value)
