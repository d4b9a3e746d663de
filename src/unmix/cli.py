"""The command line: from arguments to calls."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import Any

from unmix import __version__, synonyms
from unmix.config import MixtureSettings, Settings, field_names
from unmix.config.catalog import catalog
from unmix.config.compatibility import check_mixture
from unmix.config.completion import candidates, script
from unmix.config.earlier import old_names_noted
from unmix.config.figures import checked, figures_text, list_figures
from unmix.config.flags import HelpShown, Parser, underscored
from unmix.config.help import ABOUT, ABOUTS, COMMAND_EXAMPLES
from unmix.config.recipes import recipe_in_full, recipe_names, summary
from unmix.config.settings_parser import TAKE_SETTINGS, parse_settings, settings_parser
from unmix.errors import Interrupted, UserError, lost_worker

# Commands import what they need once their flags are parsed: importing PyTorch and Lightning takes
# seconds, which neither help nor an error about a flag should wait for.

__all__ = ["main", "parse_pretrain"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: The arguments of `unmix`; by default those of the process.

    Returns:
        The exit status: 0, 2 for a user error or a file that cannot be written, 1 for what the
        machine did, such as a process that was killed, 128 and the number of the signal when one
        stopped it, such as 130 when interrupted.
    """
    typed = list(sys.argv[1:] if arguments is None else arguments)
    args = typed if typed[:1] == ["--complete"] else [underscored(word) for word in typed]
    try:
        with old_names_noted(lambda note: print(f"unmix: note: {note}", file=sys.stderr)):
            status = _run(args)
        # Flushed here, because a closed pipe could not be caught at exit.
        sys.stdout.flush()
        return status
    except UserError as error:
        print(f"unmix: error: {error.on_command_line()}", file=sys.stderr)
        return error.status
    except RuntimeError as error:
        if (lost := lost_worker(error)) is None:
            raise
        print(f"unmix: error: {lost}", file=sys.stderr)
        return lost.status
    except KeyboardInterrupt as error:
        signal_ = error if isinstance(error, Interrupted) else Interrupted()
        print(f"unmix: {signal_.verb}{_way_on(args, error)}.", file=sys.stderr)
        return 128 + signal_.signum
    except BrokenPipeError:
        # Whoever read our output has enough; Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _way_on(args: Sequence[str], interrupt: KeyboardInterrupt) -> str:
    """How to continue after an interrupt, if that is possible."""
    if interrupt.args and args[0] in ("pretrain", "submit"):  # other commands have many runs
        return f"; {interrupt.args[0]}"
    if args[0] in RESUMED:
        return "; give the same command again to continue"
    if args[:1] == ["probe"]:
        return "; the rows printed so far are saved"
    return ""


def _run(args: list[str]) -> int:
    if os.environ.get("UNMIX_PLUGINS"):
        from unmix.plugins import load

        load()
    if not args or args[0] in _HELP:
        if (words := [word for word in args[1:] if word not in _HELP]) == []:
            print(overview())
            return 0
        args = _help_of(words)
    if args[0] in ("-V", "--version"):
        if args[1:]:
            raise UserError(f"{args[1]}: {args[0]} takes no argument.")
        print(f"unmix {__version__}")
        return 0
    if args[0].split("=")[0] == "--completion":
        shell = " ".join(filter(None, [args[0].partition("=")[2], *args[1:]]))
        if not shell:
            raise UserError("--completion: expects one value: bash, zsh or fish.")
        print(script(shell), end="")
        return 0
    if args[0] == "--complete":
        abouts = {name: about for name, (about, _) in COMMANDS.items()}
        abouts["data pack"] = abouts["data"]
        for word, text in candidates(args[1:], abouts, parser_of):
            print(f"{word}\t{text}")
        return 0
    name, rest = synonyms.SPELLINGS.get(args[0], args[0]), args[1:]
    if name not in COMMANDS:
        near = synonyms.COMMANDS.get(name.lower()) or synonyms.nearest(name, COMMANDS)
        hint = f" Did you mean {near!r}?" if near else ""
        raise UserError(
            f"unknown command {name!r}.{hint} Commands: {', '.join(COMMANDS)}. Run `unmix COMMAND "
            "--help` for details."
        )
    with contextlib.suppress(HelpShown):
        COMMANDS[name][1](rest)
    return 0


