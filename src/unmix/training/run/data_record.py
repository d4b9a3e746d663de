"""`data.json`: the location and fingerprint of a run's data, to detect changes."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unmix.config import Settings
from unmix.data.fingerprint import Fingerprint
from unmix.data.registry import path_of, with_path
from unmix.data.streams.locations import absolute_spec
from unmix.errors import UserError
from unmix.files import as_path, atomic_write, read_json
from unmix.names import NO_DATA, is_stream, shown
from unmix.schema import checked
from unmix.weights.names import is_name

__all__ = [
    "DATA_RECORD",
    "DataRecord",
    "absolute",
    "check_there",
    "located",
    "located_data",
    "own_split",
    "same_place",
]

DATA_RECORD = "data.json"
_SCHEMA = 1


@dataclass(frozen=True)
class DataRecord:
    """The content of `data.json` in a run folder.

    Attributes:
        typed: `--data` as given, for display; without a trailing slash.
        splits: Fingerprint of each split that the run read.
        earlier: For each time that the run was resumed with other data, the fingerprints before.
    """

    typed: str
    splits: Mapping[str, Fingerprint]
    earlier: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def of(cls, typed: str, seen: Mapping[str, Fingerprint]) -> DataRecord:
        """The record of a new run."""
        return cls(typed.rstrip(os.sep) or typed, dict(seen))

    @classmethod
    def read(cls, folder: Path) -> DataRecord | None:
        """Read the record of a run folder; None if there is none, as in runs of earlier versions.

        Raises:
            UserError: if it is damaged.
        """
        path = folder / DATA_RECORD
        try:
            return checked(cls, read_json(path), path)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            why = str(error).removeprefix(f"{shown(path)}: ").rstrip(".")
            reason = getattr(error, "strerror", None) or f"it is damaged: {why}"
            raise UserError(
                f"{path}: cannot be read ({reason}); if you know that the run's data is unchanged, "
                "remove the file."
            ) from None

    def write(self, folder: Path) -> None:
        """Write the record into a run folder.

        Raises:
            UserError: if it cannot be written.
        """
        content = {"schema": _SCHEMA, "typed": self.typed, **_plain(self.splits)}
        if self.earlier:
            content["earlier"] = list(self.earlier)
        text = json.dumps(content, indent=1, ensure_ascii=True) + "\n"
        atomic_write(folder / DATA_RECORD, text.encode())

    def difference(
        self, splits: Mapping[str, Fingerprint], *, numbered: bool = False
    ) -> str | None:
        """How data differs from the run's, in a clause; None if the common splits are the same.

        Args:
            splits: Their fingerprints.
            numbered: Whether images must have the numbers that they had in training too.
        """
        for split, now in splits.items():
            if (then := self.splits.get(split)) is None:
                continue
            clause = now.difference(then) or (now.other_numbers(then) if numbered else None)
            if clause is not None:
                return clause if split != "test" else f"in the test split {clause}"
        return None

    def replaced(self, now: DataRecord, clause: str) -> DataRecord:
        """The record of a run that is resumed with other data, which differs as `clause` says."""
        before = {
            "until": time.strftime("%Y-%m-%d %H:%M:%S %z"), "then": clause, **_plain(self.splits)
        }  # fmt: skip
        return DataRecord(self.typed, now.splits, (*self.earlier, before))

    @property
    def changes(self) -> dict[str, list[str]]:
        """For `results.json`: how the data changed between parts of the run, if it did."""
        clauses = [str(before.get("then")) for before in self.earlier]
        return {"data_changes": clauses} if clauses else {}


def _plain(splits: Mapping[str, Fingerprint]) -> dict[str, Any]:
    return {"splits": {name: split.plain() for name, split in splits.items()}}


def absolute(path: str) -> str:
    """The absolute path, without a trailing slash; of shards, the same shards."""
    if is_stream(path):
        return absolute_spec(path)
    whole = as_path(path).absolute()
    return str(whole.resolve() if os.pardir in whole.parts else whole)


def located_data(data: str) -> str:
    """The name of a data set, or with an absolute path if that exists."""
    if is_stream(data):
        return absolute(data)
    path = path_of(data)
    if path is None or not as_path(path).exists():
        return data  # messages about a missing folder name it as typed
    return with_path(data, absolute(path))


def located(settings: Settings) -> Settings:
    """The same settings with absolute paths to the data, and to weights that they name."""
    run = settings.run
    changes: dict[str, str] = {}
    init = settings.model.init
    if init is not None and not is_name(init):
        changes["init"] = absolute(init)  # also where it no longer exists: a run goes on without
    teacher = settings.teacher.get("teacher")
    if teacher is not None and not is_name(teacher):
        changes["teacher"] = absolute(teacher)
    if (data := located_data(run.data)) != run.data:
        changes["data"] = data
    if run.data_dir is not None and (run.download or as_path(run.data_dir).exists()):
        changes["data_dir"] = absolute(run.data_dir)
    return settings.with_changes(**changes) if changes else settings


def own_split(data: str, split: str | None, elsewhere: bool = False) -> str | None:
    """The folder of a split, or its name in a list, that a run was given, if `data` has it too.

    Args:
        data: The data that is read.
        split: `train_folder` or `test_folder` of the run.
        elsewhere: Whether it may be other data than the run's.
    """
    if is_stream(data):
        return split
    path = path_of(data)
    if path is None or split is None:
        return None
    place = as_path(path)
    if place.is_dir() and path == data:
        return split if (place / split).is_dir() else None
    return None if elsewhere else split


def check_there(data: str) -> None:
    """Check that the images of a run are known, and that their folder still exists.

    Raises:
        UserError: if not.
    """
    if data == NO_DATA:
        raise UserError(
            "the run was imported, and its images are unknown; give them.", parameter="data"
        )
    # Of shards, those that are missing are named when they are looked for.
    path = path_of(data)
    if path is not None and not as_path(path).exists():
        raise UserError(
            f"--data: the run's images were in {path}, which does not exist; give --data with the "
            "folder where they are now."
        )


def same_place(a: str | None, b: str | None) -> bool:
    """Whether two paths, or names of data sets, are the same place."""
    if a is None or b is None or a == b:
        return a == b
    if is_stream(a) or is_stream(b):
        return absolute(a) == absolute(b)
    here, there = path_of(a), path_of(b)
    if here is None or there is None or with_path(a, "") != with_path(b, ""):
        return False
    one, other = as_path(here), as_path(there)
    try:
        return one.samefile(other)
    except OSError:
        return absolute(here) == absolute(there)
