"""The command line: words to calls."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import inspect
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from unmix import __version__
from unmix.config.flags import (
    HelpShown,
    add_class,
    add_method,
    add_parameters,
    build_parser,
    parse,
)
from unmix.errors import UserError

# What a command needs it imports itself: PyTorch and Lightning take seconds, help must not.
if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

__all__ = ["main", "pretrain_words"]

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
    with contextlib.suppress(HelpShown):
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
    config, given = pretrain_words(words)
    from unmix.training.pretrain import pretrain

    pretrain(config, **given)


def pretrain_words(words: list[str]) -> tuple[str | None, dict[str, Any]]:
    """What the words behind `unmix pretrain` say: a recipe, and the settings that were given.

    Raises:
        UserError: for what cannot be understood.
    """
    parser = _settings_parser("pretrain", "Pretrain an encoder and measure it.", words, EXAMPLES)
    return _split_config(parse(parser, words))


def bench_command(words: list[str]) -> None:
    """`unmix bench`."""
    about = "Measure how fast training is here, stage by stage; takes every flag of pretrain."
    parser = _settings_parser("bench", about, words)
    from unmix.commands.bench import bench

    add_parameters(parser, bench, bench, {"config", "say", "words"}, {})
    config, given = _split_config(parse(parser, words))
    if "run" in given:
        raise UserError("--run: unmix bench writes no run folder; leave it out.")
    bench(config, **given)


def _settings_parser(
    command: str, about: str, words: list[str], epilog: str | None = None
) -> ArgumentParser:
    """The parser of a command that takes all settings of a run; its defaults follow from them."""
    from unmix.config import GROUPS
    from unmix.methods import method_class

    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("method", "data", "config", "run"):
        # A value that is missing is told by the parser of all flags.
        first.add_argument(f"--{name}", nargs="?")
    early = {k: v for k, v in vars(first.parse_known_args(words)[0]).items() if v is not None}
    config = early.pop("config", None)
    defaults = _defaults(early, config)
    method = defaults["method"]
    method_class(method)
    parser = build_parser(command, about, epilog=epilog)
    parser.usage = f"unmix {command} [--config RECIPE] [--method METHOD] [--data DATA] [flags]"
    parser.add_argument("--config", metavar="RECIPE", help="A recipe (unmix recipes) or YAML file.")
    for name, group in GROUPS.items():
        add_class(parser, group, name.capitalize(), defaults)
        if name == "run":
            add_method(parser, method, defaults)
    return parser


def _split_config(given: dict[str, Any]) -> tuple[str | None, dict[str, Any]]:
    return given.pop("config", None), given


def recipes_command(words: list[str]) -> None:
    """`unmix recipes`."""
    from unmix.recipes import recipe_names, recipe_text, summary

    parser = build_parser("recipes", "List the recipes that ship, or print one.")
    parser.add_argument("name", nargs="?", metavar="RECIPE", help="Print this recipe.")
    name = parse(parser, words).get("name")
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
    from unmix.config import MixtureSettings, Settings, field_names

    parser = build_parser("preview", "Draw images, their partners and their mixtures.")
    add_parameters(parser, preview, preview, {"mixture", "say"}, {})
    add_class(parser, MixtureSettings, "Mixtures", {})
    given = parse(parser, words)
    flags = {name: given.pop(name) for name in field_names("mixture") if name in given}
    preview(mixture=Settings.of(flags).mixture, **given)


def methods_command(words: list[str]) -> None:
    """`unmix methods`."""
    from unmix.commands.methods import methods

    parser = build_parser("methods", "The methods, and which rules for credit go with them.")
    parser.add_argument("method", nargs="?", metavar="METHOD", help="Only this method's row.")
    parser.add_argument("--json", dest="as_json", action="store_true", help="Print JSON.")
    methods(**parse(parser, words))


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
    "bench": ("measure how fast training is here, stage by stage", bench_command),
    "data": ("put a folder of images into a few large files", data_command),
    "methods": ("the methods, and which mixtures' credit goes with them", methods_command),
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


def _call(command: str, about: str, function: Callable[..., Any], words: list[str]) -> None:
    """Parse a function's parameters and call it."""
    parser = build_parser(command, about)
    add_parameters(parser, function, function, {"say", "baselines"}, {})
    function(**parse(parser, words))


if __name__ == "__main__":
    sys.exit(main())
