"""Whatever PyTorch's default device and type are, numbers are drawn and kept where they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import unmix
from harness import views_of
from test_mixtures_operators import ALL
from test_stepper import index_of, stepper_of
from unmix.data import load
from unmix.methods import METHODS
from unmix.mixtures.noise import MixupNoise
from unmix.randomness import generator_for
from unmix.views import Views, preset

OF_IMAGE_SPACE = [
    unmix.ImageMixture(g_prob=0.5, r_prob=0.5, r_pixel_decay=0.9), unmix.Cutout(cutout_p=0.5),
    unmix.RandomErasing(random_erasing_prob=0.5), MixupNoise(),
]  # fmt: skip


@contextmanager
def defaults(kind: str) -> Iterator[None]:
    """Another default device, on which there are no numbers, or another default type."""
    if kind == "device":
        with torch.device("meta"):
            yield
        return
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


both = pytest.mark.parametrize("kind", ["device", "type"])
IMAGES = torch.rand(6, 3, 16, 24, generator=generator_for(0, "images"))


def mixed(operator: Any) -> list[Tensor]:
    features = IMAGES.flatten(1)[:, :5] if operator.needs_features else None
    draw = operator.draw_for(IMAGES, generator_for(0, "draw"), features, IMAGES[:, 0, ::4, ::4])
    others = [IMAGES.flip(1)] * len(operator.extra)
    small, halves = draw.resized(8, 12), [view[:, :, ::2, ::2] for view in (IMAGES, *others)]
    images = draw.apply(IMAGES, others)
    loss = unmix.shared_loss(lambda q, t: (q - t).abs().mean(dim=(1, 2, 3)), images, IMAGES, draw)
    return [
        images, small.apply(halves[0], halves[1:]), loss, draw.owners, draw.shares,
        draw.shares_at(2, 2), draw.is_mixed, draw.partner, draw.weight,
    ]  # fmt: skip


@both
@pytest.mark.parametrize("operator", ALL, ids=str)
def test_mixtures(operator: Any, kind: str) -> None:
    expected = mixed(operator)
    with defaults(kind):
        found = mixed(operator)
    torch.testing.assert_close(found, expected, check_dtype=False)
    assert torch.equal(found[0], expected[0])
    assert found[0].dtype == torch.float32


@both
@pytest.mark.parametrize("operator", OF_IMAGE_SPACE, ids=repr)
def test_image_space(operator: Any, kind: str) -> None:
    def applied() -> Tensor:
        draw = operator.draw(IMAGES.shape, generator_for(1))
        assert draw.is_mixed.any()
        return draw.apply(IMAGES)

    expected = applied()
    with defaults(kind):
        assert torch.equal(applied(), expected)


@both
@pytest.mark.parametrize("space", ["RGB", "Lab", "YCbCr"])
def test_views(space: str, kind: str) -> None:
    pixels = (255 * IMAGES).to(torch.uint8)
    settings = [preset("byol"), preset("dino")]
    maker = Views(settings, 12, (0.5, 0.4, 0.3), (0.2, 0.2, 0.2), color_space=space)
    expected = [*maker(pixels, generator_for(0)), maker.plain(pixels)]
    with defaults(kind):
        found = [*maker(pixels, generator_for(0)), maker.plain(pixels)]
    for a, b in zip(expected, found, strict=True):
        assert torch.equal(a, b)
        assert b.dtype == torch.float32


@pytest.mark.parametrize("name", METHODS)
def test_steps(name: str) -> None:
    """Those of a method that is on the CPU, where the default is another device."""

    def losses(number: int) -> list[float]:
        found = []
        for _ in range(2):
            loss = step(views[number], index)
            loss.backward()
            found.append(loss.item())
        return found

    steps = [stepper_of(name, mixture=unmix.UnMix()) for _ in range(2)]
    views, index = [views_of(step.method, 0) for step in steps], index_of(0)
    step = steps[0]
    expected = losses(0)
    step = steps[1]
    with defaults("device"):
        assert losses(1) == expected


@both
def test_data(kind: str) -> None:
    expected = load("digits", "test")
    with defaults(kind):
        found = load("digits", "test")
    assert found.labels is not None
    assert expected.labels is not None
    assert torch.equal(found.labels, expected.labels)
    assert torch.equal(found.images, expected.images)


@both
def test_runs_and_encoders(kind: str, tmp_path: Path) -> None:
    words: Any = {
        "method": "byol", "data": "digits", "limit": 64, "epochs": 1, "batch_size": 32,
        "backbone": "resnet10", "width": 0.125, "size": 16, "unmix": True, "evaluate": False,
        "device": "cpu", "precision": "32", "logger": "none", "workers": 0,
    }  # fmt: skip
    pixels = load("digits", "test").images[:4]
    unmix.pretrain(**words, run=str(tmp_path / "a"))
    expected = unmix.load_encoder(tmp_path / "a").encode(pixels)
    with defaults(kind):
        unmix.pretrain(**words, run=str(tmp_path / "b"))
        found = unmix.load_encoder(tmp_path / "b").encode(pixels)
    assert torch.equal(found, expected)
