"""The matrix of methods and the mixing rules that they support."""

from __future__ import annotations

import json
from collections.abc import Callable

from unmix.config.catalog import catalog
from unmix.errors import check_choice

__all__ = ["matrix", "methods"]

Say = Callable[[str], None]


def matrix() -> dict[str, dict[str, str | None]]:
    """For every method and rule None, or the reason why the rule does not apply."""
    return {name: entry.facts["why_not"] for name, entry in catalog().methods.items()}


def methods(method: str | None = None, *, as_json: bool = False, say: Say = print) -> None:
    """List the methods and the mixing rules that they support.

    Args:
        method: Show only this method, with its description and the reasons.
        as_json: Print the matrix as JSON: null, or the reason why a rule does not apply.
        say: Prints a line.

    Raises:
        UserError: if there is no such method.
    """
    cells = matrix()
    if method is not None:
        cells = {method: cells[check_choice("method", method, cells, flag="METHOD")]}
    if as_json:
        say(json.dumps(cells, indent=2))
    elif method is not None:
        _say_one(method, cells[method], say)
    else:
        _say_all(cells, say)


def _say_one(method: str, row: dict[str, str | None], say: Say) -> None:
    say(f"{method}: {_line(catalog().methods[method].about)}")
    width = max(map(len, row))
    for rule, reason in row.items():
        say(f"  {rule:<{width}}  {'yes' if reason is None else 'no: ' + reason}")


def _say_all(cells: dict[str, dict[str, str | None]], say: Say) -> None:
    """Print a table with numbers for the reasons, then the reasons and the rules."""
    rules = catalog().rules
    reasons: dict[str, int] = {}
    for row in cells.values():
        for reason in row.values():
            if reason is not None:
                reasons.setdefault(reason, len(reasons) + 1)
    first = max(map(len, cells))
    widths = {rule: max(len(rule), 3) for rule in rules}
    say("  ".join(["method".ljust(first), *(rule.ljust(widths[rule]) for rule in rules)]).rstrip())
    for method, row in cells.items():
        words = ["yes" if why is None else f"({reasons[why]})" for why in row.values()]
        columns = [w.ljust(widths[rule]) for w, rule in zip(words, rules, strict=True)]
        say("  ".join([method.ljust(first), *columns]).rstrip())
    say("")
    for reason, number in reasons.items():
        say(f"({number}) {reason}")
    say("")
    say("rules, for --unmix --unmix_rule RULE:")
    width = max(map(len, rules))
    for rule, found in rules.items():
        instead = "" if found.facts["keeps_clean"] else " Instead of the clean loss."
        say(f"  {rule:<{width}}  {_line(found.about)}{instead} [{found.facts['source']}]")
    say("")
    say("--IM (image space, on all views) applies to every method.")
    say("Run `unmix methods METHOD` for one method; the documentation has a page for each.")


def _line(about: str) -> str:
    """The first line of a docstring, without the name in front."""
    line = about.split("\n")[0]
    return line.partition(": ")[2] or line
