"""`unmix quality`: what is measured, and which run it says to keep."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from unmix.cli import main
from unmix.commands import compare, quality
from unmix.commands.quality import _Found, _judged
from unmix.results import load_results
from unmix.training import pretrain

TINY: dict[str, Any] = {
    "method": "simclr", "data": "digits", "backbone": "resnet10", "width": 0.5, "size": 8,
    "limit": 96, "batch_size": 32, "epochs": 2, "knn_every": 1, "knn_k": 5, "logger": "none",
    "device": "cpu", "precision": "32",
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run, and one whose features collapse by its learning rate of almost nothing."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("quality")
    for name, words in (("a", {}), ("b", {"seed": 1, "lr": 1e-6})):
        pretrain(run=str(folder / name), **{**TINY, **words})
    return folder / "a", folder / "b"


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def call(*words: object) -> str:
        assert main([*map(str, words)]) == 2
        return capsys.readouterr().err.strip().removeprefix("unmix: error: ")

    return call


def test_a_run_has_them_in_its_results_and_metrics(
    runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    found = load_results(runs[0]).quality
    assert (found["epoch"], found["features"], found["dimension"]) == (2, "backbone", 256)
    assert (found["images"], found["viewed_images"], found["views"]) == (96, 96, 8)
    assert 1 < found["lidar"] < 96
    assert 1 < found["rankme"] < 96
    assert 0 < found["alignment"] < 4
    assert -8 < found["uniformity"] < 0
    with (runs[0] / "metrics.csv").open() as file:
        row = next(csv.DictReader(file))
    assert float(row["alpha_req"]) > 0
    assert float(row["uniformity"]) < 0
    capsys.readouterr()
    pretrain(run=str(runs[0]))  # complete: its results are printed again
    assert f"without labels, RankMe {found['rankme']:.1f}, LiDAR" in capsys.readouterr().out


def test_views_that_are_all_the_same_say_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """LiDAR and alignment are about how views differ; without augmentation they do not."""
    run = tmp_path / "plain"
    found = pretrain(run=str(run), **TINY, augmentation="none", unmix=True)
    assert set(found.quality) & {"lidar", "alignment", "viewed_images"} == set()
    assert found.quality["rankme"] > 1
    told = capsys.readouterr().out.split("without labels, ")[1].splitlines()[0]
    assert "uniformity" in told
    assert "LiDAR" not in told
    assert main(["quality", str(run), "--viewed", "32", "--images", "32"]) == 0
    told = capsys.readouterr().out
    assert "note: trained without augmentation" in told
    assert "| – |" not in told
    assert main(["compare", str(run), "--out", str(tmp_path / "out")]) == 0


def test_images_without_labels_are_measured_at_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 3), np.uint8)
    (tmp_path / "data").mkdir()
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / "data" / f"{number}.png")
    words = {**TINY, "data": str(tmp_path / "data"), "limit": None, "batch_size": 8, "workers": 0}
    found = pretrain(run=str(tmp_path / "run"), **words)
    assert found.evaluations == ()
    assert found.quality["images"] == 24
    assert found.quality["lidar"] > 1
    out = capsys.readouterr().out
    assert "without labels, RankMe" in out
    assert "uniformity -" in out  # in the line of an epoch
    measured = quality(tmp_path / "run", data=str(tmp_path / "data"), threads=1, device="cpu")
    assert measured.rows[0]["rankme"] == pytest.approx(found.quality["rankme"], rel=1e-4)


def test_the_command_measures_all_runs_on_the_same_images(
    runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["quality", str(runs[0]), str(runs[1]), "--device", "cpu", "--threads", "1"]
    capsys.readouterr()
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["run"] for row in found["runs"]] == ["a", "b"]
    assert {row["images"] for row in found["runs"]} == {96}
    assert set(found["best"]) == {"rankme", "lidar", "alpha_req"}
    assert "96 images are fewer than the features have dimensions" in found["verdict"]
    assert main([*words, "--features", "projector", "--views", "3", "--viewed", "20"]) == 0
    out = capsys.readouterr().out
    assert any(line.startswith("b ") for line in out.splitlines())
    assert main(words) == 0
    again = capsys.readouterr().out
    assert main(words) == 0
    assert capsys.readouterr().out == again  # drawn by a seed


def of(name: str, dimension: int = 64, **values: float) -> _Found:
    row = {
        "run": name, "rankme": 20.0, "lidar": 20.0, "alpha_req": 1.2, "alignment": 0.5,
        "uniformity": -2.0, "dimension": dimension, "images": 500, "spread": 0.5,
        "method": "simclr", **values,
    }  # fmt: skip
    half = {key: row[key] for key in ("rankme", "lidar", "alpha_req")}
    return _Found(row, (half, half))


def test_runs_that_agree_are_told_and_others_not() -> None:
    kept = _judged([of("a"), of("b", rankme=30.0, lidar=25.0, alpha_req=0.9)])
    assert kept.keep == "b"
    assert kept.verdict.splitlines() == [
        "Keep b:",
        "- RankMe, LiDAR and alpha-ReQ: b is best",
        "This is evidence, not proof; a few hundred labels and `unmix knn` decide better.",
    ]
    assert kept._repr_html_().count("<div>") == 3
    split = _judged([of("a", rankme=30.0), of("b", lidar=25.0, alpha_req=1.1)])
    assert split.keep is None
    assert split.verdict.splitlines() == [
        "The measures disagree, so no recommendation:",
        "- RankMe: a is best",
        "- LiDAR and alpha-ReQ: b is best",
        "Label a few hundred images, and let `unmix knn` decide.",
    ]
    noisy = of("b", rankme=30.0, lidar=25.0, alpha_req=1.5)
    noisy.halves[0]["rankme"] = noisy.halves[0]["lidar"] = 1.0
    unsure = _judged([of("a"), _Found(noisy.row, ({**noisy.halves[0]}, {**noisy.halves[1]}))])
    assert unsure.best["rankme"] is None
    assert unsure.keep is None
    assert (
        "\n- RankMe and LiDAR: undecided, since halves of the images disagree\n" in unsure.verdict
    )


def test_what_cannot_be_compared_is_said() -> None:
    other = _judged([of("a"), of("b", dimension=128, rankme=30.0, lidar=30.0, alpha_req=1.0)])
    assert other.keep is None
    assert "bounded by the dimension of the features, which differs" in other.verdict
    methods = _judged([of("a"), of("b", rankme=30.0, lidar=30.0, alpha_req=1.0, method="byol")])  # type: ignore[arg-type]
    assert "across methods they often mislead" in methods.verdict
    flat = _judged([of("a"), of("b", spread=0.01)])
    assert "b gives all images nearly the same features: collapsed." in flat.verdict
    assert _judged([of("a")]).verdict == ""


def test_mistakes_are_one_line(
    runs: tuple[Path, Path], tmp_path: Path, refused: Callable[..., str]
) -> None:
    assert refused("quality").startswith("RUN")
    assert "there is no such run folder" in refused("quality", tmp_path / "no")
    assert refused("quality", runs[0], "--views", "1").startswith("--views: 1 is out of range")
    assert refused("quality", runs[0], "--features", "head").startswith("--features: 'head'")
    (tmp_path / "empty").mkdir()
    assert "holds no images" in refused("quality", runs[0], "--data", tmp_path / "empty")
    picture = tmp_path / "one" / "a.png"
    picture.parent.mkdir()
    Image.new("RGB", (16, 16)).save(picture)
    assert refused("quality", runs[0], "--data", picture.parent) == (
        f"--data: {picture.parent} has 1 image; the measures, of all and of either half of them, "
        "need 4 or more."
    )
    file = tmp_path / "net.safetensors"
    file.write_bytes((runs[0] / "encoder.safetensors").read_bytes())
    assert refused("quality", file).startswith("--data: an encoder file does not say")
    assert main(["quality", str(file), "--data", "digits", "--device", "cpu"]) == 0


def test_the_report_shows_them(
    runs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unmix.figures.saving.render", lambda figure, kind: b"<svg></svg>")
    compare(*runs, out=tmp_path / "out", say=lambda _: None)
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Quality without labels" in text
    for run in runs:
        found = load_results(run).quality
        assert f"{found['lidar']:.1f}" in text
        assert f"{found['rankme']:.1f}" in text
