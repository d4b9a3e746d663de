"""What people read: numbers without exponents or needless digits, names without underscores."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unmix.display import (
    DASH,
    counted,
    duration,
    mean_and_std,
    measure_name,
    measure_title,
    memory,
    number,
    percents,
    ratio,
    run_label,
    value_text,
)


@pytest.mark.parametrize(
    ("mean", "std", "text"),
    [
        (1219.7, 108.2, "1,220 ± 110"),
        (0.01234, 0.0021, "0.0123 ± 0.0021"),
        (6.94, 0.2, "6.94 ± 0.20"),
        (62.13, 0.0, "62.13 ± 0"),
        (3.0, 12345.0, "0 ± 12,000"),
        (math.nan, 1.0, DASH),
    ],
)
def test_a_spread_has_two_digits_and_its_mean_as_many_decimals(
    mean: float, std: float, text: str
) -> None:
    assert mean_and_std(mean, std) == text


@pytest.mark.parametrize(
    ("x", "text"),
    [(0.8541323289999809, "0.8541"), (1219.71, "1,220"), (3, "3"), (0.06, "0.06"), (5e-4, "0.0005"),
     (1e-9, "1e-09"), (12345678.9, "12,345,679"), (0.0, "0"), (-2.5, "-2.5"), (math.inf, "inf")],
)  # fmt: skip
def test_numbers(x: float, text: str) -> None:
    assert number(x) == text


@given(st.floats(1e-4, 1e12) | st.floats(-1e12, -1e-4))
def test_a_number_is_read_back_to_four_digits_and_has_no_exponent(x: float) -> None:
    text = number(x)
    assert "e" not in text
    assert float(text.replace(",", "")) == pytest.approx(x, rel=6e-4)


@given(st.floats(0, 1e7))
def test_a_duration_that_is_not_zero_is_not_shown_as_zero(seconds: float) -> None:
    text = duration(seconds)
    assert re.fullmatch(r"[\d.e-]+ s|\d+:\d\d min|\d+:\d\d h", text)
    assert (float(text.split()[0].replace(":", "1")) == 0) == (seconds == 0)


@pytest.mark.parametrize(
    ("name", "x", "text"),
    [
        ("seconds", 0.8541323289999809, "0.85 s"),
        ("total_seconds", 135.2, "2:15 min"),
        ("peak_memory_bytes", 1_234_567_890, "1.2 GB"),
        ("images_per_second", 1234.5, "1,234"),
        ("train_images", 50000, "50,000"),
        ("seed", 20260101, "20260101"),
        ("crop_ratio", [0.75, 1.3333333], "0.75 1.333"),
        ("unmix", True, "yes"),
        ("limit", None, DASH),
        ("data", "a\nb", "a\\nb"),
        ("steps", 372, "372"),
    ],
)
def test_values_are_shown_by_what_they_are(name: str, x: object, text: str) -> None:
    assert value_text(x, name) == text


def test_names_of_measures_have_no_underscore() -> None:
    assert measure_name("participation_ratio") == "participation ratio"
    assert measure_name("some_new_measure") == "some new measure"
    assert [measure_title(word) for word in ("knn", "linear", "participation_ratio")] == [
        "kNN", "Linear", "Participation ratio",
    ]  # fmt: skip


def test_runs_counts_and_ratios() -> None:
    assert (run_label("moco", "none"), run_label("moco", "IM")) == ("MoCo", "MoCo + IM")
    assert (counted(1, "run"), counted(1234, "image"), counted(2, "study", "studies")) == (
        "1 run", "1,234 images", "2 studies",
    )  # fmt: skip
    assert (ratio(1.752), ratio(12.3), memory(12_300)) == ("1.75x", "12x", "12 kB")
    assert (percents([]), percents([50.0]), percents([50.0, 51.0])) == (DASH, "50.0", "50.5 ± 0.7")
