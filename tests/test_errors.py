"""A user error is one line with the parameter, or the flag, the value and what would be right."""

from __future__ import annotations

import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unmix.errors import UserError, check_choice, check_given, check_number, renamed

numbers = st.floats(allow_nan=False, allow_infinity=False, width=32)


def told(check: object, *args: object, **bounds: object) -> str:
    """The message of the UserError that a check raises."""
    with pytest.raises(UserError) as caught:
        check(*args, **bounds)  # type: ignore[operator]
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_user_error_is_a_value_error() -> None:
    """Code that embeds the library can catch it without importing it."""
    assert issubclass(UserError, ValueError)


@pytest.mark.parametrize("value", ["moco", "insdis"])
def test_a_known_choice_is_given_back(value: str) -> None:
    assert check_choice("method", value, ["moco", "insdis"]) == value


@pytest.mark.parametrize(
    ("value", "near"),
    [("mocco", "moco"), ("MOCO", "moco"), ("insdiss", "insdis"), ("lab", "Lab"), ("ycbr", "YCbCr")],
)
def test_a_misspelt_choice_names_the_nearest_whatever_its_case(value: str, near: str) -> None:
    known = ("moco", "insdis", "Lab", "YCbCr")
    assert told(check_choice, "x", value, known) == (
        f"x: {value!r} is unknown. Did you mean {near!r}? Known: moco, insdis, Lab, YCbCr."
    )


def test_a_choice_like_no_other_gets_the_list_and_no_guess() -> None:
    assert told(check_choice, "head", "qqq", ("linear", "mlp")) == (
        "head: 'qqq' is unknown. Known: linear, mlp."
    )


def test_choices_may_come_from_an_iterator() -> None:
    """All of them are listed, though looking for the value has used the iterator up."""
    assert told(check_choice, "x", "z", iter(["ab", "cd"])).endswith("Known: ab, cd.")


@pytest.mark.parametrize(
    ("value", "bounds", "wanted"),
    [
        (0, {"at_least": 1}, "0 is out of range; it must be at least 1."),
        (0, {"above": 0}, "0 is out of range; it must be greater than 0."),
        (1.5, {"at_most": 1}, "1.5 is out of range; it must be at most 1."),
        (-2, {"at_least": 0, "at_most": 1},
            "-2 is out of range; it must be at least 0 and at most 1."),
        (math.nan, {}, "nan is out of range; it must be a finite number."),
        (math.inf, {"at_least": 0}, "inf is out of range; it must be at least 0."),
    ],
)  # fmt: skip
def test_a_number_out_of_range_is_told_with_its_bounds(
    value: float, bounds: dict[str, float], wanted: str
) -> None:
    assert on_command_line(check_number, "lr", value, **bounds) == f"--lr: {wanted}"
    must = wanted.split("it ")[1].rstrip(".")
    assert told(check_number, "lr", value, **bounds) == f"lr {must}, got {value:g}"


@given(numbers, numbers, numbers)
def test_a_number_passes_exactly_within_its_bounds(value: float, low: float, high: float) -> None:
    """`at_least` and `at_most` include their ends, `above` does not."""
    for bounds, fits in (
        ({"at_least": low, "at_most": high}, low <= value <= high),
        ({"above": low, "at_most": high}, low < value <= high),
    ):
        if fits:
            check_number("x", value, **bounds)
        else:
            told(check_number, "x", value, **bounds)


@given(numbers)
def test_the_ends_of_the_bounds(value: float) -> None:
    check_number("x", value, at_least=value, at_most=value)
    told(check_number, "x", value, above=value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("bounds", [{}, {"at_least": 0}, {"above": 0}, {"at_most": 1}])
def test_numbers_that_are_not_finite_never_pass(value: float, bounds: dict[str, float]) -> None:
    assert told(check_number, "x", value, **bounds).endswith(f", got {value}")


def test_python_users_read_the_parameter_and_its_owner() -> None:
    assert told(check_number, "cells", 1, at_least=2, owner="GridMix") == (
        "GridMix: cells must be at least 2, got 1"
    )
    assert told(check_number, "lr", -1.0, above=0) == "lr must be greater than 0, got -1"
    assert told(check_choice, "head", "mpl", ("linear", "mlp"), owner="MoCo") == (
        "MoCo: head: 'mpl' is unknown. Did you mean 'mlp'? Known: linear, mlp."
    )
    assert told(check_given, "data", " ") == (
        "data: the value is empty; give one, or leave `data` out."
    )


def on_command_line(check: object, *args: object, **options: object) -> str:
    """What the command line prints of the UserError that a check raises."""
    with pytest.raises(UserError) as caught:
        check(*args, **options)  # type: ignore[operator]
    return caught.value.on_command_line()


def test_the_command_line_names_the_flag() -> None:
    assert on_command_line(check_number, "lr", -1.0, above=0, owner="SGD") == (
        "--lr: -1 is out of range; it must be greater than 0."
    )
    assert on_command_line(check_given, "data", "") == (
        "--data: the value is empty; give one, or leave --data out."
    )
    assert on_command_line(check_given, "runs", "", flag="RUN") == (
        "RUN: the value is empty; give one, or leave RUN out."
    )


def test_parameters_within_a_message_are_flags_on_the_command_line() -> None:
    error = UserError(
        "4 is odd; use `head='mlp'`, `symmetric=True`, `memory=False` or `dim`, not `a b`",
        parameter="splits",
        owner="MoCo",
    )
    assert str(error).startswith("MoCo: splits: 4 is odd; use `head='mlp'`, `symmetric=True`")
    assert error.on_command_line() == (
        "--splits: 4 is odd; use --head mlp, --symmetric, --no-memory or --dim, not `a b`"
    )
    assert UserError("plain `text`").on_command_line() == "plain `text`"


def test_a_parameter_is_named_as_the_setting_that_it_comes_from() -> None:
    """Neither reader learns a name that they did not type."""
    with pytest.raises(UserError) as caught, renamed({"cells": "unmix_patch", "per": "unmix_per"}):
        check_number("cells", 1, at_least=2, owner="GridMix")
    assert str(caught.value) == "unmix_patch must be at least 2, got 1"
    assert caught.value.on_command_line() == (
        "--unmix_patch: 1 is out of range; it must be at least 2."
    )
    with pytest.raises(UserError) as caught, renamed({"cells": "unmix_patch", "per": "unmix_per"}):
        raise UserError("needs `per='batch'` or `beta=1`", parameter="cells")
    assert str(caught.value) == "unmix_patch: needs `unmix_per='batch'` or `beta=1`"
    assert caught.value.on_command_line() == ("--unmix_patch: needs --unmix_per batch or --beta 1")


def test_errors_without_a_parameter_pass_unchanged() -> None:
    with pytest.raises(UserError, match=r"^no such file$"), renamed({"cells": "unmix_patch"}):
        raise UserError("no such file")


def test_a_further_sentence_is_read_in_both_places() -> None:
    with pytest.raises(UserError) as caught:
        check_number("n", 0, at_least=1)
    error = caught.value.with_more("Leave `n` out.")
    assert str(error) == "n must be at least 1, got 0. Leave `n` out."
    assert (
        error.on_command_line() == "--n: 0 is out of range; it must be at least 1. Leave --n out."
    )


def test_an_error_survives_the_way_from_another_process() -> None:
    error = UserError("1 is few", parameter="cells", owner="GridMix")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.on_command_line()) == (str(error), error.on_command_line())
