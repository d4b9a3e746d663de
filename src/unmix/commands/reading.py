"""Runs that are compared, finished or not, read while other processes may write them."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from unmix.config.saved import is_run
from unmix.errors import UserError, check_given
from unmix.figures.progress import read_metrics
from unmix.files import as_path
from unmix.names import shown
from unmix.results import ON, Evaluation, RunResults, load_results
from unmix.rows import OF_IMAGES
from unmix.studies.watching import is_running
from unmix.training.run.data_record import DataRecord
from unmix.training.run.extending import is_extending
from unmix.training.run.folder import RunFolder

__all__ = ["given_folders", "read_run", "read_runs", "short_names"]

_NAMES = 3  # more paths than these are counted


def given_folders(runs: Sequence[Path | str]) -> tuple[list[Path], list[str]]:
    """The run folders among paths, such as those of runs/*; what else there is is left out.

    Args:
        runs: Paths.

    Returns:
        The folders, and a note on the paths that are left out, by reason.

    Raises:
        UserError: if a path does not exist or is given twice, or there is no run among them.
    """
    for run in runs:
        check_given("runs", run, flag="RUN")
    paths = [as_path(run) for run in runs]
    if not paths:
        raise UserError("RUN: no run was given; give one run folder or more.")
    for path in paths:
        if not path.exists():
            raise UserError(f"{path}: there is no such run folder.")
    for path, count in Counter(path.resolve() for path in paths).items():
        if count > 1:
            raise UserError(f"{path}: is given {count} times; give each run once.")
    why = {path: reason for path in paths if (reason := _no_run(path)) is not None}
    folders = [path for path in paths if path not in why]
    if not folders:
        path, reason = next(iter(why.items()))
        raise UserError(f"{path}: {reason}.")
    left: dict[str, list[str]] = {}
    for path, reason in why.items():
        left.setdefault(reason, []).append(shown(path))
    return folders, [_left_out(names, reason) for reason, names in left.items()]


def _left_out(names: Sequence[str], reason: str) -> str:
    if len(names) == 1:
        return f"left out: {names[0]} {reason}"
    more = f" and {len(names) - _NAMES} more" if len(names) > _NAMES else ""
    return f"left out: {', '.join(names[:_NAMES])}{more}; each {reason}"


def _no_run(path: Path) -> str | None:
    """Why a path is no run folder, in a clause; None if it is one."""
    if not path.is_dir():
        return "is a file and no run folder"
    if is_run(path) or (path / "results.json").exists():
        return None
    if (path / "compare.json").exists():
        return "has a comparison and no run"
    if (path / "study.yaml").exists():
        return f"is a study (unmix study show {shlex.quote(str(path))} shows it), and no run folder"
    if is_running(path):
        return "is a run that has just begun, without settings yet"
    return "is not a run folder; it has no config.yaml"


def read_runs(known: Mapping[str, Path]) -> list[RunResults]:
    """Read runs; the same data has one name in all of them, and other data another.

    An accuracy on other data than a run's own has a protocol of its own, as "knn on digits".

    Args:
        known: The run folder of each name.

    Raises:
        UserError: if a folder holds no run, or its results are damaged or of another version.
    """
    found = [replace(read_run(path), name=name) for name, path in known.items()]
    return _with_transfers(_named_by_data(known, found))


def read_run(folder: Path) -> RunResults:
    """Read a run, also one that is still trained: with what its `metrics.csv` has so far.

    Raises:
        UserError: as `read_runs`.
    """
    if not (folder / "results.json").exists() and is_run(folder):
        running = is_running(folder)
        # It may have ended meanwhile.
        if running or not (folder / "results.json").exists():
            return _unfinished(folder, running)
    results = load_results(folder)
    if is_run(folder):
        settings = RunFolder(folder).settings()
        # Results of earlier versions do not have it.
        devices = {"devices": settings.machine.processes} if results.hardware else {}
        results = replace(results, hardware={**devices, **results.hardware})
        if is_extending(settings, results):
            before = results.epochs
            training = {**results.training, "batch_size": settings.run.batch_size}
            now = replace(
                results, epochs=settings.run.epochs, running=is_running(folder), training=training
            )
            done = max(_epochs(folder), before)
            return _with_metrics(replace(now, complete_epochs=done), folder, settings.flat())
    return results


def _unfinished(folder: Path, running: bool) -> RunResults:
    """A run without results."""
    settings = RunFolder(folder).settings()
    words = settings.flat()
    names = ("method", "data", "backbone", "width", "size", "epochs", "seed")
    known: dict[str, Any] = {name: words[name] for name in names}
    if known["size"] is None:
        known["size"] = 0
    with suppress(UserError):
        record = DataRecord.read(folder)
        known["data"] = known["data"] if record is None else record.typed
    results = RunResults(
        name=folder.name, mixture=settings.mixture.name, command="", running=running,
        complete_epochs=_epochs(folder), training={"batch_size": words["batch_size"]}, **known,
    )  # fmt: skip
    return _with_metrics(results, folder, words)


def _epochs(folder: Path) -> int:
    """Complete epochs, by `metrics.csv`, which is replaced in one piece after each."""
    with suppress(UserError):
        metrics = read_metrics(RunFolder(folder).metrics)
        return max((epoch for values in metrics.values() for epoch in values), default=0)
    return 0


def _with_metrics(results: RunResults, folder: Path, words: Mapping[str, Any]) -> RunResults:
    """The run with the accuracies of `metrics.csv` that its results do not have."""
    try:
        metrics = read_metrics(RunFolder(folder).metrics)
    except UserError:
        return results
    how = {"k": words["knn_k"], "temperature": words["knn_temperature"]}
    details = {
        "knn": {**how, "features": words["features"]},
        "linear": {"features": words["features"]},
    }
    known = {(row.protocol, row.epoch) for row in results.evaluations}
    rows = [
        Evaluation(protocol, epoch, value, None, details[protocol])
        for protocol in details
        for epoch, value in metrics.get(protocol, {}).items()
        if (protocol, epoch) not in known and 0 <= value <= 100
    ]
    both = sorted([*results.evaluations, *rows], key=lambda row: row.epoch)
    return replace(results, evaluations=tuple(both))


def _named_by_data(known: Mapping[str, Path], results: Sequence[RunResults]) -> list[RunResults]:
    """Give the same data one name, and different data of the same name different names."""
    names: dict[tuple[tuple[str, str], ...], str] = {}
    named = []
    for run in results:
        run = replace(run, data=shown(run.data), command=shown(run.command))
        folder = RunFolder(known[run.name])
        record = words = None
        with suppress(UserError):
            record, words = DataRecord.read(folder.path), folder.words()
        if record is None or words is None or not record.splits:
            named.append(run)
            continue
        key = tuple((split, found.digest) for split, found in sorted(record.splits.items()))
        if key not in names:
            tries = (run.data, shown(str(words.get("data"))))
            fresh = [name for name in tries if name not in names.values()]
            names[key] = fresh[0] if fresh else f"{tries[1]} (as it was for {run.name})"
        named.append(replace(run, data=names[key]))
    return named


def _with_transfers(results: Sequence[RunResults]) -> list[RunResults]:
    """Give accuracies on other data than a run's own a protocol of their own, as "knn on digits".

    Args:
        results: Of some runs, which call the same data by the same name.
    """
    other = [str(row.details["data"]) for r in results for row in r.evaluations if _other(row)]
    names = short_names(list(dict.fromkeys(other)))
    found = []
    for run in results:
        rows, transfers = [], {}
        for row in run.evaluations:
            if _other(row):
                data = str(row.details["data"])
                details = {key: value for key, value in row.details.items() if key != "data"}
                parts = [shown(str(details[key])) for key in OF_IMAGES if details.get(key)]
                parts += ["projector features"] if details.get("features") == "projector" else []
                which = f" ({', '.join(parts)})" if parts else ""
                protocol = f"{row.protocol}{ON}{names[data]}{which}"
                transfers[protocol] = data
                row = replace(row, protocol=protocol, details=details)
            rows.append(row)
        found.append(replace(run, evaluations=tuple(rows), transfers=transfers))
    return found


def _other(row: Evaluation) -> bool:
    return row.details.get("data") is not None


def short_names(paths: Sequence[str]) -> dict[str, str]:
    """For each path (or name) its last parts, as many as tell it apart, safe to print."""
    parts = {path: path.rstrip("/\\").replace("\\", "/").split("/") for path in paths}
    length = 1
    while len({tuple(part[-length:]) for part in parts.values()}) < len(set(paths)):
        length += 1
        if length > max(map(len, parts.values())):
            return {path: shown(path) for path in paths}
    return {path: shown("/".join(part[-length:])) for path, part in parts.items()}
