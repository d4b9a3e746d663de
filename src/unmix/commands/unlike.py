"""Runs of a comparison that were not measured, or not trained, alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from unmix.display import measure_title
from unmix.studies.grouping import GroupedRuns, way_of

__all__ = ["on_machines", "some_of", "unlike"]

_NAMES = 4  # more runs than these are counted


def unlike(groups: GroupedRuns, protocols: Sequence[str]) -> list[str]:
    """Say where accuracies by a protocol were not measured in the same way."""
    notes = []
    for protocol in protocols:
        ways = {
            run.name: way_of(row)
            for group in groups.groups.values()
            for run in group.all
            if (row := run.final(protocol)) is not None
        }
        for word in dict.fromkeys(word for way in ways.values() for word in way):
            named: dict[str, list[str]] = {}
            for name, way in ways.items():
                if word in way or word not in ("train_images", "test_images"):
                    named.setdefault(str(way.get(word)), []).append(name)
            if len(named) > 1:
                notes.append(
                    f"{measure_title(protocol)} was measured with different settings: "
                    f"{word.replace('_', ' ')} is {_each(named)}."
                )
    return notes


def on_machines(groups: GroupedRuns) -> list[str]:
    """Say which runs were trained on which hardware, where that differs."""
    named: dict[str, list[str]] = {}
    for group in groups.groups.values():
        for run in group.all:
            if run.results.machine and run.results.training.get("seconds") is not None:
                named.setdefault(run.results.machine, []).append(run.name)
    if len(named) < 2:
        return []
    return [f"The runs were on different hardware, and times do not compare: {_each(named)}."]


def _each(named: Mapping[str, Sequence[str]]) -> str:
    return ", ".join(f"{value} for {some_of(names)}" for value, names in named.items())


def some_of(names: Sequence[str]) -> str:
    """The names, or the first ones and how many more there are."""
    if len(names) <= _NAMES:
        return ", ".join(names)
    return f"{', '.join(names[: _NAMES - 1])} and {len(names) - _NAMES + 1} more"
