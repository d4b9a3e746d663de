"""The wheel: its contents, and that it works from outside the source tree."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "unmix"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel of a copy of the sources, so that nothing is left in the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    ignored = ("--exclude=./.venv*", "--exclude=./.git", "--exclude=./runs", "--exclude=*.egg-info")
    source.mkdir()
    tar = subprocess.run(
        ["tar", "-C", str(ROOT), *ignored, "-cf", "-", "."], capture_output=True, check=True
    )
    subprocess.run(["tar", "-C", str(source), "-xf", "-"], input=tar.stdout, check=True)
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    (found,) = folder.glob("*.whl")
    return found


def test_the_wheel_contains_recipes_template_types_and_license(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    recipes = PACKAGE / "recipes"
    shipped = {f"unmix/recipes/{path.relative_to(recipes)}" for path in recipes.rglob("*.yaml")}
    assert shipped
    assert shipped <= set(names)
    assert "unmix/figures/report.html" in names
    page = PACKAGE / "figures" / "page"
    assert {f"unmix/figures/page/{path.name}" for path in page.iterdir()} <= set(names)
    assert any(name.endswith("licenses/src/unmix/figures/page/uPlot.LICENSE.txt") for name in names)
    assert "unmix/config/catalog.json" in names
    assert "unmix/py.typed" in names
    assert any(name.endswith("LICENSE") for name in names)
    assert not [name for name in names if name.startswith("tests")]


def test_the_wheel_works_from_another_folder(wheel, tmp_path):
    """Unpacked alone and run elsewhere, it finds its recipes; the checkout is not on the path."""
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    environment = {**os.environ, "PYTHONPATH": str(site)}
    code = "import unmix, sys; print(unmix.__file__); from unmix.cli import main; main(['recipes'])"
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[0] == str(site / "unmix" / "__init__.py")
    assert "moco-v2-imagenet100" in ran.stdout


def test_the_version_is_the_same_in_all_files():
    project = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.M).group(1)
    citation = re.search(r"^version: (.*)", (ROOT / "CITATION.cff").read_text(), re.M).group(1)
    assert project == citation
    assert f"## {project} " in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_every_module_has_a_docstring_and_all(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    if path.name == "__main__.py" or len(tree.body) == 1:
        return  # there are no names
    if path == PACKAGE / "__init__.py":
        return  # its names are those of dir(): see test_public_api
    names = {
        t.id
        for n in tree.body
        if isinstance(n, ast.Assign)
        for t in n.targets
        if isinstance(t, ast.Name)
    }
    assert "__all__" in names
