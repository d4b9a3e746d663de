"""Comparison of conditions: paired seeds, single runs, several methods or data sets.

Tests and intervals are SciPy's. This module decides which of them applies, and phrases the
result: `verdict` is the only place that says "better".
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy import stats

__all__ = [
    "ALPHA",
    "FEWEST_VALUES",
    "Outcome",
    "PairedComparison",
    "Rank",
    "SingleRunComparison",
    "compare_paired",
    "compare_single_runs",
    "excludes_zero",
    "fewest_pairs",
    "holm",
    "mean_ranks",
    "outcome",
    "verdict",
]

Outcome = Literal["better", "worse", "undecided", "no difference", "too few", "none"]
"""What a paired comparison shows, in a word; see `outcome`."""

ALPHA = 0.05
"""Significance level of every test; the intervals have confidence 1 - ALPHA."""

FEWEST_VALUES = 3
"""Values that an interval of their mean needs: Student's t of two is 18 times as wide as of six."""

_RESAMPLES = 9999
_EXACT = 16  # up to 2^16 sign flips are enumerated; beyond, the null distribution is sampled
_SEED = 20200311


@dataclass(frozen=True)
class PairedComparison:
    """Differences of one condition to another, a pair per seed.

    Attributes:
        differences: Candidate minus reference for each seed, in the unit of what was measured.
        mean: Their mean.
        std: Their standard deviation (n - 1); None with fewer than two.
        interval: Student's t interval of the mean with confidence 1 - ALPHA; None with fewer than
            FEWEST_VALUES. It is the one that is reported, since its coverage is nominal also
            with six pairs (benchmarks/coverage.py).
        bca: BCa bootstrap interval (Efron 1987), which six pairs make too narrow.
        p: Two-sided p-value of the exact sign-flip test of a mean of zero.
        p_adjusted: The same after Holm's correction over `comparisons`.
        comparisons: How many comparisons the correction is over.
    """

    differences: tuple[float, ...]
    mean: float
    std: float | None
    interval: tuple[float, float] | None
    bca: tuple[float, float] | None
    p: float
    p_adjusted: float
    comparisons: int = 1

    @property
    def pairs(self) -> int:
        """Number of seeds that both conditions have."""
        return len(self.differences)


def compare_paired(
    candidate: Mapping[int, float], reference: Mapping[int, float]
) -> PairedComparison | None:
    """Compare two conditions on the seeds that both have.

    Args:
        candidate: A measurement, such as an accuracy in percent, for each seed.
        reference: The same of the condition to compare with.

    Returns:
        The comparison, not corrected for others; None if no seed has both.
    """
    seeds = sorted(set(candidate) & set(reference))
    if not seeds:
        return None
    # Accuracies are read from files in decimal; 71.3 - 71.2 must tie with 60.1 - 60.0.
    found = np.round([candidate[seed] - reference[seed] for seed in seeds], 9)
    p = sign_flip(found)
    return PairedComparison(
        differences=tuple(map(float, found)),
        mean=float(found.mean()),
        std=float(found.std(ddof=1)) if len(found) > 1 else None,
        interval=t_interval(found),
        bca=bca_interval(found),
        p=p,
        p_adjusted=p,
    )


def sign_flip(differences: np.ndarray) -> float:
    """Two-sided p-value of the sign-flip test, for which both signs of a difference are as likely.

    Exact up to 16 pairs, from 99,999 random flips beyond.
    """
    if len(differences) < 2 or not np.any(differences):
        return 1.0
    exact = len(differences) <= _EXACT
    found = stats.permutation_test(
        (differences,),
        # Rounded, so that sums that tie are equal; SciPy's own tolerance is relative to the sum of
        # the sample, which may be 0.
        lambda sample, axis: np.round(np.sum(sample, axis=axis), 9),
        permutation_type="samples",
        vectorized=True,
        n_resamples=np.inf if exact else 99_999,
        rng=None if exact else np.random.default_rng(_SEED),
    )
    return float(found.pvalue)


