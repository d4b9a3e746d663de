"""Methods and mixtures of one's own: registered, on the command line, and in a study."""

from __future__ import annotations

import importlib
import json
import os
import runpy
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

import unmix
from docsite import ROOT
from test_docs_code import blocks
from unmix import UserError, plugins
from unmix.cli import main, parse_pretrain
from unmix.config import GROUPS, Settings
from unmix.config.catalog import catalog
from unmix.config.parameters import parameters_of
from unmix.config.saved import checked_settings
from unmix.mixtures import IMAGE_SPACE, MIXTURES, MixtureOperator
from unmix.studies.cells import code_of, same_code

PAGE = ROOT / "docs" / "how-to" / "own-method.md"


@pytest.fixture
def code() -> str:
    """The file that the page shows."""
    (text,) = blocks(PAGE, "py")
    return text


@pytest.fixture(autouse=True)
def unregistered(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Forget what a test registers."""
    monkeypatch.setenv(plugins.ENVIRONMENT, "")
    tables: list[Any] = [
        unmix.METHODS, MIXTURES, catalog().methods, catalog().mixtures, plugins._registered,
    ]  # fmt: skip
    before = [dict(table) for table in tables]
    modules = set(sys.modules)
    yield
    for table, content in zip(tables, before, strict=True):
        table.clear()
        table.update(content)
    for name in set(sys.modules) - modules:
        if name.startswith("my_parts"):
            del sys.modules[name]


def loaded(folder: Path, code: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    (folder / "my_parts.py").write_text(code)
    monkeypatch.setenv(plugins.ENVIRONMENT, str(folder / "my_parts.py"))
    plugins.load()
    plugins.load()  # again it does nothing
    return sys.modules["my_parts"]


def test_the_pages_mixture_is_what_it_says(tmp_path, code, monkeypatch):
    parts = loaded(tmp_path, code, monkeypatch)
    images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 8, 8)
    draw = parts.Checkerboard().draw(images.shape, torch.Generator().manual_seed(0))
    assert draw.weight.tolist() == [0.5] * 4
    mixed = draw.apply(images)[0, 0]
    assert mixed[::2, ::2].unique().numel() == 2
    assert torch.equal(mixed[0, ::2], 3 - mixed[2, ::2])
    assert mixed.unique().tolist() == [0, 3]


def test_a_registered_method_steps_and_has_its_options(tmp_path, code, monkeypatch):
    parts = loaded(tmp_path, code, monkeypatch)
    assert unmix.METHODS["tinysiam"] is parts.TinySiam
    dim = catalog().methods["tinysiam"].parameters["dim"]
    assert (dim.default, dim.kind.base, dim.text) == (16, int, "Length of the projections.")
    assert set(catalog().mixtures["checkerboard"]) == {"unmix_patch", "unmix_pairing"}
    backbone = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten())
    method = parts.TinySiam(backbone, dim=4)
    step = unmix.Stepper(method, steps_per_epoch=2, epochs=1, mixture=parts.Checkerboard())
    views = [torch.randn(4, 3, 8, 8), torch.randn(4, 3, 8, 8)]
    loss = step(views)
    assert step.clean is not None
    assert step.mixed is not None
    z = [method.g(backbone(view)) for view in views]
    clean = sum(method.compare({"p": method.h(z[a])}, z[1 - a]).mean() / 2 for a in (0, 1))
    torch.testing.assert_close(step.clean, clean.detach())
    torch.testing.assert_close(loss.detach(), step.clean + step.mixed)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: unmix.register_method("moco", unmix.MoCo), "name: 'moco' is one of unmix's own"),
        (lambda: unmix.register_method("My-Own", unmix.MoCo), "small letters"),
        (lambda: unmix.register_method("mine", unmix.UnMix), "no class of unmix.Method"),
        (lambda: unmix.register_method("mine", unmix.Method), "lacks .*compare.*query.*targets"),
        (lambda: unmix.register_method(3, unmix.MoCo), "name: 3; use small letters"),
        (lambda: unmix.register_mixture("mine", unmix.MixUp, no=1), "fixed: MixUp: .* 'no'"),
        (lambda: unmix.register_mixture("fmix", unmix.FMix), "name: 'fmix' is one of unmix's own"),
        (lambda: unmix.register_mixture("mine", unmix.Cutout), "unmix.mixtures.MixtureOperator"),
        (
            lambda: unmix.register_mixture("mine", unmix.GridMix, cells=1),
            "cells must be at least 2",
        ),
        (
            lambda: unmix.register_mixture("mine", type("Mine", (unmix.UnMix,), {})),
            "kind: Mine must be decorated with @dataclass",
        ),
        (
            lambda: unmix.register_mixture("mine", type("Mine", (MixtureOperator,), {})),
            "kind: Mine must be decorated with @dataclass",
        ),
    ],
)
def test_what_cannot_be_registered_is_told(call, says):
    with pytest.raises(UserError, match=says):
        call()
    assert "mine" not in unmix.METHODS.keys() | MIXTURES.keys() | IMAGE_SPACE.keys()


def method_with(arguments: str, before: str = "") -> Any:
    """A whole method whose constructor has these arguments beside the backbone."""
    text = f"""
        {before}
        class Mine(unmix.MoCo):
            def __init__(self, backbone: nn.Module, {arguments}) -> None:
                super().__init__(backbone, 8)
    """
    names: dict[str, Any] = {"unmix": unmix, "nn": torch.nn, "__name__": __name__}
    exec(textwrap.dedent(text), names)
    return names["Mine"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("*, seed: int = 7", "kind: seed of Mine is a setting of every run"),
        ("*, momentum: float = 0.9", "call it another name, such as own_momentum"),
        ("*, extend: bool = False", "extend of Mine is a setting of every run"),
        ("classes: int", "kind: classes of Mine has no default"),
        ("*, sizes: dict = {}", r"kind: sizes=\{\} of Mine is of no type that a setting has"),
        ("*, act=None", "act=None of Mine is of no type"),
    ],
)
def test_arguments_of_a_method_that_a_run_would_not_give_are_told(arguments: str, says: str):
    with pytest.raises(UserError, match=says) as caught:
        unmix.register_method("mine", method_with(arguments))
    assert "\n" not in str(caught.value)
    assert "mine" not in unmix.METHODS


def test_no_method_of_the_package_has_a_setting_of_every_run():
    every = {name for group in GROUPS.values() for name in parameters_of(group)}
    for name, entry in catalog().methods.items():
        assert not every & set(entry.parameters), name


@pytest.mark.parametrize(
    "options",
    ["dim=16, flag=False, ratio=0.5, word='a'", "dim: int = 16, flag: Missing = False, ratio=0.5"],
    ids=["no annotations", "one of a name for type checkers alone"],
)
def test_the_type_of_an_option_without_annotation_is_that_of_its_default(options: str):
    unmix.register_method(
        "mine", method_with(f"*, {options}", "from __future__ import annotations")
    )
    usual = Settings.of({"method": "mine"}).method
    again = Settings.of(Settings.of({"method": "mine"}).flat()).method
    assert again == usual
    assert [type(value) for value in again.values()] == [int, bool, float, str][: len(again)]
    assert Settings.of({"method": "mine", "flag": True, "dim": 8}).method["flag"] is True


def test_a_method_and_a_mixture_of_one_name_are_two(tmp_path, code, monkeypatch):
    parts = loaded(tmp_path, code, monkeypatch)
    unmix.register_mixture("simsiam", parts.Checkerboard)
    with pytest.raises(UserError, match="name: 'simsiam' is one of unmix's own"):
        unmix.register_method("simsiam", parts.TinySiam)
    unmix.register_method("fmix", parts.TinySiam)
    with pytest.raises(UserError, match="name: 'fmix' is one of unmix's own"):
        unmix.register_mixture("fmix", parts.Checkerboard)


def child_knows(name: str) -> bool:
    lines = "from unmix.plugins import load\nload()\nfrom unmix.methods import METHODS\n"
    found = subprocess.run(
        [sys.executable, "-c", lines + f"print({name!r} in METHODS)"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return found.stdout.strip() == "True"


def test_processes_import_what_registers_and_not_where_the_class_is(tmp_path, code, monkeypatch):
    """A package registers a class of one of its modules; a script one of a file: it is refused."""
    models = code.partition("unmix.register_method")[0]
    package = tmp_path / "my_parts_package"
    package.mkdir()
    (package / "models.py").write_text(models)
    (package / "__init__.py").write_text(
        "import unmix\nfrom .models import TinySiam\nunmix.register_method('packed', TinySiam)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    module = importlib.import_module("my_parts_package")
    plugins.check_known_to_processes(["packed"])
    assert os.environ[plugins.ENVIRONMENT] == str(package / "__init__.py")
    assert child_knows("packed")
    before = plugins.sources_of(["packed"])
    for file in ("models.py", "__init__.py"):
        text = (package / file).read_text()
        (package / file).write_text(text + "# changed\n")
        assert plugins.sources_of(["packed"]) != before
        (package / file).write_text(text)
    script = "import unmix\nunmix.register_method('tiny', kind)\n"
    exec(compile(script, "script", "exec"), {"__name__": "__main__", "kind": module.TinySiam})
    with pytest.raises(UserError, match="tiny: TinySiam is registered by this script or notebook"):
        plugins.check_known_to_processes(["tiny"])


def test_files_that_cannot_be_read_are_told(tmp_path, monkeypatch):
    for text, says in (
        (None, "does not exist"),
        ("x = (", "cannot be imported: SyntaxError"),
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
    ):
        file = tmp_path / "my_parts_broken.py"
        if text is not None:
            file.write_text(text)
        monkeypatch.setenv(plugins.ENVIRONMENT, str(file))
        with pytest.raises(UserError, match=rf"UNMIX_PLUGINS: .*{says}"):
            plugins.load()
        sys.modules.pop("my_parts_broken", None)


def test_a_class_of_a_script_is_no_matter_for_other_processes(tmp_path, code, monkeypatch):
    parts = loaded(tmp_path, code, monkeypatch)
    plugins.check_known_to_processes(["tinysiam", "moco"])
    assert os.environ[plugins.ENVIRONMENT] == str(tmp_path / "my_parts.py")
    monkeypatch.setattr(parts.TinySiam, "__module__", "__main__")
    with pytest.raises(UserError, match="tinysiam: TinySiam is of this script or notebook"):
        plugins.check_known_to_processes(["tinysiam"])


def test_the_command_line_and_the_processes_of_a_study_load_them(
    tmp_path, code, monkeypatch, capsys
):
    (tmp_path / "my_parts.py").write_text(code)
    monkeypatch.setenv(plugins.ENVIRONMENT, str(tmp_path / "my_parts.py"))
    assert main(["methods", "tinysiam"]) == 0
    assert capsys.readouterr().out.startswith("tinysiam: A small SimSiam.\n  unmix          yes\n")
    words = "--method tinysiam --dim 8 --unmix --unmix_mixture checkerboard --unmix_patch 8"
    config, given = parse_pretrain(words.split())
    assert (config, given["dim"], given["unmix_mixture"]) == (None, 8, "checkerboard")
    for wrong in ("--unmix_patch 1", "--beta 2", "--unmix_per sample", "--hidden 3"):
        words = f"--method tinysiam --unmix --unmix_mixture checkerboard {wrong}".split()
        with pytest.raises(UserError):
            parse_pretrain(words)
    del unmix.METHODS["tinysiam"], sys.modules["my_parts"]
    served: list[Any] = []
    monkeypatch.setattr("unmix.workers.serve", served.append)
    monkeypatch.delitem(sys.modules, "unmix.studies.worker", raising=False)
    runpy.run_module("unmix.studies.worker", run_name="__main__")
    assert len(served) == 1
    assert "tinysiam" in unmix.METHODS


def test_a_run_of_an_own_method_and_mixture(tmp_path, code, monkeypatch):
    loaded(tmp_path, code, monkeypatch)
    small = {"data": "photos", "limit": 32, "batch_size": 16, "epochs": 1, "size": 32}
    small |= {"backbone": "resnet10", "width": 0.25, "evaluate": False, "logger": "none"}
    run = tmp_path / "run"
    unmix.pretrain(
        method="tinysiam", dim=8, unmix=True, unmix_mixture="checkerboard", device="cpu",
        run=run, **small,
    )  # fmt: skip
    results = json.loads((run / "results.json").read_text())
    assert (results["method"], results["mixture"]) == ("tinysiam", "Un-Mix (checkerboard)")
    assert (
        unmix.load_encoder(run).encode(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).shape[0] == 2
    )
    for name in ("tinysiam", "checkerboard"):
        catalog().methods.pop(name, None)
    with pytest.raises(
        UserError, match=r"config\.yaml: method: 'tinysiam' is unknown.*UNMIX_PLUGINS"
    ):
        checked_settings(run)


def test_cells_of_a_study_know_the_version_of_the_own_code(tmp_path, code, monkeypatch):
    loaded(tmp_path, code, monkeypatch)
    plain = {"method": "moco", "unmix_mixture": None}
    own = {"method": "tinysiam", "unmix_mixture": None}
    mixed = {"method": "moco", "unmix_mixture": "coin+checkerboard"}
    before = [code_of(settings) for settings in (plain, own, mixed)]
    assert "own" not in before[0]
    assert before[1] == before[2]
    (tmp_path / "my_parts.py").write_text(code + "\n# changed\n")
    now = [code_of(settings) for settings in (plain, own, mixed)]
    assert [same_code(*pair) for pair in zip(before, now, strict=True)] == [True, False, False]
