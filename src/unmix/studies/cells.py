"""One cell of a study: a condition with a seed, trained by `unmix pretrain` in its own process."""

from __future__ import annotations

import hashlib
import json
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import unmix
from unmix.busy import TAKEN
from unmix.config import Settings
from unmix.config.earlier import upgraded
from unmix.errors import UserError
from unmix.files import atomic_write, read_json
from unmix.plugins import sources_of
from unmix.results import load_results
from unmix.schema import Between, Count, Integer, Percent, checked
from unmix.studies.course import Course, course_of
from unmix.studies.images import Digests, ImagesNow, data_of_run
from unmix.studies.plan import slug
from unmix.training.run.pretrain import command_line, settings_for

__all__ = [
    "FROM",
    "NO_RESULT",
    "SCHEMA",
    "Cell",
    "changed_settings",
    "code_version",
    "read_cell",
    "read_cells",
    "result_settings",
    "write_cell",
]

SCHEMA = 1
FROM = "from_study"
"""Key of the study that measured a cell, if it was another one."""
_PLACES = ("data_dir", "run")
# What changes no result: where a run lies, what is kept of it, and how many processes feed it.
NO_RESULT = {
    "run", "data_dir", "workers", "resident", "resident_share", "checkpoint_every",
    "checkpoint_steps", "logger", "download", "threads",
}  # fmt: skip


