"""The code keeps to the plan of the house (docs/architecture.md): which room may import which."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "unmix"

# Each room with the rooms it may import; errors, names, randomness, transfer
# and distributed are open to all.
ALLOWED = {
    "errors": set(),
    "names": set(),
    "html": {"names"},
    "synonyms": set(),
    "randomness": set(),
    "transfer": set(),
    "distributed": set(),
    "files": set(),
    "checksums": set(),
    "clustering": set(),
    "losses": set(),
    "memory": set(),
    "momentum": set(),
    "backbones": set(),
    "mixtures": set(),
    "credit": set(),
    "collate": {"mixtures", "credit"},
    "methods": {"losses", "clustering", "memory", "momentum", "backbones"},
    "step": {"methods", "credit", "mixtures"},
    "together": {"methods", "credit", "mixtures", "backbones"},
    "stepper": {"step", "together", "methods", "credit", "mixtures", "config"},
    "data": set(),
    "recipes": set(),
    "config": {"mixtures", "recipes"},
    "views": {"config"},
    "results": {"files", "html"},
    "figures": {"results", "files", "html"},
    "evaluation": {"checksums", "data", "views", "methods", "backbones"},
    "training": {
        "step", "together", "methods", "backbones", "credit", "mixtures", "data", "views",
        "evaluation", "config", "recipes", "results", "files", "checksums",
    },
    "statistics": set(),
    "studies": {"statistics", "training", "config", "results", "files"},
    "commands": {
        "studies",
        "training", "evaluation", "figures", "results", "files", "data", "views", "mixtures",
        "methods", "recipes", "credit", "config", "html",
    },
    "catalog": {
        "backbones", "commands", "config", "credit", "data", "evaluation", "methods", "mixtures",
    },
    "cli": {"config", "commands", "training", "recipes"},
}  # fmt: skip
OPEN = {"errors", "names", "synonyms", "randomness", "transfer", "distributed"}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """The rooms that a file imports, at its top or within functions."""
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
    path for path in sorted(PACKAGE.rglob("*.py")) if room_of(path) not in ("__init__", "__main__")
]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_imports_only_the_rooms_that_its_own_may(path):
    room = room_of(path)
    assert imports(path) - OPEN - ALLOWED[room] - {room} == set()


def test_the_allowed_directions_have_no_circle():
    order: list[str] = []
    rooms = dict(ALLOWED)
    while rooms:
        free = [room for room, needs in rooms.items() if needs <= set(order)]
        assert free, f"these need each other: {sorted(rooms)}"
        order += free
        for room in free:
            del rooms[room]
    assert order[-1] == "cli"


def test_no_module_is_longer_than_a_reader_can_hold():
    assert {str(p): n for p in FILES if (n := len(p.read_text().splitlines())) > 400} == {}
