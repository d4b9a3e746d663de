"""The data of a run as it was: where it lay, and what tells it from other data since."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unmix.config import Settings
from unmix.data import DATA_SETS
from unmix.data.fingerprint import Fingerprint
from unmix.errors import UserError
from unmix.files import atomic_write
from unmix.names import is_python

__all__ = [
    "DATA_RECORD",
    "DataRecord",
    "absolute",
    "check_there",
    "is_folder",
    "located",
    "same_place",
]

DATA_RECORD = "data.json"
_SCHEMA = 1


@dataclass(frozen=True)
class DataRecord:
    """What `data.json` in a run folder says.

    Attributes:
        typed: `--data` as it was given, for the eye; without a slash at its end.
        splits: For each split that the run read, its fingerprint.
        earlier: For each time that the run went on with other data, what they were until then.
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
        """The record in a run folder; None if it has none, as those of earlier versions.

        Raises:
            UserError: if it is damaged.
        """
        path = folder / DATA_RECORD
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            splits = {name: Fingerprint.of_plain(of) for name, of in content["splits"].items()}
            return cls(str(content["typed"]), splits, tuple(content.get("earlier", ())))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = getattr(error, "strerror", None) or "it is damaged"
            raise UserError(
                f"{path}: cannot be read ({reason}); if you know that the run's data is as it was, "
                "remove the file."
            ) from None

    def write(self, folder: Path) -> None:
        """Write it into a run folder.

        Raises:
            UserError: if it cannot be written.
        """
        content = {"schema": _SCHEMA, "typed": self.typed, **_plain(self.splits)}
        if self.earlier:
            content["earlier"] = list(self.earlier)
        text = json.dumps(content, indent=1, ensure_ascii=True) + "\n"
        atomic_write(folder / DATA_RECORD, text.encode())

    def difference(self, found: Mapping[str, Fingerprint]) -> str | None:
        """How data differs from the run's, in a clause; None if what both know of is the same."""
        for split, now in found.items():
            then = self.splits.get(split)
            if then is not None and (clause := now.difference(then)) is not None:
                return clause if split != "test" else f"in the test split {clause}"
        return None

    def replaced(self, now: DataRecord, clause: str) -> DataRecord:
        """The record of a run that goes on with other data, and how that differs."""
        before = {
            "until": time.strftime("%Y-%m-%d %H:%M:%S %z"), "then": clause, **_plain(self.splits)
        }  # fmt: skip
        return DataRecord(self.typed, now.splits, (*self.earlier, before))

    @property
    def changes(self) -> dict[str, list[str]]:
        """For `results.json`: with what other data the run went on, if it did."""
        clauses = [str(before.get("then")) for before in self.earlier]
        return {"data_changes": clauses} if clauses else {}


def _plain(splits: Mapping[str, Fingerprint]) -> dict[str, Any]:
    return {"splits": {name: found.plain() for name, found in splits.items()}}


def is_folder(data: str) -> bool:
    """Whether `--data` is a path, not a data set's name."""
    return data not in DATA_SETS and not is_python(data)


def absolute(path: str) -> str:
    """A path that means the same from every working directory, without a slash at its end."""
    whole = Path(path).expanduser().absolute()
    return str(whole.resolve() if os.pardir in whole.parts else whole)


def located(settings: Settings) -> Settings:
    """The same settings with absolute paths to the data."""
    run = settings.run
    changes: dict[str, str] = {}
    if is_folder(run.data) and Path(run.data).expanduser().is_dir():
        changes["data"] = absolute(run.data)
    # What is not there is told as it was typed.
    if run.data_dir is not None and (run.download or Path(run.data_dir).expanduser().exists()):
        changes["data_dir"] = absolute(run.data_dir)
    return settings.with_changes(**changes) if changes else settings


def check_there(data: str) -> None:
    """Check that a run's folder of images is still there.

    Raises:
        UserError: if not.
    """
    if is_folder(data) and not Path(data).expanduser().exists():
        raise UserError(
            f"--data: the run's images were in {data}, which is not there; give --data with the "
            "folder where they lie now."
        )


def same_place(a: str | None, b: str | None) -> bool:
    """Whether two paths, or names of data sets, mean the same."""
    if a is None or b is None or a == b:
        return a == b
    if not (is_folder(a) and is_folder(b)):
        return False
    one, other = Path(a).expanduser(), Path(b).expanduser()
    try:
        return one.samefile(other)
    except OSError:
        return absolute(a) == absolute(b)
