"""The command-line reference: a page a command, from the parser that the command itself uses."""

from __future__ import annotations

import argparse
import contextlib
import io
import re
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

from tools.markdown import table
from unmix.cli import COMMANDS, main, overview

__all__ = ["write_reference"]

NO_PARSER = {"data"}  # a group of commands, and not one itself
SUBCOMMANDS = {"data": ["data pack"], "study": ["study", "study show"]}


def write_reference(folder: Path) -> None:
    """Write a page for every command into a folder that holds a hand-written `index.md`."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for name, (about, _) in COMMANDS.items():
        for command in SUBCOMMANDS.get(name, [name]):
            page = command.replace(" ", "-") + ".md"
            rows.append((f"[`unmix {command}`]({page})", about))
            (folder / page).write_text(command_page(command), encoding="utf-8")
    index = folder / "index.md"
    text = f"{table(('command', 'purpose'), rows)}\n\n```text\n{overview()}\n```"
    shown = index.read_text(encoding="utf-8").replace("<!-- commands -->", text)
    index.write_text(shown, encoding="utf-8")


def parser_of(words: list[str]) -> argparse.ArgumentParser:
    """The parser that prints the help of a command."""
    found: list[argparse.ArgumentParser] = []
    original = argparse.ArgumentParser.format_help

    def keep(self: argparse.ArgumentParser) -> str:
        found.append(self)
        return original(self)

    with (
        patch.object(argparse.ArgumentParser, "format_help", keep),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        main([*words, "--help"])
    return found[-1]


def command_page(command: str) -> str:
    """What a command is for, how it is called, and its flags by group."""
    parser = parser_of(command.split())
    about = parser.description or ""
    parts = [f"# unmix {command}", about.strip(), f"```text\n{usage(parser)}\n```"]
    if "--method" in parser._option_string_actions:
        parts.append(
            "Defaults are those of `--method moco --data photos`; other methods and data sets have "
            "those of their recipes. A method's own flags are on "
            "[its page](../../methods/index.md#methods), and "
            f"`unmix {command} --method METHOD --help` prints them with the rest."
        )
    for title, text, rows in groups(parser):
        shown = [] if title is None else [f"## {title}"]
        parts += [*shown, *([text] if text else []), table(("flag", "meaning"), rows)]
    if parser.epilog:
        parts.append(f"```text\n{parser.epilog.strip()}\n```")
    return "\n\n".join(parts) + "\n"


def usage(parser: argparse.ArgumentParser) -> str:
    """The usage line, shortened where it would list every flag."""
    text = " ".join(parser.format_usage().split()).removeprefix("usage: ")
    positional = [a.metavar or a.dest for a in parser._get_positional_actions()]
    return text if len(text) < 100 else " ".join([parser.prog, *map(str, positional), "[flags]"])


def groups(
    parser: argparse.ArgumentParser,
) -> Iterator[tuple[str | None, str, list[tuple[str, str]]]]:
    """Title, text and rows of every group; a method's own flags are on its page."""
    for group in parser._action_groups:
        rows = [row(action) for action in group._group_actions if action.dest != "help"]
        if not rows or (group.title or "").startswith("Method "):
            continue
        default = group.title in ("positional arguments", "options", "optional arguments")
        yield (None if default else group.title), (group.description or "").strip(), rows


def row(action: argparse.Action) -> tuple[str, str]:
    """The flag with its value, and what it means."""
    metavar = action.metavar or (action.dest.upper() if action.nargs != 0 else "")
    value = " ".join(metavar) if isinstance(metavar, tuple) else str(metavar)
    if isinstance(action.nargs, int) and action.nargs > 1 and not isinstance(metavar, tuple):
        value = " ".join([value] * action.nargs)
    if action.nargs in ("+", "*"):
        value = f"{value} ..."
    names = [name for name in action.option_strings if not name.startswith("--no-")]
    shown = "` `".join(names) if names else value
    takes = f" {value}" if names and action.nargs != 0 else ""
    text = re.sub(r"\s+", " ", (action.help or "").replace("%%", "%")).strip()
    return f"`{shown}{takes}`", escaped(text)


def escaped(text: str) -> str:
    """Text for a cell: code stays code, and nothing else is taken for markup."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(p if i % 2 else re.sub(r"([<>*_\[\]])", r"\\\1", p) for i, p in enumerate(parts))
