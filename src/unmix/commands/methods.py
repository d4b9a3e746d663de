"""The matrix: which rule for credit goes with which method, and why not with others."""

from __future__ import annotations

import inspect
import json

from unmix.commands.finished import Say
from unmix.credit import RULES
from unmix.methods import METHODS, method_class
from unmix.training.console import say as print_line

__all__ = ["matrix", "methods"]


def matrix() -> dict[str, dict[str, str | None]]:
    """For every method and every rule None, or the reason why the rule has no meaning with it."""
    return {
        name: {rule: RULES[rule].why_not(kind) for rule in RULES} for name, kind in METHODS.items()
    }


def methods(method: str | None = None, *, as_json: bool = False, say: Say = print_line) -> None:
    """Show the methods and which rules for credit go with them.

    Args:
        method: Only this method, with what it is and each reason in its line.
        as_json: Print the matrix as JSON: null, or the reason why not.
        say: Prints a line.

    Raises:
        UserError: if there is no such method.
    """
    cells = matrix()
    if method is not None:
        cells = {method: cells[_known(method)]}
    if as_json:
        say(json.dumps(cells, indent=2))
    elif method is not None:
        _say_one(method, cells[method], say)
    else:
        _say_all(cells, say)


def _known(method: str) -> str:
    method_class(method)
    return method


def _say_one(method: str, row: dict[str, str | None], say: Say) -> None:
    say(f"{method}: {_about(method_class(method))}")
    width = max(map(len, row))
    for rule, reason in row.items():
        say(f"  {rule:<{width}}  {'yes' if reason is None else 'no: ' + reason}")


def _say_all(cells: dict[str, dict[str, str | None]], say: Say) -> None:
    """A table with numbers for the reasons, then the reasons and the rules."""
    reasons: dict[str, int] = {}
    for row in cells.values():
        for reason in row.values():
            if reason is not None:
                reasons.setdefault(reason, len(reasons) + 1)
    first = max(map(len, cells))
    widths = {rule: max(len(rule), 3) for rule in RULES}
    say("  ".join(["method".ljust(first), *(rule.ljust(widths[rule]) for rule in RULES)]).rstrip())
    for method, row in cells.items():
        words = ["yes" if why is None else f"({reasons[why]})" for why in row.values()]
        columns = [w.ljust(widths[rule]) for w, rule in zip(words, RULES, strict=True)]
        say("  ".join([method.ljust(first), *columns]).rstrip())
    say("")
    for reason, number in reasons.items():
        say(f"({number}) {reason}")
    say("")
    say("rules, for --unmix --unmix_rule RULE:")
    width = max(map(len, RULES))
    for rule, found in RULES.items():
        instead = "" if found.keeps_clean else " Instead of the clean loss."
        say(f"  {rule:<{width}}  {_about(found)}{instead} [{found.source}]")
    say("")
    say("--IM (image space on all views) goes with every method.")
    say("unmix methods METHOD tells one row; the pages are in docs/methods.")


def _about(described: object) -> str:
    """The first line of a docstring, behind its name."""
    line = (inspect.getdoc(described) or "").split("\n")[0]
    return line.partition(": ")[2] or line
