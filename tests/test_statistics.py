"""Statistics of conditions: known answers, bounds, and words that claim only what runs show."""

from __future__ import annotations

import itertools
import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from unmix.statistics import (
    ALPHA,
    FEWEST_VALUES,
    bca_interval,
    compare_paired,
    compare_single_runs,
    fewest_pairs,
    holm,
    mean_ranks,
    outcome,
    sign_flip,
    t_interval,
    verdict,
)

DIFFERENCES = st.lists(st.integers(-40, 40), min_size=1, max_size=8)


def paired(differences: list[float], start: float = 60.0):
    reference = {seed: start + seed for seed in range(len(differences))}
    candidate = {seed: reference[seed] + d for seed, d in enumerate(differences)}
    found = compare_paired(candidate, reference)
    assert found is not None
    return found


@given(DIFFERENCES)
@example([-15, -3, 26, 4, 12, -12, -12])  # its sum is 0, but in tenths in floating point
@settings(max_examples=50, deadline=None)
def test_the_sign_flip_test_is_the_count_of_all_flips(differences: list[int]) -> None:
    d = np.array(differences)
    flips = np.array(list(itertools.product((-1, 1), repeat=len(d))))
    expected = np.mean(np.abs(flips @ d) >= abs(d.sum()))
    assert sign_flip(d.astype(float)) == pytest.approx(expected)
    assert paired([each / 10 for each in differences]).p == pytest.approx(expected)


def test_six_pairs_are_the_fewest_for_one_comparison_and_eight_for_five() -> None:
    assert [fewest_pairs(m) for m in (1, 2, 4, 5, 6, 12)] == [6, 7, 8, 8, 8, 9]
    for m in (1, 2, 5, 12):
        n = fewest_pairs(m)
        assert m * sign_flip(np.arange(1.0, n + 1)) <= ALPHA < m * sign_flip(np.arange(1.0, n))


def test_rounding_of_decimals_makes_no_difference_to_the_test() -> None:
    # 71.3 - 71.2 is not 60.1 - 60.0 in floating point, and ties decide which flips count.
    found = compare_paired({0: 71.3, 1: 60.1, 2: 0.1}, {0: 71.2, 1: 60.0, 2: 0.2})
    assert found is not None
    assert found.p == 1.0


def test_only_seeds_of_both_are_paired() -> None:
    found = compare_paired({0: 50.0, 1: 52.0, 7: 90.0}, {0: 49.0, 1: 50.0, 3: 1.0})
    assert found is not None
    assert (found.differences, found.mean) == ((1.0, 2.0), 1.5)
    assert found.std == pytest.approx(np.std([1, 2], ddof=1))
    assert compare_paired({0: 1.0}, {1: 1.0}) is None


def test_the_bca_interval_is_the_textbook_formula() -> None:
    """Efron and Tibshirani, An Introduction to the Bootstrap, section 14.3, written out."""
    d = np.array([7.2, 6.5, 8.1, 7.0, 6.9, 9.7])
    rng = np.random.default_rng(1)
    means = d[rng.integers(0, 6, (200_000, 6))].mean(1)
    z0 = stats.norm.ppf(np.mean(means < d.mean()) + np.mean(means == d.mean()) / 2)
    jack = np.array([np.delete(d, i).mean() for i in range(6)])
    u = jack.mean() - jack
    a = (u**3).sum() / (6 * (u**2).sum() ** 1.5)
    z = stats.norm.ppf([ALPHA / 2, 1 - ALPHA / 2])
    expected = np.quantile(means, stats.norm.cdf(z0 + (z0 + z) / (1 - a * (z0 + z))))
    assert bca_interval(d) == pytest.approx(tuple(expected), abs=0.08)


def test_the_interval_that_is_told_is_that_of_the_t_test() -> None:
    d = [7.2, 6.5, 8.1, 7.0, 6.9, 9.7]
    expected = stats.ttest_1samp(d, 0).confidence_interval(0.95)
    assert paired(d).interval == pytest.approx((expected.low, expected.high))
    assert paired(d).bca == bca_interval(np.array(d))


def test_equal_differences_have_an_interval_and_one_pair_has_none() -> None:
    assert bca_interval(np.full(6, 2.0)) == (2.0, 2.0)
    assert bca_interval(np.array([2.0])) is None


@given(st.lists(DIFFERENCES, min_size=1, max_size=6))
@settings(max_examples=30, deadline=None)
def test_holm_never_lowers_a_p_value_and_keeps_the_order(several: list[list[int]]) -> None:
    before = [paired([float(d) for d in differences]) for differences in several]
    after = holm(before)
    assert all(a.p_adjusted >= b.p for a, b in zip(after, before, strict=True))
    ranked = sorted(after, key=lambda c: c.p)
    assert all(a.p_adjusted <= b.p_adjusted for a, b in itertools.pairwise(ranked))
    assert all(a.p_adjusted <= min(1.0, len(several) * a.p) + 1e-12 for a in after)


