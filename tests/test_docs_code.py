"""What the pages tell a user to type: Python runs, and commands have flags that exist."""

from __future__ import annotations

import re
import shlex
from functools import cache
from pathlib import Path

import pytest
import torch
from PIL import Image

import unmix
from docsite import ROOT, parser_of
from unmix.cli import COMMANDS

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


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with pictures and two runs, as the pages take them to be there."""
    monkeypatch.chdir(tmp_path)
    generator = torch.Generator().manual_seed(0)
    for name in ("a.jpg", "b.jpg", "pictures/x/c.jpg", "pictures/y/d.jpg"):
        pixels = torch.randint(256, (40, 50, 3), generator=generator, dtype=torch.uint8)
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.numpy()).save(name)
    small = {"data": "photos", "limit": 32, "batch_size": 16, "epochs": 1, "queue_size": 16}
    small |= {"evaluate": False, "logger": "none", "device": "cpu"}
    unmix.pretrain(method="moco", **small, width=0.25, run="runs/mine")
    unmix.pretrain(method="moco", **small, backbone="resnet18", width=1.0, run="runs/resnet18")
    return tmp_path


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
