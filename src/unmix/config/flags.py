"""Flags from parameters, and one line for what cannot be understood."""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from unmix.config.catalog import catalog, method_options, methods_with
from unmix.config.earlier import current, current_name
from unmix.config.parameters import Parameter, parameters_of
from unmix.config.values import Kind
from unmix.errors import UserError, check_given
from unmix.synonyms import called, hint

__all__ = ["HelpShown", "Parser"]

_YES_NO = ("yes", "no", "true", "false", "on", "off", "1", "0")
_METAVARS = {int: "N", float: "X"}


class HelpShown(Exception):  # noqa: N818 - it is none
    """The help was printed, and there is nothing else to do."""


class Parser(argparse.ArgumentParser):
    """The flags of a command; what was not given has no value, and mistakes raise.

    Args:
        command: Name of the command, such as "data pack".
        about: What it does, for the help.
        epilog: What stands at the end of the help.
        takes_methods: Whether it has the flags of a method, which differ.
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
        self._kinds: dict[str, Kind] = {}
        self._takes_methods = takes_methods
        # argparse takes -1e-3 and -.1,.5 for flags; no flag of ours begins with a digit.
        self._negative_number_matcher = re.compile(r"^-(\d|\.\d|inf|nan)", re.IGNORECASE)

    def add_group(self, kind: type, title: str, defaults: Mapping[str, Any]) -> None:
        """One group of flags from a dataclass's fields and docstring."""
        group = self.add_argument_group(title, (inspect.getdoc(kind) or "").split("\n")[0])
        self.add_parameters(parameters_of(kind).values(), defaults, group)

    def add_method(self, method: str, defaults: Mapping[str, Any]) -> None:
        """One group of flags from a method's options."""
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
        """A flag for every parameter."""
        for parameter in parameters:
            name, kind = parameter.name, parameter.kind
            text, options = parameter.text, _options(kind)
            flag = name if parameter.positional else f"--{name}"
            if parameter.positional:
                options["metavar"] = name.removesuffix("s").upper()
            elif parameter.required:
                options["required"] = True
            else:
                text += _default_text((defaults or {}).get(name, parameter.default))
            self._kinds[flag] = kind
            action = (target or self).add_argument(flag, **options)
            # Set here: Python 3.10 adds a default of its own to the text of yes-or-no flags.
            action.help = text.replace("%", "%%")

    @property
    def takes_files(self) -> bool:
        """Whether words without a flag are taken, as a run's folder."""
        return any(not action.option_strings for action in self._actions)

    def kind(self, flag: str) -> Kind | None:
        """The type of a flag's value; None if there is no such flag, or no value."""
        action = self._option_string_actions.get(flag)
        usual = Kind() if action is not None and action.nargs != 0 else None
        return self._kinds.get(flag, usual)

    def flags(self) -> dict[str, str]:
        """All flags, each with its text."""
        return {
            option: (action.help or "").replace("%%", "%")
            for action in self._actions
            for option in action.option_strings
            if option.startswith("--")
        }

    def parse(self, words: list[str]) -> dict[str, Any]:
        """What was given on the command line, and nothing else.

        Raises:
            UserError: for what cannot be understood, in one line.
            HelpShown: if it was the help that was asked for.
        """
        try:
            words = ["--help" if word == "-help" else self._current(word) for word in words]
            words = self._without_commas(words)
            found, unknown = self.parse_known_args(words)
        except argparse.ArgumentError as error:
            raise UserError(self._explain(error, words)) from None
        except SystemExit:
            raise HelpShown from None
        if unknown:
            raise UserError(self._unknown(unknown[0], words))
        positional = {action.dest: str(action.metavar) for action in self._get_positional_actions()}
        for name, given in vars(found).items():
            for value in given if isinstance(given, list | tuple) else [given]:
                check_given(name, value, flag=positional.get(name))
        return current(vars(found))

    def error(self, message: str) -> NoReturn:
        """Raise instead of ending the program."""
        raise argparse.ArgumentError(None, message)

    def _current(self, word: str) -> str:
        """A flag by its present name; any other word as it is."""
        flag = re.match(r"--(?:no-)?(\w+)", word)
        if flag is None or f"--{flag[1]}" in self._option_string_actions:
            return word
        return word[: flag.start(1)] + current_name(flag[1]) + word[flag.end(1) :]

    def _without_commas(self, words: Iterable[str]) -> list[str]:
        """`--jitter=0.4,0.4,0.2,0.1` and `--jitter 0.4,0.4,0.2,0.1` as four words."""
        kind, found = None, []
        for word in words:
            flag, equals, value = word.partition("=")
            if flag in self._kinds:
                kind = self._kinds[flag]
                given = [flag, *_split(value)] if equals and kind.is_numbers else [word]
            else:
                given = _split(word) if kind is not None and kind.is_numbers else [word]
            found += given
        return found

    def _explain(self, error: argparse.ArgumentError, words: list[str]) -> str:
        """One line of ours for an error of argparse."""
        message = " ".join(error.message.split())
        if error.argument_name is None:
            return self._explain_missing(message)
        flag = error.argument_name.split("/")[0]
        kind = self._kinds.get(flag, Kind())
        if message.startswith("expected"):
            count = kind.count or "at least one"
            many = kind.count not in (1, None)
            return f"{flag}: needs {'one' if count == 1 else count} value{'s' if many else ''}."
        given = next((word for word in words if word.startswith(f"{flag}=")), None)
        if kind.base is bool and given is not None:
            value = given.partition("=")[2]
            off = f"--no-{flag.removeprefix('--')}"
            return f"{flag}: takes no value, but {value!r} was given; say {flag} or {off}."
        return f"{flag}: {message}"

    def _explain_missing(self, message: str) -> str:
        """What is required and was not given: --out, or RUN."""
        names = re.split(r"[ ,]+", message.partition(": ")[2])
        return f"{' and '.join(names)}: must be given. See {self.prog} --help."

    def _unknown(self, word: str, words: list[str]) -> str:
        """What to say of a word that the parser does not know."""
        if not word.startswith("-") or self._negative_number_matcher.match(word):
            return self._surplus(word, words)
        flag = word.split("=")[0]
        name = flag.lstrip("-")
        known = [option.removeprefix("--") for option in self._option_string_actions]
        if self._takes_methods:
            if owners := methods_with(name):
                return f"{flag}: is for --method {' or '.join(owners)} only."
            meant = called(name, known) or called(name, _all_options())
            if meant is not None and meant[0] not in known:
                owners = methods_with(meant[0])
                return (
                    f"{flag}: here it is --{meant[0]}, which is for --method "
                    f"{' or '.join(owners)} only."
                )
        return f"{flag}: there is no such flag.{hint(name, known) or f' See {self.prog} --help.'}"

    def _surplus(self, word: str, words: list[str]) -> str:
        """What to say of a word that is no flag where none is expected."""
        name, equals, value = word.partition("=")
        known = [option.removeprefix("--") for option in self._option_string_actions]
        if equals and (name in known or called(name, known)):
            name = name if name in known else called(name, known)[0]  # type: ignore[index]
            return f"{word!r}: is not expected here; write --{name} {value}."
        start = self._flag_with_too_many(word, words)
        kind = None if start is None else self._kinds.get(words[start])
        fits = kind is not None and (
            word.lower() in _YES_NO if kind.base is bool else kind.convert(word) is not None
        )
        if start is None or kind is None or kind.count is None or not fits:
            see = f"See {self.prog} --help."
            return f"{word!r}: is not expected here; a value follows its flag. {see}"
        flag, given = words[start], []
        for value in words[start + 1 :]:
            if value.startswith("--"):
                break
            given.append(value)
        if kind.base is bool:
            off = f"--no-{flag.removeprefix('--')}"
            return f"{flag}: takes no value, but {given[0]!r} was given; say {flag} or {off}."
        count = "one value" if kind.count == 1 else f"{kind.count} values"
        again = " For several seeds give the command once for each." if flag == "--seed" else ""
        return f"{flag}: takes {count}, but {len(given)} were given: {' '.join(given)}.{again}"

    def _flag_with_too_many(self, word: str, words: list[str]) -> int | None:
        """Where the flag stands behind which a word is more than it takes.

        The same word may be the right value of a flag before it.
        """
        before = None
        for place, other in enumerate(words):
            if other.startswith("--"):
                before = place
            elif other == word:
                kind = None if before is None else self._kinds.get(words[before])
                takes = 0 if kind is None or kind.base is bool else kind.count
                if before is None or takes is None or place - before > takes:
                    return before
        return before