def result_settings(settings: Settings) -> dict[str, Any]:
    """The settings that a result depends on, as JSON has them."""
    kept = {k: v for k, v in settings.flat().items() if k not in NO_RESULT}
    return json.loads(json.dumps(kept, default=str))


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs, as "lr 0.03 -> 0.06"."""
    names = dict.fromkeys((*before, *now))
    return [
        f"{name} {before.get(name)} -> {now.get(name)}"
        for name in names
        if before.get(name) != now.get(name)
    ]


@cache
def code_version() -> dict[str, str]:
    """The package's version, a digest of its sources, and the commit where it is a checkout."""
    root = Path(unmix.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        if path.suffix in (".py", ".yaml"):
            digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    found = {"version": unmix.__version__, "sources": digest.hexdigest()[:12]}
    commit = _git("rev-parse", "--short=12", "HEAD")
    # A checkout of something else that has the package inside is not the package's.
    if commit and _git("ls-files", "--error-unmatch", "__init__.py"):
        dirty = _git("status", "--porcelain", ".")
        found["commit"] = commit + ("+changes" if dirty else "")
    return found


def code_of(settings: Mapping[str, Any]) -> dict[str, str]:
    """The version of the code that a run of these settings depends on: own parts too."""
    names = [str(settings.get("method")), *str(settings.get("unmix_mixture")).split("+")]
    found, own = code_version(), sources_of(names)
    return {**found, "own": own} if own else found


def same_code(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two versions of the code are the same, of the package and of own parts."""
    return all(one.get(key) == other.get(key) for key in ("sources", "own"))


def _git(*words: str) -> str:
    try:
        ended = subprocess.run(
            ["git", "-C", str(Path(unmix.__file__).parent), *words],
            capture_output=True, text=True, check=False, timeout=20,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ""
    return ended.stdout.strip() if ended.returncode == 0 else ""


@dataclass(frozen=True)
class Cell:
    """A condition with a seed.

    Attributes:
        condition: Its name.
        seed: Of the run.
        words: What `pretrain` is given.
        settings: All settings that its result depends on.
        config: The recipe or file under the words.
        folder: Of the study.
    """

    condition: str
    seed: int
    words: Mapping[str, Any]
    settings: Mapping[str, Any]
    config: str | Sequence[str] | None
    folder: Path

    @property
    def name(self) -> str:
        """In messages."""
        return f"{self.condition}, seed {self.seed}"

    @property
    def file(self) -> Path:
        """Where its result is kept."""
        return self.folder / "cells" / f"{slug(self.condition)}-{self.seed}.json"

    @property
    def run(self) -> Path:
        """Its run folder; other settings are another folder."""
        digest = hashlib.sha256(json.dumps(dict(self.settings), sort_keys=True).encode())
        name = f"{slug(self.condition)}-{self.seed}-{digest.hexdigest()[:8]}"
        return self.folder / "runs" / name

    @property
    def log(self) -> Path:
        """What its process prints."""
        # Not with_suffix: "im-at-0.5-1" would become "im-at-0.log", for every seed.
        return self.run.with_name(f"{self.run.name}.log")

    def command(self, *, shown: bool = False) -> list[str]:
        """The words behind `unmix`; `shown` without this machine's folders."""
        words = dict(self.words)
        if shown:
            words |= {key: "DIR" for key in _PLACES if words.get(key) is not None}
        else:
            words["run"] = str(self.run)
        return shlex.split(command_line(self.config, words))[1:]

    def now(self, images: ImagesNow) -> Digests | None:
        """The digest of each split of its data as it is now; None if it is not known here."""
        return images.of(settings_for(dict(self.words), self.config)[0].run)

    def record(self, cost: Mapping[str, Any]) -> dict[str, Any]:
        """What its JSON holds, from its finished run.

        Raises:
            UserError: if the run has no results.
        """
        found = load_results(self.run)
        finals = {row.protocol: found.final(row.protocol) for row in found.evaluations}
        return {
            "schema": SCHEMA,
            "condition": self.condition,
            "seed": self.seed,
            "settings": dict(self.settings),
            "command": shlex.join(["unmix", *self.command(shown=True)]),
            "epochs": found.epochs,
            "accuracies": {name: row.top1 for name, row in finals.items() if row is not None},
            **({"course": course} if (course := course_of(found)) else {}),
            **data_of_run(self.run),
            "loss": found.training.get("loss"),
            "seconds": found.training.get("seconds"),
            "images_per_second": found.training.get("images_per_second"),
            **({TAKEN: found.training[TAKEN]} if TAKEN in found.training else {}),
            "cost": dict(cost),
            "code": code_of(self.settings),
            "hardware": dict(found.hardware),
            "versions": dict(found.versions),
        }

    def write(self, cost: Mapping[str, Any]) -> dict[str, Any]:
        """Write its JSON, and give what it holds."""
        content = self.record(cost)
        write_cell(self.file, content)
        return content


@dataclass(frozen=True)
class _Content:
    """What a cell's JSON must hold."""

    schema: Literal[1]
    condition: str
    seed: Integer
    settings: Mapping[str, Any]
    accuracies: Mapping[str, Percent]
    epochs: Count
    cost: Mapping[str, Any]
    code: Mapping[str, Any]
    course: Mapping[str, Course] | None = None
    data: Mapping[str, str] | None = None
    data_changes: Sequence[str] | None = None
    command: str | None = None
    loss: float | None = None
    seconds: Annotated[float, Between(0)] | None = None
    images_per_second: Annotated[float, Between(0)] | None = None
    hardware: Mapping[str, Any] | None = None
    versions: Mapping[str, Any] | None = None


def write_cell(path: Path, content: Mapping[str, Any]) -> None:
    """Write a cell's JSON file."""
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    atomic_write(path, (text + "\n").encode())


def read_cell(path: Path) -> dict[str, Any]:
    """Read a cell's JSON file.

    Raises:
        UserError: if it is damaged, or of another version.
    """
    try:
        content = read_json(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from None
    except ValueError:
        raise UserError(
            f"{path}: is damaged (no valid JSON); remove it, and the study measures it again."
        ) from None
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise UserError(f"{path}: is not a cell of a study that this version reads.")
    checked(_Content, content, path, "Remove the file to measure anew.")
    return {**content, "settings": _upgraded(content["settings"])}


def _upgraded(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a cell of an earlier version in the terms of this one."""
    # Without those that change no result, `upgraded` would not take them for a whole run's.
    whole = upgraded({**dict.fromkeys(NO_RESULT), **settings})
    if "method" in whole:
        # A setting that is new does by default what was done before there was it.
        usual = json.loads(json.dumps(Settings.of({"method": whole["method"]}).flat(), default=str))
        whole = {**usual, **whole}
    return {name: value for name, value in whole.items() if name not in NO_RESULT}


def read_cells(folder: Path) -> list[dict[str, Any]]:
    """All cells of a study's folder, by their file names."""
    return [read_cell(path) for path in sorted((folder / "cells").glob("*.json"))]
