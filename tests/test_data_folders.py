"""Any folder of images: its splits, its classes, what is passed over, and what is refused."""

from __future__ import annotations

import os
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from unmix.data import IMAGENET_MEAN, IMAGENET_STD, FileImages, load, read_uint8
from unmix.data.decoding import BrokenImage, decode
from unmix.data.folder import hold_out
from unmix.data.listing import EXTENSIONS, Folder, Listing, list_tree
from unmix.data.paths import Paths
from unmix.data.statistics import even_indices
from unmix.errors import UserError


def make(*paths: Path, color: str = "olive") -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), color).save(path)


def tree(root: Path, classes: dict[str, int]) -> Path:
    for name, count in classes.items():
        make(*(root / name / f"{i}.png" for i in range(count)))
    return root


def names(images: FileImages, root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in images.paths]


def load_files(folder: Path, split: str) -> FileImages:
    found = load(folder, split)
    assert isinstance(found, FileImages)
    return found


def test_a_class_tree_is_labeled_by_folder_in_sorted_order(tmp_path):
    tree(tmp_path / "train", {"b": 2, "a": 3})
    tree(tmp_path / "val", {"a": 1, "b": 1})
    train = load_files(tmp_path, "train")
    assert train.classes == ("a", "b")
    assert train.labels.tolist() == [0, 0, 0, 1, 1]
    assert names(train, tmp_path / "train") == [
        "a/0.png",
        "a/1.png",
        "a/2.png",
        "b/0.png",
        "b/1.png",
    ]
    assert train.name == str(tmp_path)
    assert train.split == "train"


@pytest.mark.parametrize(("folders", "used"), [(["test"], "test"), (["val", "test"], "val")])
def test_the_test_split_is_val_or_else_test(tmp_path, folders, used):
    for folder in ("train", *folders):
        tree(tmp_path / folder, {"a": 2, "b": 2})
    test = load_files(tmp_path, "test")
    assert {path.parts[-3] for path in test.paths} == {used}
    assert test.split == "test"
    assert len(load(tmp_path, "train")) == 4  # nothing is held out


def test_test_labels_are_those_of_train_even_if_a_class_is_absent_or_alone(tmp_path):
    tree(tmp_path / "train", {"a": 2, "b": 2, "c": 2})
    tree(tmp_path / "val", {"c": 1})
    test = load_files(tmp_path, "test")
    assert test.classes == ("a", "b", "c")
    assert test.labels.tolist() == [2]


def test_a_test_class_that_train_has_not_is_refused_by_name(tmp_path):
    tree(tmp_path / "train", {"a": 2, "b": 2})
    tree(tmp_path / "val", {"a": 1, "zebra": 1})
    with pytest.raises(UserError, match=r"class 'zebra' is not in train/") as caught:
        load(tmp_path, "test")
    assert str(tmp_path / "val") in str(caught.value)


def test_test_images_without_classes_are_refused_when_train_has_classes(tmp_path):
    tree(tmp_path / "train", {"a": 2, "b": 2})
    make(tmp_path / "val" / "0.png")
    with pytest.raises(UserError, match="images without a class"):
        load(tmp_path, "test")
    assert load(tmp_path, "train").classes == ("a", "b")


def test_a_class_tree_without_test_split_gives_a_tenth_of_every_class(tmp_path):
    tree(tmp_path, {"a": 20, "b": 34, "c": 3, "d": 1})
    train, test = load_files(tmp_path, "train"), load_files(tmp_path, "test")
    assert Counter(test.labels.tolist()) == {0: 2, 1: 3, 2: 1}
    assert Counter(train.labels.tolist()) == {0: 18, 1: 31, 2: 2, 3: 1}
    assert set(train.paths).isdisjoint(test.paths)
    assert train.classes == test.classes == ("a", "b", "c", "d")
    assert names(load_files(tmp_path, "pretrain"), tmp_path) == names(train, tmp_path)


