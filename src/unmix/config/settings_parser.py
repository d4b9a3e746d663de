"""Parsers of the commands that take all settings of a run."""

from __future__ import annotations

import argparse
from typing import Any

from unmix.config import GROUPS, Settings
from unmix.config.augmentation import layered
from unmix.config.catalog import catalog
from unmix.config.compatibility import check_data, check_mixture, check_rule, check_teacher
from unmix.config.flags import Parser
from unmix.config.help import ABOUTS, EXAMPLES, STUDY_EXAMPLES, SUBMIT_EXAMPLES
from unmix.config.parameters import Parameter
from unmix.config.recipes import resolve
from unmix.config.saved import check_method, checked_settings, is_run, saved_settings
from unmix.errors import UserError, check_choice, check_given

__all__ = ["TAKE_SETTINGS", "parse_settings", "settings_parser"]

RUNLESS = {
    "bench": "does not apply to unmix bench, which writes no run folder",
    "plan": "does not apply to unmix plan, which writes no run folder",
    "study": "does not apply to unmix study, which has its own run folders",
}
TAKE_SETTINGS = ("pretrain", "submit", *RUNLESS)


def parse_settings(
    command: str, args: list[str]
) -> tuple[list[str] | None, dict[str, Any], dict[str, Any]]:
    """Parse the flags of a command that takes all settings of a run.

    Returns:
        The recipes, the settings that are given, and the command's own parameters that are given.

    Raises:
        UserError: if an argument is unknown or invalid.
    """
    parser, defaults = settings_parser(command, args)
    given = parser.parse(args)
    config = given.pop("config", None)
    alone = {name: True for name in ("extend", "dry_run") if given.pop(name, False)}
    own = _own_parameters(command)
    own_given = {name: given.pop(name) for name in own if name in given}
    if command in RUNLESS and "run" in given:
        raise UserError(f"{RUNLESS[command]}; leave it out.", parameter="run")
    if command != "pretrain" and given.get("engine", "lightning") != "lightning":
        raise UserError(
            f"{given['engine']} applies to unmix pretrain, and not to unmix {command}.",
            parameter="engine",
        )
    check_data(str({**defaults, **given}["data"]))
    settings = Settings.of(layered([defaults, given]))
    check_rule(settings)
    if command != "study":  # its file has the conditions' teachers
        check_teacher(settings)
    check_mixture(given, settings)
    return config, given | alone, own_given


def _own_parameters(command: str) -> dict[str, Parameter]:
    """The parameters of a command beside the settings of a run."""
    return catalog().commands[command].parameters if command != "pretrain" else {}


def settings_parser(command: str, args: list[str]) -> tuple[Parser, dict[str, Any]]:
    """The parser of a command that takes all settings of a run, and their defaults."""
    defaults = _defaults(args)
    own = _own_parameters(command)
    examples = {"pretrain": EXAMPLES, "study": STUDY_EXAMPLES, "submit": SUBMIT_EXAMPLES}
    epilog = examples.get(command)
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
        help="A recipe (see unmix recipes) or YAML file; later ones override earlier ones.",
    )
    if command in ("pretrain", "submit"):
        text = "Go on with a run that has ended to --epochs in all: its schedules start again."
        parser.add_argument("--extend", action="store_true", help=text)
    if command == "pretrain":
        text = "Print the plan of this run, as unmix plan does, and end; nothing is written."
        parser.add_argument("--dry_run", action="store_true", help=text)
    for name, group in GROUPS.items():
        parser.add_group(group, name.capitalize(), defaults)
        if name == "run":
            parser.add_method(defaults["method"], defaults)
    parser.add_parameters(own.values())
    return parser, defaults


def _defaults(args: list[str]) -> dict[str, Any]:
    """The defaults of the flags: those of the run in the folder, or of the recipes."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config", nargs="?", action="append")
    for name in ("method", "data", "run", "augmentation"):
        first.add_argument(f"--{name}", nargs="?")
    early = {k: v for k, v in vars(first.parse_known_args(args)[0]).items() if v is not None}
    # A missing value is an error of the parser of all flags.
    config = [name for name in early.pop("config", []) if name is not None] or None
    for name, value in early.items():
        check_given(name, value)
    if "method" in early:
        check_choice("method", early["method"], catalog().methods)
    if config is None and "run" in early and is_run(early["run"]):
        # Before the options, which differ between methods.
        if "method" in early:
            check_method(early["run"], early["method"])
        checked_settings(early["run"])  # a wrong one is the file's, not the command's
        found = layered([saved_settings(early["run"]), early])
    else:
        found = resolve(early, config)[0]
    check_choice("method", found["method"], catalog().methods)
    return found
