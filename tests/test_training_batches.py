"""The order of the images, and their way from files to batches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from unmix.data import BrokenImage, FileImages, load
from unmix.training.batches import Batch, EpochOrder, FileCrops, build_loader, collate
from unmix.views import Views, ViewSettings

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


def test_an_items_crops_depend_on_the_seed_the_epoch_and_its_number_alone(
    images: FileImages, views: Views
) -> None:
    crops = FileCrops(images, views, seed=0)
    _, expected = crops[1, 3]
    assert isinstance(expected, Tensor)
    assert expected.shape == (2, 3, SIZE, SIZE)
    assert expected.dtype == torch.uint8
    crops[0, 5]
    assert torch.equal(FileCrops(images, views, seed=0)[1, 3][1], expected)  # type: ignore[arg-type]
    for other in (FileCrops(images, views, seed=1)[1, 3], crops[2, 3], crops[1, 4]):
        assert not torch.equal(other[1], expected)  # type: ignore[arg-type]
    assert not torch.equal(expected[0], expected[1])


def test_two_workers_give_the_batches_that_none_give(images: FileImages, views: Views) -> None:
    """With the epoch that the run stands at, also in workers that were started in another one."""
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
            assert torch.equal(a.crops, b.crops)


def test_a_batch_holds_its_samples_in_the_order_asked_for(images: FileImages, views: Views) -> None:
    crops = FileCrops(images, views, seed=0)
    order = epoch_of(EpochOrder(len(images), 4, seed=0), 0)
    for batch, index in zip(batches_of(images, views, workers=0), order, strict=True):
        assert torch.equal(batch.index, index)
        assert batch.crops is not None
        for n, i in enumerate(index.tolist()):
            assert torch.equal(batch.crops[:, n], crops[0, i][1])  # type: ignore[arg-type]


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
        assert batch.crops is not None
        assert batch.crops.shape == (2, len(batch.index), 3, SIZE, SIZE)


def test_a_batch_of_broken_files_alone_is_empty() -> None:
    batch = collate([(i, BrokenImage(Path(f"{i}.jpg"), "is empty")) for i in range(3)])
    assert len(batch.index) == 0
    assert batch.crops is None
    assert [error.path.name for error in batch.broken] == ["0.jpg", "1.jpg", "2.jpg"]


def test_images_in_memory_travel_as_numbers(views: Views) -> None:
    digits = load("digits", "train").evenly(20)
    order = EpochOrder(len(digits), 8, seed=0)
    batches = list(build_loader(digits, views, order, workers=2))
    assert [len(batch.index) for batch in batches] == [8, 8, 4]
    assert all(batch.crops is None for batch in batches)
    assert torch.equal(torch.cat([b.index for b in batches]), torch.cat(epoch_of(order, 0)))
