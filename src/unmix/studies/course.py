"""Accuracies of a study's runs during training: by epoch, and who is ahead when."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Any

from unmix.display import counted, measure_name, percents
from unmix.results import RunResults, is_transfer
from unmix.schema import Check, Percent

if TYPE_CHECKING:
    from unmix.studies.analysis import StudyResults

__all__ = ["MOST_ROWS", "Course", "course_of", "course_rows", "courses", "turns"]

MOST_ROWS = 12
"""Epochs that a table of the course has at most."""
_MOST_TURNS = 2  # that a sentence names one by one

Course = Annotated[
    Mapping[str, Percent],
    Check(lambda own: all(map(_is_epoch, own)), "accuracies in percent by epoch"),
]
"""What a cell's JSON has of a protocol."""


def _is_epoch(key: str) -> bool:
    return key.isdecimal() and len(key) < 10


def course_of(run: RunResults) -> dict[str, dict[str, float]]:
    """What a cell's JSON keeps: by protocol and epoch, of those measured at several epochs."""
    found: dict[str, dict[str, float]] = {}
    for row in run.evaluations:
        if not is_transfer(row.protocol):
            found.setdefault(row.measure, {})[str(row.epoch)] = row.top1
    return {protocol: values for protocol, values in found.items() if len(values) > 1}


def courses(cells: Sequence[Mapping[str, Any]], protocol: str) -> dict[int, dict[int, float]]:
    """The course of each seed of a condition whose cell has one."""
    return {
        cell["seed"]: {int(epoch): float(value) for epoch, value in sorted(own.items(), key=_epoch)}
        for cell in cells
        if (own := (cell.get("course") or {}).get(protocol))
    }


def _epoch(item: tuple[str, float]) -> int:
    return int(item[0])


def course_rows(found: StudyResults) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of a table of accuracies by epoch, of at most `MOST_ROWS` epochs.

    A column is a condition by a measure; a condition without a course has none. A mean is over the
    same seeds at each epoch: those that some seeds lack are left out.

    Returns:
        Two empty lists if no cell has a course.
    """
    known = {
        f"{name}, {measure_name(protocol)}": own
        for protocol in found.study.protocols
        for name in found.study.conditions
        if (own := list(courses(found.of(name), protocol).values()))
    }
    if not known:
        return [], []
    unlike = len(set(map(len, known.values()))) > 1
    columns = {}
    for title, seeds in known.items():
        shared = set.intersection(*map(set, seeds))
        of = f" ({counted(len(seeds), 'seed')})" if unlike else ""
        columns[title + of] = {e: [own[e] for own in seeds] for e in shared}
    epochs = sorted({epoch for values in columns.values() for epoch in values})
    rows = [
        [str(epoch), *(percents(values.get(epoch, [])) for values in columns.values())]
        for epoch in _thinned(epochs)
    ]
    return ["epoch", *columns], rows


def _thinned(epochs: Sequence[int]) -> list[int]:
    """At most `MOST_ROWS` of the epochs, evenly, with the last."""
    every = -(-len(epochs) // MOST_ROWS)
    return list(epochs[::-1][::every][::-1])


def turns(found: StudyResults) -> list[str]:
    """Who is ahead during training, a sentence for each comparison whose runs are equally long.

    Means over the seeds that both conditions have; a description, not a test.
    """
    lines = []
    for c in found.comparisons():
        cells = [found.of(name) for name in (c.candidate, c.reference)]
        pair = [courses(own, c.protocol) for own in cells]
        apart = found.findings.apart(c.candidate, c.reference)
        seeds = sorted((set(pair[0]) & set(pair[1])) - set(apart))
        # Rates that follow a schedule say nothing of the same epoch of a longer run.
        if not seeds or len({cell["epochs"] for own in cells for cell in own}) > 1:
            continue
        epochs = sorted(set.intersection(*(set(own[seed]) for own in pair for seed in seeds)))
        if len(epochs) > 1:
            ahead = {
                e: statistics.fmean(pair[0][seed][e] - pair[1][seed][e] for seed in seeds)
                for e in epochs
            }
            lines.append(_sentence(c.candidate, c.reference, c.protocol, ahead, len(seeds)))
    return list(dict.fromkeys(lines))


def _sentence(
    candidate: str, reference: str, protocol: str, ahead: Mapping[int, float], seeds: int
) -> str:
    words = {1: "above", -1: "below", 0: "level"}
    sides = [(w, list(own)) for w, own in groupby(ahead, lambda e: words[_sign(ahead[e])])]
    if len(sides) <= _MOST_TURNS + 1:
        parts = [f"{word} {_span(own)} ({_range([ahead[e] for e in own])})" for word, own in sides]
    else:
        above = sum(value > 0 for value in ahead.values())
        parts = [
            f"above at {above} of {len(ahead)} epochs, with {len(sides) - 1} changes of sides "
            f"({_range([*ahead.values()])})"
        ]
    return (
        f"{candidate} against {reference}, {measure_name(protocol)} during training: "
        f"{', '.join(parts)}; mean of {counted(seeds, 'paired seed')}, not a test"
    )


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)


def _span(epochs: Sequence[int]) -> str:
    if len(epochs) == 1:
        return f"at epoch {epochs[0]}"
    return f"from epoch {epochs[0]} to {epochs[-1]}"


def _range(values: Sequence[float]) -> str:
    low, high = f"{min(values):+.1f}", f"{max(values):+.1f}"
    return low if low == high else f"{low} to {high}"
