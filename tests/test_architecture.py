"""The architecture (docs/architecture.md): which package may import which."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "unmix"

# Each top-level package or module with those it may import; any may import those in OPEN.
ALLOWED = {
    "errors": set(),
    "busy": set(),
    "names": set(),
    "display": set(),
    "html": {"names"},
    "synonyms": set(),
    "randomness": set(),
    "schema": set(),
    "transfer": set(),
    "distributed": set(),
    "stages": set(),
    "files": set(),
    "checksums": set(),
    "clustering": set(),
    "losses": set(),
    "memory": set(),
    "negatives": set(),
    "momentum": {"backbones"},
    "backbones": set(),
    "weights": {"backbones", "checksums", "files"},
    "mixtures": set(),
    "credit": {"mixtures"},
    "collate": {"mixtures", "credit"},
    "methods": {"negatives", "losses", "clustering", "memory", "momentum", "backbones"},
    "encoding": {"backbones", "methods", "credit", "mixtures"},
    "memory_update": {"methods", "credit"},
    "step": {
        "step_mixture", "encoding", "memory_update", "backbones", "methods", "credit", "mixtures",
    },
    "step_mixture": {"together", "methods", "credit", "mixtures"},
    "together": {"methods", "credit", "mixtures", "backbones"},
    "stepper": {"step", "together", "methods", "credit", "mixtures", "config"},
    "data": {"files"},
    "config": {"mixtures", "files"},
    "plugins": {"config", "methods", "credit", "mixtures"},
    "views": {"config"},
    "results": {"busy", "files", "html", "rows"},
    "rows": set(),
    "per_image": {"results", "rows", "files"},
    "figures": {"results", "files", "html"},
    "hardware": {"config"},
    "evaluation": {
        "checksums", "files", "data", "hardware", "views", "methods", "backbones", "mixtures",
        "credit",
    },
    "export": {"backbones", "checksums", "evaluation", "views"},
    "embedding": {"data", "evaluation", "files"},
    "training": {
        "step", "together", "methods", "backbones", "credit", "mixtures", "data", "views",
        "evaluation", "hardware", "config", "results", "rows", "per_image", "files", "checksums",
        "weights", "busy",
    },
    "detection": {"backbones", "data", "files"},
    "statistics": set(),
    "workers": set(),
    "studies": {
        "statistics", "training", "evaluation", "methods", "backbones", "data", "hardware",
        "config", "results", "rows", "per_image", "files", "workers", "busy", "plugins",
    },
    "commands": {
        "studies", "statistics", "detection",
        "training", "evaluation", "figures", "results", "files", "data", "views", "mixtures",
        "weights", "embedding", "export",
        "backbones", "methods", "memory", "credit", "config", "html", "hardware",
        "per_image", "rows", "checksums", "busy",
    },
    "catalog": {
        "backbones", "commands", "config", "credit", "data", "evaluation", "methods", "mixtures",
        "plugins",
    },
    "cli": {"config", "commands", "training", "plugins"},
}  # fmt: skip
OPEN = {
    "errors", "names", "display", "synonyms", "randomness", "schema", "transfer", "distributed",
    "stages",
}  # fmt: skip


def package_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """The packages that a file imports, at its top or within functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("unmix."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.ImportFrom) and node.module == "unmix":
            found |= {alias.name for alias in node.names if alias.name != "__version__"}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("unmix.")}
    return found


FILES = [
    path
    for path in sorted(PACKAGE.rglob("*.py"))
    if package_of(path) not in ("__init__", "__main__")
]


# Packages whose errors name Python's parameters; the command line puts flags in their place.
WITHOUT_FLAGS = {
    "backbones", "clustering", "credit", "losses", "memory", "methods", "mixtures", "momentum",
    "step", "stepper", "together", "views",
}  # fmt: skip


def texts(path: Path) -> list[str]:
    """The string literals of a file, parts of f-strings too, without docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    docs = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs
    ]


@pytest.mark.parametrize(
    "path", [p for p in FILES if package_of(p) in WITHOUT_FLAGS], ids=lambda p: p.stem
)
def test_no_error_of_the_domain_names_a_flag(path):
    assert [text for text in texts(path) if re.search(r"(?<![\w-])--(?=[a-z{]|$)", text)] == []


def test_checks_of_values_are_given_parameters_and_no_flags():
    call = re.compile(r"check_(?:number|choice|given)\(\s*f?\"--")
    assert [str(path) for path in FILES if call.search(path.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_allowed_packages(path):
    package = package_of(path)
    assert imports(path) - OPEN - ALLOWED[package] - {package} == set()


def test_allowed_imports_have_no_cycle():
    order: list[str] = []
    remaining = dict(ALLOWED)
    while remaining:
        ready = [package for package, needs in remaining.items() if needs <= set(order)]
        assert ready, f"a cycle within {sorted(remaining)}"
        order += ready
        for package in ready:
            del remaining[package]
    assert order[-1] == "cli"


def test_no_module_exceeds_400_lines():
    lines = {str(path): len(path.read_text().splitlines()) for path in FILES}
    assert {path: n for path, n in lines.items() if n > 400} == {}


def test_the_table_of_imports_lists_every_package():
    assert set(ALLOWED) == {package_of(path) for path in FILES}


def test_the_page_describes_every_package_and_names_no_missing_module():
    text = (PACKAGE.parents[1] / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = text.split("\n## Packages\n")[1].split("\n## ")[0].splitlines()
    described = {
        name.rstrip("/").removesuffix(".py"): row
        for row in rows
        for name in re.findall(r"`([^`]+)`", row.split(" | ")[0])
    }
    assert set(described) - {"recipes"} == {package_of(path) for path in FILES}
    for package, row in described.items():
        for name in re.findall(r"`([\w/]+(?:\.py|/))`", row):
            assert any((PACKAGE / part / name).exists() for part in ("", package)), name
    for name in re.findall(r"`([\w/]+\.py)`", text.split("\n## A training step\n")[1]):
        assert (PACKAGE / name).exists(), name


def test_the_packages_of_training_import_in_one_direction():
    """loading < loop < run < profiling; console is open to all, and mixing is below run."""
    above = {"loading": {"loop", "run", "profiling", "mixing"}, "loop": {"run", "profiling"}}
    above["run"] = {"profiling"}
    for package, forbidden in above.items():
        for path in (PACKAGE / "training" / package).glob("*.py"):
            modules = {
                node.module.split(".")[2]
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, ast.ImportFrom)
                and (node.module or "").startswith("unmix.training.")
            }
            assert modules & forbidden == set(), path
