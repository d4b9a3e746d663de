"""Names of files, folders, classes and runs, escaped for display and for storage.

A file name may contain anything but a slash and a zero byte: newlines that forge a line, terminal
escape sequences, characters that change the reading direction, bytes that are not UTF-8 (which
Python represents as lone surrogates, PEP 383). `shown` is for display, `stored` for files.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Sequence

__all__ = [
    "HUGGING_FACE",
    "NO_DATA",
    "PYTHON",
    "SHARDS",
    "in_words",
    "is_python",
    "is_stream",
    "json_bytes",
    "name_of_stream",
    "restored",
    "shown",
    "shown_cell",
    "shown_command",
    "shown_lines",
    "stored",
]

# Cc: control characters; Cf: format characters, of which bidi overrides are some; Cs: surrogates;
# Zl, Zp: line and paragraph separators. Zero-width joiners are part of many scripts and of emoji.
_UNSAFE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_KEPT = frozenset("\u200c\u200d")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


NO_DATA = "unknown"
"""The data of a run that was imported, and not trained on data that is known here."""
PYTHON = "python:"
HUGGING_FACE = "hf:"
"""What the name of a Hugging Face data set begins with."""


def is_python(data: str) -> bool:
    """Whether a run's data was given in Python; its name is then only the kind of object."""
    return data.startswith(PYTHON)


SHARDS = "wds:"
"""Prefix of `data` that are shards of images in tar files, where their names do not say so."""


def is_stream(data: str) -> bool:
    """Whether a run's data is shards of images: `wds:...`, a URL, or tar files."""
    if data.startswith(HUGGING_FACE):
        return False
    return data.startswith(SHARDS) or "://" in data or data.endswith(".tar")


def name_of_stream(data: str) -> str:
    """A word for shards, for names of files: "imagenet" of `s3://bucket/imagenet/{000..146}.tar`.

    It is the last part of the path without pattern and extension, if it has letters.
    """
    path = data.removeprefix(SHARDS).partition("://")[2] or data.removeprefix(SHARDS)
    parts = [re.split(r"[{*?\[:]", part)[0] for part in path.split("/")]
    words = [re.sub(r"[^\w.-]", "", part.removesuffix(".tar")).strip("-_.") for part in parts]
    return next((word for word in reversed(words) if re.search(r"[^\W\d]", word)), "shards")


def in_words(things: Sequence[str], last: str = "and") -> str:
    """Names as a list in a sentence: a, b and c.

    Args:
        things: The names; of none the text is empty.
        last: What stands before the last one.
    """
    return f" {last} ".join([", ".join(things[:-1]), *things[-1:]] if things[1:] else things)


def shown(name: str | os.PathLike[str] | object) -> str:
    """Return a name as one line that is safe to print in a terminal.

    Control and format characters, line separators and bytes that are not UTF-8 become backslash
    escapes, such as `\\n`, `\\x1b`, `\\u202e` or `\\xff`; everything else is unchanged. Applying it
    twice changes nothing more.

    Args:
        name: A path, a string, or anything that has a `str`.
    """
    text = os.fsdecode(name) if isinstance(name, os.PathLike) else str(name)
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_visible, text))


def shown_lines(text: str) -> str:
    """Return a text of several lines, each as by `shown`; its newlines are kept."""
    return "\n".join(map(shown, text.split("\n")))


def shown_cell(text: str) -> str:
    """Return a text by `shown` for a table that is opened in a spreadsheet.

    What the program would take for a formula has an apostrophe before it.
    """
    text = shown(text)
    return f"'{text}" if text.startswith(_FORMULA) else text


def shown_command(command: str) -> str:
    """Return a command of a shell, as of `shlex.join`, that is safe to show and still the same.

    Control and format characters become `$'\\x1b'`, which bash, zsh and ksh read as they were;
    newlines and tabs are kept.
    """

    def escape(letter: str) -> str:
        seen = _visible(letter)
        if letter in "\n\t" or seen == letter:
            return letter
        if 0x80 <= ord(letter) < 0x100:  # whose \x.. would be a byte
            seen = f"\\u{ord(letter):04x}"
        # `shlex` puts such letters within single quotes, which are closed for it and opened again.
        return f"'$'{seen}''"

    return "".join(map(escape, command))


def _visible(letter: str) -> str:
    if letter in _KEPT or unicodedata.category(letter) not in _UNSAFE:
        return letter
    code = ord(letter)
    if letter in _SHORT:
        return _SHORT[letter]
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"  # the byte of the name itself
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


# A lone surrogate is stored as an odd number of backslashes and its code. Backslashes are doubled
# only before such a code, so all other names, Windows paths included, are unchanged.
_CODE = "ud[89a-f][0-9a-f]{2}"
_TO_STORE = re.compile(rf"(\\*)([\ud800-\udfff]|(?<=\\){_CODE})")
_STORED = re.compile(rf"(\\+)({_CODE})")


def stored(name: str | os.PathLike[str]) -> str:
    """Return a name as text that can be encoded as UTF-8, for CSV; `restored` is its inverse.

    A byte that is not UTF-8 becomes `\\udcXX`. JSON and YAML have escapes of their own: see
    `json_bytes`; PyYAML writes and reads them.
    """

    def escape(match: re.Match[str]) -> str:
        slashes, rest = match.groups()
        code = rest if len(rest) > 1 else f"\\u{ord(rest):04x}"
        return slashes * 2 + code

    return _TO_STORE.sub(escape, os.fsdecode(name))


def restored(text: str) -> str:
    """Return the name that `stored` was given."""

    def unescape(match: re.Match[str]) -> str:
        slashes, code = match.groups()
        kept = slashes[: len(slashes) // 2]
        return kept + (chr(int(code[1:], 16)) if len(slashes) % 2 else code)

    return _STORED.sub(unescape, text)


def json_bytes(text: str) -> bytes:
    """Encode JSON text as UTF-8, with lone surrogates as JSON escapes, which `json` reads back."""
    return text.encode("utf-8", "backslashreplace")