def test_holm_by_hand() -> None:
    found = [paired([1.0] * 8), paired([1.0] * 7), paired([1.0, -1.0])]
    assert [c.p for c in found] == [2 / 256, 2 / 128, 1.0]
    assert [c.p_adjusted for c in holm(found)] == pytest.approx([6 / 256, 4 / 128, 1.0])


@pytest.mark.parametrize(
    ("differences", "words"),
    [
        (
            [7.0, 7.4, 6.9, 7.3, 7.2, 7.4],
            "better by 7.2 points (95% interval 7.0 to 7.4, 6 paired seeds)",
        ),
        (
            [-7.0, -7.4, -6.9, -7.3, -7.2, -7.4],
            "worse by 7.2 points (95% interval 7.0 to 7.4, 6 paired seeds)",
        ),
        ([-6.1, -6.0, -5.9], "no verdict from 3 paired seeds (-6.0 points); 6 are needed"),
        ([1.0], "no verdict from 1 paired seed (+1.0 points); 6 are needed"),
        (
            [0.0] * 6,
            "no difference that these runs can show (+0.0 points, 95% interval +0.0 to +0.0, "
            "6 paired seeds)",
        ),
    ],
)
def test_the_words_say_what_the_runs_show(differences: list[float], words: str) -> None:
    assert verdict(paired(differences)) == words


def test_no_pair_is_no_comparison() -> None:
    assert "no comparison" in verdict(None)


def test_a_correction_can_take_the_verdict_away() -> None:
    clear = paired([1.0] * 6)
    assert verdict(clear).startswith("better by")
    corrected = holm([clear, paired([1.0, -1.0] * 3)])[0]
    assert verdict(corrected) == (
        "no verdict from 6 paired seeds (+1.0 points); 7 are needed for 2 comparisons"
    )


@pytest.mark.parametrize(
    ("differences", "many", "words"),
    [
        (  # 0 is outside of the interval, and the test does not reject
            [2.0, 2.1, 1.9, 2.0, 2.2, -0.1], 1,
            "undecided: +1.7 points (95% interval +0.8 to +2.6, 6 paired seeds), not significant "
            "by the exact test, p = 0.062",
        ),
        (  # the test rejects, and the interval has 0
            [0.1, 0.1, 0.1, 0.1, 0.1, 9.0], 1,
            "better by 1.6 points (95% interval -2.2 to 5.4, with 0; significant by the exact "
            "test, p = 0.031, 6 paired seeds)",
        ),
        (  # significant alone, not after the correction
            [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, -0.1, -0.2], 3,
            "undecided: +0.7 points (95% interval +0.3 to +1.2, 8 paired seeds), not significant "
            "after the correction for 3 comparisons, p = 0.031, corrected 0.094",
        ),
    ],
)  # fmt: skip
def test_the_words_fit_the_interval_that_they_quote(
    differences: list[float], many: int, words: str
) -> None:
    found = holm([paired(differences)] + [paired([1.0, -1.0])] * (many - 1))[0]
    assert verdict(found) == words


@given(DIFFERENCES, st.integers(1, 12))
@settings(max_examples=100, deadline=None)
def test_no_difference_is_never_said_beside_an_interval_without_zero(
    differences: list[int], many: int
) -> None:
    found = holm([paired([float(d) for d in differences])] + [paired([1.0, -1.0])] * (many - 1))[0]
    if outcome(found) == "no difference":
        low, high = found.interval or (0.0, 0.0)
        assert low <= 0 <= high
        assert found.p > ALPHA
    assert (outcome(found) in ("better", "worse")) == (found.p_adjusted <= ALPHA)


def test_enough_pairs_after_the_smallest_p_are_fewer() -> None:
    """Holm's correction of the second of two comparisons is none: six pairs are enough for it."""
    first, second = holm([paired([1.0] * 8), paired([2.0] * 6)])
    assert (first.p_adjusted, second.p_adjusted) == (2 * 2 / 256, 2 / 64)
    assert verdict(second).startswith("better by 2.0")


@given(DIFFERENCES, st.integers(1, 12))
@settings(max_examples=50, deadline=None)
def test_nothing_is_called_better_that_the_test_does_not_show(
    differences: list[int], many: int
) -> None:
    found = paired([float(d) for d in differences])
    corrected = holm([found] + [paired([1.0, -1.0])] * (many - 1))[0]
    claims = verdict(corrected).startswith(("better", "worse"))
    assert claims == (corrected.p_adjusted <= ALPHA)