def _all_options() -> set[str]:
    """The names of all methods' options."""
    return {name for entry in catalog().methods.values() for name in entry.parameters}


def _split(word: str) -> list[str]:
    return [part for part in word.split(",") if part] or [word]


def _options(kind: Kind) -> dict[str, Any]:
    """argparse's options for a kind: yes or no for bool, several words for tuples."""
    if kind.base is bool:
        return {"action": argparse.BooleanOptionalAction}
    options: dict[str, Any] = {"type": _converter(kind)}
    if kind.count != 1:
        options["nargs"] = kind.count or "+"
    if kind.count is None and kind.base is str:
        options["action"] = "extend"  # --vary A --vary B is both
    if kind.base in _METAVARS:
        options["metavar"] = _METAVARS[kind.base]
    return options


def _converter(kind: Kind) -> Any:
    def convert(word: str) -> Any:
        value = kind.convert(word)
        if value is None:
            raise argparse.ArgumentTypeError(f"{word!r} is not {kind.wanted}.")
        return value

    return convert


def _default_text(default: Any) -> str:
    if default is None or default is False or default in ((), []):
        return ""
    items = default if isinstance(default, (list, tuple)) else [default]
    shown = " ".join(f"{i:.4g}" if isinstance(i, float) else str(i) for i in items)
    return f" (default: {'yes' if default is True else shown})"
