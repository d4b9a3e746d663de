"""Where the images are during training: chosen by a memory budget, with the same results."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

from runs import TINY_RUN
from unmix.config import MachineSettings, Settings
from unmix.data import FileImages, TensorImages, load
from unmix.data.fingerprint import Fingerprint
from unmix.data.from_python import from_python
from unmix.errors import UserError
from unmix.hardware.devices import Machine, free_memory, peak_memory
from unmix.training.loading import residency
from unmix.training.loading.loaders import Batch, EpochOrder, HostLoader, IndexLoader, build_loader
from unmix.training.loading.residency import hold
from unmix.training.run.data_record import DataRecord
from unmix.training.run.parts import build_parts
from unmix.training.run.same_data import Listing, check_same
from unmix.views import Views, preset

CPU = Machine(torch.device("cpu"), "32-true", channels_last=False)
# Never computed on here: only its name decides.
GPU = Machine(torch.device("cuda"), "32-true", channels_last=False)


def settings(**words: Any) -> MachineSettings:
    return MachineSettings(workers=0, **words)


def files(folder: Path, shapes: list[tuple[int, int]], broken: tuple[int, ...] = ()) -> FileImages:
    """PNG files of random pixels, of two classes, some of them broken."""
    rng = np.random.default_rng(0)
    for i, (height, width) in enumerate(shapes):
        place = folder / "ab"[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        path = place / f"{i:03d}.png"
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
        if i in broken:
            path.write_bytes(path.read_bytes()[:60])
    found = load(folder, "train")
    assert isinstance(found, FileImages)
    return found


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Set the free memory of any device."""

    def set_to(amount: int) -> None:
        monkeypatch.setattr(residency, "free_memory", lambda device: amount)

    return set_to


def test_files_of_one_size_are_decoded_once_to_the_same_pixels(tmp_path, free):
    images = files(tmp_path, [(9, 7)] * 24)
    free(4 * 24 * 3 * 9 * 7)
    held = hold(images, CPU, settings())
    assert held.resident
    assert isinstance(held.images, TensorImages)
    assert len(held.images) == len(images)
    assert torch.equal(held.images.labels, images.labels)
    assert (held.images.mean, held.images.classes) == (images.mean, images.classes)
    for i in range(len(images)):
        pixels = torch.from_numpy(np.array(images.decode(i))).permute(2, 0, 1)
        assert torch.equal(held.images.images[i], pixels)


def test_workers_decode_the_same(tmp_path):
    images = files(tmp_path, [(6, 6)] * 70)
    alone, shared = (hold(images, CPU, MachineSettings(workers=n)).images for n in (0, 2))
    assert torch.equal(alone.images, shared.images)


def test_one_byte_over_the_share_of_free_memory_is_streamed(tmp_path, free):
    images = files(tmp_path, [(8, 8)] * 20)
    size = len(images) * 3 * 8 * 8
    free(4 * size)
    assert hold(images, CPU, settings()).resident
    free(4 * size - 4)
    held = hold(images, CPU, settings())
    assert not held.resident
    assert held.images is images
    assert hold(images, CPU, settings(resident_share=0.5)).resident


def test_a_tensor_that_does_not_fit_a_gpu_stays_with_the_host(free):
    images = load("digits", "train")
    size = images.images.nbytes
    free(4 * size)
    assert hold(images, GPU, settings()).resident
    free(4 * size - 4)
    assert hold(images, GPU, settings()).about == "streamed from memory"
    # Forced, it may fill the memory.
    assert hold(images, GPU, settings(resident="yes")).resident
    assert not hold(images, GPU, settings(resident="no")).resident
    assert hold(images, CPU, settings()).resident


def test_what_must_be_held_and_cannot_be_is_told(tmp_path, free):
    images = files(tmp_path, [(8, 8)] * 20)
    free(len(images) * 192 - 1)
    with pytest.raises(UserError, match=r"--resident: yes needs 3 kB, but 3 kB are free on cpu"):
        hold(images, CPU, settings(resident="yes"))


@pytest.mark.parametrize("odd", [0, 17])
def test_files_of_several_sizes_are_streamed_or_refused(tmp_path, odd, free):
    """Also if the one that differs is not among those that are looked at first."""
    shapes = [(8, 8)] * 90
    shapes[odd] = (8, 10)
    images = files(tmp_path, shapes)
    free(2**30)
    assert hold(images, CPU, settings()).images is images
    with pytest.raises(UserError, match=r"needs images of one size, but .* has 8 x 8 and 8 x 10"):
        hold(images, CPU, settings(resident="yes"))


def test_broken_files_are_left_out_and_named(tmp_path, free):
    images = files(tmp_path, [(8, 8)] * 30, broken=(4, 9))
    free(2**30)
    held = hold(images, CPU, settings())
    assert len(held.images) == len(images) - 2
    assert str(images.skipped.line()).startswith(
        "Skipped 2 image files that cannot be read, first "
    )
    whole = [i for i, path in enumerate(images.paths) if path.stem not in ("004", "009")]
    assert torch.equal(held.images.labels, images.labels[whole])
    pixels = np.array(images.decode(whole[-1]))
    assert torch.equal(held.images.images[-1], torch.from_numpy(pixels).permute(2, 0, 1))


