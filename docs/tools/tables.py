"""Tables that repeat the code or the committed results, made from them.

They stand in the pages of `docs/`, between `<!-- table: NAME -->` and `<!-- end of table -->`, so
that a page is whole where it is read without a built site.

python docs/tools/tables.py     rewrites the tables in README.md, docs/ and the tutorial
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[:0] = [str(DOCS), str(DOCS.parent / "src")]

from tools import evidence as first  # noqa: E402
from tools.markdown import table  # noqa: E402
from tools.protocols import fine_tuning, probes  # noqa: E402
from tools.registry import choices, features, methods  # noqa: E402
from tools.studies import (  # noqa: E402
    ANSWER_PICTURE,
    answer,
    answer_figure,
    answer_picture,
    study,
    verdicts,
)

__all__ = ["fill_tables", "pages", "readme"]

README = DOCS.parent / "README.md"

BLOCK = re.compile(
    r"^(?P<head><!-- table: (?P<name>[\w-]+)(?: (?P<of>[\w-]+))? -->)$"
    r"(?:\n\n(?:(?!<!-- table: ).)*?\n?\n<!-- end of table -->$)?",
    re.MULTILINE | re.DOTALL,
)


def fill_tables(text: str, tables: Mapping[str, Callable[..., str]] | None = None) -> str:
    """A page with the present table at every marker, whether or not an earlier one stands there.

    Args:
        text: The page.
        tables: By name; by default those of the pages in `docs/`.

    Raises:
        KeyError: for a marker of no table.
    """

    def filled(match: re.Match[str]) -> str:
        content = (tables or TABLES)[match["name"]](*filter(None, [match["of"]]))
        return f"{match['head']}\n\n{content}\n\n<!-- end of table -->"

    return BLOCK.sub(filled, text)


def readme() -> str:
    """The README as it is to be; its links start at the project's folder."""
    text = README.read_text(encoding="utf-8")
    return fill_tables(text, {name: partial(of, "docs/") for name, of in OF_README.items()})


def pages() -> Iterator[tuple[Path, str]]:
    """Every page and notebook of `docs/`, and its text as it is to be."""
    for path in sorted(DOCS.rglob("*.md")):
        yield path, fill_tables(path.read_text(encoding="utf-8"))
    for path in sorted(DOCS.glob("*.ipynb")):
        yield path, _notebook(path)


def _notebook(path: Path) -> str:
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = fill_tables(cell.source)
    return f"{nbformat.writes(notebook)}\n"


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


def figures() -> str:
    """The figures of `unmix plot`."""
    from unmix.config.figures import FIGURES

    rows = [(f"`{name}`", of.about, of.paper or "–", of.needs) for name, of in FIGURES.items()]
    return table(("figure", "shows", "published", "needs"), rows)


def recipes(method: str = "") -> str:
    """The recipes that ship: of one method, or all."""
    from unmix.config.recipes import recipe, recipe_names, summary

    names = [name for name in recipe_names() if method in ("", recipe(name)["method"])]
    return table(("recipe", "contents"), [(f"`{name}`", summary(name)) for name in names])


def layouts() -> str:
    """The layouts of checkpoints of other projects."""
    from unmix.weights import LAYOUTS

    rows = []
    for layout in LAYOUTS:
        needed = [f"`{name}*`" for name in layout.tensors]
        needed += [f"`{name}` in the file" for name in layout.beside]
        rows.append((layout.name, f"`{layout.place}`", " or ".join(needed), layout.taken))
    return table(("project", "where", "also there", "taken"), rows)


def namings() -> str:
    """How implementations name the tensors of a network."""
    from unmix.weights import NAMINGS

    rows = [(naming.title, f"`{naming.example}`") for naming in NAMINGS.values()]
    return table(("implementation", "known by"), rows)


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
    path = DOCS / "outputs" / f"{name}.txt"
    return f"```text\n{path.read_text(encoding='utf-8').strip()}\n```"


