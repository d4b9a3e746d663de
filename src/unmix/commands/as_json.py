"""Results of commands as JSON on standard output, other lines on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

from unmix.commands.compare import COMPARISON, compare
from unmix.commands.rows import NotSavedError
from unmix.commands.study import show_study
from unmix.names import shown_lines
from unmix.results import finite

__all__ = ["comparison_as_json", "measured_as_json", "study_as_json"]


def measured_as_json(measure: Callable[..., Any], given: dict[str, Any]) -> None:
    """Call a command that measures, such as `knn`, and print the rows.

    Raises:
        NotSavedError: if they could not be saved; they are printed before.
    """
    try:
        found = measure(**given, say=_aside)
    except NotSavedError as error:
        _print(error.rows[0] if len(error.rows) == 1 else error.rows)
        raise
    _print(found.as_dict() if hasattr(found, "as_dict") else found)


def comparison_as_json(given: dict[str, Any]) -> None:
    """Call `compare`, and print its `compare.json`."""
    runs = given.pop("runs")
    folder = compare(*runs, **given, say=_aside)
    print((folder / COMPARISON).read_text(encoding="utf-8"), end="")


def study_as_json(given: dict[str, Any]) -> None:
    """Call `study show`, and print the study, its accuracies and all numbers of its comparisons."""
    _print(show_study(**given, say=_aside).as_dict())


def _print(found: Any) -> None:
    print(json.dumps(finite(found), indent=2, allow_nan=False))


def _aside(text: str) -> None:
    print(shown_lines(text), file=sys.stderr, flush=True)
