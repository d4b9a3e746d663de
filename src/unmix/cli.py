"""The command line: words to calls."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import inspect
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

from unmix import __version__
from unmix.errors import UserError

# What a command needs it imports itself: PyTorch and Lightning take seconds, help must not.
if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

__all__ = ["main"]

_METAVARS = {int: "N", float: "X"}

ABOUT = "Self-supervised pretraining of vision models with image mixtures."

EXAMPLES = """\
examples:
  unmix pretrain --method moco --data photos
  unmix pretrain --method moco --data cifar10 --data_dir DIR --IM --IM_type IM --g_prob 0.1
  unmix pretrain --method cmc --view YCbCr --unmix --unmix_prob 0.5 --beta 1.0
  unmix pretrain --config moco-v2-imagenet100 --data_dir DIR
  unmix pretrain --method moco --data FOLDER --size 64 --run runs/mine

A run's settings are, each over the one before: the program's defaults, the recipe METHOD, the
recipe METHOD-DATA if there is one (or --config), and the flags. Give a run's folder again to resume
it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: The words behind `unmix`; by default those of the process.

    Returns:
        The exit status: 0, 2 for a mistake of the user or a file that cannot be written, 130 when
        interrupted.
    """
    words = [_underscored(w) for w in (sys.argv[1:] if arguments is None else arguments)]
    try:
        status = _run(words)
        # Here, not at exit, where a closed pipe could no longer be caught.
        sys.stdout.flush()
        return status
    except UserError as error:
        print(f"unmix: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("unmix: interrupted; give the same command again to go on.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read our output has enough; Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _underscored(word: str) -> str:
    """`--data-dir=X` as `--data_dir=X`: both spellings of a flag are right."""
    flag = re.match(r"--(no-)?([A-Za-z][\w-]*)(.*)", word, re.DOTALL)
    if flag is None:
        return word
    no, name, rest = flag.groups()
    return f"--{no or ''}{name.replace('-', '_')}{rest}"


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if words[0] in ("-V", "--version"):
        print(f"unmix {__version__}")
        return 0
    name, rest = words[0], words[1:]
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UserError(f"{name!r} is no command.{hint} Commands: {', '.join(COMMANDS)}.")
    with contextlib.suppress(_HelpShown):
        COMMANDS[name][1](rest)
    return 0


def overview() -> str:
    """What `unmix --help` prints."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {about}" for name, (about, _) in COMMANDS.items()]
    return "\n".join(
        [ABOUT, "", "usage: unmix COMMAND ...", "", *lines, "", "unmix COMMAND --help tells more."]
    )


def pretrain_command(words: list[str]) -> None:
    """`unmix pretrain`."""
    from unmix.methods import method_class
    from unmix.training.settings import GROUPS

    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("method", "data", "config", "run"):
        # A value that is missing is told by the parser of all flags.
        first.add_argument(f"--{name}", nargs="?")
    early = {k: v for k, v in vars(first.parse_known_args(words)[0]).items() if v is not None}
    config = early.pop("config", None)
    defaults = _defaults(early, config)
    method = defaults["method"]
    method_class(method)
    parser = _parser("pretrain", "Pretrain an encoder and measure it.", epilog=EXAMPLES)
    parser.usage = "unmix pretrain [--config RECIPE] [--method METHOD] [--data DATA] [flags]"
    parser.add_argument("--config", metavar="RECIPE", help="A recipe (unmix recipes) or YAML file.")
    for name, group in GROUPS.items():
        _add_class(parser, group, name.capitalize(), defaults)
        if name == "run":
            _add_method(parser, method, defaults)
    given = _parse(parser, words)
    given.pop("config", None)
    from unmix.training.pretrain import pretrain

    pretrain(config, **given)


def recipes_command(words: list[str]) -> None:
    """`unmix recipes`."""
    from unmix.recipes import recipe_names, recipe_text, summary

    parser = _parser("recipes", "List the recipes that ship, or print one.")
    parser.add_argument("name", nargs="?", metavar="RECIPE", help="Print this recipe.")
    name = _parse(parser, words).get("name")
    if name is not None:
        print(recipe_text(name, "RECIPE"), end="")
        return
    width = max(map(len, recipe_names()))
    for recipe_name in recipe_names():
        print(f"{recipe_name:<{width}}  {summary(recipe_name)}")


def knn_command(words: list[str]) -> None:
    """`unmix knn`."""
    from unmix.commands.knn import knn

    _call("knn", "Weighted kNN accuracy of a run's encoder.", knn, words)


def probe_command(words: list[str]) -> None:
    """`unmix probe`."""
    from unmix.commands.probe import probe

    _call("probe", "Linear probe of a run's encoder.", probe, words)


def compare_command(words: list[str]) -> None:
    """`unmix compare`."""
    from unmix.commands.compare import compare

    _call("compare", "Table, figures and a report of several runs.", compare, words)


