"""Cells that another study beside this one has measured already, such as a shared baseline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unmix.data import DATA_SETS
from unmix.errors import UserError
from unmix.studies.cells import FROM, Cell, code_of, read_cell, same_code, write_cell
from unmix.studies.cost import Cost
from unmix.studies.images import DATA, ImagesNow, unlike

__all__ = ["Elsewhere"]


class Elsewhere:
    """The cells of the studies in the folders beside a study's own; each is read once.

    Args:
        folder: The study's own.
        images: The data as it is now.
    """

    def __init__(self, folder: Path, images: ImagesNow) -> None:
        self.folder, self.images = folder, images
        self._of_seed: dict[int, list[tuple[str, dict[str, Any]]]] = {}

    def take_over(self, cell: Cell, protocols: Sequence[str], cost: Cost) -> str | None:
        """Copy a cell's result from another study.

        Only a result of the same settings, seed and code counts, and only of a data set that its
        name alone says: the images of a folder may have changed since.

        Args:
            cell: Without a result.
            protocols: Evaluations that it must have.
            cost: Of the cell's condition.

        Returns:
            The name of the other study, or None if none has it.
        """
        if cell.settings["data"] not in DATA_SETS:
            return None
        for study, found in self._measured(cell.seed):
            if (
                found["settings"] == cell.settings
                and same_code(found["code"], code_of(cell.settings))
                and set(protocols) <= found["accuracies"].keys()
                and not (found.get(DATA) and unlike(found[DATA], cell.now(self.images)))
            ):
                own = {
                    "condition": cell.condition,
                    FROM: found.get(FROM, study),
                    "cost": dict(cost.per_epoch(cell.settings["epochs"])),
                }
                write_cell(cell.file, {**found, **own})
                return study
        return None

    def _measured(self, seed: int) -> list[tuple[str, dict[str, Any]]]:
        """The readable cells of a seed, with the names of their studies."""
        if seed not in self._of_seed:
            found = self._of_seed[seed] = []
            for path in sorted(self.folder.parent.glob(f"*/cells/*-{seed}.json")):
                study = path.parent.parent
                if study.resolve() == self.folder.resolve():
                    continue
                try:
                    found.append((study.name, read_cell(path)))
                except UserError:
                    # Another study's damaged file is that study's to report.
                    continue
        return self._of_seed[seed]
