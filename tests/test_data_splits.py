"""Folders that are splits are found by their names, and what was understood is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unmix.config import Settings
from unmix.data import FileImages, load
from unmix.data.outputs import is_run_folder
from unmix.errors import UserError
from unmix.figures.saving import render
from unmix.training.run.folder import RunFolder


def make(*paths: Path) -> None:
    for number, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)


def classes(root: Path, names: str = "ab", count: int = 3) -> None:
    make(*(root / name / f"{i}.png" for name in names for i in range(count)))


def flat(root: Path, count: int = 3) -> None:
    make(*(root / f"{i}.png" for i in range(count)))


def places(images: FileImages, root: Path) -> set[str]:
    return {path.relative_to(root).parent.as_posix() for path in images.paths}


def train_of(root: Path, **words: str) -> FileImages:
    found = load(root, "train", **words)
    assert isinstance(found, FileImages)
    return found


@pytest.mark.parametrize("train", ["train", "training", "Train", "TRAINING", "train2017"])
@pytest.mark.parametrize("test", ["val", "valid", "validation", "Test", "testing", "val2017"])
@pytest.mark.parametrize("around", [".", "images", "some/wrapper"])
def test_the_usual_names_are_splits_in_any_case_and_within_wrappers(tmp_path, train, test, around):
    root = tmp_path / around
    classes(root / train)
    classes(root / test, count=2)
    found = train_of(tmp_path)
    assert places(found, root) == {f"{train}/a", f"{train}/b"}
    assert found.classes == ("a", "b")
    tested = load(tmp_path, "test")
    assert places(tested, root) == {f"{test}/a", f"{test}/b"}
    inside = "" if around == "." else f"{around}/"
    assert found.notes == (
        f"split: train 6 images in 2 classes (a, b) from {inside}{train}/, evaluation on 4 from "
        f"{inside}{test}/",
    )


def test_val_comes_before_test_which_is_said_and_a_flag_takes_the_other(tmp_path):
    classes(tmp_path / "train")
    classes(tmp_path / "valid", count=2)
    classes(tmp_path / "test", count=1)
    (line,) = train_of(tmp_path).notes
    assert "evaluation on 4 from valid/" in line
    assert "not used: test/ (--test_folder test evaluates on it)" in line
    assert places(load(tmp_path, "test"), tmp_path) == {"valid/a", "valid/b"}
    other = load(tmp_path, "test", test_folder="test")
    assert places(other, tmp_path) == {"test/a", "test/b"}
    assert "evaluation on 2 from test/" in train_of(tmp_path, test_folder="test").notes[0]


def test_flat_splits_are_no_classes(tmp_path):
    for name in ("train", "valid", "test"):
        flat(tmp_path / name)
    found = train_of(tmp_path)
    assert found.classes is None
    assert places(found, tmp_path) == {"train"}
    assert found.notes == (
        "split: train 3 images without classes from train/; not used: valid/, test/",
    )


def test_images_beside_labels_and_masks_are_found(tmp_path):
    for name in ("train", "val"):
        flat(tmp_path / "images" / name)
        flat(tmp_path / "masks" / name)
        (tmp_path / "labels" / name).mkdir(parents=True)
        (tmp_path / "labels" / name / "0.txt").write_text("0 0.5 0.5 1 1")
    found = train_of(tmp_path)
    assert places(found, tmp_path) == {"images/train"}
    assert "masks/" in found.notes[0]


def test_a_word_that_all_splits_share_is_no_part_of_their_meaning(tmp_path):
    classes(tmp_path / "seg_train" / "seg_train")
    classes(tmp_path / "seg_test" / "seg_test")
    assert train_of(tmp_path).classes == ("a", "b")
    assert places(load(tmp_path, "test"), tmp_path) == {
        "seg_test/seg_test/a", "seg_test/seg_test/b"
    }  # fmt: skip


def test_classes_that_only_sound_like_splits_stay_classes(tmp_path):
    for name in ("bullet_train", "test_tube", "house"):
        flat(tmp_path / name)
    found = train_of(tmp_path)
    assert found.classes == ("bullet_train", "house", "test_tube")
    assert "in 3 classes (bullet_train, house, test_tube), test 3 held out" in found.notes[0]


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (["train2014/a", "train2014/b", "train2017/a", "val2017/a"], "train2014/ and train2017/"),
        (["train/a", "train/b", "val2014/a", "val2017/a"], "val2014/ and val2017/ can be"),
        (["train/a", "Train/a", "val/a"], "Train/ and train/ can be"),
        (["cat", "dog", "test"], "test/ can be splits or classes, and no folder is called train"),
        (["train", "test", "bus"], "can be splits, or classes as bus/ beside them"),
        (["val/a", "test/a"], "no folder is called train"),
    ],
)
def test_what_is_ambiguous_is_refused_with_the_flags_that_settle_it(tmp_path, folders, message):
    for folder in folders:
        flat(tmp_path / folder)
    with pytest.raises(UserError, match=message) as caught:
        load(tmp_path, "train")
    assert "--train_folder and --test_folder (relative to --data) settle it" in str(caught.value)


def test_of_several_the_evaluation_split_of_the_same_year_is_taken(tmp_path):
    for name in ("train2017", "val2014", "val2017"):
        classes(tmp_path / name)
    assert places(load(tmp_path, "test"), tmp_path) == {"val2017/a", "val2017/b"}
    classes(tmp_path / "train2014")
    both = load(tmp_path, "test", train_folder="train2014")
    assert places(both, tmp_path) == {"val2014/a", "val2014/b"}


def test_the_flags_settle_what_is_ambiguous(tmp_path):
    for name in ("cat", "dog", "test"):
        flat(tmp_path / name)
    whole = train_of(tmp_path, train_folder=".")
    assert whole.classes == ("cat", "dog", "test")
    rest = train_of(tmp_path, test_folder="test")
    assert rest.classes == ("cat", "dog")
    assert len(rest) == 6  # nothing is held out
    both = train_of(tmp_path, train_folder=".", test_folder="test")
    assert both.classes == ("cat", "dog")
    assert places(train_of(tmp_path, train_folder="cat"), tmp_path) == {"cat"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"train_folder": "trian"}, r"--train_folder: there is no folder 'trian'.*mean 'train'"),
        ({"test_folder": "../x"}, "--test_folder: there is no folder"),
        ({"test_folder": ".."}, "lies outside of --data"),
        ({"train_folder": "val", "test_folder": "val"}, "holds the training images of"),
        ({"train_folder": "train/a", "test_folder": "train"}, "of --train_folder train/a too"),
        ({"test_folder": "."}, "--test_folder: . holds the training images of"),
        ({"train_folder": "val/b", "test_folder": "val/link"}, "of --train_folder val/b too"),
    ],
)
def test_folders_that_cannot_be_are_refused(tmp_path, words, message):
    classes(tmp_path / "data" / "train")
    classes(tmp_path / "data" / "val")
    (tmp_path / "data" / "val" / "link").symlink_to("b")
    with pytest.raises(UserError, match=message):
        load(tmp_path / "data", "train", **words)


@pytest.mark.parametrize(
    ("train", "test"),
    [("all", "all/val"), (".", "holdout/2024"), ("all", "all/link"), ("linked", "all/val")],
)
def test_images_to_evaluate_on_are_not_trained_on_wherever_they_lie(tmp_path, train, test):
    for root in ("all", "all/val", "holdout/2024"):
        classes(tmp_path / root)
    if test == "all/link":
        (tmp_path / test).symlink_to("val")
    (tmp_path / "linked").symlink_to("all")
    words = {"train_folder": train, "test_folder": test}
    tested = {path.resolve() for path in load(tmp_path, "test", **words).paths}
    trained = {path.resolve() for path in train_of(tmp_path, **words).paths}
    rest = {path.resolve() for path in (tmp_path / train).resolve().rglob("*.png")} - tested
    assert len(tested) == 6
    assert trained == rest


def test_the_flags_are_for_folders_only():
    with pytest.raises(UserError, match="train_folder: applies only to a folder of images"):
        load("photos", "train", train_folder="train")


def test_one_wrapper_around_a_class_tree_makes_no_difference(tmp_path):
    classes(tmp_path / "101_categories", "abc")
    assert train_of(tmp_path).classes == ("a", "b", "c")


@pytest.mark.parametrize(
    ("stray", "message"),
    [
        ("photo.png", "photo.png lies beside the folders; if every image were in one of them"),
        ("a/x/deep.png", "a/x/deep.png is not directly in a class folder; if every image were"),
    ],
)
def test_the_picture_that_turns_labels_off_is_named(tmp_path, stray, message):
    classes(tmp_path)
    make(tmp_path / stray)
    found = train_of(tmp_path)
    assert found.classes is None
    assert len(found) == 7
    assert message in found.notes[0]


def test_what_is_passed_over_is_counted_by_extension(tmp_path):
    classes(tmp_path)
    for name in ("a/1.txt", "b/2.TXT", "c.csv", "IMG.heic", "README", ".hidden"):
        (tmp_path / name).write_bytes(b"")
    assert train_of(tmp_path).notes[1] == (
        "ignored, since they are not images: 2 .txt, 1 without extension, 1 .csv, "
        "1 .heic (HEIC; convert it, or install pillow-heif)"
    )


def test_a_folder_of_heic_alone_says_what_to_do(tmp_path):
    (tmp_path / "a.HEIC").write_bytes(b"")
    with pytest.raises(UserError, match=r"1 \.heic \(HEIC; convert it, or install"):
        load(tmp_path, "train")


CONFIG = "\n".join(
    f"{word}: 1" for word in
    ("method", "data", "backbone", "batch_size", "knn_every", "checkpoint_every", "seed")
)  # fmt: skip


def test_run_folders_among_the_images_are_left_out_and_counted(tmp_path):
    classes(tmp_path)
    for run in ("runs/x", "runs/y"):
        make(tmp_path / run / "figures" / "shot.png")
        (tmp_path / run / "config.yaml").write_text(CONFIG)
    found = train_of(tmp_path)
    assert found.classes == ("a", "b")
    assert found.notes[1].startswith("ignored, since unmix wrote them: 2 run folders (")
    (tmp_path / "runs" / "x" / "config.yaml").write_text("method: moco\n")  # somebody's own
    assert train_of(tmp_path).classes is None


def test_the_configuration_of_a_run_is_known_as_ours(tmp_path):
    RunFolder(tmp_path).write_settings(Settings.of({}))
    assert is_run_folder(tmp_path)


def test_figures_of_unmix_among_the_images_are_left_out_and_counted(tmp_path):
    from matplotlib.figure import Figure

    classes(tmp_path)
    (tmp_path / "mixture.png").write_bytes(render(Figure(), "png"))
    found = train_of(tmp_path)
    assert found.classes == ("a", "b")
    assert found.notes[1] == (
        f"ignored, since unmix wrote them: 1 figure ({tmp_path / 'mixture.png'})"
    )


def test_a_run_folder_is_no_folder_of_images(tmp_path):
    flat(tmp_path)
    (tmp_path / "config.yaml").write_text(CONFIG)
    with pytest.raises(UserError, match="this is a run folder of unmix"):
        load(tmp_path, "train")
