"""The order of the images, and their way from files to batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from unmix.data import FileImages, StreamedImages, load
from unmix.data.opened import OpenedImage
from unmix.hardware import threads
from unmix.randomness import generator_for
from unmix.training.loading.loaders import Batch, EpochOrder, FileCrops, build_loader, worker_count
from unmix.views import Views, ViewSettings, crop_pil
from unmix.views.geometry import draw_boxes

SIZE, COUNT = 12, 10


def epoch_of(order: EpochOrder, epoch: int, start: int = 0) -> list[Tensor]:
    order.position = lambda: (epoch, start)
    return [index for _, index in order]


# --- the order --------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 200), st.integers(2, 40), st.integers(0, 5), st.integers(2, 5))
def test_an_epoch_is_a_permutation_but_for_a_last_batch_that_is_too_small(
    n: int, batch_size: int, epoch: int, smallest: int
) -> None:
    order = EpochOrder(n, batch_size, seed=0, smallest=smallest)
    batches = epoch_of(order, epoch)
    sizes = [len(index) for index in batches]
    rest = n % batch_size
    kept = [rest] if rest and rest >= smallest else []
    assert sizes == [batch_size] * (n // batch_size) + kept
    assert len(order) == len(batches)
    seen = [i for index in batches for i in index.tolist()]
    assert len(set(seen)) == len(seen) == sum(sizes)
    assert set(seen) <= set(range(n))


@pytest.mark.parametrize(("n", "steps"), [(40, 5), (41, 5), (47, 5), (7, 0)])
def test_a_short_last_batch_may_be_left_out(n: int, steps: int) -> None:
    """The others are what they are with it, whole, for any number of processes; also resumed."""
    kept, dropped = EpochOrder(n, 8, seed=0), EpochOrder(n, 8, seed=0, drop_last=True)
    assert len(dropped) == steps
    for epoch in range(2):
        batches = epoch_of(dropped, epoch)
        assert [len(batch) for batch in batches] == [8] * steps
        for ours, theirs in zip(batches, epoch_of(kept, epoch), strict=False):
            assert torch.equal(ours, theirs)
        later = epoch_of(dropped, epoch, start=2)
        assert all(map(torch.equal, later, batches[2:]))
    assert len(EpochOrder(n, 8, seed=0, processes=2, drop_last=True)) == steps


def test_the_order_depends_on_the_seed_and_the_epoch_alone() -> None:
    """Asked for in any sequence, by any number of readers, with the global generator elsewhere."""
    first = EpochOrder(50, 8, seed=3)
    expected = [torch.cat(epoch_of(first, epoch)) for epoch in range(3)]
    torch.rand(5)
    for epoch in (2, 0, 1, 2):
        assert torch.equal(torch.cat(epoch_of(EpochOrder(50, 8, seed=3), epoch)), expected[epoch])
    for a, b in ((0, 1), (1, 2), (0, 2)):
        assert not torch.equal(expected[a], expected[b])
    other = torch.cat(epoch_of(EpochOrder(50, 8, seed=4), 0))
    assert not torch.equal(other, expected[0])


def test_the_batch_size_cuts_the_same_order() -> None:
    whole, cut = EpochOrder(60, 60, seed=1), EpochOrder(60, 7, seed=1)
    assert torch.equal(epoch_of(whole, 4)[0], torch.cat(epoch_of(cut, 4)))


def test_a_run_resumed_within_an_epoch_gets_the_batches_that_it_has_not_had() -> None:
    order = EpochOrder(50, 8, seed=0)
    full = epoch_of(order, 2)
    rest = epoch_of(order, 2, start=4)
    assert len(rest) == len(full) - 4
    assert all(torch.equal(a, b) for a, b in zip(rest, full[4:], strict=True))


# --- files ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs of different sizes as JPEG; of each class one of six is held out for testing."""
    root = tmp_path_factory.mktemp("images")
    photos = load("photos", "train").images  # type: ignore[attr-defined]
    for i in range(COUNT + 2):
        folder = root / "train" / ("even" if i % 2 == 0 else "odd")
        folder.mkdir(parents=True, exist_ok=True)
        pixels = photos[i * 300].permute(1, 2, 0)[: 48 - i].numpy()
        Image.fromarray(pixels).save(folder / f"{i:02d}.jpg", quality=95)
    return root


@pytest.fixture
def images(tree: Path) -> FileImages:
    found = load(str(tree), "train")
    assert isinstance(found, FileImages)
    return found


