"""A dot for each seed: its place, what is joined, and the words, for pages and for figures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

from unmix.figures.report_content import Difference

__all__ = ["measured", "neighbors", "offsets", "pairs_of", "sentences"]

_SPREAD = 0.27


def measured(values: Mapping[int, float]) -> dict[int, float]:
    """Those that can be drawn, by seed."""
    return {seed: value for seed, value in sorted(values.items()) if math.isfinite(value)}


def offsets(seeds: Iterable[int]) -> dict[int, float]:
    """How far below the middle of its row each seed's dot is, in rows: the first is on top."""
    order = sorted(seeds)
    return {s: _SPREAD * (2 * (at + 0.5) / len(order) - 1) for at, s in enumerate(order)}


def neighbors(rows: Sequence[str], differences: Sequence[Difference]) -> list[tuple[str, str]]:
    """Conditions whose dots are joined: rows that follow each other, if they are compared.

    Without any comparison all that follow each other are joined.

    Args:
        rows: Names of the conditions that were measured, from the top.
        differences: The comparisons.
    """
    compared = {frozenset((d.candidate, d.reference)) for d in differences}
    pairs = list(pairwise(rows))
    return [pair for pair in pairs if frozenset(pair) in compared] if compared else pairs


def pairs_of(
    one: tuple[str, Mapping[int, float]],
    other: tuple[str, Mapping[int, float]],
    differences: Sequence[Difference],
) -> list[int]:
    """The seeds whose dots are joined: those of both conditions, but for those that are no pairs.

    Args:
        one: Name of a condition, and its accuracies by seed.
        other: Likewise another.
        differences: The comparisons.
    """
    names = {one[0], other[0]}
    apart = {s for d in differences if {d.candidate, d.reference} == names for s in d.unpaired}
    return sorted(set(one[1]) & set(other[1]) - apart)


def sentences(differences: Sequence[Difference]) -> list[str]:
    """The comparisons, each as a line."""
    return [f"{d.candidate} against {d.reference}: {d.text}" for d in differences if d.text]