def t_interval(values: np.ndarray) -> tuple[float, float] | None:
    """Student's t interval of the mean; None with fewer than FEWEST_VALUES."""
    if len(values) < FEWEST_VALUES:
        return None
    half = float(stats.sem(values)) * float(stats.t.ppf(1 - ALPHA / 2, len(values) - 1))
    return float(values.mean()) - half, float(values.mean()) + half


def bca_interval(differences: np.ndarray) -> tuple[float, float] | None:
    """BCa bootstrap interval of the mean; None with fewer than FEWEST_VALUES.

    It is the mean itself where all differences are equal.
    """
    if len(differences) < FEWEST_VALUES:
        return None
    if np.ptp(differences) == 0:
        return float(differences[0]), float(differences[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        found = stats.bootstrap(
            (differences,),
            np.mean,
            n_resamples=_RESAMPLES,
            confidence_level=1 - ALPHA,
            method="BCa",
            rng=np.random.default_rng(_SEED),
        ).confidence_interval
    return float(found.low), float(found.high)


def holm(
    comparisons: Sequence[PairedComparison], count: int | None = None
) -> list[PairedComparison]:
    """The comparisons with p-values corrected for their number (Holm 1979), in their order.

    Args:
        comparisons: Of one family.
        count: How many comparisons were planned, if some of them are missing here.
    """
    count = len(comparisons) if count is None else count
    order = sorted(range(len(comparisons)), key=lambda i: comparisons[i].p)
    adjusted, largest = [0.0] * len(comparisons), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (count - rank) * comparisons[i].p))
        adjusted[i] = largest
    return [
        replace(c, p_adjusted=p, comparisons=count)
        for c, p in zip(comparisons, adjusted, strict=True)
    ]


def fewest_pairs(comparisons: int = 1) -> int:
    """The fewest pairs with which the exact test can reach ALPHA after a correction for so many.

    The smallest two-sided p-value of n pairs is 2 / 2^n: six pairs for one, eight for five.
    """
    return math.ceil(math.log2(2 * comparisons / ALPHA))


def outcome(comparison: PairedComparison | None) -> Outcome:
    """What a paired comparison shows, in a word.

    "better" and "worse" are significant after the correction. "undecided" is what the test does not
    show, but its p-value before the correction, or the interval of this comparison alone, might
    suggest. "too few" pairs cannot show anything by the exact test, whatever they are.
    """
    if comparison is None:
        return "none"
    if comparison.p_adjusted <= ALPHA:
        return "better" if comparison.mean > 0 else "worse"
    if comparison.pairs < fewest_pairs(comparison.comparisons):
        return "too few"
    return "undecided" if comparison.p <= ALPHA or excludes_zero(comparison) else "no difference"


def excludes_zero(comparison: PairedComparison) -> bool:
    """Whether 0 is outside of the interval."""
    low, high = comparison.interval or (0.0, 0.0)
    return low > 0 or high < 0


def verdict(comparison: PairedComparison | None, unit: str = "points") -> str:
    """The result of a paired comparison in words, which fit the interval that they quote.

    Args:
        comparison: From `compare_paired`, corrected by `holm` where there are several; None if the
            two conditions have no seed in common.
        unit: Of the differences.
    """
    if comparison is None:
        return "no seed in common: no comparison"
    found, many = outcome(comparison), comparison.comparisons
    mean, p = f"{comparison.mean:+.1f} {unit}", f"p = {comparison.p:.2g}"
    seeds = f"{comparison.pairs} paired seed{'' if comparison.pairs == 1 else 's'}"
    if found == "too few":
        over = "" if many == 1 else f" for {many} comparisons"
        return f"no verdict from {seeds} ({mean}); {fewest_pairs(many)} are needed{over}"
    assert comparison.interval is not None
    low, high = comparison.interval
    if found in ("better", "worse"):
        ends = (low, high) if found == "better" else (-high, -low)
        why = "" if excludes_zero(comparison) else f", with 0; significant by the exact test, {p}"
        return (
            f"{found} by {abs(comparison.mean):.1f} {unit} "
            f"(95% interval {ends[0]:.1f} to {ends[1]:.1f}{why}, {seeds})"
        )
    interval = f"95% interval {low:+.1f} to {high:+.1f}"
    if found == "no difference":
        return f"no difference that these runs can show ({mean}, {interval}, {seeds})"
    why = f"not significant by the exact test, {p}"
    if comparison.p <= ALPHA:
        why = (
            f"not significant after the correction for {many} comparisons, {p}, corrected "
            f"{comparison.p_adjusted:.2g}"
        )
    return f"undecided: {mean} ({interval}, {seeds}), {why}"


