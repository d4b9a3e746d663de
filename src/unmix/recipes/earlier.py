"""Runs of earlier versions: what a whole config.yaml means by a setting that it does not have yet.

A new setting's default is what was done before it came. Here are those of which it is not, for what
was done was wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["as_it_was"]

_BEFORE: dict[str, dict[str, Any]] = {"mocov3": {"predictor_bias": True}}
# Every config.yaml has these, and no recipe has all.
_ALWAYS = {"method", "stem", "resident", "knn_k", "logger"}


def as_it_was(words: Mapping[str, Any]) -> dict[str, Any]:
    """The words of a file; where they are a whole run's, with what it was before newer settings."""
    whole = words.keys() >= _ALWAYS
    return {**(_BEFORE.get(str(words["method"]), {}) if whole else {}), **words}
