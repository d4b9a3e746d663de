"""What `import unmix` gives: public names alone, without PyTorch, documented, and typed."""

from __future__ import annotations

import ast
import importlib
import inspect
import pydoc
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import griffe
import pytest

import unmix
from docsite import PAGES, ROOT
from unmix.catalog import keywords_text
from unmix.config import Settings
from unmix.config.keywords import PretrainSettings, ViewOverrides
from unmix.config.views import ViewSettings

SOURCE = ROOT / "src" / "unmix"


def test_the_names_that_users_look_for_are_attributes() -> None:
    names = (
        "pretrain load_encoder METHODS RULES Method Rule MixUp CutMix UnMix Stepper UserError views"
    )
    for name in names.split():
        assert name in dir(unmix)
        assert getattr(unmix, name) is not None


def test_every_registered_method_and_mixture_is_an_attribute() -> None:
    kinds = {method.__name__ for method in unmix.METHODS.values()}
    kinds |= {choice.kind.__name__ for choice in unmix.MIXTURES.values()}
    assert kinds - set(dir(unmix)) == set()


def test_dir_has_only_public_names() -> None:
    names = dir(unmix)
    assert names == sorted(set(names))
    assert [name for name in names if name.startswith("_")] == []
    for name in names:
        assert getattr(unmix, name) is not None
    for internal in ("import_module", "metadata", "Any", "config", "training", "cli"):
        assert internal not in names


def test_help_is_a_page() -> None:
    text = pydoc.render_doc(unmix, renderer=pydoc.plaintext)
    assert len(text.splitlines()) < 120
    for name in dir(unmix):
        assert re.search(rf"\b{name}\b", unmix.__doc__ or ""), name


def test_a_name_that_is_not_there_has_the_nearest_match() -> None:
    with pytest.raises(AttributeError, match="module 'unmix' has no attribute 'Moco'") as caught:
        unmix.Moco  # noqa: B018
    assert (caught.value.name, caught.value.obj) == ("Moco", unmix)  # Python suggests by these
    assert not hasattr(unmix, "Any")


def test_import_does_not_import_pytorch() -> None:
    code = """
import sys, unmix
dir(unmix), unmix.__doc__, unmix.__version__
assert not {"torch", "lightning", "numpy"} & set(sys.modules), sorted(sys.modules)
unmix.UserError
assert "torch" not in sys.modules
unmix.mixtures.UnMix, unmix.views.Views
assert "lightning" not in sys.modules
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_type_checkers_see_the_same_names() -> None:
    """The imports that only type checkers read, and the table that Python reads."""
    tree = ast.parse((SOURCE / "__init__.py").read_text())
    (block,) = [
        node.body
        for node in tree.body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    seen = {}
    for node in block:
        assert isinstance(node, ast.ImportFrom)
        for alias in node.names:
            assert alias.asname == alias.name, "only `A as A` is a name of the package itself"
            seen[alias.name] = node.module
    assert sorted(seen) == dir(unmix)
    for name, module in seen.items():
        assert getattr(importlib.import_module(str(module)), name) is getattr(unmix, name)


def test_every_public_name_has_a_docstring() -> None:
    """Constants too: the text below them, which the API pages show."""
    package = griffe.load("unmix", search_paths=[str(SOURCE.parent)], resolve_aliases=True)
    missing = []
    for page in PAGES:
        module = importlib.import_module(page)
        for name in getattr(module, "__all__", None) or dir(module):
            found = package[f"{page}.{name}".removeprefix("unmix.")]
            target = found.final_target if found.is_alias else found
            if not target.has_docstring:
                missing.append(target.path)
    assert missing == []


def test_modules_within_packages_are_public_only_through_their_package() -> None:
    for page in PAGES:
        module = importlib.import_module(page)
        assert [name for name in getattr(module, "__all__", ()) if name.startswith("_")] == []


def test_the_types_of_the_keywords_are_those_of_the_settings() -> None:
    """If this fails: python -m unmix.catalog."""
    assert (SOURCE / "config" / "keywords.py").read_text() == keywords_text()


def test_every_setting_of_every_method_is_a_keyword() -> None:
    words = set(PretrainSettings.__annotations__)
    for method in unmix.METHODS:
        assert set(Settings.of({"method": method}).flat()) <= words
    fields = set(ViewSettings.__dataclass_fields__)
    assert set(ViewOverrides.__annotations__) == {
        name for name in fields if f"second_{name}" in fields
    }


def test_the_settings_can_be_inspected() -> None:
    """By tools that read annotations while the program runs, as notebooks do."""
    from typing import get_type_hints

    hints = get_type_hints(PretrainSettings)
    assert set(hints["method"].__args__) == set(unmix.METHODS)
    assert get_type_hints(unmix.pretrain)["return"].__name__ == "RunResults"
    assert "PretrainSettings" in str(inspect.signature(unmix.pretrain))


def test_a_type_checker_refuses_mistakes() -> None:
    """By mypy in `make test`; each ignored error there is one that must be found."""
    text = (ROOT / "pyproject.toml").read_text()
    assert re.search(r'^files = .*"tests/typing"', text, re.M)
    assert re.search(r'^module = \["api"\].*\nwarn_unused_ignores = true', text, re.M)
    expected = (ROOT / "tests" / "typing" / "api.py").read_text()
    for mistake in ('metod="moco")', 'method="mocco")'):
        assert re.search(re.escape(mistake) + r"  # type: ignore\[(call-arg|arg-type)\]", expected)


@pytest.mark.parametrize("page", PAGES)
def test_every_module_with_a_page_has_a_text(page: str) -> None:
    assert (importlib.import_module(page).__doc__ or "").strip()
    assert Path(importlib.import_module(page).__file__ or "").exists()


@pytest.mark.parametrize(
    ("settings", "meant"),
    [
        ({"metod": "moco"}, "`method`"),
        ({"method": "mocco"}, "'moco'"),
        ({"second_view": {"jiter_p": 0}}, "`second_jitter_p`"),
        ({"method": "moco", "optimizer": "adamv"}, "'adam"),
    ],
)
def test_an_unknown_argument_has_the_nearest_match_in_pythons_words(
    settings: dict[str, Any], meant: str
) -> None:
    for function in (unmix.pretrain, unmix.commands.bench):
        with pytest.raises(unmix.UserError, match=f"Did you mean {meant}") as caught:
            function(**settings)
        assert "--" not in str(caught.value)
        assert "\n" not in str(caught.value)