@dataclass(frozen=True)
class SingleRunComparison:
    """Two encoders on the same test images; not a comparison of the methods that trained them.

    Attributes:
        images: Test images.
        gained: Images that only the candidate predicts correctly.
        lost: Images that only the reference predicts correctly.
        difference: Of the accuracies, in points.
        interval: Of the difference over test images, with confidence 1 - ALPHA.
        p: Two-sided p-value of McNemar's exact test.
    """

    images: int
    gained: int
    lost: int
    difference: float
    interval: tuple[float, float]
    p: float

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"{self.difference:+.1f} points on {self.images:,} test images (95% interval over "
            f"images {low:+.1f} to {high:+.1f}, McNemar p = {self.p:.2g}): of these two encoders, "
            "not of their methods"
        )


def compare_single_runs(
    candidate: Sequence[bool] | np.ndarray, reference: Sequence[bool] | np.ndarray
) -> SingleRunComparison:
    """Compare two encoders image by image.

    Args:
        candidate: For each test image, whether it was predicted correctly.
        reference: The same of the other encoder, in the same order.

    Raises:
        ValueError: if they are not of the same images, or of fewer than FEWEST_VALUES.
    """
    a, b = np.asarray(candidate, bool), np.asarray(reference, bool)
    if a.shape != b.shape or a.ndim != 1 or len(a) < FEWEST_VALUES:
        raise ValueError(
            f"candidate and reference must be of the same {FEWEST_VALUES} images or more, got "
            f"shapes {a.shape} and {b.shape}"
        )
    gained, lost = int((a & ~b).sum()), int((~a & b).sum())
    changes = 100 * (a.astype(float) - b.astype(float))
    interval = t_interval(changes)
    assert interval is not None
    p = stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    return SingleRunComparison(len(a), gained, lost, float(changes.mean()), interval, float(p))


@dataclass(frozen=True)
class Rank:
    """A condition over several data sets or methods.

    Attributes:
        mean_rank: 1 is best; ties share their mean.
        interval: Student's t interval of the mean rank over the rows, within the possible ranks;
            None with fewer than FEWEST_VALUES rows.
        mean_difference: To the reference, in the unit of what was measured.
        difference_interval: Of it, likewise.
        rows: Data sets or methods that every condition was measured on.
    """

    mean_rank: float
    interval: tuple[float, float] | None
    mean_difference: float
    difference_interval: tuple[float, float] | None
    rows: int


def mean_ranks(table: Mapping[str, Mapping[str, float]], reference: str) -> dict[str, Rank]:
    """Rank conditions within each row, and average over the rows that have all of them.

    Args:
        table: For each row (a data set, a method) each condition's measurement; higher is better.
        reference: The condition that differences are to.

    Raises:
        ValueError: if no row has all conditions, or none has the reference.
    """
    conditions = list(dict.fromkeys(name for row in table.values() for name in row))
    if reference not in conditions:
        raise ValueError(f"reference {reference!r} is none of {', '.join(conditions)}")
    rows = [[row[c] for c in conditions] for row in table.values() if set(row) >= set(conditions)]
    if not rows:
        raise ValueError(f"no row has all of {', '.join(conditions)}")
    values = np.array(rows, float)
    ranks = stats.rankdata(-values, axis=1)
    differences = values - values[:, [conditions.index(reference)]]
    return {
        name: Rank(
            float(ranks[:, i].mean()),
            _within(t_interval(ranks[:, i]), 1.0, float(len(conditions))),
            float(differences[:, i].mean()),
            t_interval(differences[:, i]),
            len(rows),
        )
        for i, name in enumerate(conditions)
    }


def _within(
    interval: tuple[float, float] | None, low: float, high: float
) -> tuple[float, float] | None:
    return None if interval is None else (max(low, interval[0]), min(high, interval[1]))