@pytest.fixture
def views(images: FileImages) -> Views:
    return Views(ViewSettings(), SIZE, images.mean, images.std, count=2)


def batches_of(images: FileImages, views: Views, workers: int, epoch: int = 0) -> list[Batch]:
    order = EpochOrder(len(images), 4, seed=0)
    order.position = lambda: (epoch, 0)
    return list(build_loader(images, views, order, workers=workers))


def crops_of(images: FileImages, views: Views, *item: int, seed: int = 0) -> Tensor:
    """The crops of one image, uint8 (V, 3, size, size)."""
    return stacked(FileCrops(images, views, seed)[item])[:, 0]  # type: ignore[index]


def stacked(batch: Batch) -> Tensor:
    """The crops of views of one size, uint8 (V, N, 3, size, size)."""
    assert batch.crops is not None
    return torch.stack(batch.crops)


def test_an_items_crops_depend_on_the_seed_the_epoch_and_its_number_alone(
    images: FileImages, views: Views
) -> None:
    expected = crops_of(images, views, 1, 3)
    assert expected.shape == (2, 3, SIZE, SIZE)
    assert expected.dtype == torch.uint8
    crops_of(images, views, 0, 5)
    assert torch.equal(crops_of(images, views, 1, 3), expected)
    together = FileCrops(images, views, seed=0).__getitems__([(0, 5), (1, 3), (2, 3)])
    assert torch.equal(stacked(together)[:, 1], expected)
    for other in (
        crops_of(images, views, 1, 3, seed=1),
        crops_of(images, views, 2, 3),
        crops_of(images, views, 1, 4),
    ):
        assert not torch.equal(other, expected)
    assert not torch.equal(expected[0], expected[1])


def test_two_workers_give_the_batches_that_none_give(images: FileImages, views: Views) -> None:
    """With the epoch that the run stands at, also in workers that were started in another one.

    The views are of two sizes.
    """
    settings = replace(
        views.kinds[0].settings, local_crops=2, local_size=8, second_interpolation="bicubic"
    )
    views = Views(settings, SIZE, images.mean, images.std, count=2)
    order = EpochOrder(len(images), 4, seed=0)
    position = [0]
    order.position = lambda: (position[0], 0)
    loader = build_loader(images, views, order, workers=2)
    assert len(loader) == 3
    for epoch in range(2):
        position[0] = epoch
        expected = batches_of(images, views, workers=0, epoch=epoch)
        found = list(loader)
        assert len(found) == len(expected) == 3
        for a, b in zip(found, expected, strict=True):
            assert a.crops is not None
            assert b.crops is not None
            assert torch.equal(a.index, b.index)
            assert [crops.shape[2] for crops in a.crops] == [SIZE, SIZE, 8, 8]
            assert all(torch.equal(one, other) for one, other in zip(a.crops, b.crops, strict=True))


def test_a_batch_holds_its_samples_in_the_order_asked_for(images: FileImages, views: Views) -> None:
    order = epoch_of(EpochOrder(len(images), 4, seed=0), 0)
    for batch, index in zip(batches_of(images, views, workers=0), order, strict=True):
        assert torch.equal(batch.index, index)
        for n, i in enumerate(index.tolist()):
            assert torch.equal(stacked(batch)[:, n], crops_of(images, views, 0, i))


def test_some_rows_of_a_batch_are_rows_of_every_tensor() -> None:
    """Also of crops of two sizes; a row may be repeated."""
    crops = tuple(torch.randint(0, 256, (4, 3, s, s), dtype=torch.uint8) for s in (6, 6, 2))
    batch, which = Batch(torch.tensor([7, 5, 3, 1]), crops), torch.tensor([3, 0, 0])
    rows = batch.rows(which)
    assert rows.index.tolist() == [1, 7, 7]
    assert rows.images is None
    assert rows.crops is not None
    for found, whole in zip(rows.crops, crops, strict=True):
        assert torch.equal(found, torch.stack([whole[3], whole[0], whole[0]]))


@pytest.fixture
def broken(tree: Path, images: FileImages) -> Iterator[Path]:
    """One of the files, cut off for a while."""
    path = images.paths[6]
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    yield path
    path.write_bytes(whole)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_file_is_named_and_the_rest_of_its_batch_is_kept(
    images: FileImages, views: Views, broken: Path, workers: int
) -> None:
    batches = batches_of(images, views, workers)
    named = [error.path for batch in batches for error in batch.broken]
    assert named == [broken]
    seen = sorted(i for batch in batches for i in batch.index.tolist())
    assert seen == [i for i in range(COUNT) if i != 6]
    for batch in batches:
        assert stacked(batch).shape == (2, len(batch.index), 3, SIZE, SIZE)


