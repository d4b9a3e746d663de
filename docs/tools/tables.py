"""Tables that repeat the code, made from it. A page says where with `<!-- table: NAME -->`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

from tools.markdown import table
from tools.registry import features, methods

__all__ = ["MARKER", "fill_tables"]

MARKER = re.compile(r"^<!-- table: ([\w-]+)(?: ([\w-]+))? -->$", re.MULTILINE)


def fill_tables(text: str) -> str:
    """A page with every marker replaced by its table.

    Raises:
        KeyError: for a marker of no table.
    """
    return MARKER.sub(lambda match: TABLES[match[1]](*filter(None, match.groups()[1:])), text)


def flags(method: str) -> str:
    """The flags of one method, as its class describes them, with its defaults."""
    from unmix.config.catalog import method_options
    from unmix.config.recipes import resolve

    given = resolve({"method": method}, method)[0]
    rows = [
        (f"`--{name}`", option.text, f"`{shown(given.get(name, option.default))}`")
        for name, option in method_options(method).items()
    ]
    return table(("flag", "meaning", "default"), rows)


def shown(default: object) -> str:
    """A default as it is typed."""
    if isinstance(default, bool):
        return "yes" if default else "no"
    if isinstance(default, (tuple, list)):
        return " ".join(map(str, default)) or "none"
    return "none" if default is None else str(default)


def recipes(method: str = "") -> str:
    """The recipes that ship: of one method, or all."""
    from unmix.config.recipes import recipe, recipe_names, summary

    names = [name for name in recipe_names() if method in ("", recipe(name)["method"])]
    return table(("recipe", "contents"), [(f"`{name}`", summary(name)) for name in names])


def matrix() -> str:
    """Which mixing rule goes with which method, and the reasons where it does not."""
    from unmix.config.catalog import catalog
    from unmix.config.matrix import matrix as cells

    reasons: dict[str, int] = {}
    rows = []
    for method, row in cells().items():
        line = [f"[`{method}`](methods/{method}.md)"]
        for why in row.values():
            number = reasons.setdefault(why, len(reasons) + 1) if why else 0
            line.append(f"({number})" if why else "yes")
        rows.append(line)
    notes = "\n".join(f"{number}. {why}" for why, number in reasons.items())
    return table(("method", *(f"`{name}`" for name in catalog().rules)), rows) + "\n\n" + notes


def extensions() -> str:
    """The files that are read, by their extensions."""
    from unmix.data.formats import EXTENSIONS

    return ", ".join(f"`{name}`" for name in sorted(EXTENSIONS)) + "."


def output(name: str) -> str:
    """What a command printed, as it was stored in `docs/outputs`."""
    path = Path(__file__).parents[1] / "outputs" / f"{name}.txt"
    return f"```text\n{path.read_text(encoding='utf-8').strip()}\n```"


def coverage() -> str:
    """How often intervals and verdicts are right, as `benchmarks/coverage.py` measured it."""
    path = Path(__file__).parents[2] / "benchmarks" / "results" / "coverage.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    lines = [
        (
            row["shape"],
            str(row["pairs"]),
            f"{row['effect']:g}",
            f"{row['coverage']:.1%}",
            f"{row['coverage_bca']:.1%}",
            f"{row['claims']:.1%}",
            f"{row['wrong']:.1%}",
        )
        for row in rows
    ]
    head = ("differences", "pairs", "true effect / sd", "t interval covers", "BCa covers")
    return table((*head, "verdicts", "wrong verdicts"), lines)


def study(name: str) -> str:
    """What the shipped cells of a study of the evidence show so far."""
    from unmix.studies import read_study

    return read_study(Path(__file__).parents[1] / "evidence" / name).markdown()


def first_evidence() -> str:
    """What the README shows of the evidence."""
    from tools.evidence import block_of, evidence

    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    return evidence(block_of(text)[0], "")


TABLES: dict[str, Callable[..., str]] = {
    "evidence": first_evidence,
    "features": features,
    "flags": flags,
    "methods": methods,
    "recipes": recipes,
    "matrix": matrix,
    "output": output,
    "extensions": extensions,
    "coverage": coverage,
    "study": study,
}
