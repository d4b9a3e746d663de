"""The command line: words to calls."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from unmix import __version__, synonyms
from unmix.config import GROUPS, MixtureSettings, Settings, field_names
from unmix.config.catalog import catalog
from unmix.config.compatibility import check_data, check_rule
from unmix.config.completion import candidates, script
from unmix.config.earlier import old_names_noted
from unmix.config.flags import HelpShown, Parser
from unmix.config.help import ABOUT, ABOUTS, EXAMPLES, STUDY_EXAMPLES
from unmix.config.parameters import Parameter
from unmix.config.recipes import recipe_in_full, recipe_names, resolve, summary
from unmix.config.saved import check_method, is_run, saved_words
from unmix.errors import UserError, check_choice, check_given

# What a command needs it imports itself, once its flags are understood: PyTorch and Lightning take
# seconds, and neither help nor the refusal of a flag shall wait for them.

__all__ = ["main", "pretrain_words"]

_RUNLESS = {
    "bench": "unmix bench writes no run folder",
    "study": "unmix study has run folders of its own",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: The words behind `unmix`; by default those of the process.

    Returns:
        The exit status: 0, 2 for a mistake of the user or a file that cannot be written, 130 when
        interrupted.
    """
    typed = list(sys.argv[1:] if arguments is None else arguments)
    words = typed if typed[:1] == ["--complete"] else [_underscored(word) for word in typed]
    try:
        with old_names_noted(lambda note: print(f"unmix: note: {note}", file=sys.stderr)):
            status = _run(words)
        # Here, not at exit, where a closed pipe could no longer be caught.
        sys.stdout.flush()
        return status
    except UserError as error:
        print(f"unmix: error: {error.on_command_line()}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print(f"unmix: interrupted{_way_on(words, error)}.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read our output has enough; Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _way_on(words: Sequence[str], interrupt: KeyboardInterrupt) -> str:
    """What to do after an interrupt, where there is something to do."""
    if interrupt.args and words[0] == "pretrain":  # a demo is four runs
        return f"; {interrupt.args[0]}"
    if words[0] in RESUMED:
        return "; give the same command again to go on"
    if words[:1] == ["probe"]:
        return "; the rows that were printed are kept"
    return ""


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
    if words[0].split("=")[0] == "--completion":
        shell = words[0].partition("=")[2] or " ".join(words[1:])
        if not shell:
            raise UserError("--completion: needs one value: bash, zsh or fish.")
        print(script(shell), end="")
        return 0
    if words[0] == "--complete":
        abouts = {name: about for name, (about, _) in COMMANDS.items()}
        abouts["data pack"] = abouts["data"]
        for word, text in candidates(words[1:], abouts, parser_of):
            print(f"{word}\t{text}")
        return 0
    name, rest = words[0], words[1:]
    if name not in COMMANDS:
        near = synonyms.COMMANDS.get(name.lower()) or synonyms.nearest(name, COMMANDS)
        hint = f" Did you mean {near!r}?" if near else ""
        raise UserError(f"{name!r} is no command.{hint} Commands: {', '.join(COMMANDS)}.")
    with contextlib.suppress(HelpShown):
        COMMANDS[name][1](rest)
    return 0


def overview() -> str:
    """What `unmix --help` prints."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {about}" for name, (about, _) in COMMANDS.items()]
    return "\n".join(
        [
            ABOUT, "", "usage: unmix COMMAND ...", "", *lines, "",
            "unmix COMMAND --help tells more. unmix --completion bash (or zsh, fish) prints what",
            "completes these words in your shell.",
        ]
    )  # fmt: skip


def parser_of(command: str, words: list[str]) -> Parser:
    """The parser of a command; the words behind it may choose the method, whose flags it has.

    Raises:
        UserError: if the method, the recipe or the run that they name cannot be.
    """
    if command in ("pretrain", *_RUNLESS):
        return _settings_parser(command, words)[0]
    parser = Parser(command, ABOUTS.get(command) or catalog().commands[command].about)
    if command == "recipes":
        parser.add_argument("name", nargs="?", metavar="RECIPE", help="Print this recipe.")
    elif command == "methods":
        parser.add_argument("method", nargs="?", metavar="METHOD", help="Only this method's row.")
        parser.add_argument("--json", dest="as_json", action="store_true", help="Print JSON.")
    else:
        parser.add_parameters(catalog().commands[command].parameters.values())
    if command in ("knn", "probe", "compare", "study show"):
        text = "Print JSON; lines go to the standard error."
        parser.add_argument("--json", dest="as_json", action="store_true", help=text)
    if command == "preview":
        parser.add_group(MixtureSettings, "Mixtures", {})
    return parser


def pretrain_command(words: list[str]) -> None:
    """`unmix pretrain`."""
    config, given = pretrain_words(words)
    from unmix.training.run.pretrain import pretrain

    pretrain(config, **given)


def pretrain_words(words: list[str]) -> tuple[list[str] | None, dict[str, Any]]:
    """What the words behind `unmix pretrain` say: recipes, and the settings that were given.

    Raises:
        UserError: for what cannot be understood, or is out of range.
    """
    return _parse_settings("pretrain", words)[:2]


def bench_command(words: list[str]) -> None:
    """`unmix bench`."""
    config, given, own = _parse_settings("bench", words)
    from unmix.commands.bench import bench

    bench(config, **own, **given)


def _parse_settings(
    command: str, words: list[str]
) -> tuple[list[str] | None, dict[str, Any], dict[str, Any]]:
    """Parse the flags of a command that takes all settings of a run.

    Returns:
        The recipes, the settings that were given, and what was given of the command's own.

    Raises:
        UserError: for what cannot be understood, or is out of range.
    """
    parser, defaults = _settings_parser(command, words)
    given = parser.parse(words)
    config = given.pop("config", None)
    own = _own_parameters(command)
    own_given = {name: given.pop(name) for name in own if name in given}
    if command in _RUNLESS and "run" in given:
        raise UserError(f"--run: {_RUNLESS[command]}; leave it out.")
    check_data(str({**defaults, **given}["data"]))
    check_rule(Settings.of({**defaults, **given}))
    return config, given, own_given


def _own_parameters(command: str) -> dict[str, Parameter]:
    """What a command takes beside the settings of a run."""
    return catalog().commands[command].parameters if command in _RUNLESS else {}


def _settings_parser(command: str, words: list[str]) -> tuple[Parser, dict[str, Any]]:
    """The parser of a command that takes all settings of a run, and what they start from."""
    defaults = _defaults(words)
    own = _own_parameters(command)
    epilog = {"pretrain": EXAMPLES, "study": STUDY_EXAMPLES}.get(command)
    about = ABOUTS.get(command) or catalog().commands[command].about
    parser = Parser(command, about, epilog, takes_methods=True)
    name = " NAME" if any(parameter.positional for parameter in own.values()) else ""
    parser.usage = (
        f"unmix {command}{name} [--config RECIPE] [--method METHOD] [--data DATA] [flags]"
    )
    parser.add_argument(
        "--config",
        metavar="RECIPE",
        action="append",
        help="A recipe (unmix recipes) or YAML file; given again, the later one comes over it.",
    )
    for name, group in GROUPS.items():
        parser.add_group(group, name.capitalize(), defaults)
        if name == "run":
            parser.add_method(defaults["method"], defaults)
    parser.add_parameters(own.values())
    return parser, defaults


def _defaults(words: list[str]) -> dict[str, Any]:
    """What the flags start from: the run that the folder holds, or the recipes."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config", nargs="?", action="append")
    for name in ("method", "data", "run"):
        first.add_argument(f"--{name}", nargs="?")
    early = {k: v for k, v in vars(first.parse_known_args(words)[0]).items() if v is not None}
    # A value that is missing is told by the parser of all flags.
    config = [name for name in early.pop("config", []) if name is not None] or None
    for name, value in early.items():
        check_given(name, value)
    if "method" in early:
        check_choice("method", early["method"], catalog().methods)
    if config is None and "run" in early and is_run(early["run"]):
        # Another method has other options, and the run's would be taken for the mistake.
        if "method" in early:
            check_method(early["run"], early["method"])
        found = {**saved_words(early["run"]), **early}
    else:
        found = resolve(early, config)[0]
    check_choice("method", found["method"], catalog().methods)
    return found