def test_train_without_val_or_test_beside_it_gives_a_tenth_too(tmp_path):
    tree(tmp_path / "train", {"a": 10, "b": 10})
    assert len(load(tmp_path, "train")) == 18
    assert len(load(tmp_path, "test")) == 2


def test_the_hold_out_depends_on_names_alone_and_is_the_same_on_every_machine(tmp_path):
    expected = {
        "a": {"10.png", "12.png"},
        "b": {"18.png", "19.png"},
    }
    tree(tmp_path / "here", {"a": 20, "b": 20})
    tree(tmp_path / "there", {"a": 20, "b": 20})
    for place in ("here", "there"):
        held = load_files(tmp_path / place, "test")
        found = {name: {p.name for p in held.paths if p.parent.name == name} for name in "ab"}
        assert found == expected


def test_names_that_are_no_text_can_be_held_out():
    paths = [os.fsdecode(b"a/\xff%d.jpg" % i) for i in range(10)]
    train, test = hold_out(Listing(paths, [0] * 10, ("a",)))
    assert sorted(train.paths + test.paths) == sorted(paths)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=5))
def test_hold_out_splits_every_class_without_loss(counts):
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    paths = [f"{label}/{i}" for i, label in enumerate(labels)]
    listing = Listing(paths, labels, tuple(f"c{i}" for i in range(len(counts))))
    train, test = hold_out(listing)
    assert sorted(train.paths + test.paths) == sorted(paths)
    for part in (train, test):
        assert [int(path.split("/")[0]) for path in part.paths] == part.labels
    held = Counter(test.labels)
    for label, count in enumerate(counts):
        assert held[label] == (0 if count == 1 else max(1, int(count / 10 + 0.5)))


def test_images_beside_each_other_have_no_classes(tmp_path):
    make(*(tmp_path / f"{i}.png" for i in range(5)))
    found = load_files(tmp_path, "train")
    assert (found.labels, found.classes, len(found)) == (None, None, 5)


@pytest.mark.parametrize(
    "files",
    [
        ["a/0.png", "a/1.png"],  # one folder
        ["a/0.png", "b/0.png", "c/0.png"],  # as many folders as images
        ["a/x/0.png", "a/x/1.png", "b/y/2.png"],  # deeper
        ["a/0.png", "a/1.png", "b/0.png", "b/x/1.png"],  # partly deeper
        ["a/0.png", "a/1.png", "b/0.png", "2.png"],  # partly beside the folders
    ],
)
def test_folders_that_are_no_class_tree_are_read_whole_and_without_classes(tmp_path, files):
    make(*(tmp_path / file for file in files))
    found = load_files(tmp_path, "train")
    assert found.labels is None
    assert found.classes is None
    assert names(found, tmp_path) == sorted(files)


def test_folders_without_images_are_no_classes(tmp_path):
    tree(tmp_path, {"a": 2, "b": 2})
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "readme.txt").write_text("nothing to see")
    (tmp_path / "a" / "thumbnails").mkdir()
    assert load(tmp_path, "train").classes == ("a", "b")


def test_a_class_may_be_called_train(tmp_path):
    tree(tmp_path, {"bus": 2, "train": 2, "tram": 2})
    assert load(tmp_path, "train").classes == ("bus", "train", "tram")


def test_train_and_test_without_classes_are_splits(tmp_path):
    make(tmp_path / "train" / "0.png", tmp_path / "train" / "1.png", tmp_path / "test" / "2.png")
    assert names(load_files(tmp_path, "train"), tmp_path) == ["train/0.png", "train/1.png"]
    test = load_files(tmp_path, "test")
    assert names(test, tmp_path) == ["test/2.png"]
    assert test.labels is None


def test_images_without_classes_and_without_test_folder_have_no_test_split(tmp_path):
    make(tmp_path / "0.png")
    with pytest.raises(UserError, match="no test split") as caught:
        load(tmp_path, "test")
    assert str(tmp_path) in str(caught.value)


