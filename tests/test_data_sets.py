"""The data sets known by name: contents, colors, splits, layouts, and what absence says."""

from __future__ import annotations

import hashlib
import pickle
import subprocess
import sys
from collections import Counter
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torchvision import datasets

from unmix.data import (
    DATA_SETS,
    IMAGENET100,
    IMAGENET_MEAN,
    FileImages,
    TensorImages,
    load,
)
from unmix.data import photos as photos_module
from unmix.data.photos import PHOTOS
from unmix.errors import UserError

NEED_FILES = ["cifar10", "cifar100", "stl10", "tiny-imagenet", "imagenet100", "imagenet"]


def load_tensor(*args, **kwargs) -> TensorImages:
    found = load(*args, **kwargs)
    assert isinstance(found, TensorImages)
    return found


def pixel_statistics(images: torch.Tensor) -> tuple[list[float], list[float]]:
    pixels = images.permute(1, 0, 2, 3).flatten(1).numpy()
    return (pixels.mean(1) / 255).tolist(), (pixels.std(1, dtype=np.float32) / 255).tolist()


def images_at(folder: Path, count: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        (folder / f"{folder.name}_{i}.JPEG").write_bytes(b"never opened")


# Names


def test_every_data_set_is_complete_and_says_where_its_colors_come_from():
    assert list(DATA_SETS) == ["photos", "digits", *NEED_FILES[:3], *NEED_FILES[3:]]
    for name, data_set in DATA_SETS.items():
        assert data_set.name == name
        assert data_set.source
        assert (data_set.layout is None) == (name in ("photos", "digits"))
        assert all(0 < value < 1 for value in data_set.mean + data_set.std)


def test_an_unknown_name_is_answered_with_the_nearest_and_with_folders():
    with pytest.raises(UserError, match=r"^data: 'cifar1O' is unknown\. Did you mean 'cifar10'\?"):
        load("cifar1O", "train")
    with pytest.raises(UserError, match="Or give the path of a folder of images"):
        load("something", "train")


def test_an_unknown_split_is_told():
    with pytest.raises(UserError, match="split: 'val' is unknown"):
        load("photos", "val")


def test_a_name_comes_before_a_folder_of_that_name(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "photos" / "a.png")
    monkeypatch.chdir(tmp_path)
    assert len(load("photos", "test")) == 1280
    assert len(load("./photos", "train")) == 1


@pytest.mark.parametrize("name", NEED_FILES)
def test_without_data_dir_or_with_a_wrong_one_the_layout_is_told(tmp_path, name):
    layout = DATA_SETS[name].layout
    (tmp_path / "file").write_text("")
    for given, reason in [
        (None, "data_dir: "),
        (tmp_path / "nowhere", "nowhere does not exist"),
        (tmp_path / "file", "file is not a folder"),
        (tmp_path, "there is no "),
    ]:
        with pytest.raises(UserError, match=reason) as caught:
            load(name, "train", data_dir=given)
        assert layout in str(caught.value)
        assert "\n" not in str(caught.value)
        assert ("`download`" in str(caught.value)) == DATA_SETS[name].downloads


@pytest.mark.parametrize("name", ["tiny-imagenet", "imagenet100", "imagenet"])
def test_what_cannot_be_fetched_says_so_with_its_layout(tmp_path, name):
    with pytest.raises(UserError, match=f"download: {name} cannot be downloaded") as caught:
        load(name, "train", data_dir=tmp_path, download=True)
    assert DATA_SETS[name].layout in str(caught.value)


# photos


def test_photos_has_250_training_and_80_test_patches_a_picture():
    train, test = load_tensor("photos", "train"), load_tensor("photos", "test")
    assert train.images.shape == (4000, 3, 48, 48)
    assert test.images.shape == (1280, 3, 48, 48)
    assert Counter(train.labels.tolist()) == dict.fromkeys(range(16), 250)
    assert Counter(test.labels.tolist()) == dict.fromkeys(range(16), 80)
    assert train.classes == test.classes
    assert len(train.classes) == len(set(train.classes)) == 16


def test_photos_colors_are_those_of_its_training_patches():
    mean, std = pixel_statistics(load_tensor("photos", "train").images)
    # JPEG decoders differ by a gray level here and there.
    assert PHOTOS.mean == pytest.approx(mean, abs=5e-4)
    assert PHOTOS.std == pytest.approx(std, abs=5e-4)


def test_training_and_test_patches_of_a_picture_never_overlap():
    for name in load("photos", "test").classes:
        height, width = photos_module._picture(name).shape[:2]
        train = photos_module._corners(name, "train", height, width)
        test = photos_module._corners(name, "test", height, width)
        assert max(left for left, _ in train) + 48 <= 0.62 * width
        assert min(left for left, _ in test) >= 0.66 * width - 1e-6
        assert max(left for left, _ in test) + 48 <= width
        assert max(top for _, top in train + test) + 48 <= height
        assert len(set(train)) == 250
        assert len(set(test)) == 80


def test_photos_patches_are_the_same_on_every_machine():
    corners = [
        photos_module._corners(name, split, 400, 600)
        for name in ("astronaut", "flower")
        for split in ("train", "test")
    ]
    digest = hashlib.sha256(repr(corners).encode()).hexdigest()
    assert digest == "511c7f0a639526e6db21d4dd2dc4a7cdcdfa68c7662b58165ce397785b6aa6ed"


def test_photos_patches_are_cut_from_scikit_images_own_pictures():
    from skimage import data

    found = load_tensor("photos", "train")
    for name in ("astronaut", "camera"):
        picture = getattr(data, name)()
        picture = picture if picture.ndim == 3 else np.stack([picture] * 3, axis=-1)
        i = found.labels.tolist().index(found.classes.index(name))
        left, top = photos_module._corners(name, "train", *picture.shape[:2])[0]
        patch = found.images[i].permute(1, 2, 0).numpy()
        assert np.array_equal(patch, picture[top : top + 48, left : left + 48])


def test_a_missing_picture_is_named_with_the_version_that_has_it(monkeypatch):
    package = ("skimage", "data", "scikit-image >= 0.22")
    monkeypatch.setitem(photos_module._PICTURES, "moon", ("mooon.png", package))
    with pytest.raises(UserError, match=r"'moon' is missing .* scikit-image >= 0\.22"):
        load("photos", "train")
    monkeypatch.setitem(photos_module._PICTURES, "moon", ("moon.png", ("skimoon", "", "v")))
    with pytest.raises(UserError, match=r"'moon' is missing; install v"):
        load("photos", "train")


# digits


def test_digits_are_scikit_learns_with_the_full_range_of_gray():
    train, test = load_tensor("digits", "train"), load_tensor("digits", "test")
    original = load_digits()
    images = torch.cat([train.images, test.images])
    assert images.shape == (1797, 3, 8, 8)
    for channel in range(3):
        restored = images[:, channel].double().mul(16 / 255).round()
        assert np.array_equal(restored.numpy(), original.images)
    assert images.max() == 255
    assert torch.cat([train.labels, test.labels]).tolist() == original.target.tolist()
    assert len(test) == 360
    assert (train.mean, train.std) == tuple(
        pytest.approx(values, abs=6e-5) for values in pixel_statistics(train.images)
    )


@pytest.mark.parametrize("name", ["photos", "digits"])
def test_pretrain_is_train_for_sets_without_unlabeled_images(name):
    train, pretrain = load_tensor(name, "train"), load_tensor(name, "pretrain")
    assert torch.equal(train.images, pretrain.images)
    assert torch.equal(train.labels, pretrain.labels)
    assert pretrain.split == "train"


# cifar10, cifar100, stl10


@pytest.fixture(scope="session")
def cifar10(shared, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cifar")
    script = shared / "data" / "unpack_cifar.py"
    subprocess.run([sys.executable, str(script), str(folder)], check=True, capture_output=True)
    return folder


@pytest.mark.shared
def test_cifar10_agrees_with_torchvision_and_with_its_published_colors(cifar10):
    train = load_tensor("cifar10", "train", data_dir=cifar10)
    assert train.images.shape == (50000, 3, 32, 32)
    assert Counter(train.labels.tolist()) == dict.fromkeys(range(10), 5000)
    mean, std = pixel_statistics(train.images)
    assert train.mean == pytest.approx(mean, abs=6e-5)
    assert train.std == pytest.approx(std, abs=6e-5)
    test = load_tensor("cifar10", "test", data_dir=cifar10 / "cifar-10-batches-py")
    reference = datasets.CIFAR10(cifar10, train=False)
    assert len(test) == len(reference) == 10000
    assert test.classes == tuple(reference.classes)
    for i in (0, 1, 5000, 9999):
        image, label = reference[i]
        assert np.array_equal(np.asarray(image), test.images[i].permute(1, 2, 0).numpy())
        assert label == test.labels[i]


@pytest.mark.shared
def test_damaged_cifar10_files_are_told(cifar10, tmp_path):
    inside = tmp_path / "cifar-10-batches-py"
    inside.mkdir()
    for file in (cifar10 / "cifar-10-batches-py").iterdir():
        (inside / file.name).symlink_to(file)
    data = bytearray((inside / "test_batch").read_bytes())
    data[1000] ^= 1
    (inside / "test_batch").unlink()
    (inside / "test_batch").write_bytes(data)
    with pytest.raises(UserError, match="missing, or damaged"):
        load("cifar10", "train", data_dir=tmp_path)


def pickled(path: Path, content: dict) -> tuple[str, str]:
    """Write a pickle; gives torchvision's entry for it: name and md5."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content))
    return path.name, hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def cifar100(tmp_path, monkeypatch) -> Path:
    """CIFAR-100's layout with 6 training images and 2 test images."""
    inside = tmp_path / "cifar-100-python"
    pixels = np.random.default_rng(0).integers(0, 256, (8, 3072), dtype=np.uint8)
    train = {"data": pixels[:6], "fine_labels": [0, 1, 2, 3, 4, 99], "coarse_labels": [0] * 6}
    test = {"data": pixels[6:], "fine_labels": [7, 8], "coarse_labels": [0] * 2}
    names = {"fine_label_names": [f"name {i}" for i in range(100)]}
    monkeypatch.setattr(datasets.CIFAR100, "train_list", [pickled(inside / "train", train)])
    monkeypatch.setattr(datasets.CIFAR100, "test_list", [pickled(inside / "test", test)])
    meta = pickled(inside / "meta", names)
    monkeypatch.setattr(
        datasets.CIFAR100,
        "meta",
        {"filename": meta[0], "key": "fine_label_names", "md5": meta[1]},
    )
    return tmp_path


def test_cifar100_has_its_fine_labels_and_channels_first(cifar100):
    train = load_tensor("cifar100", "train", data_dir=cifar100)
    assert train.labels.tolist() == [0, 1, 2, 3, 4, 99]
    assert train.classes[99] == "name 99"
    assert load("cifar100", "test", data_dir=cifar100).labels.tolist() == [7, 8]
    image, _ = datasets.CIFAR100(cifar100)[3]
    assert np.array_equal(np.asarray(image), train.images[3].permute(1, 2, 0).numpy())


def test_a_failed_download_says_where_to_unpack_it(tmp_path, monkeypatch):
    def fail(self):
        raise URLError("no route to host")

    monkeypatch.setattr(datasets.CIFAR100, "download", fail)
    with pytest.raises(UserError, match="--download: cifar100 could not be fetched") as caught:
        load("cifar100", "train", data_dir=tmp_path / "new", download=True)
    assert "no route to host" in str(caught.value)
    assert datasets.CIFAR100.url in str(caught.value)


@pytest.fixture
def stl10(tmp_path, monkeypatch) -> Path:
    """STL-10's layout with 3 labeled, 4 unlabeled and 2 test images."""
    inside = tmp_path / "stl10_binary"
    inside.mkdir()
    numbers = np.random.default_rng(0)

    def write(name: str, values: np.ndarray) -> tuple[str, str]:
        (inside / name).write_bytes(values.tobytes())
        return name, hashlib.md5(values.tobytes()).hexdigest()

    def images(count: int) -> np.ndarray:
        return numbers.integers(0, 256, (count, 3, 96, 96), dtype=np.uint8)

    train = [
        write("train_X.bin", images(3)),
        write("train_y.bin", np.array([1, 10, 5], dtype=np.uint8)),
        write("unlabeled_X.bin", images(4)),
    ]
    test = [
        write("test_X.bin", images(2)),
        write("test_y.bin", np.array([2, 3], dtype=np.uint8)),
    ]
    monkeypatch.setattr(datasets.STL10, "train_list", train)
    monkeypatch.setattr(datasets.STL10, "test_list", test)
    return tmp_path


def test_stl10_pretrains_on_labeled_and_unlabeled_images_and_probes_on_labeled_ones(stl10):
    pretrain = load_tensor("stl10", "pretrain", data_dir=stl10)
    train = load_tensor("stl10", "train", data_dir=stl10)
    test = load_tensor("stl10", "test", data_dir=stl10)
    assert (len(pretrain), len(train), len(test)) == (7, 3, 2)
    assert (pretrain.labels, pretrain.classes, pretrain.split) == (None, None, "pretrain")
    assert torch.equal(pretrain.images[:3], train.images)
    assert train.labels.tolist() == [0, 9, 4]
    assert (train.classes[0], train.classes[9]) == ("airplane", "truck")
    assert test.labels.tolist() == [1, 2]


def test_stl10_images_stand_upright_as_torchvision_shows_them(stl10):
    train = load_tensor("stl10", "train", data_dir=stl10)
    image, _ = datasets.STL10(stl10)[1]
    assert np.array_equal(np.asarray(image), train.images[1].permute(1, 2, 0).numpy())
    assert train.images.is_contiguous()


# imagenet, imagenet100, tiny-imagenet


def test_imagenet100_has_the_published_classes_once_each():
    assert len(IMAGENET100) == len(set(IMAGENET100)) == 100
    assert list(IMAGENET100) == sorted(IMAGENET100)
    assert (IMAGENET100[0], IMAGENET100[-1]) == ("n01558993", "n13040303")


@pytest.mark.shared
def test_imagenet100_agrees_with_the_reference_list(shared):
    text = (shared / "reference" / "imagenet100.md").read_text()
    assert set(IMAGENET100) == {word for word in text.split() if word[0] == "n" and len(word) == 9}


@pytest.fixture
def imagenet(tmp_path) -> Path:
    """An ImageNet tree: 1,000 classes, those of ImageNet-100 among them."""
    others = [f"n9{i:07d}" for i in range(900)]
    for name in [*IMAGENET100, *others]:
        images_at(tmp_path / "train" / name, 2)
        images_at(tmp_path / "val" / name, 1)
    return tmp_path


def test_imagenet_and_imagenet100_are_read_from_one_tree(imagenet):
    whole = load("imagenet", "train", data_dir=imagenet)
    assert len(whole) == 2000
    assert len(whole.classes) == 1000
    part = load("imagenet100", "train", data_dir=imagenet)
    assert isinstance(part, FileImages)
    assert part.classes == IMAGENET100
    assert len(part) == 200
    assert {path.parent.name for path in part.paths} == set(IMAGENET100)
    test = load("imagenet100", "test", data_dir=imagenet)
    assert test.labels.tolist() == list(range(100))
    assert part.mean == IMAGENET_MEAN


def test_imagenet100_is_read_from_a_tree_that_has_no_other_classes(tmp_path):
    for name in IMAGENET100:
        images_at(tmp_path / "train" / name, 1)
    assert load("imagenet100", "train", data_dir=tmp_path).classes == IMAGENET100


def test_missing_and_empty_classes_are_counted_and_named(tmp_path):
    for name in IMAGENET100[2:]:
        images_at(tmp_path / "train" / name, 1)
    with pytest.raises(UserError, match="2 of the 100 class folders are missing, first n01558993"):
        load("imagenet100", "train", data_dir=tmp_path)
    for name in IMAGENET100[:2]:
        images_at(tmp_path / "train" / name, 0)
    with pytest.raises(UserError, match="class n01558993 has no images"):
        load("imagenet100", "train", data_dir=tmp_path)


def test_a_part_of_imagenet_is_not_taken_for_imagenet(tmp_path):
    images_at(tmp_path / "train" / "n01558993", 1)
    with pytest.raises(UserError, match="holds 1 class folders, not 1,000"):
        load("imagenet", "train", data_dir=tmp_path)


def test_validation_images_without_class_folders_are_told(tmp_path):
    for name in IMAGENET100:
        images_at(tmp_path / "train" / name, 1)
    with pytest.raises(UserError, match="there is no val/"):
        load("imagenet100", "test", data_dir=tmp_path)
    images_at(tmp_path / "val", 3)
    with pytest.raises(UserError, match="100 of the 100 class folders are missing"):
        load("imagenet100", "test", data_dir=tmp_path)


@pytest.fixture
def tiny(tmp_path) -> Path:
    """Tiny ImageNet's published layout, with 2 training images a class and 3 validation images."""
    root = tmp_path / "tiny-imagenet-200"
    for i in range(200):
        place = root / "train" / f"n{i:08d}"
        images_at(place / "images", 2)
        (place / f"n{i:08d}_boxes.txt").write_text("images_0.JPEG\t0\t0\t62\t48\n")
    (root / "val" / "images").mkdir(parents=True)
    lines = []
    for i, label in enumerate([199, 0, 7]):
        (root / "val" / "images" / f"val_{i}.JPEG").write_bytes(b"never opened")
        lines.append(f"val_{i}.JPEG\tn{label:08d}\t0\t32\t44\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    images_at(root / "test" / "images", 1)
    return tmp_path


def test_tiny_imagenet_is_read_as_published(tiny):
    for data_dir in (tiny, tiny / "tiny-imagenet-200"):
        train = load("tiny-imagenet", "train", data_dir=data_dir)
        assert len(train) == 400
        assert train.classes == tuple(f"n{i:08d}" for i in range(200))
        assert train.labels.tolist() == [i // 2 for i in range(400)]
        test = load("tiny-imagenet", "test", data_dir=data_dir)
        assert isinstance(test, FileImages)
        assert [path.name for path in test.paths] == [f"val_{i}.JPEG" for i in range(3)]
        assert test.labels.tolist() == [199, 0, 7]


def test_a_tiny_imagenet_that_someone_has_made_a_class_tree_of_is_read_too(tmp_path):
    for i in range(200):
        images_at(tmp_path / "train" / f"n{i:08d}", 1)
        images_at(tmp_path / "val" / f"n{i:08d}", 1)
    assert len(load("tiny-imagenet", "train", data_dir=tmp_path)) == 200
    assert load("tiny-imagenet", "test", data_dir=tmp_path).labels.tolist() == list(range(200))


def test_a_validation_image_without_annotation_is_named(tiny):
    (tiny / "tiny-imagenet-200" / "val" / "images" / "val_9.JPEG").write_bytes(b"")
    with pytest.raises(UserError, match=r"gives no class of train/ to val_9\.JPEG"):
        load("tiny-imagenet", "test", data_dir=tiny)


def test_a_tiny_imagenet_with_other_than_200_classes_is_refused(tmp_path):
    images_at(tmp_path / "train" / "n00000001", 1)
    with pytest.raises(UserError, match="holds 1 class folders, not 200"):
        load("tiny-imagenet", "train", data_dir=tmp_path)
