"""Rows of a finished run's `results.json`: added, or replaced where they measure the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from unmix.results import load_results, write_results
from unmix.training.run_folder import RunFolder

__all__ = ["add_row", "settings_of"]

# What comes out of a measurement; all else in a row says what was measured, and how.
_MEASURED = {"top1", "top5", "strength", "seconds", "train_images", "test_images"}


def settings_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a row measures, and how: `protocol`, `epoch`, `features`, `k`, ..."""
    return {key: value for key, value in row.items() if key not in _MEASURED}


def add_row(run: RunFolder, row: Mapping[str, Any], *, main: bool) -> None:
    """Put a row into `results.json`, in place of one with the same settings if there is one.

    Args:
        run: The run folder.
        row: The row.
        main: Whether it is what tables and figures show for its protocol and epoch. They take the
            last row of those, so another row goes before them.

    Raises:
        UserError: if the file is missing or damaged, or cannot be written.
    """
    load_results(run.path)
    content = json.loads(run.results.read_text(encoding="utf-8"))
    rows: list[dict[str, Any]] = list(content.get("evaluations") or [])
    same = [i for i, other in enumerate(rows) if settings_of(other) == settings_of(row)]
    kin = [i for i, other in enumerate(rows) if _place(other) == _place(row)]
    if same:
        rows[same[-1]] = dict(row)
    elif kin and not main:
        rows.insert(kin[0], dict(row))
    else:
        rows.append(dict(row))
    write_results(run.results, {**content, "evaluations": rows})


def _place(row: Mapping[str, Any]) -> tuple[Any, Any]:
    return row.get("protocol"), row.get("epoch")