def test_false_positives_are_as_rare_as_promised() -> None:
    """Six pairs of normal noise: the exact test rejects 2/64 of the time, in expectation."""
    rng = np.random.default_rng(0)
    claims = [
        verdict(paired(list(rng.normal(0, 1, 6)))).startswith(("better", "worse"))
        for _ in range(400)
    ]
    assert stats.binomtest(sum(claims), 400, 2 / 64).pvalue > 0.001
    assert np.mean(claims) <= ALPHA + 0.03


def test_the_rates_that_the_docs_quote_are_what_the_benchmark_measures() -> None:
    """Six pairs of normal differences, anew; SciPy's bootstrap may draw otherwise in a version."""
    benchmarks = Path(__file__).parents[1] / "benchmarks"
    shipped = json.loads((benchmarks / "results" / "coverage.json").read_text())["rows"][0]
    simulate = runpy.run_path(str(benchmarks / "coverage.py"))["simulate"]
    found = simulate("normal", 6, 0.0, shipped["studies"], seed=0)
    assert [found.pop("coverage_bca")] == pytest.approx([shipped.pop("coverage_bca")], abs=0.02)
    assert found == pytest.approx(shipped, abs=0.002)
    assert 0.93 <= found["coverage"] <= 0.97
    assert found["wrong"] <= ALPHA


def test_mcnemar_is_the_binomial_test_on_what_changed() -> None:
    a = np.array([True] * 80 + [False] * 20)
    b = a.copy()
    b[:6] = False  # the reference loses six...
    b[80] = True  # ...and gains one
    found = compare_single_runs(a, b)
    assert (found.images, found.gained, found.lost, found.difference) == (100, 6, 1, 5.0)
    assert found.p == pytest.approx(2 * (1 + 7) / 2**7)
    assert found.interval[0] < 5.0 < found.interval[1]
    assert "not of their methods" in str(found)
    assert compare_single_runs(a, a).p == 1.0
    with pytest.raises(ValueError, match="same 3 images or more"):
        compare_single_runs(a, b[:-1])


@pytest.mark.parametrize("count", [1, 2, 3])
def test_two_values_have_no_interval(count: int) -> None:
    """Student's t of two is 9 times their difference wide: it says nothing."""
    values = np.arange(count, dtype=float)
    has = count >= FEWEST_VALUES == 3
    assert (t_interval(values) is not None) == has
    found = compare_paired(dict(enumerate(values)), dict.fromkeys(range(count), 0.0))
    assert found is not None
    assert (found.interval is not None) == (found.bca is not None) == has
    assert verdict(found).startswith("no verdict from")
    table = {str(i): {"plain": 0.0, "unmix": value} for i, value in enumerate(values)}
    rank = mean_ranks(table, "plain")["unmix"]
    assert (rank.interval is not None) == (rank.difference_interval is not None) == has
    images = np.arange(count) > 0
    if has:
        compare_single_runs(images, ~images)
    else:
        with pytest.raises(ValueError, match="3 images or more"):
            compare_single_runs(images, ~images)


def test_mean_ranks_over_rows_that_have_all() -> None:
    table = {
        "moco": {"plain": 60.0, "unmix": 62.0},
        "byol": {"plain": 61.0, "unmix": 61.0},
        "simclr": {"plain": 50.0, "unmix": 53.0},
        "swav": {"plain": 99.0},
    }
    found = mean_ranks(table, "plain")
    assert found["unmix"].mean_rank == pytest.approx((1 + 1.5 + 1) / 3)
    assert found["plain"].mean_rank == pytest.approx((2 + 1.5 + 2) / 3)
    assert found["unmix"].mean_difference == pytest.approx(5 / 3)
    assert found["plain"].difference_interval == (0.0, 0.0)
    assert found["unmix"].rows == 3
    with pytest.raises(ValueError, match="none of"):
        mean_ranks(table, "im")


def test_intervals_over_methods_cover_the_truth_and_ranks_stay_possible() -> None:
    """Six methods, an effect of 1.5 points that differs between them by a point: 400 studies."""
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        plain = generator.normal(60, 5, 6)
        gains = generator.normal(1.5, 1.0, 6)
        table = {str(i): {"plain": plain[i], "unmix": plain[i] + gains[i]} for i in range(6)}
        rank = mean_ranks(table, "plain")["unmix"]
        assert rank.difference_interval is not None
        assert rank.interval is not None
        covered += rank.difference_interval[0] <= 1.5 <= rank.difference_interval[1]
        assert 1 <= rank.interval[0] <= rank.mean_rank <= rank.interval[1] <= 2
    assert 0.92 <= covered / 400 <= 0.98
