"""Cells that another study beside this one has measured already, such as a shared baseline."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from unmix.data import DATA_SETS
from unmix.errors import UserError
from unmix.files import atomic_write
from unmix.studies.cells import FROM, Cell, code_of, read_cell, same_code
from unmix.studies.cost import Cost

__all__ = ["take_over"]


def take_over(cell: Cell, protocols: Sequence[str], cost: Cost) -> str | None:
    """Copy a cell's result from a study in a folder beside its own.

    Only a result of the same settings, seed and code counts, and only of a data set that its name
    alone says: the images of a folder may have changed since.

    Args:
        cell: Without a result.
        protocols: Evaluations that it must have.
        cost: Of the cell's condition.

    Returns:
        The name of the other study, or None if none has it.
    """
    if cell.settings["data"] not in DATA_SETS:
        return None
    for folder, found in _measured(cell):
        if found["settings"] != cell.settings:
            continue
        if not same_code(found["code"], code_of(cell.settings)):
            continue
        if not set(protocols) <= found["accuracies"].keys():
            continue
        own = {
            "condition": cell.condition,
            FROM: found.get(FROM, folder.name),
            "cost": dict(cost.per_epoch(cell.settings["epochs"])),
        }
        text = json.dumps({**found, **own}, indent=1, ensure_ascii=False, allow_nan=False)
        atomic_write(cell.file, (text + "\n").encode())
        return folder.name
    return None


def _measured(cell: Cell) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The readable cells of the same seed in the folders beside the study's own."""
    for path in sorted(cell.folder.parent.glob(f"*/cells/*-{cell.seed}.json")):
        folder = path.parent.parent
        if folder.resolve() == cell.folder.resolve():
            continue
        try:
            yield folder, read_cell(path)
        except UserError:
            # Another study's damaged file is that study's to report.
            continue