def study_command(words: list[str]) -> None:
    """`unmix study` and `unmix study show`."""
    if words[:1] == ["show"]:
        given = parser_of("study show", words[1:]).parse(words[1:])
        if given.pop("as_json", False):
            from unmix.commands.as_json import study_as_json

            study_as_json(given)
            return
        from unmix.commands.study import show_study

        show_study(**given)
        return
    config, given, own = _parse_settings("study", words)
    from unmix.commands.study import study

    study(**own, config=config, **given)


def recipes_command(words: list[str]) -> None:
    """`unmix recipes`."""
    name = parser_of("recipes", words).parse(words).get("name")
    if name is not None:
        print(recipe_in_full(name, "RECIPE"), end="")
        return
    width = max(map(len, recipe_names()))
    for recipe_name in recipe_names():
        print(f"{recipe_name:<{width}}  {summary(recipe_name)}")


def knn_command(words: list[str]) -> None:
    """`unmix knn`."""
    given = parser_of("knn", words).parse(words)
    from unmix.commands.knn import knn

    _measured(knn, given)


def probe_command(words: list[str]) -> None:
    """`unmix probe`."""
    given = parser_of("probe", words).parse(words)
    from unmix.commands.probe import probe

    _measured(probe, given)


def _measured(measure: Callable[..., Any], given: dict[str, Any]) -> None:
    if not given.pop("as_json", False):
        measure(**given)
        return
    from unmix.commands.as_json import measured_as_json

    measured_as_json(measure, given)