def test_listing_is_sorted_without_hidden_files_and_with_every_extension_in_any_case(tmp_path):
    expected = [f"{extension}.{extension}" for extension in EXTENSIONS] + ["Z.JPEG", "a.b.PNG"]
    for name in [*expected, ".hidden.png", "notes.txt", "png", "archive.png.zip"]:
        (tmp_path / name).write_bytes(b"never opened")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "x.png").write_bytes(b"never opened")
    listing = list_tree(tmp_path)
    assert [os.path.basename(path) for path in listing.paths] == sorted(expected)


def test_linked_class_folders_are_followed_and_loops_end(tmp_path):
    tree(tmp_path / "store", {"a": 2, "b": 2})
    (tmp_path / "links").mkdir()
    for name in "ab":
        (tmp_path / "links" / name).symlink_to(tmp_path / "store" / name)
    assert list_tree(tmp_path / "links").classes == ("a", "b")
    (tmp_path / "store" / "a" / "up").symlink_to(tmp_path / "store")
    assert set(list_tree(tmp_path / "store").paths) >= set(
        map(str, (tmp_path / "store").glob("?/*.png"))
    )


def test_a_link_to_a_class_is_no_class_of_its_own(tmp_path):
    """Its images were listed twice, with two labels, and were in both parts of a split."""
    tree(tmp_path / "days", {"2024-05-01": 12, "2024-05-02": 12})
    for name in ("latest", "0-first"):
        (tmp_path / "days" / name).symlink_to("2024-05-02")
    whole = Folder(tmp_path / "days")
    listing = list_tree(whole)
    assert listing.classes == ("2024-05-01", "2024-05-02")
    assert listing.paths == sorted(map(str, (tmp_path / "days").glob("2024*/*.png")))
    (line,) = whole.passed.lines()
    assert line.startswith("ignored: 2 links to folders whose images are listed already (")
    train, held = hold_out(listing)
    identities = [{os.path.realpath(path) for path in part.paths} for part in (train, held)]
    assert not identities[0] & identities[1]
    # What is left may be a wrapper, and a class alone is none.
    tree(tmp_path / "wrapped", {"set/a": 2, "set/b": 2})
    (tmp_path / "wrapped" / "current").symlink_to("set")
    assert list_tree(tmp_path / "wrapped").classes == ("a", "b")
    tree(tmp_path / "one", {"a": 2})
    (tmp_path / "one" / "b").symlink_to("a")
    assert list_tree(tmp_path / "one") == Listing(
        sorted(map(str, (tmp_path / "one" / "a").glob("*.png")))
    )


def test_folders_that_link_to_each_other_are_listed_once(tmp_path):
    names = [f"class{i}" for i in range(9)]
    tree(tmp_path, dict.fromkeys(names, 2))
    for one in names:
        for other in names:
            if one != other:
                (tmp_path / one / f"to-{other}").symlink_to(tmp_path / other)
    whole = Folder(tmp_path)
    listing = list_tree(whole)
    assert listing.classes == tuple(names)
    assert listing.paths == sorted(map(str, tmp_path.glob("*/*.png")))

    (tmp_path / "beside.png").write_bytes(b"never opened")  # so that there are no classes
    whole = Folder(tmp_path)
    assert list_tree(whole).paths == sorted(
        [str(tmp_path / "beside.png"), *map(str, tmp_path.glob("*/*.png"))]
    )
    assert any("72 links to folders" in line for line in whole.passed.lines())


