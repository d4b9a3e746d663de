"""Adding rows to the `results.json` of a finished run."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from unmix.errors import UserError
from unmix.files import read_json
from unmix.per_image import PerImage, keep_per_image
from unmix.results import SCHEMA, DamagedResultsError, load_results, set_aside, write_results
from unmix.rows import OF_IMAGES, of_other_images, settings_of
from unmix.training.run.folder import RunFolder
from unmix.training.run.lock import results_lock

__all__ = ["NotSavedError", "add_row", "has_row"]


class NotSavedError(UserError):
    """Results could not be written into the run folder.

    Attributes:
        rows: The results.
    """

    def __init__(self, reason: object, rows: Sequence[Mapping[str, Any]]) -> None:
        super().__init__(f"{str(reason).rstrip('.')}. The results are printed, but not saved.")
        self.rows = [dict(row) for row in rows]


def add_row(
    run: RunFolder,
    row: Mapping[str, Any],
    *,
    main: bool,
    say: Callable[[str], None],
    images: PerImage | None = None,
) -> None:
    """Add a row to `results.json`, or replace the one with the same settings.

    A damaged file is renamed, and a new one is started from the run's settings.

    Args:
        run: The run folder.
        row: The row.
        main: Whether tables and figures show it for its protocol and epoch. They use the last such
            row, so other rows are inserted before.
        say: Prints a line.
        images: The same measurement image by image, to be kept beside.

    Raises:
        NotSavedError: if the file cannot be read or written.
    """
    try:
        # Read again, to keep rows that another process has added meanwhile.
        with results_lock(run.path):
            content = _content(run, say)
            rows = _with(list(content.get("evaluations") or []), dict(row), main)
            write_results(run.results, {**content, "evaluations": rows})
            keep_per_image(run.path, [] if images is None else [images])
    except UserError as error:
        raise NotSavedError(error, [row]) from error


def has_row(run: RunFolder, row: Mapping[str, Any]) -> bool:
    """Whether `results.json` can be read and has a row of the same settings."""
    try:
        load_results(run.path)
        rows = read_json(run.results).get("evaluations") or []
    except (UserError, OSError):
        return False
    return any(settings_of(other) == settings_of(row) for other in rows)


def _content(run: RunFolder, say: Callable[[str], None]) -> dict[str, Any]:
    try:
        load_results(run.path)
        return dict(read_json(run.results))
    except DamagedResultsError:
        new = _new_results(run)
        aside = set_aside(run.results)
        say(f"warning: {run.results} was damaged; it is {aside.name} now, with its earlier rows")
        return new


def _new_results(run: RunFolder) -> dict[str, Any]:
    """The content of `results.json` without evaluations."""
    settings = run.settings()
    words = settings.flat()
    return {
        "schema": SCHEMA,
        "name": run.path.resolve().name,
        **{key: words[key] for key in ("method", "data", "backbone", "width", "size", "epochs")},
        "mixture": settings.mixture.name,
        "seed": settings.run.seed,
        "command": f"unmix pretrain --config {shlex.quote(str(run.config))}",
    }


def _with(rows: list[dict[str, Any]], row: dict[str, Any], main: bool) -> list[dict[str, Any]]:
    """The rows with a new one: of a protocol and epoch the last is that of the run's own images."""
    same = [i for i, other in enumerate(rows) if settings_of(other) == settings_of(row)]
    kin = [i for i, other in enumerate(rows) if _measure(other) == _measure(row)]
    alike = [i for i in kin if _images(rows[i]) == _images(row)]
    if same:
        rows[same[-1]] = row
    elif not kin or (main and not of_other_images(row)):
        rows.append(row)
    elif main and alike:
        rows.insert(alike[-1] + 1, row)
    else:
        rows.insert((alike or kin)[0], row)
    return rows


def _measure(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row.get("protocol"), row.get("epoch")


def _images(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row.get(key) for key in OF_IMAGES)