def test_a_batch_of_broken_files_alone_is_empty(
    images: FileImages, views: Views, tmp_path: Path
) -> None:
    (tmp_path / "a.jpg").write_bytes(b"no image")
    gone = replace(
        images, paths=[tmp_path / "a.jpg", tmp_path / "b.jpg"], labels=None, classes=None
    )
    batch = FileCrops(gone, views, seed=0).__getitems__([(0, 1), (0, 0)])
    assert len(batch.index) == 0
    assert batch.crops is None
    assert [error.path.name for error in batch.broken] == ["b.jpg", "a.jpg"]


# --- the fast path against the plain one ------------------------------------------------------


def plain_crops(images: StreamedImages, views: Views, epoch: int, i: int) -> list[Tensor]:
    """Decoded whole by Pillow, each view cropped and resized by Pillow: what is meant."""
    image = images.decode(i)
    generator = generator_for(0, "crop", epoch, i)
    return [
        crop_pil(
            image,
            views.draw_boxes(1, image.height, image.width, generator, view)[0],
            kind.size,
            kind.settings.interpolation,
        )
        for view, kind in enumerate(views.kinds)
    ]


def photo(height: int, width: int) -> Image.Image:
    """A photograph of any size."""
    from skimage.data import chelsea

    return Image.fromarray(chelsea()).resize((width, height), Image.Resampling.BICUBIC)


def difference(
    images: FileImages, size: int, interpolation: str, **words: int
) -> tuple[int, float]:
    """The largest and the mean difference from the plain path, in gray levels."""
    settings = ViewSettings(interpolation=interpolation, **words)  # type: ignore[arg-type]
    views = Views(settings, size, images.mean, images.std, count=2)
    fast = FileCrops(images, views, seed=0).__getitems__([(0, i) for i in range(len(images))])
    assert fast.crops is not None
    shapes = [(len(images), 3, side, side) for side in views.sizes]
    assert [tuple(crops.shape) for crops in fast.crops] == shapes
    plain = zip(*(plain_crops(images, views, 0, i) for i in range(len(images))), strict=True)
    far = torch.cat(
        [
            (crops.int() - torch.stack(wanted).int()).abs().flatten()
            for crops, wanted in zip(fast.crops, plain, strict=True)
        ]
    )
    return int(far.max()), float(far.float().mean())


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("kind", ["rgb.jpg", "gray.jpg", "cmyk.jpg", "rgb.png", "alpha.png"])
def test_crops_are_pillows_to_one_grey_level(
    images: FileImages, tmp_path: Path, kind: str, interpolation: str
) -> None:
    mode = {"gray": "L", "cmyk": "CMYK", "alpha": "RGBA"}.get(kind.partition(".")[0], "RGB")
    photo(150, 230).convert(mode).save(tmp_path / kind)
    found = replace(images, paths=[tmp_path / kind] * 3, labels=None, classes=None)
    assert difference(found, 64, interpolation)[0] <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_oriented_jpeg_is_cropped_as_if_it_were_upright(
    images: FileImages, tmp_path: Path, orientation: int
) -> None:
    """At its full size, and at a fraction of it that does not divide its sides."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo(301, 437).save(tmp_path / "a.jpg", exif=exif, quality=95)
    found = replace(images, paths=[tmp_path / "a.jpg"] * 3, labels=None, classes=None)
    assert difference(found, 200, "bilinear")[0] <= 1
    largest, mean = difference(found, 24, "bilinear")
    assert largest <= 24
    assert mean < 2


@pytest.mark.parametrize("size", [16, 32, 64])
def test_a_fraction_of_a_jpegs_pixels_gives_nearly_the_same_crops(
    images: FileImages, tmp_path: Path, size: int
) -> None:
    """The DCT averages blocks where the plain path filters; no edge of a crop may move."""
    photo(600, 800).save(tmp_path / "a.jpg", quality=95)
    found = replace(images, paths=[tmp_path / "a.jpg"] * 8, labels=None, classes=None)
    largest, mean = difference(found, size, "bilinear")
    assert largest <= 24
    assert mean < 2


def test_local_crops_of_files_are_the_plain_paths(images: FileImages, tmp_path: Path) -> None:
    """Of whole pixels to one gray level, of a fraction of them nearly."""
    photo(300, 400).save(tmp_path / "a.jpg", quality=95)
    found = replace(images, paths=[tmp_path / "a.jpg"] * 4, labels=None, classes=None)
    assert difference(found, 150, "bilinear", local_crops=3)[0] <= 1
    largest, mean = difference(found, 32, "bilinear", local_crops=3)
    assert largest <= 24
    assert mean < 2


def test_an_image_is_decoded_for_the_crop_that_needs_most(
    images: FileImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sides of each crop by the pixels wanted of it; a small crop of a large side needs few."""
    photo(600, 800).save(tmp_path / "a.jpg")
    found = replace(images, paths=[tmp_path / "a.jpg"], labels=None, classes=None)
    views = Views(ViewSettings(local_crops=2, local_size=8), 64, images.mean, images.std, count=2)
    decoded: list[int] = []
    reduced = OpenedImage.reduced
    monkeypatch.setattr(
        OpenedImage,
        "reduced",
        lambda image, factor: (decoded.append(factor), reduced(image, factor))[1],
    )
    for boxes, factor in (
        ([(400, 400)] * 2 + [(80, 120)] * 2, 4),  # 400 / 64 > 4
        ([(600, 800)] * 2 + [(80, 120)] * 2, 8),
        ([(600, 800)] * 2 + [(80, 30)] * 2, 2),  # 30 / 8 > 2
    ):
        drawn = iter([torch.tensor([[0, 0, *box]]) for box in boxes])
        monkeypatch.setattr(views, "draw_boxes", lambda *_, drawn=drawn: next(drawn))
        FileCrops(found, views, seed=0)[0, 0]
        assert decoded.pop() == factor


