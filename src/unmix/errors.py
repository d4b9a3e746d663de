"""User errors: one line that names the parameter, the value and what would be right.

The message is written once, in Python's names, and read in two places:

    str(error)               GridMix: cells must be at least 2, got 1
    error.on_command_line()  --unmix_patch: 1 is out of range; it must be at least 2.

Whoever builds an object from settings whose names differ from the object's parameters says so with
`renamed`, so that nobody reads a name that they did not type.
"""

from __future__ import annotations

import math
import re
import signal
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from unmix.names import shown
from unmix.synonyms import called_value, nearest

__all__ = [
    "Interrupted",
    "MachineError",
    "UserError",
    "byte_count",
    "check_choice",
    "check_given",
    "check_number",
    "lost_worker",
    "renamed",
]

_HALF = 2000  # of a message, in characters: more than two paths
# `head` or `head="mlp"` within a message: a parameter, with its value.
_PARAMETER = re.compile(r"`([A-Za-z]\w*)(?:=([^`]+))?`")


class Interrupted(KeyboardInterrupt):
    """A signal ended the run.

    Args:
        signum: The signal; the exit status is 128 more.
        how: How to go on.
    """

    def __init__(self, signum: int = signal.SIGINT, how: str = "") -> None:
        super().__init__(*filter(None, [how]))
        self.signum, self.how = int(signum), how

    @property
    def verb(self) -> str:
        """What happened: "interrupted", or by which other signal it was stopped."""
        if self.signum == signal.SIGINT:
            return "interrupted"
        return f"stopped by {signal.Signals(self.signum).name}"


class UserError(ValueError):
    """A mistake that the user can fix.

    The command line prints it without a traceback and exits with status 2. Names within it are
    made harmless (see `unmix.names.shown`).

    Args:
        message: One line: what is wrong, and what would be right. With a `parameter`, other
            parameters stand in backticks, with or without a value: `head="mlp"` is read as it is
            in Python, and as --head mlp on the command line.
        parameter: The Python name of the parameter, if one is at fault; it stands before the
            message and is left out of it.
        owner: The class or function whose parameter it is, for Python users.
        predicate: What Python users read behind the parameter's name instead of ": message", such
            as "must be at least 2, got 1".
        flag: What the command line calls the parameter; by default `--parameter`.

    Attributes:
        status: The exit status of the command line.
    """

    status = 2

    def __init__(
        self,
        message: object = "",
        *,
        parameter: str | None = None,
        owner: str | None = None,
        predicate: str | None = None,
        flag: str | None = None,
    ) -> None:
        self.message = str(message)
        self.parameter = parameter
        self.owner = owner
        self.predicate = predicate
        self.flag = flag or (None if parameter is None else f"--{parameter}")
        text = self.message
        if parameter is not None:
            text = f"{parameter}: {text}" if predicate is None else f"{parameter} {predicate}"
        super().__init__(_cut(shown(f"{owner}: {text}" if owner else text)))

    def on_command_line(self) -> str:
        """The message with flags in place of parameters."""
        if self.parameter is None:
            return str(self)
        return _cut(shown(f"{self.flag}: {_PARAMETER.sub(_as_flag, self.message)}"))

    def with_more(self, text: str) -> UserError:
        """The same error with a further sentence, in the words of both places."""
        predicate = None if self.predicate is None else f"{self.predicate}. {text}"
        return type(self)(
            f"{self.message} {text}",
            parameter=self.parameter,
            owner=self.owner,
            predicate=predicate,
            flag=self.flag,
        )

    def _render_traceback_(self) -> list[str]:
        """What IPython prints instead of a traceback: the message says all there is to know."""
        return [f"{type(self).__name__}: {self}"]


class MachineError(UserError):
    """What the machine did to a run, such as a process that was killed: the same command may work.

    Like a UserError it is one line, but its exit status is 1.
    """

    status = 1


# As PyTorch's DataLoader says it.
_LOST_WORKER = re.compile(
    r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)"
    r" (?:is killed by signal: (.+?)\.|exited unexpectedly)"
)


def lost_worker(error: RuntimeError) -> MachineError | None:
    """The error of a data worker that was killed, in a line; None if it is another error."""
    match = _LOST_WORKER.search(str(error))
    if match is None:
        return None
    which, how = match[1], match[2] or ""
    many = "," in which
    who = f"data workers (processes {which})" if many else f"a data worker (process {which})"
    verb = "were" if many else "was"
    if "Bus error" in how:
        return MachineError(
            f"{who} ended by a bus error, as where shared memory (/dev/shm) is full; give it more "
            "(docker run --shm-size 8g), or fewer --workers."
        )
    if how and "Killed" not in how:
        return MachineError(f"{who} {verb} ended by a signal: {how}.")
    if how:
        return MachineError(
            f"{who} {verb} killed (SIGKILL), as happens when memory runs out; fewer --workers need "
            "less of it."
        )
    return MachineError(f"{who} ended unexpectedly.")


def _cut(text: str) -> str:
    """A line that fits a screen: what was given may be a whole file."""
    return text if len(text) <= 2 * _HALF else f"{text[:_HALF]} [...] {text[-_HALF:]}"


def _as_flag(match: re.Match[str]) -> str:
    name, value = match.groups()
    if value in (None, "True"):
        return f"--{name}"
    return f"--no-{name}" if value == "False" else f"--{name} {value.strip(chr(34) + chr(39))}"


@contextmanager
def renamed(names: Mapping[str, str]) -> Iterator[None]:
    """Name the parameters in errors as the user knows them, who set them by other names.

    Args:
        names: Parameters, each with the name of the setting that it is set by, such as
            {"cells": "unmix_patch"}. Others keep their names.

    Raises:
        UserError: what was raised within, under the settings' names and without an owner.
    """
    try:
        yield
    except UserError as error:
        if error.parameter is None:
            raise

        def setting(match: re.Match[str]) -> str:
            name, value = match.groups()
            return f"`{names.get(name, name)}{'' if value is None else f'={value}'}`"

        raise UserError(
            _PARAMETER.sub(setting, error.message),
            parameter=names.get(error.parameter, error.parameter),
            predicate=error.predicate,
        ) from None


_BYTES = re.compile(r"(\d+(?:\.\d*)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)


def byte_count(parameter: str, text: str) -> int:
    """The number of bytes that a text such as "50GB", "1.5 TB", "500MiB" or "0" stands for.

    Raises:
        UserError: if it stands for none.
    """
    match = _BYTES.fullmatch(text.strip()[:40])
    if match is None:
        raise UserError(
            f"{text!r} is not a size; give one such as 50GB, 500MB or 0.", parameter=parameter
        )
    power = " kmgt".index(match[2].lower() or " ")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** power)


def check_given(parameter: str, value: object, *, flag: str | None = None) -> None:
    """Check that a text is not empty, as that of a shell variable which was not set.

    Raises:
        UserError: if it is.
    """
    if isinstance(value, str) and not value.strip():
        name = flag or f"`{parameter}`"
        message = f"the value is empty; give one, or leave {name} out."
        raise UserError(message, parameter=parameter, flag=flag)


def check_choice(
    parameter: str,
    value: str,
    choices: Iterable[str],
    *,
    owner: str | None = None,
    flag: str | None = None,
) -> str:
    """Return `value` if it is one of `choices`.

    Args:
        parameter: Its Python name.
        value: What was given.
        choices: What may be given.
        owner: The class or function whose parameter it is.
        flag: What the command line calls it; by default `--parameter`.

    Raises:
        UserError: otherwise, with the nearest match if there is one, and all the choices.
    """
    options = list(choices)
    if value in options:
        return value
    meant = called_value(parameter, value)
    near = meant if meant in options else nearest(value, options)
    hint = f" Did you mean {near!r}?" if near else ""
    message = f"{value!r} is unknown.{hint} Known: {', '.join(options)}."
    raise UserError(message, parameter=parameter, owner=owner, flag=flag)


def check_number(
    parameter: str,
    value: float,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    owner: str | None = None,
) -> None:
    """Check a number against its bounds.

    Args:
        parameter: Its Python name.
        value: The number.
        at_least: Smallest value allowed.
        above: A value below all that are allowed.
        at_most: Largest value allowed.
        below: A value above all that are allowed.
        owner: The class or function whose parameter it is.

    Raises:
        UserError: if `value` is not finite or lies outside the bounds.
    """
    bounds = []
    if at_least is not None:
        bounds.append(f"at least {_shown(at_least)}")
    if above is not None:
        bounds.append(f"greater than {_shown(above)}")
    if at_most is not None:
        bounds.append(f"at most {_shown(at_most)}")
    if below is not None:
        bounds.append(f"less than {_shown(below)}")
    wrong = (
        not math.isfinite(value)
        or (at_least is not None and value < at_least)
        or (above is not None and value <= above)
        or (at_most is not None and value > at_most)
        or (below is not None and value >= below)
    )
    if wrong:
        wanted = " and ".join(bounds) or "a finite number"
        raise UserError(
            f"{_shown(value)} is out of range; it must be {wanted}.",
            parameter=parameter,
            owner=owner,
            predicate=f"must be {wanted}, got {_shown(value)}",
        )


def _shown(value: float) -> str:
    """A whole number with all its digits, another one with six."""
    return str(value) if isinstance(value, int) else f"{value:g}"
