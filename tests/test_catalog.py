"""The catalog says what the code says, and help and refusals do without PyTorch."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest

import unmix
from unmix.catalog import catalog_text
from unmix.config import GROUPS
from unmix.config.catalog import Entry, catalog, method_options, packed, unpacked
from unmix.config.parameters import parameters_of
from unmix.config.values import Kind
from unmix.views.geometry import INTERPOLATIONS

SOURCE = Path(unmix.__file__).parents[1]


def test_the_catalog_is_that_of_the_code():
    """If this fails: python -m unmix.catalog."""
    assert (SOURCE / "unmix/config/catalog.json").read_text() == catalog_text()


def test_every_parameter_has_a_text_and_one_line_in_the_file():
    found = catalog()
    lines = (SOURCE / "unmix/config/catalog.json").read_text().splitlines()
    for entry in (*found.methods.values(), *found.commands.values()):
        for name, parameter in entry.parameters.items():
            assert parameter.text
            assert any(line.lstrip().startswith(f'"{name}": {{"type"') for line in lines)


def test_an_entry_comes_back_from_json_as_it_was():
    def function(
        files: list[str], out: str, *, a: int, b: float | None = None, c: tuple[int, ...] = (1, 2),
        d: tuple[float, float] = (0.1, 1e-9), e: bool = False, f: Literal["x", "y"] = "y",
    ) -> None:  # fmt: skip
        """Do it.

        Args:
            a: First,
                on two lines.
            b: Second.
        """

    entry = Entry("Do it.", parameters_of(function), {"fact": None})
    assert unpacked(json.loads(json.dumps(packed(entry)))) == entry
    assert entry.parameters["a"].text == "First, on two lines."
    assert [name for name, p in entry.parameters.items() if p.positional] == ["files", "out"]
    assert entry.parameters["a"].required
    assert entry.parameters["b"].kind == Kind(float, optional=True)
    assert entry.parameters["c"].kind == Kind(int, None)
    assert entry.parameters["d"].kind == Kind(float, 2)
    assert entry.parameters["f"].kind == Kind(choices=("x", "y"))


def test_the_groups_have_a_text_for_every_field():
    for group in GROUPS.values():
        parameters = parameters_of(group)
        assert list(parameters) == [field.name for field in dataclasses.fields(group)]
        assert all(parameter.text for parameter in parameters.values())


def test_words_that_stand_twice_are_the_same():
    from unmix.config.views import INTERPOLATIONS as WORDS

    assert tuple(INTERPOLATIONS) == WORDS
    assert method_options("cmc")["view"].kind.choices == ("Lab", "YCbCr")


WITHOUT_TORCH = [
    "--help", "--version", "methods", "methods cmc", "methods --json", "recipes", "recipes moco",
    "pretrain --help", "pretrain --method dino --help", "bench --help", "knn --help",
    "probe --help", "compare --help", "preview --help", "demo --help", "data --help",
    "data pack --help", "methods --help", "recipes --help", "--completion zsh",
    "--complete pretrain --method dino --", "--complete pretrain --config ",
]  # fmt: skip
REFUSED = [
    "pretrian", "data pakc", "pretrain --epocs 3", "pretrain --method mocco", "pretrain photos",
    "pretrain --epochs ten", "pretrain --lr -1", "pretrain --batch_size 1", "pretrain --lr",
    "pretrain --negatives 5", "pretrain --method cmc --view lab", "pretrain --device cpuu",
    "pretrain --backbone resnet19", "pretrain --stem smal", "pretrain --jitter 1 1",
    "pretrain --blur_kernel 2", "pretrain --IM --IM_type regoin", "pretrain --unmix_per all",
    "pretrain --config none.yaml", "bench --run r", "bench --stepz 3", "knn", "knn r --kk 3",
    "knn r --k ten", "probe r --epoch 3", "compare", "preview --data digits", "demo --seeds 3",
    "pretrain --data photoz", "pretrain --method vicreg --config wmse", "pretrain --g_prob 2",
    "pretrain --r_num -1", "pretrain --gpus 2", "pretrain --devices 2 --batch_size 2",
    "pretrain --backbone vit_tiny_patch16_224", "pretrain --seed 0 1", "pretrain --device gpu",
    "--completion tcsh", "train", "pretrain --view Lab", "preview --g_num -1 --out a.png",
    "data pack a", "recipes mocco", "methods mocco",
]  # fmt: skip
HEAVY = ("torch", "torchvision", "lightning", "numpy", "sklearn", "skimage", "matplotlib", "PIL")


@pytest.mark.parametrize(
    ("cases", "status"), [(WITHOUT_TORCH, 0), (REFUSED, 2)], ids=["help", "refusals"]
)
def test_help_lists_and_refusals_import_nothing_heavy(cases: list[str], status: int, tmp_path):
    """All in one process, so that it is quick; each must leave the modules as it found them."""
    code = f"""
import contextlib, io, sys
from unmix.cli import main
for words in {cases!r}:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        found = main(words.split())
    heavy = sorted(set({HEAVY!r}) & set(sys.modules))
    assert (found, heavy) == ({status}, []), (words, found, heavy)
"""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []
