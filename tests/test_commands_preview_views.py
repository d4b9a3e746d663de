"""The preview of an augmentation shows views as a run draws them, beside the image itself."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unmix.commands import preview
from unmix.commands.preview_views import augmentation_figure
from unmix.config import MixtureSettings
from unmix.data import load
from unmix.errors import UserError
from unmix.figures import PictureRow, picture_grid
from unmix.training.console import silent


@pytest.fixture
def grids(monkeypatch: pytest.MonkeyPatch) -> list[list[PictureRow]]:
    """The rows of each figure."""
    seen: list[list[PictureRow]] = []

    def record(rows: list[PictureRow], **words: Any) -> Any:
        seen.append(rows)
        return picture_grid(rows, **words)

    module = importlib.import_module("unmix.commands.preview_views")
    monkeypatch.setattr(module, "picture_grid", record)
    return seen


def pixels(row: PictureRow) -> list[np.ndarray]:
    return [np.asarray(picture.pixels) for picture in row.pictures if picture is not None]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Wide pictures whose left half is black and right half white; one cannot be read."""
    path = tmp_path / "pictures"
    path.mkdir()
    for number in range(3):
        picture = np.zeros((40, 80, 3), np.uint8)
        picture[:, 40:] = 255
        Image.fromarray(picture).save(path / f"{number}.png")
    (path / "broken.png").write_bytes(b"no picture")
    return path


@pytest.mark.parametrize("data", ["photos", "folder"])
def test_without_augmentation_both_views_are_the_image(
    data: str, folder: Path, grids: list[list[PictureRow]]
) -> None:
    images = load(str(folder) if data == "folder" else data, "pretrain")
    _, title = augmentation_figure(images, "none", n=3, seed=0, size=32)
    assert title == "augmentation none: the whole image, as it is"
    image, *views = grids[0]
    assert [row.label for row in grids[0]] == ["image", "view 1", "view 2"]
    assert len(pixels(image)) == 3
    for view in views:
        np.testing.assert_array_equal(pixels(view), pixels(image))
    if data == "folder":
        # The largest centered square: as much of the black half as of the white one.
        assert abs(np.mean(pixels(image)) - 127.5) < 3
        assert len(images.skipped) <= 1  # type: ignore[attr-defined]


def test_views_differ_by_what_the_augmentation_does(grids: list[list[PictureRow]]) -> None:
    photos = load("photos", "pretrain")
    augmentation_figure(photos, "crop-flip", n=8, seed=1, size=32)
    image, first, second = map(pixels, grids[0])
    assert not np.array_equal(first, image)
    assert not np.array_equal(first, second)
    augmentation_figure(photos, "crop-flip", n=8, seed=1, size=32)
    np.testing.assert_array_equal(pixels(grids[1][1]), first)


def test_local_crops_are_shown_at_their_size(grids: list[list[PictureRow]]) -> None:
    _, title = augmentation_figure(load("photos", "pretrain"), "dino", n=9, seed=0, size=32)
    assert [row.label for row in grids[0]][:5] == [
        "image", "view 1", "view 2", "local crop 1", "local crop 2",
    ]  # fmt: skip
    assert pixels(grids[0][3])[0].shape == (3, 16, 16)
    assert [len(row.pictures) for row in grids[0]] == [8] * 5 + [1] * 5
    assert "8 local crops" in title
    assert "blur 100% and 10%" in title


def test_the_command_says_what_it_shows(
    tmp_path: Path, refuse: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "views.png"
    preview(mixture=MixtureSettings(), augmentation="moco-v2", n=2, out=out)
    assert Image.open(out).width > 300
    assert "augmentation moco-v2: crops of 20% to 100%" in capsys.readouterr().out
    both: list[str] = []
    preview(mixture=MixtureSettings(unmix=True), augmentation="none", n=2, out=out, say=both.append)
    assert any("leave the mixture out to see views" in line for line in both)
    told = refuse("preview", "--augmentation", "mocov2", "--out", str(out))
    assert "--augmentation: 'mocov2' is unknown. Did you mean 'moco-v2'?" in told
    assert "--augmentation to see views" in refuse("preview", "--out", str(out))


def test_a_folder_without_a_readable_image_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(2):
        (folder / f"{number}.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="no image could be read"):
        preview(
            mixture=MixtureSettings(), augmentation="none", data=str(folder),
            out=tmp_path / "x.png", say=silent,
        )  # fmt: skip