def compare_command(words: list[str]) -> None:
    """`unmix compare`."""
    given = parser_of("compare", words).parse(words)
    if given.pop("as_json", False):
        from unmix.commands.as_json import comparison_as_json

        comparison_as_json(given)
        return
    from unmix.commands.compare import compare

    compare(*given.pop("runs"), **given)


def preview_command(words: list[str]) -> None:
    """`unmix preview`."""
    given = parser_of("preview", words).parse(words)
    flags = {name: given.pop(name) for name in field_names("mixture") if name in given}
    mixture = Settings.of(flags).mixture
    from unmix.commands.preview import preview

    preview(mixture=mixture, **given)


def methods_command(words: list[str]) -> None:
    """`unmix methods`."""
    from unmix.config.matrix import methods

    methods(**parser_of("methods", words).parse(words))


def demo_command(words: list[str]) -> None:
    """`unmix demo`."""
    given = parser_of("demo", words).parse(words)
    from unmix.commands.demo import demo

    demo(**given)


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
    given = parser_of("data pack", words[1:]).parse(words[1:])
    from unmix.commands.pack import pack

    pack(**given)


# What goes on where it was interrupted, if it is started again.
RESUMED = ("pretrain", "study", "demo", "data")

COMMANDS: dict[str, tuple[str, Callable[[list[str]], None]]] = {
    "pretrain": ("train an encoder on images without labels, and measure it", pretrain_command),
    "knn": ("measure a run by weighted kNN", knn_command),
    "probe": ("measure a run by a linear probe", probe_command),
    "study": ("compare conditions over paired seeds, with a verdict", study_command),
    "compare": ("table, figures and a report of several runs", compare_command),
    "preview": ("draw what a mixture does to your images", preview_command),
    "bench": ("measure how fast training is here, stage by stage", bench_command),
    "data": ("put a folder of images into a few large files", data_command),
    "methods": ("the methods, and which mixtures' credit goes with them", methods_command),
    "recipes": ("list the recipes that ship", recipes_command),
    "demo": ("four small runs, a table and a report, in minutes", demo_command),
}


if __name__ == "__main__":
    sys.exit(main())
