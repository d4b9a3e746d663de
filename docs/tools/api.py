"""The API reference: a page per package with its public names."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

from tools.markdown import table

__all__ = ["PAGES", "write_api"]

PAGES = {
    "unmix": "Pretraining and a step of your own",
    "unmix.mixtures": "Mixtures",
    "unmix.credit": "Mixing rules",
    "unmix.methods": "Methods",
    "unmix.backbones": "Backbones",
    "unmix.losses": "Losses",
    "unmix.memory": "Queues and memory banks",
    "unmix.collate": "Collate functions",
    "unmix.views": "Views",
    "unmix.data": "Data",
    "unmix.evaluation": "Evaluation",
    "unmix.commands": "Commands",
}


def write_api(folder: Path) -> None:
    """Write a page for each package into a folder that holds a hand-written `index.md`."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for package, title in PAGES.items():
        page = package.removeprefix("unmix.") + ".md"
        rows.append((f"[`{package}`]({page})", title, ", ".join(f"`{n}`" for n in names(package))))
        (folder / page).write_text(api_page(package, title), encoding="utf-8")
    index = folder / "index.md"
    text = index.read_text(encoding="utf-8")
    listed = table(("package", "contents", "names"), rows)
    index.write_text(text.replace("<!-- table: packages -->", listed), encoding="utf-8")


def names(package: str) -> list[str]:
    """The public names of a package, which its page documents: constants, classes, functions."""
    found = set(public(package))
    if package == "unmix":  # repeats names of its packages; each is documented where it belongs
        found -= {name for other in PAGES if other != package for name in public(other)}
    return sorted(found, key=lambda name: (not name.isupper(), not name[0].isupper(), name.lower()))


def public(package: str) -> list[str]:
    """The public names of a package, without those of packages."""
    module = importlib.import_module(package)
    listed = getattr(module, "__all__", None) or dir(module)
    return [name for name in listed if not inspect.ismodule(getattr(module, name))]


def api_page(package: str, title: str) -> str:
    """Directives for mkdocstrings; the package's own text comes from its docstring."""
    about = inspect.getdoc(importlib.import_module(package)) or ""
    text = about.split("\n\n")[0]
    parts = [f"# {title}", text if package != "unmix" else "", f"```python\nimport {package}\n```"]
    parts += [f"::: {package}.{name}" for name in names(package)]
    return "\n\n".join(part for part in parts if part) + "\n"