def test_a_link_in_a_loop_is_left_out_and_named(tmp_path):
    folder = tmp_path / "images"
    for name in ("a/0.jpg", "a/1.jpg", "b/0.jpg", "b/1.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside" / "back").symlink_to(folder)
    for place, target in (
        ("up", "."), ("a/up", ".."), ("a/own", "../a"), ("a/other", "../b"), ("itself", "itself"),
        ("b/gone", "nowhere"), ("b/beside", tmp_path / "beside"), ("one", "two"), ("two", "one"),
    ):  # fmt: skip
        (folder / place).symlink_to(target)
    whole = Folder(folder)
    found = list_tree(whole)
    assert found.classes == ("a", "b")
    assert len(found.paths) == 4
    links = {"loops": set(whole.passed.loops), "nowhere": set(whole.passed.nowhere)}
    assert {kind: {os.path.relpath(each, folder) for each in found} for kind, found in
            links.items()} == {
        "loops": {"up", "a/up", "a/own", "b/beside/back"},
        "nowhere": {"itself", "b/gone", "one", "two"},
    }  # fmt: skip
    assert [os.path.relpath(each, folder) for each in whole.passed.again] == ["a/other"]
    said = "; ".join(whole.passed.lines())
    assert "4 links to a folder above (" in said
    assert "4 links that cannot be followed (" in said
    assert "1 link to folders whose images are listed already (" in said


def test_empty_folders_that_link_to_each_other_end(tmp_path):
    for i in range(9):
        (tmp_path / f"{i}").mkdir()
        for j in range(9):
            if i != j:
                (tmp_path / f"{i}" / f"{j}").symlink_to(tmp_path / f"{j}")
    with pytest.raises(UserError, match="holds no images"):
        list_tree(tmp_path)


def test_what_is_not_a_regular_file_is_ignored_and_named(tmp_path):
    tree(tmp_path, {"a": 2, "b": 2})
    os.mkfifo(tmp_path / "a" / "fifo.jpg")
    (tmp_path / "a" / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "b" / "self.png").symlink_to("self.png")
    (tmp_path / "b" / "nothing.png").symlink_to("nowhere")
    whole = Folder(tmp_path)
    listing = list_tree(whole)
    # Links that lead nowhere are listed, and told as broken images when they are read.
    assert {os.path.basename(path) for path in listing.paths} >= {"self.png", "nothing.png"}
    assert not {"fifo.jpg", "zero.png"} & {os.path.basename(path) for path in listing.paths}
    (line,) = whole.passed.lines()
    assert line.startswith("ignored: 2 names that are not regular files")
    assert "a FIFO" in line or "a device" in line


@pytest.mark.parametrize("kind", ["fifo", "device", "directory", "loop"])
def test_a_file_that_became_something_else_is_a_broken_image(tmp_path, kind):
    path = tmp_path / "x.jpg"
    {
        "fifo": lambda: os.mkfifo(path),
        "device": lambda: path.symlink_to("/dev/zero"),
        "directory": path.mkdir,
        "loop": lambda: path.symlink_to("x.jpg"),
    }[kind]()
    with pytest.raises(BrokenImage, match=r"x\.jpg: (a .*, not a regular file|Too many levels)"):
        decode(path)


def test_a_file_larger_than_any_allowed_image_is_not_read(tmp_path):
    with open(tmp_path / "large.jpg", "wb") as file:
        file.truncate(12 << 30)  # sparse
    with pytest.raises(BrokenImage, match="12,884,901,888 bytes, more than"):
        decode(tmp_path / "large.jpg")


def test_an_empty_folder_and_one_without_images_are_told(tmp_path):
    with pytest.raises(UserError, match="holds no images"):
        load(tmp_path, "train")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "sub").mkdir()
    with pytest.raises(UserError, match="holds no images") as caught:
        load(tmp_path, "train")
    assert str(caught.value).startswith(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_folder_that_may_not_be_read_is_told(tmp_path, monkeypatch):
    def refuse(folder):
        raise PermissionError(13, "Permission denied", os.fspath(folder))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"cannot be read \(Permission denied\)"):
        load(tmp_path, "train")


