"""The figures of what encoders have at positions: attention, and patches."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from runs import MOCO_RUN, TINY_RUN
from unmix.backbones import attention_map, build, dense_features, feature_map
from unmix.commands import plot
from unmix.commands.plot import Plot
from unmix.commands.plots.attention import overlay, smallest_half
from unmix.commands.plots.patches import colored, components
from unmix.data import load
from unmix.errors import UserError
from unmix.evaluation import load_encoder
from unmix.training import pretrain
from unmix.training.console import silent


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MoCo on digits, a vision transformer of 4 x 4 patches, and CMC's two encoders."""
    root = tmp_path_factory.mktemp("positions")
    pretrain(run=str(root / "moco"), **MOCO_RUN)
    vit = {"backbone": "timm:vit_tiny_patch16_224", "patch": 2, "depth": 1, "width": 1.0}
    pretrain(run=str(root / "vit"), **{**MOCO_RUN, **vit})
    pretrain(run=str(root / "cmc"), **{**TINY_RUN, "method": "cmc", "data": "digits", "limit": 100,
                                       "batch_size": 50, "negatives": 30})  # fmt: skip
    return root


def drawn(folder: Path, name: str, *runs: Path, **options: Any) -> Plot:
    return plot(name, *runs, out=folder / f"{name}.png", say=silent, **options)


def table(found: Plot) -> list[dict[str, str]]:
    with found.files[-1].open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def prepared(run: Path, index: int) -> torch.Tensor:
    """A test image of digits, as an encoder takes it."""
    pixels = load("digits", "test").images[index][None]  # type: ignore[attr-defined]
    return load_encoder(run).views.plain(pixels)


def test_attention_is_that_of_the_prepared_images(runs: Path, tmp_path: Path):
    found = drawn(tmp_path, "attention", runs / "moco", runs / "cmc", images=9, width="column")
    for name, label in (("moco", "MoCo"), ("cmc", "CMC")):
        encoder = load_encoder(runs / name)
        rows = [row for row in table(found) if row["run"] == label]
        for index in {int(row["image"]) for row in rows}:
            images = prepared(runs / name, index)
            expected = attention_map(encoder.backbone, images, encoder.features)[0]
            got = [float(row["share"]) for row in rows if int(row["image"]) == index]
            assert got == pytest.approx((expected / expected.sum()).flatten().tolist(), abs=1e-4)
    assert len({row["image"] for row in table(found)}) == 9


@pytest.mark.parametrize("name", ["moco", "vit", "cmc"])
def test_patches_are_projections_of_the_features_of_the_prepared_images(
    runs: Path, tmp_path: Path, name: str
):
    """Their distances are those of the features, up to the variance that is left out."""
    found = drawn(tmp_path, "patches", runs / name, images=9)
    rows = table(found)
    assert len(rows) % 9 == 0
    encoder = load_encoder(runs / name)
    numbers = list(dict.fromkeys(int(row["image"]) for row in rows))
    images = torch.cat([prepared(runs / name, index) for index in numbers])
    with torch.no_grad():
        if name == "cmc":
            halves = (encoder.backbone.l, images[:, :1]), (encoder.backbone.ab, images[:, 1:])
            features = torch.cat([dense_features(*half) for half in halves], dim=1)
        else:
            features = dense_features(encoder.backbone, images)
    flat = features.permute(0, 2, 3, 1).flatten(0, 2).double()
    flat = flat - flat.mean(dim=0)
    values, vectors = torch.linalg.eigh(flat.T @ flat)
    got = torch.tensor([[float(row[f"pc{i}"]) for i in (1, 2, 3)] for row in rows]).double()
    for i in range(3):
        expected = flat @ vectors[:, -1 - i]
        agree = torch.sign(expected @ got[:, i])
        torch.testing.assert_close(got[:, i], agree * expected, atol=1e-3, rtol=1e-3)
    share = float(values[-3:].sum() / values.sum())
    assert f"{share:.0%} of the variance" in found.caption


def test_features_at_positions_are_the_feature_map_or_the_last_of_several_pixels():
    images = torch.randn(2, 3, 16, 16)
    network = build("resnet10", width=0.125, size=16).eval()
    with torch.no_grad():
        assert torch.equal(dense_features(network, images), feature_map(network, images))
        small = dense_features(network, images[..., :8, :8])
        assert small.shape == (2, 32, 2, 2)  # the third stage's: the last one has one pixel
        alexnet = build("alexnet", width=0.03125, size=32).eval()
        large = torch.randn(2, 3, 32, 32)
        convolutions = torch.nn.Sequential(*list(alexnet.children())[:6])
        assert torch.equal(dense_features(alexnet, large), convolutions(large))
    flat = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 2))
    with pytest.raises(
        UserError, match="Sequential has no features at several positions of images of 8 x 8"
    ):
        dense_features(flat, images[..., :8, :8])


def test_what_an_encoder_takes_as_alike_has_one_color():
    """Two kinds of features, at random places: two colors, whatever the other dimensions."""
    kinds = torch.randint(2, (3, 4, 4), generator=torch.Generator().manual_seed(0))
    features = torch.randn(2, 7, generator=torch.Generator().manual_seed(1))[kinds]
    projected, share = components(features)
    assert share == pytest.approx(1)
    pixels = colored(projected).permute(0, 2, 3, 1)
    assert len(pixels[kinds == 0].unique(dim=0)) == len(pixels[kinds == 1].unique(dim=0)) == 1
    assert {int(pixels[..., 0].min()), int(pixels[..., 0].max())} == {0, 255}


def test_a_collapsed_encoder_is_gray():
    projected, share = components(torch.full((2, 3, 3, 5), 0.1))
    assert share == 0
    assert colored(projected).unique().tolist() == [128]


@hypothesis.given(st.lists(st.floats(0, 1e3), min_size=1, max_size=40).filter(sum))
def test_half_of_a_map_is_on_its_largest_cells(cells: list[float]):
    share = smallest_half(torch.tensor(cells, dtype=torch.float64))
    assert 0 < share <= 0.5 + 1e-9
    most = sorted(cells, reverse=True)
    full = int(share * len(cells) + 1e-9)
    assert sum(most[:full]) <= sum(cells) / 2 * (1 + 1e-6)
    assert sum(most[: full + 1]) >= sum(cells) / 2 * (1 - 1e-6)
    assert smallest_half(torch.ones(len(cells))) == pytest.approx(0.5)


def test_the_overlay_is_bright_where_the_map_is_largest():
    gray = torch.full((3, 8, 8), 128, dtype=torch.uint8)
    seen = overlay(gray, torch.tensor([[0.0, 0.0], [0.0, 1.0]])).float().mean(dim=0)
    assert seen[7, 7] == seen.max() > seen[0, 0] == seen.min()
    assert torch.equal(overlay(gray, torch.zeros(2, 2)), overlay(gray, torch.zeros(3, 3)))
