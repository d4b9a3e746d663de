"""The API reference: a page per package with its public names."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

from tools.markdown import table

__all__ = ["PAGES", "pages_of", "write_api"]

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
    "unmix.figures": "Figures",
    "unmix.statistics": "Statistics",
    "unmix.commands": "Commands",
}


# Names on a second page of their package, which would be too long on a phone.
SECOND = {
    "unmix.mixtures": ("draws", "Draws and boxes", re.compile(r".*Draw$|.*box.*")),
    "unmix.methods": (
        "parts",
        "What methods are made of",
        re.compile(
            "METHODS|Encoder|InstanceDiscrimination|Method|Pair|Progress|build|method_class"
        ),
    ),
    "unmix.commands": (
        "evaluation",
        "Commands that evaluate or use an encoder",
        re.compile("detect|embed|export|finetune|knn|neighbors|predict|probe|quality|transfer"),
    ),
}


def pages_of(package: str) -> dict[str, tuple[str, list[str]]]:
    """The pages of a package by file name: their title and names."""
    page, title, listed = package.removeprefix("unmix."), PAGES[package], names(package)
    if package not in SECOND:
        return {page: (title, listed)}
    second, second_title, pattern = SECOND[package]
    there = [name for name in listed if pattern.fullmatch(name)]
    rest = [name for name in listed if name not in there]
    return {page: (title, rest), f"{page}-{second}": (second_title, there)}


def write_api(folder: Path) -> None:
    """Write a page for each package into a folder that holds a hand-written `index.md`."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for package in PAGES:
        for page, (title, listed) in pages_of(package).items():
            found = ", ".join(f"`{name}`" for name in listed)
            rows.append((f"[`{package}`]({page}.md)", title, found))
            (folder / f"{page}.md").write_text(api_page(package, title, listed), encoding="utf-8")
    index = folder / "index.md"
    text = index.read_text(encoding="utf-8")
    packages = table(("package", "contents", "names"), rows)
    index.write_text(text.replace("<!-- packages -->", packages), encoding="utf-8")


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


def api_page(package: str, title: str, listed: list[str]) -> str:
    """Directives for mkdocstrings; the package's own text comes from its docstring."""
    about = inspect.getdoc(importlib.import_module(package)) or ""
    text = about.split("\n\n")[0]
    parts = [f"# {title}", text if package != "unmix" else "", f"```python\nimport {package}\n```"]
    parts += [f"::: {package}.{name}" for name in listed]
    return "\n\n".join(part for part in parts if part) + "\n"