def test_a_folder_that_is_not_there_and_a_file_are_told(tmp_path):
    with pytest.raises(UserError, match=r"data: there is no folder .*nowhere"):
        load(tmp_path / "nowhere", "train")
    make(tmp_path / "a.png")
    with pytest.raises(UserError, match="is a file; give a folder"):
        load(tmp_path / "a.png", "train")


def test_a_folders_colors_are_those_of_its_training_images_for_both_splits(tmp_path):
    make(*(tmp_path / "train" / "a" / f"{i}.png" for i in range(3)), color="#ff0000")
    make(*(tmp_path / "train" / "b" / f"{i}.png" for i in range(3)), color="#00ff00")
    make(*(tmp_path / "val" / "a" / f"{i}.png" for i in range(3)), color="#0000ff")
    for split in ("train", "test"):
        found = load(tmp_path, split)
        assert found.mean == (0.5, 0.5, 0.0)
        assert found.std == (0.5, 0.5, 0.0)


def test_a_folder_of_imagenet_classes_has_imagenets_colors(tmp_path):
    tree(tmp_path, {"n01440764": 2, "n02102040": 2})
    found = load(tmp_path, "train")
    assert (found.mean, found.std) == (IMAGENET_MEAN, IMAGENET_STD)


def test_broken_files_do_not_stop_the_loading_but_all_broken_does(tmp_path):
    make(tmp_path / "0.png", tmp_path / "1.png", color="#ffffff")
    (tmp_path / "2.png").write_bytes(b"")
    assert load(tmp_path, "train").mean == (1.0, 1.0, 1.0)
    (tmp_path / "0.png").write_bytes(b"")
    (tmp_path / "1.png").write_bytes(b"x")
    with pytest.raises(UserError, match="no image could be read"):
        load(tmp_path, "train")


def test_strict_loading_makes_the_first_broken_file_raise_when_it_is_read(tmp_path):
    make(tmp_path / "0.png")
    (tmp_path / "1.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"1\.png: the file is empty"):
        read_uint8(load(tmp_path, "train", strict=True), [0, 1], 4)


@given(st.integers(0, 300), st.integers(1, 50))
def test_spread_indices_are_distinct_sorted_and_reach_over_the_whole(count, limit):
    chosen = even_indices(count, limit)
    assert chosen == sorted(set(chosen))
    assert len(chosen) == min(count, limit)
    assert all(0 <= i < count for i in chosen)
    if count > limit:
        gaps = np.diff([*chosen, count])
        assert gaps.max() - gaps.min() <= 1


@given(st.lists(st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1)))
def test_paths_come_back_as_they_were_also_from_another_process(texts):
    paths = pickle.loads(pickle.dumps(Paths(texts)))
    assert list(paths) == [Path(text) for text in texts]
    assert paths[1:] == [Path(text) for text in texts][1:]
    if texts:
        assert paths[-1] == Path(texts[-1])
    with pytest.raises(IndexError):
        paths[len(texts)]


@pytest.mark.shared
def test_imagenette_is_a_class_tree_with_a_val_split(shared):
    folder = shared / "data" / "imagenette"
    train, test = load_files(folder, "train"), load_files(folder, "test")
    assert train.classes == tuple(sorted(os.listdir(folder / "train")))
    assert Counter(train.labels.tolist()) == dict.fromkeys(range(10), 200)
    assert Counter(test.labels.tolist()) == dict.fromkeys(range(10), 50)
    assert all(
        path.parent.name == train.classes[label]
        for path, label in zip(train.paths, train.labels.tolist(), strict=True)
    )
    assert train.mean == IMAGENET_MEAN


@pytest.mark.shared
def test_one_split_of_imagenette_alone_is_held_out_by_class(shared):
    folder = shared / "data" / "imagenette" / "val"
    assert len(load(folder, "train")) == 450
    assert Counter(load(folder, "test").labels.tolist()) == dict.fromkeys(range(10), 5)
