"""The command line of a run."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from unmix.config.groups import TEXTS

__all__ = ["command_line", "flags_of"]


def command_line(config: str | Sequence[str] | None, words: dict[str, Any]) -> str:
    """The command line that is equivalent to a call of `pretrain`."""
    parts = ["unmix", "pretrain"]
    for name in [config] if isinstance(config, (str, os.PathLike)) else config or ():
        parts += ["--config", os.fspath(name)]
    return shlex.join([*parts, *flags_of(words)])


def flags_of(words: Mapping[str, Any]) -> list[str]:
    """The flags that give values, as they are typed."""
    parts: list[str] = []
    for name, value in words.items():
        if value is None and name in TEXTS:
            continue
        if value is True:
            parts.append(f"--{name}")
        elif value is None or (isinstance(value, (list, tuple)) and not value):
            # Not left out: it may be in place of a recipe's value.
            parts += [f"--{name}", "none"]
        elif isinstance(value, (list, tuple)):
            parts += [f"--{name}", *map(str, value)]
        elif value is False:
            parts.append(f"--no-{name}")
        else:
            parts += [f"--{name}", str(value)]
    return parts