def coverage() -> str:
    """How often intervals and verdicts are right, as `benchmarks/coverage.py` measured it."""
    path = DOCS.parent / "benchmarks" / "results" / "coverage.json"
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


def gpu(card: str) -> str:
    """Steps on a GPU, as `benchmarks/gpu.py` measured them, without those that it skipped."""
    path = DOCS.parent / "benchmarks" / "results" / card / "speed.json"
    measured = json.loads(path.read_text(encoding="utf-8"))["speed"]
    rows = []
    for name, found in measured.items():
        if "stages" not in found:
            continue
        rate = found["stages"]["step"]["images_per_second"]
        stages = (
            f"{found['stages'][stage]['milliseconds_per_step']:.1f}"
            if stage in found["stages"]
            else "–"
            for stage in ("views", "mixture", "forward", "backward", "optimizer", "step")
        )
        rows.append(
            (
                name,
                f"{rate['median']:,.0f} ({rate['min']:,.0f} to {rate['max']:,.0f})",
                *stages,
                f"{found['peak_memory_bytes'] / 1e9:.1f} GB",
            )
        )
    head = ("run", "images/s", "views", "mixture", "forward", "backward", "optimizer", "step, ms")
    return table((*head, "peak memory"), rows)


def matrix_results() -> str:
    """The cells of `benchmarks/results/matrix-photos`, which an earlier version measured."""
    folder = DOCS.parent / "benchmarks" / "results"
    costs = json.loads((folder / "matrix-photos-costs.json").read_text(encoding="utf-8"))
    cells: dict[tuple[str, str], dict[str, Any]] = {}
    for path in sorted((folder / "matrix-photos").glob("*.json")):
        cell = json.loads(path.read_text(encoding="utf-8"))
        cells[cell["method"], cell["mixture"]] = cell
    mixtures = ("none", "IM", "unmix")
    rows = []
    for method in dict.fromkeys(method for method, _ in cells):
        own = [cells[method, mixture] for mixture in mixtures]
        forwards = [costs["forward_equivalents"][f"{method}, {mixture}"] for mixture in mixtures]
        rows.append(
            (
                method,
                str(own[0]["epochs"]),
                *(f"{cell['knn']:.1f} / {cell['linear']:.1f}" for cell in own),
                " / ".join(f"{value:.1f}" for value in forwards),
                " / ".join(f"{cell['minutes']:.1f}" for cell in own),
            )
        )
    each = "plain / IM / Un-Mix"
    head = ("method", "epochs", "plain", "IM", "Un-Mix", f"forward-equivalents ({each})")
    return table((*head, f"minutes ({each})"), rows)


# With the folder where links start.
OF_README: dict[str, Callable[[str], str]] = {
    "evidence": first.evidence,
    "evidence-lead": first.lead,
    "features": features,
}
TABLES: dict[str, Callable[..., str]] = {
    "figures": figures,
    "choices": choices,
    "evidence": partial(first.evidence, ""),
    "evidence-lead": partial(first.lead, ""),
    "features": features,
    "fine-tuning": fine_tuning,
    "flags": flags,
    "methods": methods,
    "recipes": recipes,
    "layouts": layouts,
    "matrix": matrix,
    "namings": namings,
    "probes": probes,
    "output": output,
    "extensions": extensions,
    "coverage": coverage,
    "gpu": gpu,
    "study": study,
    "verdicts": verdicts,
    "answer": answer,
    "answer-figure": answer_figure,
    "matrix-results": matrix_results,
}


if __name__ == "__main__":
    from unmix.figures.saving import render

    for page, content in [*pages(), (README, readme())]:
        if content != page.read_text(encoding="utf-8"):
            page.write_text(content, encoding="utf-8")
    for place, figure in ((ANSWER_PICTURE, answer_picture()), (first.PICTURE, first.picture())):
        place.write_bytes(render(figure, "png"))