def test_the_fraction_is_the_smallest_that_covers_every_crop(tmp_path: Path) -> None:
    photo(300, 400).save(tmp_path / "a.jpg")
    photo(300, 400).save(tmp_path / "a.png")
    opened = OpenedImage.of((tmp_path / "a.jpg").read_bytes(), tmp_path / "a.jpg")
    factors = [(799, 1), (800, 2), (1599, 2), (1600, 4), (3200, 8), (99999, 8)]
    assert [opened.factor(sides, 400) for sides, _ in factors] == [f for _, f in factors]
    assert opened.reduced(4).size == (100, 75)
    png = OpenedImage.of((tmp_path / "a.png").read_bytes(), tmp_path / "a.png")
    assert png.factor(99999, 400) == 1


def test_a_jpeg_that_the_fast_decoder_refuses_is_read_by_the_other(
    images: FileImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> Tensor:
        raise RuntimeError("unsupported")

    exif = Image.Exif()
    exif[0x0112] = 6
    photo(80, 100).save(tmp_path / "a.jpg", exif=exif)
    found = replace(images, paths=[tmp_path / "a.jpg"] * 2, labels=None, classes=None)
    monkeypatch.setattr("unmix.data.opened.decode_jpeg", refuse)
    assert difference(found, 64, "bilinear")[0] <= 1


def test_boxes_drawn_together_are_those_drawn_one_by_one() -> None:
    heights, widths = torch.randint(1, 3000, (2, 500), generator=generator_for(0, "sides"))

    def generators() -> list[torch.Generator]:
        return [generator_for(0, "crop", i) for i in range(500)]

    together = draw_boxes(500, heights, widths, generators())
    for n, generator in enumerate(generators()):
        alone = draw_boxes(1, int(heights[n]), int(widths[n]), generator)
        assert torch.equal(together[n], alone[0])


def test_one_core_of_each_process_is_left_for_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1 <= worker_count() <= 16
    found = {}
    for cores in (1, 2, 4, 17, 128):
        monkeypatch.setattr(threads, "usable_cores", lambda cores=cores: cores)
        found[cores] = [worker_count(processes) for processes in (1, 8)]
    assert found == {1: [1, 1], 2: [1, 1], 4: [3, 1], 17: [16, 1], 128: [16, 15]}


def test_images_in_memory_travel_as_numbers(views: Views) -> None:
    digits = load("digits", "train").evenly(20)
    order = EpochOrder(len(digits), 8, seed=0)
    batches = list(build_loader(digits, views, order, workers=2))
    assert [len(batch.index) for batch in batches] == [8, 8, 4]
    assert all(batch.crops is None for batch in batches)
    assert torch.equal(torch.cat([b.index for b in batches]), torch.cat(epoch_of(order, 0)))
