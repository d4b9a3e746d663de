"""Names of files, folders, classes and runs: how they are shown, and how they are stored.

A file's name may hold anything but a slash and a zero byte: newlines that forge a line, escape
sequences that a terminal obeys, letters that turn the reading direction, bytes that are no UTF-8
(Python keeps these as lone surrogates, PEP 383). `shown` is for eyes, `stored` for files.
"""

from __future__ import annotations

import os
import re
import unicodedata

__all__ = ["PYTHON", "is_python", "json_bytes", "restored", "shown", "shown_lines", "stored"]

# Cc: control characters; Cf: format characters, of which bidi overrides are some; Cs: surrogates;
# Zl, Zp: line and paragraph separators. Zero-width joiners are part of many scripts and of emoji.
_UNSAFE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_KEPT = frozenset("\u200c\u200d")
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


PYTHON = "python:"


def is_python(data: str) -> bool:
    """Whether a run's data was given in Python: its name then says of what kind it was, no more."""
    return data.startswith(PYTHON)


def shown(name: str | os.PathLike[str] | object) -> str:
    """A name as one line that a terminal prints and does not obey.

    Control and format characters, line separators and bytes that are no UTF-8 become backslash
    escapes, as `\\n`, `\\x1b`, `\\u202e` or `\\xff`; everything else is as it was. What was shown
    once is shown the same again.

    Args:
        name: A path or a text; of anything else its `str`.
    """
    text = os.fsdecode(name) if isinstance(name, os.PathLike) else str(name)
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_visible, text))


def shown_lines(text: str) -> str:
    """The same for a text of several lines, whose newlines are meant."""
    return "\n".join(map(shown, text.split("\n")))


def _visible(letter: str) -> str:
    if letter in _KEPT or unicodedata.category(letter) not in _UNSAFE:
        return letter
    code = ord(letter)
    if letter in _SHORT:
        return _SHORT[letter]
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"  # the byte that the name really has
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


# A lone surrogate is stored as an odd number of backslashes and its code. Backslashes are doubled
# only where such a code follows, so that all other names, also Windows paths, are as they were.
_CODE = "ud[89a-f][0-9a-f]{2}"
_TO_STORE = re.compile(rf"(\\*)([\ud800-\udfff]|(?<=\\){_CODE})")
_STORED = re.compile(rf"(\\+)({_CODE})")


def stored(name: str | os.PathLike[str]) -> str:
    """A name as text that every encoding can hold, for CSV; `restored` gives the name back.

    A byte that is no UTF-8 becomes `\\udcXX`. JSON and YAML have such escapes of their own: see
    `json_bytes`; PyYAML writes and reads them by itself.
    """

    def escape(match: re.Match[str]) -> str:
        slashes, rest = match.groups()
        code = rest if len(rest) > 1 else f"\\u{ord(rest):04x}"
        return slashes * 2 + code

    return _TO_STORE.sub(escape, os.fsdecode(name))


def restored(text: str) -> str:
    """The name that `stored` made a text of."""

    def unescape(match: re.Match[str]) -> str:
        slashes, code = match.groups()
        kept = slashes[: len(slashes) // 2]
        return kept + (chr(int(code[1:], 16)) if len(slashes) % 2 else code)

    return _STORED.sub(unescape, text)


def json_bytes(text: str) -> bytes:
    """JSON text as UTF-8; what UTF-8 cannot hold becomes the JSON escape that `json` reads back."""
    return text.encode("utf-8", "backslashreplace")
