"""What `watch` shows: runs, or a study, as they are now."""

from __future__ import annotations

import shlex
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from unmix.commands.compare import listed
from unmix.commands.compare_report import comparison_report
from unmix.commands.compare_text import Told, notes_on
from unmix.commands.conditions import conditions_drawn, costs, grouped
from unmix.commands.reading import read_runs, short_names
from unmix.commands.report_samples import mixture_samples
from unmix.commands.study_report import study_report
from unmix.config.saved import is_run
from unmix.display import Answer
from unmix.errors import UserError, check_given
from unmix.figures.report_content import Picture, Report
from unmix.files import as_path
from unmix.names import shown
from unmix.studies import read_study
from unmix.studies.watching import State, is_running, run_state, study_state

__all__ = ["Watched", "watched"]


class Watched(Protocol):
    """What is watched.

    Attributes:
        name: In the first line.
    """

    name: str

    def state(self) -> State:
        """How far it is.

        Raises:
            UserError: if nothing of it is left.
        """

    def stamp(self) -> Hashable:
        """Other than before when the report would be."""

    def report(self) -> Report:
        """What there is so far.

        Raises:
            UserError: if it cannot be read.
        """


def watched(runs: Sequence[Path | str | Sequence[Path | str]]) -> Watched:
    """What the paths are: runs, or one study.

    Raises:
        UserError: if one is neither, nor a folder that may become a run.
    """
    paths = []
    for given in listed(runs):
        check_given("runs", given, flag="RUN")
        paths.append(as_path(given))
    if not paths:
        raise UserError("RUN: nothing was given; give run folders, or the folder of a study.")
    studies = [path for path in paths if (path / "study.yaml").is_file()]
    if studies and len(paths) > 1:
        raise UserError(f"{studies[0]}: is a study; give it alone, or runs alone.")
    if studies:
        return _Study(studies[0])
    for path in paths:
        if path.exists() and not path.is_dir():
            raise UserError(f"{path}: is a file; give the folder of a run or of a study.")
        if path.is_dir() and not _is_run(path) and any(_visible(path)) and not is_running(path):
            inside = [each for each in sorted(path.iterdir()) if is_run(each)]
            hint = f"; it holds runs: {shlex.quote(str(path))}/*" if inside else ""
            raise UserError(f"{path}: is neither a run nor a study{hint}.")
        if paths.count(path) > 1:
            raise UserError(f"{path}: is given {paths.count(path)} times; give each run once.")
    return _Runs(paths)


class _Runs:
    """Runs, some of which may not have begun."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)
        names = short_names([str(path.resolve()) for path in paths])
        self.known = {names[str(path.resolve())]: path for path in paths}
        self.name = ", ".join(list(self.known)[:3])
        if len(self.known) > 3:
            self.name += f" and {len(self.known) - 3} more"
        self.seen: set[Path] = set()
        self.cost_notes: list[str] = []
        self.cost_of = costs(self.cost_notes)  # counts the operations of each kind of step once
        self.samples: tuple[frozenset[str], tuple[list[Picture], list[str]]] | None = None

    def state(self) -> State:
        self.seen |= {path for path in self.paths if path.is_dir()}
        if self.seen and not any(path.is_dir() for path in self.paths):
            raise UserError(f"{self.paths[0]}: was deleted; there is nothing left to watch.")
        each = {name: run_state(path) for name, path in self.known.items()}
        begun = [state for state in each.values() if state.what != "not begun"]
        if not begun:
            return State("no run has begun yet", 0.0, False, False)
        if len(each) == 1:
            return begun[0]
        finished = sum(state.finished for state in each.values())
        running = {name: state for name, state in each.items() if state.running}
        shares = [state.done or 0.0 for state in each.values()]
        done, all_done = sum(shares) / len(shares), finished == len(each)
        if all_done:
            return State(f"finished, all {len(each)} runs", 1.0, True, False)
        count = f"{finished} of {len(each)} runs are finished"
        if len(begun) < len(each):
            count += f", {len(each) - len(begun)} not begun"
        if not running:
            return State(f"no process trains these runs, {count}", done, False, False)
        words = "; ".join(
            f"{name}: {s.what.removeprefix('running, ')}" for name, s in running.items()
        )
        left = [s.seconds_left for s in running.values() if s.seconds_left is not None]
        waiting = len(each) - finished - len(running)
        longest = max(left) if left and not waiting else None
        return State(f"running, {count}; {words}", done, False, True, longest)

    def stamp(self) -> Hashable:
        return tuple(
            (path, name, _stamp(path / name))
            for path in self.paths
            for name in ("config.yaml", "metrics.csv", "results.json", "data.json", ".owner.json")
        )

    def report(self) -> Report:
        there = {name: path for name, path in self.known.items() if _is_run(path)}
        notes = [f"{name}: {_absence(path)}." for name, path in self.known.items()
                 if name not in there]  # fmt: skip
        if not there:
            return Report(f"Watching {self.name}", Answer("No run has begun yet."), notes=notes)
        results = read_runs(there)
        groups = grouped(there, results, cost_of=self.cost_of)
        told = Told(groups, results, None)
        pictures, missing = self._samples(there)
        notes += [*self.cost_notes, *notes_on(there, groups, results), *missing]
        drawn = conditions_drawn(groups, notes)
        command = shlex.join(["unmix", "watch", *map(str, self.paths)])
        report = comparison_report(
            groups, drawn, [told.conditions, told.runs], [], {}, notes, command, samples=False
        )
        return replace(report, title=f"Watching {self.name}", samples=pictures)

    def _samples(self, there: Mapping[str, Path]) -> tuple[list[Picture], list[str]]:
        """Mixtures of the runs; drawn once, since that needs their images."""
        if self.samples is None or self.samples[0] != frozenset(there):
            self.samples = frozenset(there), mixture_samples(there)
        return self.samples[1]


class _Study:
    """A study, some of whose cells may not have begun."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, f"the study {folder.name}"
        self.found = read_study(folder)

    def state(self) -> State:
        if not (self.folder / "study.yaml").exists():
            raise UserError(f"{self.folder}: was deleted; there is nothing left to watch.")
        return study_state(self.folder, self.found)

    def stamp(self) -> Hashable:
        runs = sorted((self.folder / "runs").glob("*/metrics.csv"))
        files = [self.folder / "study.yaml", self.folder / "cells", *runs]
        files += sorted((self.folder / "cells").glob("*.json"))
        return tuple((path, _stamp(path)) for path in files)

    def report(self) -> Report:
        self.found = read_study(self.folder)
        return study_report(self.found, self.folder, samples=False)


def _is_run(path: Path) -> bool:
    return is_run(path) or (path / "results.json").exists()


def _visible(path: Path) -> list[Path]:
    return [each for each in path.iterdir() if not each.name.startswith(".")]


def _absence(path: Path) -> str:
    if not path.is_dir():
        return f"{shown(path)} does not exist; waiting for a run"
    return "begun, without settings yet" if is_running(path) else "empty so far; waiting for a run"


def _stamp(path: Path) -> Hashable:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