def _help_of(words: list[str]) -> list[str]:
    """The arguments that ask a command for its help, of the words behind `help`.

    Raises:
        UserError: if there are more words than a command has.
    """
    count = 2 if words[0] == "data" or words[:2] == ["study", "show"] else 1
    if more := words[count:]:
        raise UserError(f"{more[0]}: help takes a command alone, such as `unmix help pretrain`.")
    return [*words, "--help"]


def overview() -> str:
    """What `unmix --help` prints."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {about}" for name, (about, _) in COMMANDS.items()]
    return "\n".join(
        [
            ABOUT, "", "usage: unmix COMMAND ...", "", *lines, "",
            "Run `unmix COMMAND --help` for details, and `unmix --completion bash` (or zsh, fish)",
            "for completion in your shell.",
        ]
    )  # fmt: skip


def parser_of(command: str, args: list[str]) -> Parser:
    """The parser of a command; its arguments may choose the method, whose flags it has.

    Raises:
        UserError: if the method, the recipe or the run that they name does not exist.
    """
    if command in TAKE_SETTINGS:
        return settings_parser(command, args)[0]
    about = ABOUTS.get(command) or catalog().commands[command].about
    more = figures_text() if command == "plot" else COMMAND_EXAMPLES.get(command)
    parser = Parser(command, about, more)
    if command == "recipes":
        parser.add_argument("name", nargs="?", metavar="RECIPE", help="Print this recipe.")
    elif command == "methods":
        parser.add_argument("method", nargs="?", metavar="METHOD", help="Show only this method.")
        parser.add_argument("--json", dest="as_json", action="store_true", help="Print JSON.")
    else:
        parser.add_parameters(catalog().commands[command].parameters.values())
    if command in (*MEASURING, "compare", "study show"):
        text = "Print JSON; other output goes to standard error."
        parser.add_argument("--json", dest="as_json", action="store_true", help=text)
    if command == "preview":
        parser.add_group(MixtureSettings, "Mixtures", {})
    return parser


def pretrain_command(args: list[str]) -> None:
    """`unmix pretrain`."""
    config, given = parse_pretrain(args)
    extend = given.pop("extend", False)
    if given.pop("dry_run", False):
        from unmix.commands.plan import dry_run

        dry_run(config, extend=extend, **given)
        return
    from unmix.training.run.pretrain import pretrain

    pretrain(config, extend=extend, **given)


def parse_pretrain(args: list[str]) -> tuple[list[str] | None, dict[str, Any]]:
    """Parse the arguments of `unmix pretrain`: the recipes, and the settings that are given.

    Raises:
        UserError: if an argument is unknown or invalid.
    """
    return parse_settings("pretrain", args)[:2]


def bench_command(args: list[str]) -> None:
    """`unmix bench`."""
    config, given, own = parse_settings("bench", args)
    from unmix.commands.bench import bench

    bench(config, **own, **given)


def plan_command(args: list[str]) -> None:
    """`unmix plan`."""
    config, given, own = parse_settings("plan", args)
    from unmix.commands.plan import plan

    plan(config, **own, **given)


def submit_command(args: list[str]) -> None:
    """`unmix submit`."""
    config, given, own = parse_settings("submit", args)
    from unmix.commands.submit import submit

    submit(config, **own, **given)


def study_command(args: list[str]) -> None:
    """`unmix study` and `unmix study show`."""
    if args[:1] == ["show"]:
        given = parser_of("study show", args[1:]).parse(args[1:])
        if given.pop("as_json", False):
            from unmix.commands.as_json import study_as_json

            study_as_json(given)
            return
        from unmix.commands.study import show_study

        show_study(**given)
        return
    config, given, own = parse_settings("study", args)
    from unmix.commands.study import study

    study(**own, config=config, **given)


def recipes_command(args: list[str]) -> None:
    """`unmix recipes`."""
    name = parser_of("recipes", args).parse(args).get("name")
    if name is not None:
        print(recipe_in_full(name, "RECIPE"), end="")
        return
    width = max(map(len, recipe_names()))
    for recipe_name in recipe_names():
        print(f"{recipe_name:<{width}}  {summary(recipe_name)}")


def calling(name: str, function: str | None = None) -> Callable[[list[str]], None]:
    """The command that calls a function of `unmix.commands`; by default that of its name."""
    called = function or name

    def command(args: list[str]) -> None:
        given = parser_of(name, args).parse(args)
        measure = getattr(import_module(f"unmix.commands.{called}"), called)
        measure = partial(measure, *given.pop("runs", ()))
        if not given.pop("as_json", False):
            measure(**given)
            return
        from unmix.commands.as_json import measured_as_json

        measured_as_json(measure, given)

    return command


def compare_command(args: list[str]) -> None:
    """`unmix compare`."""
    given = parser_of("compare", args).parse(args)
    if given.pop("as_json", False):
        from unmix.commands.as_json import comparison_as_json

        comparison_as_json(given)
        return
    from unmix.commands.compare import compare

    compare(*given.pop("runs"), **given)


def plot_command(args: list[str]) -> None:
    """`unmix plot` and `unmix plot list`."""
    if args == ["list"]:
        print(list_figures())
        return
    given = checked(parser_of("plot", args).parse(args))
    from unmix.commands.plot import plot

    plot(given.pop("name"), *given.pop("runs"), **given)


def preview_command(args: list[str]) -> None:
    """`unmix preview`."""
    given = parser_of("preview", args).parse(args)
    flags = {name: given.pop(name) for name in field_names("mixture") if name in given}
    settings = Settings.of(flags)
    check_mixture(flags, settings)
    from unmix.commands.preview import preview

    preview(mixture=settings.mixture, **given)


def methods_command(args: list[str]) -> None:
    """`unmix methods`."""
    from unmix.config.matrix import methods

    methods(**parser_of("methods", args).parse(args))


def data_command(args: list[str]) -> None:
    """`unmix data`: a group of commands, so far only `pack`."""
    asked = args[:1] and args[0] in _HELP
    if asked and (words := [word for word in args[1:] if word not in _HELP]):
        args, asked = _help_of(["data", *words])[1:], False
    if not args or asked:
        print(
            "usage: unmix data COMMAND ...\n\n"
            "  pack  pack a folder of images into a few large files, for --data OUT\n\n"
            "Run `unmix data COMMAND --help` for details."
        )
        return
    if args[0] != "pack":
        raise UserError(f"unknown command {'data ' + args[0]!r}. Commands: data pack.")
    calling("data pack", "pack")(args[1:])


_HELP = ("-h", "--help", "help")

# Commands that continue where they were interrupted when they are started again.
RESUMED = (
    "pretrain", "finetune", "transfer", "study", "demo", "data", "predict", "embed", "neighbors",
)  # fmt: skip

# Commands that print rows of results.json, and as JSON with --json.
MEASURING = ("knn", "probe", "finetune", "transfer", "quality", "detect")

COMMANDS: dict[str, tuple[str, Callable[[list[str]], None]]] = {
    "pretrain": ("pretrain an encoder on images without labels, and evaluate it", pretrain_command),
    "submit": ("pretrain in a job of SLURM", submit_command),
    "import": (
        "make a run of another project's weights",
        calling("import", "import_weights"),
    ),
    "knn": ("evaluate a run by kNN", calling("knn")),
    "probe": ("evaluate a run by a linear probe", calling("probe")),
    "finetune": ("fine-tune a run's encoder on all or some labels", calling("finetune")),
    "transfer": ("evaluate runs on other labeled data sets, in one table", calling("transfer")),
    "quality": ("measure runs without labels, and say which to keep", calling("quality")),
    "detect": ("train and evaluate a detector on a run's encoder", calling("detect")),
    "predict": ("predict the classes of images with what finetune trained", calling("predict")),
    "embed": ("write the features of images to a file", calling("embed")),
    "neighbors": ("draw nearest neighbors, and list near-duplicates", calling("neighbors")),
    "export": ("write an encoder for another tool", calling("export")),
    "study": ("compare conditions over paired seeds, with statistical tests", study_command),
    "compare": ("compare runs in a table, figures and a report", compare_command),
    "plot": ("draw a figure of runs, such as t-SNE or the softmax over images", plot_command),
    "watch": ("show the report in a browser while runs are trained", calling("watch")),
    "preview": ("draw your images mixed, or augmented", preview_command),
    "plan": ("predict time, memory and cost of a training", plan_command),
    "bench": ("measure the training speed on this machine, by stage", bench_command),
    "data": ("pack a folder of images into a few large files", data_command),
    "methods": ("list the methods and the mixing rules that they support", methods_command),
    "recipes": ("list the recipes, or print one", recipes_command),
    "demo": ("train small runs and compare them, in minutes", calling("demo")),
}


if __name__ == "__main__":
    sys.exit(main())
