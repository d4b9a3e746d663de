"""Wrong versions of files: every value replaced, left out, or of another type."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import numpy as np

WRONG_VALUES: tuple[Any, ...] = (
    None, "", "x", "../x", -1, 0, 5, 2**62, 10**30, 1e300, 1e-300, float("nan"), float("inf"), True,
    [], [1], ["a", 5], [[]], {}, {"a": 1}, "\x1b[31m", "\udcff", "a" * 100_000,
)  # fmt: skip

WRONG_JSON: tuple[bytes, ...] = (
    b"", b"{", b"[]", b"null", b"5", b'"x"', b"NaN", b"\0", b"\xff\xfe\0", b"[" * 100_000,
    b'{"a":' * 100_000, b"9" * 5_000, b'{"a": 1, "a": 2}', b"{} {}", b"{'a': 1}",
    '{"a": 1}'.encode("utf-16"), b'{"schema": 1, "x": ' + b"[" * 60 + b"]" * 60 + b"}",
)  # fmt: skip
"""What is no JSON, or not the object that any of the files is."""

WRONG_YAML: tuple[str, ...] = (
    "", "{", "[]", "null", "5", "a: [", "!!python/object/apply:os.system ['touch x']",
    "a: !!python/name:os.system", "a: &a [*a]", f"seed: {'9' * 5_000}", f"seed: 0x{'f' * 5_000}",
    f"seed: 1{':59' * 3_000}", "[" * 20_000, "a: " * 2_000, "? " * 5_000, "method: [moco",
    "seed: 1\nseed: 2", "a: &x {<<: *x}", "\0", "a: 2001-99-99", "a: !!binary zz", "- " * 5_000,
    "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n"
        for a, b in zip("abcdefghi", "bcdefghij", strict=True)
    ),
)  # fmt: skip


def places(content: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The keys that lead to every value of nested JSON; of a list to the first three."""
    yield at
    items = content.items() if isinstance(content, dict) else ()
    if isinstance(content, list):
        items = list(enumerate(content))[:3]
    for key, value in items:
        yield from places(value, (*at, key))


def changed(content: Any, at: tuple[Any, ...], value: Any) -> Any:
    """Nested JSON with another value in one place."""
    if not at:
        return value
    content = copy.deepcopy(content)
    _within(content, at)[at[-1]] = value
    return content


def without(content: Any, at: tuple[Any, ...]) -> Any:
    """Nested JSON without one value."""
    content = copy.deepcopy(content)
    del _within(content, at)[at[-1]]
    return content


def _within(content: Any, at: tuple[Any, ...]) -> Any:
    for key in at[:-1]:
        content = content[key]
    return content


def variants(content: Any) -> Iterator[tuple[str, Any]]:
    """Nested JSON with each value replaced by each wrong one, or left out."""
    for at in places(content):
        for value in WRONG_VALUES:
            yield f"{at} = {str(value)[:20]!r}", changed(content, at, value)
        if at:
            yield f"without {at}", without(content, at)


def json_variants(text: bytes) -> Iterator[tuple[str, bytes]]:
    """Wrong versions of a JSON file: other values, cut off, and no JSON."""
    for name, content in variants(json.loads(text)):
        yield name, json.dumps(content).encode()
    for content in WRONG_JSON:
        yield str(content[:20]), content
    for tenth in range(10):
        yield f"cut at {tenth}/10", text[: len(text) * tenth // 10]


def array_variants(arrays: dict[str, np.ndarray]) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Wrong versions of the arrays of an npz file."""
    for name, array in arrays.items():
        whole = np.asarray(array).astype(np.int64)
        wrong = (
            array[:1], array[:0], array.astype(np.float64), array.astype("U5"), np.zeros((2, 2)),
            -np.ones_like(whole), np.full_like(whole, 2**62), np.array(5), whole + 1,
            whole.astype(">i8"), np.full_like(whole, 10**12), np.array([True] * len(whole)),
            np.full(len(whole), np.nan), whole[::-1], np.repeat(whole, 3),
        )  # fmt: skip
        for i, other in enumerate(wrong):
            yield f"{name} {i}: {other.dtype} {other.shape}", {**arrays, name: other}
        yield f"without {name}", {key: value for key, value in arrays.items() if key != name}
