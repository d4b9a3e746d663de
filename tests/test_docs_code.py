"""What the pages tell a user to type: Python runs, and commands have flags that exist."""

from __future__ import annotations

import doctest
import importlib
import re
import shlex
import shutil
import textwrap
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import unmix
from docsite import ROOT, parser_of
from unmix.cli import COMMANDS
from unmix.config import Settings

DOCS = ROOT / "docs"
# Measurements with the commands of the versions that they were made with.
RECORDS = {DOCS / "measurements.md", DOCS / "results.md"}
PAGES = [*sorted({*DOCS.rglob("*.md")} - RECORDS), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a language."""
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[list[str]]:
    """The words of every `unmix ...` line in fenced and indented blocks."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = re.findall(r"^(?: {4}|\t)?((?:srun )?unmix [a-z].*)$", text, re.MULTILINE)
    found = [shlex.split(line.replace("...", ""), comments=True) for line in lines]
    return [words[words.index("unmix") + 1 :] for words in found if words]


@cache
def flags(command: str, method: str) -> set[str]:
    """The flags of a command, with those of a method where it takes one."""
    chosen = ["--method", method] if command in ("pretrain", "bench") else []
    return set(parser_of([*command.split(), *chosen])._option_string_actions)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_commands_of_a_page_exist(page: Path) -> None:
    for words in commands(page):
        assert words[0] in COMMANDS, words
        command = " ".join(words[:2]) if words[0] == "data" else words[0]
        method = words[words.index("--method") + 1] if "--method" in words else "moco"
        known = flags(command, method if method in unmix.METHODS else "moco")
        for word in words:
            flag = word.split("=")[0].replace("-", "_").replace("__", "--", 1)
            assert not flag.startswith("--") or flag.replace("--no_", "--no-") in known, words


def test_the_extraction_finds_commands() -> None:
    assert ["pretrain", "--method", "moco", "--data", "photos", "--unmix"] in [
        words[:6] for words in commands(DOCS / "index.md")
    ]
    assert sum(len(commands(page)) for page in PAGES) > 60


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures and two runs, as the pages take them to be there."""
    folder = tmp_path_factory.mktemp("place")
    generator = torch.Generator().manual_seed(0)
    for name in ("a.jpg", "b.jpg", "pictures/x/c.jpg", "pictures/y/d.jpg"):
        pixels = torch.randint(256, (40, 50, 3), generator=generator, dtype=torch.uint8)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.numpy()).save(folder / name)
    small = {"data": "photos", "limit": 32, "batch_size": 16, "epochs": 1, "queue_size": 16}
    small |= {"evaluate": False, "logger": "none", "device": "cpu"}
    for name, model in (
        ("mine", {"width": 0.25}),
        ("resnet18", {"backbone": "resnet18", "width": 1.0}),
    ):
        unmix.pretrain(method="moco", **small, **model, run=folder / "runs" / name)
    return folder


@pytest.fixture
def place(filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder, as the working directory."""
    shutil.copytree(filled, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def names(place: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the text around a block takes to be there; calls of pretrain are made small."""
    import torchvision

    from unmix import training
    from unmix.backbones import build

    for name in ("cat.jpg", "dog.png", "pictures/train/x/e.jpg", "pictures/train/y/f.jpg"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.open("a.jpg").save(name)
    pretrain = training.pretrain

    def small(*args: Any, devices: int = 1, **settings: Any) -> Any:
        given = {name: value for name, value in settings.items() if name != "test_data"}
        assert Settings.of({**given, "data": "photos", "devices": devices}).machine.devices
        tiny = {"epochs": 1, "batch_size": 16, "width": 0.25, "queue_size": 16, "device": "cpu"}
        if settings["method"] != "moco":
            del tiny["queue_size"]
        if isinstance(settings["data"], str):
            tiny["limit"] = 32
        return pretrain(*args, **{**tiny, "logger": "none", "evaluate": False, **settings})

    monkeypatch.setattr(training, "pretrain", small)
    photos = [(Image.open("a.jpg"), 0), (Image.open("b.jpg"), 1)] * 8
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", lambda root, train: photos)
    torch.manual_seed(0)
    backbone = build("resnet10", width=0.125, size=32)
    x = torch.randn(2, 2, 16, 3, 32, 32)
    return {
        "__name__": "__main__",
        "backbone": backbone,
        "criterion": lambda query, target: (query - target).square().mean(dim=1),
        "encoder": unmix.load_encoder("runs/mine"),
        "epochs": 1,
        "f": backbone,
        "generator": torch.Generator().manual_seed(0),
        "images": torch.randint(256, (32, 3, 32, 32), dtype=torch.uint8),
        "loader": [(x[0, 0], x[0, 1], torch.arange(16)), (x[1, 0], x[1, 1], torch.arange(16, 32))],
        "loss": torch.zeros(16),
        "mean": (0.5, 0.5, 0.5),
        "optimizer": torch.optim.SGD(backbone.parameters(), 0.1),
        "root": ".",
        "std": (0.2, 0.2, 0.2),
        "targets": torch.randn(16, backbone.feature_dim),
        "torch": torch,
        "torchvision": torchvision,
        "unmix": unmix,
        "x1": x[0, 0],
        "x2": x[0, 1],
    }


# The encoder's page has a test of its own, with what its code must do.
CODE = [page for page in PAGES if blocks(page, "python") and page.name != "use-the-encoder.md"]


@pytest.mark.parametrize("page", CODE, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_python_of_a_page_runs(page: Path, names: dict[str, Any]) -> None:
    """Block by block in one namespace; files that are included have tests of their own."""
    for block in blocks(page, "python"):
        if not block.startswith("--8<--"):
            exec(compile(block, str(page), "exec"), names)
    assert torch.isfinite(names["loss"]).all()


def test_the_python_in_the_docstring_of_the_package_runs(names: dict[str, Any]) -> None:
    shown = re.findall(r"(?:^ {4}.*\n)+", unmix.__doc__ or "", re.M)
    assert len(shown) == 2
    for block in shown:
        exec(textwrap.dedent(block), names)
    assert names["features"].shape == (2, names["encoder"].feature_dim)


def test_doctests_of_the_package_pass() -> None:
    for path in sorted((ROOT / "src" / "unmix").rglob("*.py")):
        if ">>> " in path.read_text(encoding="utf-8"):
            name = ".".join(path.relative_to(ROOT / "src").with_suffix("").parts)
            module = importlib.import_module(name.removesuffix(".__init__"))
            assert doctest.testmod(module).failed == 0, name


def test_the_code_on_the_encoder_page_runs(place: Path) -> None:
    page = DOCS / "how-to" / "use-the-encoder.md"
    pictures = ["a.jpg", "b.jpg"] * 8
    names = {"images": pictures, "labels": torch.tensor([0, 1] * 8), "classes": 2}
    before = {k: v.clone() for k, v in unmix.load_encoder("runs/mine").state_dict().items()}
    for block in blocks(page, "python"):
        exec(compile(block, str(page), "exec"), names)
    assert names["head"](names["encoder"].eval().encode(pictures)).argmax(1).tolist() == [0, 1] * 8
    after = names["encoder"].state_dict()
    assert any(not torch.equal(before[name], value) for name, value in after.items())
    # The two ways to load the weights give the same features.
    encoder = unmix.load_encoder("runs/resnet18")
    prepared = torch.stack([encoder.transform("a.jpg")])
    assert torch.equal(encoder(prepared), names["model"].eval()(prepared))
    assert names["facts"]["size"] == 32