def test_images_that_others_have_the_numbers_of_are_another_set(tmp_path, free):
    """On a resume, where all are streamed or can be read again, and on another process."""
    place, broken = tmp_path / "images", tmp_path / "images" / "a" / "004.png"
    files(place, [(8, 8)] * 30)
    content = broken.read_bytes()
    broken.write_bytes(content[:60] + bytes(len(content) - 60))
    free(2**30)

    def record(**words: Any) -> DataRecord:
        seen: dict[str, Fingerprint] = {}
        words = {"method": "simclr", "dim": 8, "hidden": 8, "batch_size": 8, **TINY_RUN, **words}
        build_parts(Settings.of({"data": str(place), **words}), seen=seen)
        DataRecord.of(str(place), seen).write(tmp_path)
        found = DataRecord.read(tmp_path)
        assert found is not None
        return found

    assert (record(limit=25).splits["train"].left_out or "").startswith("1:")
    decoded, streamed = record(), record(resident="no")
    assert decoded.difference(record().splits, numbered=True) is None
    assert decoded.difference(streamed.splits) is None  # as an evaluation compares them
    clause = decoded.difference(streamed.splits, numbered=True)
    assert clause is not None
    assert clause.startswith("of the data's images that cannot be read none is left out")
    assert "of the run's 1 is, so that others have their numbers" in clause
    assert (streamed.difference(decoded.splits, numbered=True) or "").startswith(
        "of the data's images that cannot be read 1 is left out"
    )
    images = load(place, "train")
    first = Listing.of(images, hold(images, CPU, settings()).kept)
    broken.write_bytes(content)
    assert decoded.difference(record().splits, numbered=True) == clause
    assert streamed.difference(record().splits, numbered=True) is None
    other = Listing.of(images, hold(images, CPU, settings()).kept)
    assert other == Listing.of(images)
    assert first != other
    whole = {"host": "here", "listing": asdict(other)}
    with pytest.raises(UserError, match=r"rank 1 of 2 .* found 25 training images, rank 0 .* 26"):
        check_same({0: whole, 1: {"host": "there", "listing": asdict(first)}})


def test_strict_stops_at_a_broken_file(tmp_path, free):
    files(tmp_path, [(8, 8)] * 30, broken=(4,))
    free(2**30)
    images = load(tmp_path, "train", strict=True)
    with pytest.raises(UserError, match=r"--strict: .*004.png"):
        hold(images, CPU, settings())


def test_the_hosts_batches_are_the_devices(generator):
    """Gathered ahead by a thread, in the same order, each image in its place."""
    pixels = torch.randint(0, 256, (23, 3, 4, 4), dtype=torch.uint8, generator=generator)
    order = EpochOrder(23, 5, seed=3)
    host, device = list(HostLoader(pixels, order)), list(IndexLoader(order))
    assert len(host) == len(HostLoader(pixels, order)) == len(device) == 5
    for ours, theirs in zip(host, device, strict=True):
        assert torch.equal(ours.index, theirs.index)
        assert torch.equal(ours.images, pixels[theirs.index])


def test_an_iteration_that_is_given_up_leaves_no_thread(generator):
    pixels = torch.zeros(20, 3, 4, 4, dtype=torch.uint8)
    iterator = iter(HostLoader(pixels, EpochOrder(20, 5, seed=0)))
    next(iterator)
    iterator.close()
    with pytest.raises(StopIteration):
        next(iterator)


def test_a_batch_moves_as_a_whole():
    batch = Batch(torch.arange(2), images=torch.zeros(2, 3, 4, 4, dtype=torch.uint8))
    moved = batch.to(torch.device("meta"))
    assert moved.index.is_meta
    assert moved.images.is_meta
    assert moved.crops is None


def test_the_loader_follows_from_where_the_images_are():
    images = load("digits", "train")
    views = Views(preset("none"), 8, images.mean, images.std)
    order = EpochOrder(len(images), 8, seed=0)
    assert isinstance(build_loader(images, views, order), IndexLoader)
    assert isinstance(build_loader(images, views, order, resident=False), HostLoader)


def test_yes_and_no_of_a_yaml_file_are_these_words():
    """YAML reads them as true and false."""
    machine = Settings.of({"resident": False, "compile": True}).machine
    assert (machine.resident, machine.compile) == ("no", "yes")


def test_peak_memory_is_this_process_alone():
    """A process that a large one has started does not count what that one held."""
    ballast = torch.ones(2**27)  # 512 MB
    code = (
        "from unmix.hardware.devices import peak_memory; import torch; "
        "print(peak_memory(torch.device('cpu')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 2**26 < int(done.stdout) < peak_memory(torch.device("cpu"))
    assert ballast.sum() == 2**27


def test_free_memory_is_some_of_the_machine():
    assert 2**20 < free_memory(torch.device("cpu")) < 2**50


class Slices(Dataset):
    """A random slice of each volume, as of medical images."""

    def __init__(self, random: bool) -> None:
        self.random, self.asked = random, 0

    def __len__(self) -> int:
        return 40

    def __getitem__(self, i: int) -> Image.Image:
        self.asked += 1
        rng = np.random.default_rng(None if self.random else i)
        return Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))


@pytest.mark.parametrize("random", [False, True])
def test_items_that_differ_from_call_to_call_are_read_in_each_epoch(random, free):
    """The first of each was kept for the whole run, as a data set with one image per item is."""
    free(2**30)
    data = Slices(random)
    images = from_python(data, "train")
    held = hold(images, CPU, settings())
    assert (held.images is images, held.resident) == (random, not random)
    assert held.notes == (
        ("note: --resident: the items of the data set differ from call to call; each epoch reads "
         "them anew",) if random else ()
    )  # fmt: skip
    held = hold(images, CPU, settings(resident="yes"))
    assert held.resident
    assert [note.endswith("the first of each is kept") for note in held.notes] == [True] * random
    if random:
        parts = build_parts(
            Settings.of({**TINY_RUN, "method": "simclr", "batch_size": 8, "workers": 0}),
            images,
        )
        assert parts.notes[0].endswith("each epoch reads them anew")
