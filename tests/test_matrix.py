"""benchmarks/matrix.py: it skips what is measured, goes on after a stop, and makes one table."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

FLAGS = ["--", "--limit", "64", "--epochs", "1", "--batch_size", "32", "--queue_size", "64",
         "--device", "cpu", "--logger", "none"]  # fmt: skip


@pytest.fixture(scope="module")
def matrix() -> ModuleType:
    path = Path(__file__).parents[1] / "benchmarks" / "matrix.py"
    spec = importlib.util.spec_from_file_location("matrix", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["matrix"] = module
    spec.loader.exec_module(module)
    return module


def test_cells_are_trained_once_and_put_into_a_table(
    matrix: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--methods", "moco", "--mixtures", "none", "unmix", "mixbt", "--threads", "1"]
    words = [*asked, "--out", str(tmp_path), *FLAGS]
    assert matrix.main(words) == 0
    said = capsys.readouterr().out
    assert "moco-mixbt-0: none, for it has no cross-correlation" in said
    cell = json.loads((tmp_path / "moco-unmix-0.json").read_text())
    assert (cell["method"], cell["mixture"], cell["seed"], cell["epochs"]) == (
        "moco",
        "unmix",
        0,
        1,
    )
    assert cell["command"].startswith("unmix pretrain --method moco --seed 0 --unmix")
    assert {"config", "hardware", "versions", "minutes", "images_per_second"} <= set(cell)
    assert 0 < cell["knn"] < 100
    row = (tmp_path / "table.md").read_text().splitlines()[2]
    assert f" {cell['knn']:.1f} | {cell['linear']:.1f} " in row
    before = (tmp_path / "moco-unmix-0.json").stat().st_mtime_ns
    assert matrix.main(words) == 0
    assert capsys.readouterr().out.count("measured before") == 2
    assert (tmp_path / "moco-unmix-0.json").stat().st_mtime_ns == before


def test_other_settings_are_another_cell(matrix: ModuleType) -> None:
    def found(*flags: str) -> str:
        return matrix.config_hash(matrix.settings_of(["--method", "moco", *flags]))

    assert found() == found("--device", "cpu", "--logger", "none", "--run", "elsewhere")
    assert len({found(), found("--lr", "0.1"), found("--seed", "1"), found("--unmix")}) == 4


def test_several_seeds_have_a_mean_and_a_spread(matrix: ModuleType, tmp_path: Path) -> None:
    for seed, knn in enumerate((60.0, 62.0, 64.0)):
        cell = {"method": "moco", "mixture": "none", "data": "cifar10", "epochs": 200,
                "seed": seed, "knn": knn, "linear": None, "minutes": 1.0}  # fmt: skip
        (tmp_path / f"{seed}.json").write_text(json.dumps(cell))
    row = matrix.table_of(tmp_path, "cifar10").splitlines()[2]
    assert "| 62.0 ± 2.0 |" in row
    assert "none 85.3 kNN of the projector" in row


def test_mistakes_are_one_line_before_anything_is_trained(
    matrix: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, wanted in (
        (["--methods", "mocoo"], "Did you mean 'moco'"),
        (["--mixtures", "umix"], "Did you mean 'unmix'"),
        (["--methods", "moco", "--", "--lrr", "1"], "--lrr: there is no such flag"),
    ):
        assert matrix.main(["--out", str(tmp_path / "x"), *words]) == 2
        assert wanted in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
