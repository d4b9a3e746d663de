"""Command-line flags from parameters, and a one-line error for each mistake."""

from __future__ import annotations

import argparse
import inspect
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from unmix.config.catalog import catalog, method_options, methods_with
from unmix.config.earlier import current, current_name
from unmix.config.groups import TEXTS
from unmix.config.parameters import Parameter, parameters_of
from unmix.config.values import Kind
from unmix.errors import UserError, check_given
from unmix.names import in_words
from unmix.synonyms import called, hint

__all__ = ["HelpShown", "Parser", "underscored"]

_BOOLEANS = ("yes", "no", "true", "false", "on", "off", "1", "0")
_YesNo = argparse.BooleanOptionalAction
_METAVARS = {int: "N", float: "X"}


class HelpShown(Exception):  # noqa: N818 - not an error
    """The help was printed, and there is nothing else to do."""


class Parser(argparse.ArgumentParser):
    """The flags of a command; what is not given has no value, and mistakes raise.

    Args:
        command: Name of the command, such as "data pack".
        about: What it does, for the help.
        epilog: The end of the help.
        takes_methods: Whether it has the flags of a method, which differ by method.
    """

    def __init__(
        self, command: str, about: str, epilog: str | None = None, *, takes_methods: bool = False
    ) -> None:
        super().__init__(
            prog=f"unmix {command}",
            description=about,
            epilog=epilog,
            exit_on_error=False,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            argument_default=argparse.SUPPRESS,
        )
        self._kinds: dict[str, Kind] = {}  # by --NAME, of positional arguments too
        self._shown: dict[str, str] = {}  # positional arguments as the help shows them, by name
        self._needed: dict[str, str] = {}  # required arguments as the help shows them, by name
        self._takes_methods = takes_methods
        # argparse takes -1e-3 and -.1,.5 for flags; none of our flags begins with a digit.
        self._negative_number_matcher = re.compile(r"^-(\d|\.\d|inf|nan)", re.IGNORECASE)

    def add_group(self, kind: type, title: str, defaults: Mapping[str, Any]) -> None:
        """Add a group of flags from a dataclass's fields and docstring."""
        group = self.add_argument_group(title, (inspect.getdoc(kind) or "").split("\n")[0])
        self.add_parameters(parameters_of(kind).values(), defaults, group)

    def add_method(self, method: str, defaults: Mapping[str, Any]) -> None:
        """Add a group of flags from a method's options."""
        about = catalog().methods[method].about.split("\n")[0]
        others = ", ".join(name for name in catalog().methods if name != method)
        group = self.add_argument_group(f"Method {method} (others: {others})", about)
        self.add_parameters(method_options(method).values(), defaults, group)

    def add_parameters(
        self,
        parameters: Iterable[Parameter],
        defaults: Mapping[str, Any] | None = None,
        target: Any = None,
    ) -> None:
        """Add a flag, or a positional argument, for each parameter."""
        for parameter in parameters:
            name, kind = parameter.name, parameter.kind
            text, options, flag = parameter.text, _options(kind), f"--{name}"
            if parameter.positional:
                options["metavar"] = self._shown[name] = name.removesuffix("s").upper()
            elif not parameter.required:
                text += _default_text((defaults or {}).get(name, parameter.default))
            action = (target or self).add_argument(
                name if parameter.positional else flag, **options
            )
            # Set here: Python 3.10 adds a default of its own to the text of yes-or-no flags.
            action.help = text.replace("%", "%%")
            self._kinds[flag] = kind
            if parameter.required:
                action.required = False  # checked in `parse`, which knows what is missing
                self._needed[name] = self._shown.get(name, flag)

    @property
    def takes_files(self) -> bool:
        """Whether there are positional arguments, such as a run folder."""
        return bool(self._get_positional_actions())

    def kind(self, flag: str) -> Kind | None:
        """The type of a flag's value; None if the flag is unknown or takes no value."""
        action = self._option_string_actions.get(flag)
        if action is None:
            return None
        return self._kinds.get(flag, None if action.nargs == 0 else Kind())

    def flags(self) -> dict[str, str]:
        """All flags, each with its text."""
        return {
            option: (action.help or "").replace("%%", "%")
            for action in self._actions
            for option in action.option_strings
            if option.startswith("--")
        }

    def parse(self, args: list[str]) -> dict[str, Any]:
        """Return what is given on the command line, and nothing else.

        Raises:
            UserError: for the first mistake, in one line.
            HelpShown: if the help was asked for.
        """
        args = ["--help" if arg == "-help" else self._current(arg) for arg in args]
        args, none = self._without_nones(self._without_commas(args))
        try:
            found, unknown = self.parse_known_args(args)
        except argparse.ArgumentError as error:
            raise self._wrong_count(error, args) from None
        except SystemExit:
            raise HelpShown from None
        if unknown:
            raise self._unknown(unknown[0], args)
        given = {**vars(found), **none}
        missing = [shown for name, shown in self._needed.items() if name not in given]
        if missing:
            verb = "is" if len(missing) == 1 else "are"
            raise UserError(f"{in_words(missing)} {verb} required. See {self.prog} --help.")
        return current({name: self._converted(name, value) for name, value in given.items()})

    def error(self, message: str) -> NoReturn:
        """Raise instead of ending the program."""
        raise argparse.ArgumentError(None, message)

    def _converted(self, name: str, value: Any) -> Any:
        """The value of an argument as its type."""
        for arg in value if isinstance(value, list) else [value]:
            check_given(name, arg, flag=self._shown.get(name))
        kind = self._kinds.get(f"--{name}")
        if kind is None or kind.base is bool or kind.choices:  # settings check the choices
            return value
        fitted = kind.fit(name, value)
        return list(fitted) if isinstance(fitted, tuple) else fitted

    def _current(self, arg: str) -> str:
        """A flag by its present name; any other argument as it is."""
        flag = re.match(r"--(?:no-)?(\w+)", arg)
        if flag is None or f"--{flag[1]}" in self._option_string_actions:
            return arg
        return arg[: flag.start(1)] + current_name(flag[1]) + arg[flag.end(1) :]

    def _without_commas(self, args: Iterable[str]) -> list[str]:
        """`--jitter=0.4,0.4,0.2,0.1` and `--jitter 0.4,0.4,0.2,0.1` as four arguments."""
        kind, found = None, []
        for arg in args:
            flag, equals, value = arg.partition("=")
            if flag in self._option_string_actions:
                kind = self._kinds.get(flag)
                several = kind is not None and kind.is_numbers
                found += [flag, *_split(value)] if equals and several else [arg]
            else:
                found += _split(arg) if kind is not None and kind.is_numbers else [arg]
        return found

    def _without_nones(self, args: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
        """The arguments without `--limit none` and the like, and what these settings then are.

        That is no value where a setting may have none, and an empty list of numbers; a path may be
        "none".
        """
        if not self._takes_methods:
            return list(args), {}
        none: dict[str, Any] = {}
        found: list[str] = []
        rest = list(args)
        while rest:
            flag, equals, value = rest[0].partition("=")
            ends = len(rest) < 3 or rest[2].startswith("--")
            value = value if equals else rest[1] if len(rest) > 1 and ends else ""
            kind = self._kinds.get(flag)
            several = kind is not None and kind.is_numbers and kind.count is None
            name = flag.removeprefix("--")
            if (
                value == "none"
                and kind is not None
                and name not in TEXTS
                and (kind.optional or several)
            ):
                none[name] = None if kind.optional else []
                rest = rest[1 if equals else 2 :]
            else:
                found.append(rest.pop(0))
        return found, none

    def _wrong_count(self, error: argparse.ArgumentError, args: list[str]) -> UserError:
        """The error for a flag with too few values, or a value where none is taken."""
        names = (error.argument_name or "").split("/")  # --unmix/--no-unmix
        flag = names[0]
        action = self._option_string_actions.get(flag)
        if action is not None and action.nargs == 0:
            for arg in args:
                typed, equals, value = arg.partition("=")
                if equals and typed in names:
                    return _takes_no_value(typed, value, isinstance(action, _YesNo))
            return UserError(f"{flag}: takes no value.")
        kind = self._kinds.get(flag, Kind())
        count = "one value" if kind.count == 1 else f"{kind.count or 'one or more'} values"
        return UserError(f"{flag}: expects {count}.")

    def _unknown(self, arg: str, args: list[str]) -> UserError:
        """The error for an argument that the parser does not know."""
        if not arg.startswith("-") or self._negative_number_matcher.match(arg):
            return self._surplus(arg, args)
        flag = arg.split("=")[0]
        name = flag.lstrip("-")
        known = [option.removeprefix("--") for option in self._option_string_actions]
        last = name.rpartition(".")[2]  # of Hydra's `optimizer.lr`
        near = f" Use `{last}`." if last in known and last != name else hint(last, known)
        message = f"unknown flag.{near or f' See {self.prog} --help.'}"
        if self._takes_methods:
            meant = called(last, known) or called(last, _all_options())
            if owners := methods_with(name):
                message = f"applies only to `method` {in_words(owners, 'or')}."
            elif meant is not None and meant[0] not in known:
                owners = methods_with(meant[0])
                message = (
                    f"unknown flag. The equivalent is `{meant[0]}`, which applies only to "
                    f"`method` {in_words(owners, 'or')}."
                )
        return UserError(message, parameter=name, flag=flag)

    def _surplus(self, arg: str, args: list[str]) -> UserError:
        """The error for a value where none is expected."""
        name, equals, value = arg.partition("=")
        name = name.rpartition(".")[2]  # of Hydra's `optimizer.lr=0.1`
        known = [option.removeprefix("--") for option in self._option_string_actions]
        if self._takes_methods and arg in catalog().methods and "--method" not in args:
            return UserError(f"{arg!r}: unexpected argument; write --method {arg}.")
        if equals and (name in known or called(name, known)):
            name = name if name in known else called(name, known)[0]  # type: ignore[index]
            return UserError(f"{arg!r}: unexpected argument; write --{name} {value}.")
        start = self._flag_with_too_many(arg, args)
        kind = None if start is None else self._kinds.get(args[start])
        fits = kind is not None and (
            arg.lower() in _BOOLEANS if kind.base is bool else kind.convert(arg) is not None
        )
        if start is None or kind is None or kind.count is None or not fits:
            return UserError(
                f"{arg!r}: unexpected argument; a value comes right after its flag. See "
                f"{self.prog} --help."
            )
        flag, given = args[start], []
        for value in args[start + 1 :]:
            if value.startswith("--"):
                break
            given.append(value)
        if kind.base is bool:
            return _takes_no_value(flag, given[0], True)
        count = "one value" if kind.count == 1 else f"{kind.count} values"
        again = " For several seeds give the command once for each." if flag == "--seed" else ""
        whole = " ".join(given)
        if kind.count == 1 and Path(whole).exists():
            again = f" In quotes it is one: {flag} {shlex.quote(whole)}"
        return UserError(f"{flag}: expects {count}, but {len(given)} were given: {whole}.{again}")

    def _flag_with_too_many(self, arg: str, args: list[str]) -> int | None:
        """The index of the flag that `arg` is one value too many for.

        The same string may be a valid value of an earlier flag.
        """
        before = None
        for place, other in enumerate(args):
            if other.startswith("--"):
                before = place
            elif other == arg:
                kind = None if before is None else self._kinds.get(args[before])
                takes = 0 if kind is None or kind.base is bool else kind.count
                if before is None or takes is None or place - before > takes:
                    return before
        return before


def _takes_no_value(flag: str, given: str, has_off: bool) -> UserError:
    name = flag.removeprefix("--").removeprefix("no-")
    either = f"; use --{name} or --no-{name}" if has_off else ""
    return UserError(f"{flag}: takes no value, got {given!r}{either}.")


def _all_options() -> set[str]:
    """The names of all methods' options."""
    return {name for entry in catalog().methods.values() for name in entry.parameters}


def _split(arg: str) -> list[str]:
    return [part for part in arg.split(",") if part] or [arg]


def _options(kind: Kind) -> dict[str, Any]:
    """The options of argparse for a type; values stay strings, which `parse` converts."""
    if kind.base is bool:
        return {"action": _YesNo}
    options: dict[str, Any] = {}
    if kind.count != 1:
        options["nargs"] = kind.count or "+"
    if kind.count is None and kind.base is str:
        options["action"] = "extend"  # --vary A --vary B is both
    if kind.base in _METAVARS:
        options["metavar"] = _METAVARS[kind.base]
    return options


def _default_text(default: Any) -> str:
    if default is None or default is False or default in ((), []):
        return ""
    items = default if isinstance(default, (list, tuple)) else [default]
    shown = " ".join(f"{i:.4g}" if isinstance(i, float) else str(i) for i in items)
    return f" (default: {'yes' if default is True else shown})"


def underscored(word: str) -> str:
    """`--data-dir=X` as `--data_dir=X`: both spellings of a flag are valid."""
    flag = re.match(r"--(no-)?([A-Za-z][\w-]*)(.*)", word, re.DOTALL)
    if flag is None:
        return word
    no, name, rest = flag.groups()
    return f"--{no or ''}{name.replace('-', '_')}{rest}"
