"""Flags from signatures and docstrings, and one line for what cannot be understood."""

from __future__ import annotations

import argparse
import difflib
import inspect
import re
from collections.abc import Mapping
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

from unmix.errors import UserError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

__all__ = ["HelpShown", "add_class", "add_method", "add_parameters", "build_parser", "parse"]

_METAVARS = {int: "N", float: "X"}


class HelpShown(Exception):  # noqa: N818 - it is none
    """The help was printed, and there is nothing else to do."""


def build_parser(command: str, about: str, epilog: str | None = None) -> ArgumentParser:
    """The parser of a command, which raises instead of ending the program."""
    from jsonargparse import ArgumentParser

    return ArgumentParser(
        prog=f"unmix {command}",
        description=about,
        epilog=epilog,
        exit_on_error=False,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )


def add_class(parser: ArgumentParser, kind: type, title: str, defaults: Mapping[str, Any]) -> None:
    """One group of flags from a dataclass's fields and docstring."""
    group = parser.add_argument_group(title, (inspect.getdoc(kind) or "").split("\n")[0])
    add_parameters(group, kind.__init__, kind, set(), defaults)  # type: ignore[misc]


def add_method(parser: ArgumentParser, method: str, defaults: Mapping[str, Any]) -> None:
    """One group of flags from a method's keyword arguments."""
    from unmix.config import method_options
    from unmix.methods import METHODS, method_class

    kind = method_class(method)
    about = (inspect.getdoc(kind) or "").split("\n")[0]
    others = ", ".join(name for name in METHODS if name != method)
    group = parser.add_argument_group(f"Method {method} (others: {others})", about)
    names = set(inspect.signature(kind).parameters) - set(method_options(method))
    add_parameters(group, kind.__init__, kind, names, defaults)  # type: ignore[misc]


def add_parameters(
    target: Any, function: Any, documented: Any, skip: set[str], defaults: Mapping[str, Any]
) -> None:
    """A flag for every parameter, as its signature and docstring describe it."""
    from docstring_parser import parse as read_docstring

    described = read_docstring(inspect.getdoc(documented) or "").params
    texts = {parameter.arg_name: parameter.description for parameter in described}
    hints = get_type_hints(function)
    for parameter in inspect.signature(function).parameters.values():
        name = parameter.name
        if name in skip or name == "self":
            continue
        text = " ".join((texts.get(name) or "").split())
        options = _options(hints.get(name, str))
        flag = f"--{name}"
        if parameter.default is not inspect.Parameter.empty:
            text += _default_text(defaults.get(name, parameter.default))
        elif parameter.kind is parameter.KEYWORD_ONLY:
            options["required"] = True
        else:
            flag = name
            options["metavar"] = name.removesuffix("s").upper()
        target.add_argument(flag, help=text.replace("%", "%%"), **options)


def _options(hint: Any) -> dict[str, Any]:
    """argparse's options for a type: yes or no for bool, several words for tuples and sequences."""
    args = [a for a in get_args(hint) if a is not type(None)]
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return _options(args[0])
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction}
    if hint in _METAVARS:
        return {"type": hint, "metavar": _METAVARS[hint]}
    if args and origin is not Literal:
        kind = args[0] if args[0] in _METAVARS else str
        fixed = origin is tuple and Ellipsis not in args
        options = {"nargs": len(args) if fixed else "+", "type": kind}
        return {**options, "metavar": _METAVARS[kind]} if kind in _METAVARS else options
    return {"type": str}


def _default_text(default: Any) -> str:
    if default is None or default is False or default in ((), []):
        return ""
    items = default if isinstance(default, (list, tuple)) else [default]
    shown = " ".join(f"{i:.4g}" if isinstance(i, float) else str(i) for i in items)
    return f" (default: {'yes' if default is True else shown})"


def parse(parser: ArgumentParser, words: list[str]) -> dict[str, Any]:
    """What was given on the command line, and nothing else.

    Raises:
        UserError: for what cannot be understood, in one line.
    """
    try:
        parsed = parser.parse_args(words)
    except argparse.ArgumentError as error:
        raise UserError(_explain(str(error), parser)) from None
    except SystemExit:
        raise HelpShown from None
    return {name: value for name, value in vars(parsed).items() if value is not argparse.SUPPRESS}


def _explain(message: str, parser: ArgumentParser) -> str:
    """One line of ours for an error of the parser."""
    text = " ".join(message.split())
    wrong = re.match(r'Parser key "(\w+)".*?Expected an? (.*?)\. Got value: (.*)', text)
    if wrong:
        name, kind, value = wrong.groups()
        wanted = {"<class 'int'>": "a whole number", "<class 'float'>": "a number"}.get(kind, kind)
        return f"--{name}: {value!r} is not {wanted}."
    unknown = re.match(r"unrecognized arguments: (\S+)", text, re.IGNORECASE)
    if unknown:
        return _unknown(unknown.group(1).split("=")[0], parser)
    lacking = re.match(r"argument (\S+?)(?:/\S+)?: expected (.*?) arguments?$", text)
    if lacking:
        flag, count = lacking.groups()
        return f"{flag}: needs {count} value{'' if count.endswith('one') else 's'}."
    yes_or_no = re.match(r"argument (--(\w+))/\S+: ignored explicit argument (.*)", text)
    if yes_or_no:
        flag, name, value = yes_or_no.groups()
        return f"{flag}: takes no value, but {value} was given; say {flag} or --no-{name}."
    missing = re.match(r"the following arguments are required: (.*)", text, re.IGNORECASE)
    if missing:
        names = missing.group(1).split(", ")
        wanted = " and ".join(_shown(name, parser) for name in names)
        return f"{wanted}: must be given. See {parser.prog} --help."
    return re.sub(r"^argument ", "", text)


def _unknown(word: str, parser: ArgumentParser) -> str:
    """What to say of a word that the parser does not know."""
    help_ = f"{parser.prog} --help"
    if not word.startswith("-"):
        return f"{word!r}: is not expected here; a value follows its flag. See {help_}."
    if parser.prog in ("unmix pretrain", "unmix bench"):
        from unmix.config import methods_with

        owners = methods_with(word.removeprefix("--"))
        if owners:
            return f"{word}: is for --method {' or '.join(owners)} only."
    flags = [option for action in parser._actions for option in action.option_strings]
    near = difflib.get_close_matches(word, flags, n=1, cutoff=0.6)
    return (
        f"{word}: there is no such flag. {f'Did you mean {near[0]}?' if near else f'See {help_}.'}"
    )


def _shown(name: str, parser: ArgumentParser) -> str:
    """An argument as the user types it: --out, or RUN."""
    for action in parser._actions:
        if action.dest == name:
            return action.option_strings[-1] if action.option_strings else str(action.metavar)
    return name