def preview_command(words: list[str]) -> None:
    """`unmix preview`."""
    from unmix.commands.preview import preview
    from unmix.mixtures import MixtureSettings
    from unmix.training.settings import Settings, field_names

    parser = _parser("preview", "Draw images, their partners and their mixtures.")
    _add_parameters(parser, preview, preview, {"mixture", "say"}, {})
    _add_class(parser, MixtureSettings, "Mixtures", {})
    given = _parse(parser, words)
    flags = {name: given.pop(name) for name in field_names("mixture") if name in given}
    preview(mixture=Settings.of(flags).mixture, **given)


def demo_command(words: list[str]) -> None:
    """`unmix demo`."""
    from unmix.commands.demo import demo

    _call("demo", "MoCo and CMC with and without image mixtures, measured and drawn.", demo, words)


def data_command(words: list[str]) -> None:
    """`unmix data`: a group of one so far."""
    if not words or words[0] in ("-h", "--help", "help"):
        print(
            "usage: unmix data COMMAND ...\n\n"
            "  pack  put a folder of images into a few large files, for --data OUT\n\n"
            "unmix data COMMAND --help tells more."
        )
        return
    if words[0] != "pack":
        raise UserError(f"data: {words[0]!r} is no command of it. Commands: pack.")
    from unmix.commands.pack import pack

    about = (inspect.getdoc(pack) or "").partition("\n\nArgs:")[0]
    _call("data pack", about, pack, words[1:])


COMMANDS: dict[str, tuple[str, Callable[[list[str]], None]]] = {
    "pretrain": ("train an encoder on images without labels, and measure it", pretrain_command),
    "knn": ("measure a run by weighted kNN", knn_command),
    "probe": ("measure a run by a linear probe", probe_command),
    "compare": ("table, figures and a report of several runs", compare_command),
    "preview": ("draw what a mixture does to your images", preview_command),
    "data": ("put a folder of images into a few large files", data_command),
    "recipes": ("list the recipes that ship", recipes_command),
    "demo": ("four small runs, a table and a report, in minutes", demo_command),
}


def _defaults(early: dict[str, Any], config: str | None) -> dict[str, Any]:
    """What the flags start from: the run that the folder holds, or the recipes."""
    from unmix.recipes import resolve
    from unmix.training.run_folder import RunFolder

    if config is None and "run" in early and RunFolder(early["run"]).config.exists():
        return {**RunFolder(early["run"]).words(), **early}
    return resolve(early, config)[0]


class _HelpShown(Exception):  # noqa: N818 - it is none
    """The help was printed, and there is nothing else to do."""


def _parser(command: str, about: str, epilog: str | None = None) -> ArgumentParser:
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


def _add_class(parser: ArgumentParser, kind: type, title: str, defaults: Mapping[str, Any]) -> None:
    """One group of flags from a dataclass's fields and docstring."""
    group = parser.add_argument_group(title, (inspect.getdoc(kind) or "").split("\n")[0])
    _add_parameters(group, kind.__init__, kind, set(), defaults)  # type: ignore[misc]


def _add_method(parser: ArgumentParser, method: str, defaults: Mapping[str, Any]) -> None:
    from unmix.methods import METHODS, method_class
    from unmix.training.settings import method_options

    kind = method_class(method)
    about = (inspect.getdoc(kind) or "").split("\n")[0]
    others = ", ".join(name for name in METHODS if name != method)
    group = parser.add_argument_group(f"Method {method} (others: {others})", about)
    names = set(inspect.signature(kind).parameters) - set(method_options(method))
    _add_parameters(group, kind.__init__, kind, names, defaults)  # type: ignore[misc]


def _add_parameters(
    target: Any, function: Any, documented: Any, skip: set[str], defaults: Mapping[str, Any]
) -> None:
    """A flag for every parameter, as its signature and docstring describe it."""
    from docstring_parser import parse

    described = parse(inspect.getdoc(documented) or "").params
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


def _call(command: str, about: str, function: Callable[..., Any], words: list[str]) -> None:
    """Parse a function's parameters and call it."""
    parser = _parser(command, about)
    _add_parameters(parser, function, function, {"say", "baselines"}, {})
    function(**_parse(parser, words))


def _parse(parser: ArgumentParser, words: list[str]) -> dict[str, Any]:
    """What was given on the command line, and nothing else.

    Raises:
        UserError: for what cannot be understood, in one line.
    """
    try:
        parsed = parser.parse_args(words)
    except argparse.ArgumentError as error:
        raise UserError(_explain(str(error), parser)) from None
    except SystemExit:
        raise _HelpShown from None
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
    if parser.prog == "unmix pretrain":
        from unmix.training.settings import methods_with

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


if __name__ == "__main__":
    sys.exit(main())
