"""Which images the cells of a study were trained and measured on, by digests of their splits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmix.config import RunSettings
from unmix.data import DATA_SETS
from unmix.data.registry import path_of
from unmix.display import counted
from unmix.errors import UserError
from unmix.names import in_words, is_stream
from unmix.training.run.data_record import DataRecord
from unmix.training.run.parts import fingerprints

if TYPE_CHECKING:
    from unmix.studies.analysis import StudyResults

__all__ = ["CHANGES", "DATA", "Digests", "ImagesNow", "data_of_run", "notes_on_images", "unlike"]

DATA, CHANGES = "data", "data_changes"
"""Keys of a cell: the digest of each split; how the data changed while it was trained."""
_SHOWN = 3

Digests = Mapping[str, str]


def data_of_run(folder: Path) -> dict[str, Any]:
    """What a cell keeps of its run's data; nothing, if the run recorded none.

    Raises:
        UserError: if the record is damaged.
    """
    record = DataRecord.read(folder)
    if record is None:
        return {}
    return {DATA: {name: each.digest for name, each in record.splits.items()}, **record.changes}


def unlike(ours: Digests | None, theirs: Digests | None) -> list[str]:
    """The splits whose images differ, of those that both know."""
    if not ours or not theirs:
        return []
    return [name for name, digest in ours.items() if theirs.get(name, digest) != digest]


class ImagesNow:
    """The digests of data as it is now; each data is listed once."""

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], Digests | None] = {}

    def of(self, run: RunSettings) -> Digests | None:
        """The digest of each split that a run would read.

        Args:
            run: Its settings.

        Returns:
            None if that is not known here: without the data, or of shards and remote data sets,
            where it takes long; and of data sets without files, which their name says.
        """
        key = (
            run.data, run.data_dir, run.train_folder, run.test_folder, run.image_column,
            run.label_column, run.split_column,
        )  # fmt: skip
        if key not in self._known:
            self._known[key] = _digests(run)
        return self._known[key]


def _digests(run: RunSettings) -> Digests | None:
    named = DATA_SETS.get(run.data)
    if is_stream(run.data) or (path_of(run.data) is None and not (named and named.layout)):
        return None
    try:
        return {name: each.digest for name, each in fingerprints(run).items()}
    except UserError:
        return None  # whoever trains on it is told


def notes_on_images(found: StudyResults) -> list[str]:
    """What is not of the same images: the seeds of a condition, or what is compared."""
    notes = [
        f"the seeds of {name} are of different {splits} images"
        for name in found.study.conditions
        if (splits := _differing(cell.get(DATA) for cell in found.of(name)))
    ]
    others: dict[tuple[str, str], list[str]] = {}
    for candidate, reference in found.findings.pairs:
        theirs = {cell["seed"]: cell.get(DATA) for cell in found.of(reference)}
        pairs = [(c.get(DATA), theirs.get(c["seed"])) for c in found.of(candidate)]
        splits = in_words(list(dict.fromkeys(name for pair in pairs for name in unlike(*pair))))
        if splits:
            others.setdefault((splits, reference), []).append(candidate)
    for (splits, reference), candidates in others.items():
        notes.append(
            f"seeds of {in_words(candidates)} are paired with those of {reference}, which has "
            f"other {splits} images"
        )
    if changed := [f"{c['condition']}, seed {c['seed']}" for c in found.cells if c.get(CHANGES)]:
        more = "; ..." if len(changed) > _SHOWN else ""
        notes.append(
            f"the data of {counted(len(changed), 'cell')} changed while it was trained: "
            f"{'; '.join(changed[:_SHOWN])}{more}"
        )
    return notes


def _differing(cells: Iterable[Digests | None]) -> str:
    """The splits whose digest is not the same in all cells that know it, in words."""
    known: Sequence[Digests] = [digests for digests in cells if digests]
    return in_words(
        list(dict.fromkeys(name for each in known[1:] for name in unlike(known[0], each)))
    )
