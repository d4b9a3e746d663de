"""Descriptions of files that are read back, and JSON that anyone may have written."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mutations import WRONG_JSON
from unmix.errors import UserError
from unmix.files import parse_json, read_json
from unmix.schema import Between, Check, Count, Integer, Percent, checked


@dataclass(frozen=True)
class Inner:
    name: Annotated[str, Check(str.islower, "in lower case")]
    count: Count = 0


@dataclass(frozen=True)
class Outer:
    schema: Literal[1]
    inner: Inner
    top1: Percent
    width: float
    seed: Integer = 0
    on: bool = False
    pair: tuple[int, int] | None = None
    parts: Sequence[Inner] = ()
    by: Mapping[str, Annotated[float, Between(0)]] = field(default_factory=dict)
    rest: Any = None


def outer(**changes: Any) -> dict[str, Any]:
    return {"schema": 1, "inner": {"name": "a"}, "top1": 50, "width": 1, **changes}


def test_a_dataclass_is_made_of_what_fits() -> None:
    found = checked(
        Outer,
        outer(
            parts=[{"name": "b", "count": 2.0}], by={"x": 1}, pair=[1, 2], rest={"a": [1.5, None]},
            newer="ignored",
        ),
        "f",
    )  # fmt: skip
    assert found == Outer(
        1, Inner("a"), 50.0, 1.0, pair=(1, 2), parts=[Inner("b", 2)], by={"x": 1.0},
        rest={"a": [1.5, None]},
    )  # fmt: skip
    assert type(found.width) is float
    assert type(found.parts[0].count) is int


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([], "f.json: holds []; it must be a JSON object. Redo."),
        (outer(schema=2), "f.json: schema is 2; it must be 1. Redo."),
        (outer(schema=True), "schema is True; it must be 1"),
        (outer(inner=5), "inner is 5; it must be an object"),
        (outer(inner={}), "inner.name is missing; it must be in lower case"),
        (outer(inner={"name": "A"}), "inner.name is 'A'; it must be in lower case"),
        (outer(inner={"name": 5}), "inner.name is 5; it must be in lower case"),
        (outer(top1=101), "top1 is 101; it must be a percentage from 0 to 100"),
        (outer(top1="5"), "top1 is '5'; it must be a percentage from 0 to 100"),
        (outer(width=float("nan")), "width is nan; it must be a number"),
        (outer(width=10**400), "; it must be a number"),
        (outer(width=True), "width is True; it must be a number"),
        (outer(seed=1.5), "seed is 1.5; it must be a whole number of at most 64 bits"),
        (outer(seed=1e300), "seed is 1e+300; it must be a whole number of at most 64 bits"),
        (outer(seed=10**30), "; it must be a whole number of at most 64 bits"),
        (outer(on="no"), "on is 'no'; it must be true or false"),
        (outer(pair=[1]), "pair is [1]; it must be a list of 2, each a whole number, or null"),
        (outer(pair=[1, "a"]), "pair[1] is 'a'; it must be a whole number"),
        (outer(parts={}), "parts is {}; it must be a list"),
        (outer(parts="ab"), "parts is 'ab'; it must be a list"),
        (outer(parts=[{"name": "a", "count": -1}]), "parts[0].count is -1; it must be a whole"),
        (outer(by={"x": -1}), "by.x is -1; it must be a number of at least 0"),
        (outer(by=[1]), "by is [1]; it must be an object"),
        (outer(rest={"a": [float("inf")]}), "rest.a[0] is inf; it must be a finite number"),
    ],
)
def test_what_does_not_fit_is_one_line_with_file_key_and_value(content: Any, says: str) -> None:
    with pytest.raises(UserError) as caught:
        checked(Outer, content, "f.json", "Redo.")
    assert str(caught.value).startswith("f.json: ")
    assert says in str(caught.value)


def test_long_values_are_cut() -> None:
    for value in ("a" * 10**6, ["a"] * 10**5, 10**5000, b"x" * 1000):
        with pytest.raises(UserError) as caught:
            checked(Outer, outer(inner=value), "f")
        assert len(str(caught.value)) < 200


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(
                    ["schema", "inner", "name", "top1", "width", "pair", "by", "parts"]
                ),
                inner,
            )
        ),
        max_leaves=20,
    )
)
def test_any_json_is_a_record_or_one_line(value: Any) -> None:
    with suppress(UserError):
        assert isinstance(checked(Outer, value, "f"), Outer)


@pytest.mark.parametrize("content", WRONG_JSON, ids=lambda content: str(content[:12]))
def test_json_is_a_value_or_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "f.json"
    path.write_bytes(content)
    line = ""
    try:
        assert repr(read_json(path)) == repr(json.loads(content))
    except UserError as error:
        line = str(error)
    assert not line or line.startswith(f"{path}: is not valid JSON (")
    assert "\n" not in line
    assert len(line) < 400


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"[" * 100_000, "it is nested more than 50 deep"),
        (b"[" * 60 + b"]" * 60, "it is nested more than 50 deep"),
        (b"1" * 5000, "a number of 5,000 digits"),
        (b'{"a": 1, "b": 2, "b": 3}', "the key 'b' is there twice"),
        (b"\xff", "byte 0 is not UTF-8"),
        (b"{", "Expecting property name"),
    ],
)
def test_why_it_is_no_json(content: bytes, why: str) -> None:
    with pytest.raises(UserError, match=why):
        parse_json(content, "f")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.text() | st.floats(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=30,
    )
)
def test_json_of_python_is_read_as_python_reads_it(value: Any) -> None:
    text = json.dumps(value)
    assert repr(parse_json(text, "f")) == repr(json.loads(text))


def test_a_byte_order_mark_is_no_part_of_the_text() -> None:
    assert parse_json(b"\xef\xbb\xbf{}", "f") == {}


def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "zero").symlink_to("/dev/zero")
    with pytest.raises(OSError, match="a FIFO, not a regular file"):
        read_json(tmp_path / "fifo")
    with pytest.raises(OSError, match="a device, not a regular file"):
        read_json(tmp_path / "zero")
    (tmp_path / "large").write_bytes(b"[1]" * 10)
    with pytest.raises(OSError, match="the file has 30 bytes, more than 20"):
        read_json(tmp_path / "large", at_most=20)
