"""Every mistake that a user makes ends with one line that names it, and leaves nothing behind."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from unmix.cli import main
from unmix.errors import UserError
from unmix.training import pretrain

SMALL = shlex.split(
    "--size 8 --backbone resnet10 --width 0.125 --epochs 1 --knn_every 0 --no-evaluate "
    "--device cpu --precision 32 --logger none --workers 0"
)
DIGITS = [*SMALL, *shlex.split("--data digits --batch_size 256")]
MOCO = shlex.split("--queue_size 256 --bn_splits 1")

Refuse = Callable[..., str]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def picture(path: Path, mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    numbers = np.random.default_rng(sum(path.name.encode())).integers(0, 256, (12, 10, 4))
    image = Image.fromarray(numbers.astype(np.uint8))
    if mode == "I;16":
        image = Image.fromarray(numbers[..., 0].astype(np.uint16) * 257)
    elif mode != "RGBA":
        image = image.convert("RGB").convert(mode)
    image.save(path)
    return path


def pictures(folder: Path, count: int = 8) -> Path:
    for i in range(count):
        picture(folder / f"{i}.png")
    return folder


def on(folder: Path) -> list[str]:
    return ["pretrain", *SMALL, "--data", str(folder), *shlex.split(
        "--method moco --batch_size 4 --queue_size 4 --bn_splits 1 --run r"
    )]  # fmt: skip


# --- flags ------------------------------------------------------------------------------------

FLAGS = [
    ("--method mocco", "--method: 'mocco' is unknown. Did you mean 'moco'?"),
    ("--data photoz", "--data: 'photoz' is unknown. Did you mean 'photos'?"),
    ("--config moco-photoz", "--config: 'moco-photoz' is not a recipe. Did you mean 'moco-ph"),
    ("--IM --IM_type regoin", "--IM_type: 'regoin' is unknown. Did you mean 'region'?"),
    ("--backbone resnet19", "--backbone: 'resnet19' is unknown. Did you mean 'resnet18'?"),
    ("--device cpuu", "--device: 'cpuu' is unknown. Did you mean 'cpu'?"),
    ("--IM_tpye IM", "--IM_tpye: unknown flag. Did you mean --IM_type?"),
    ("--negatives 5", "--negatives: applies only to --method cmc, insdis or pirl."),
    ("photos", "'photos': unexpected argument; a value comes right after its flag."),
    ("--epochs ten", "--epochs: 'ten' is not an integer."),
    ("--epochs 1.5", "--epochs: '1.5' is not an integer."),
    ("--lr fast", "--lr: 'fast' is not a number."),
    ("--lr", "--lr: expects one value."),
    ("--run", "--run: expects one value."),
    ("--jitter 1 1", "--jitter: expects 4 values."),
    ("--IM=yes", "--IM: takes no value, got 'yes'; use --IM or --no-IM."),
    ("--g_prob 1.5", "--g_prob: 1.5 is out of range; it must be at least 0 and at most 1."),
    ("--r_prob -1", "--r_prob: -1 is out of range; it must be at least 0 and at most 1."),
    ("--unmix_prob 2", "--unmix_prob: 2 is out of range; it must be at least 0 and at most 1."),
    ("--cutout_p 2", "--cutout_p: 2 is out of range; it must be at least 0 and at most 1."),
    ("--g_alpha 0", "--g_alpha: 0 is out of range; it must be greater than 0."),
    ("--r_beta -1", "--r_beta: -1 is out of range; it must be greater than 0."),
    ("--beta 0", "--beta: 0 is out of range; it must be greater than 0."),
    ("--g_num -1", "--g_num: -1 is out of range; it must be at least 0."),
    ("--r_num -1", "--r_num: -1 is out of range; it must be at least 0."),
    ("--batch_size 1", "--batch_size: 1 is too small; batch norm and mixtures need at least 2"),
    ("--queue_size 8", "--queue_size: 8 keys are fewer than --batch_size 256; use a queue of"),
    ("--bn_splits 200", "--bn_splits: 200 sub-batches of a batch of 256 are too small; use at"),
    ("--schedule step", "--milestones: required by a step schedule, such as 120 160."),
    ("--milestones 9 3", "--milestones: [9, 3] must be increasing, such as 120 160."),
    ("--seed 99999999999999999999", "--seed: 99999999999999999999 is out of range; it must be"),
    ("--IM --IM_type region --size 1", "--size: a region mixture needs images of at least 2 x 2"),
    ("--unmix --size 1", "--size: a region mixture needs images of at least 2 x 2 pixels"),
    ("--run here.txt", "--run: here.txt is a file; give a folder."),
    ("--config none.yaml", "--config: there is no file none.yaml; a recipe is named without"),
    ("--config .", "--config: . is a folder; give a YAML file, or the name of a recipe."),
    ("--data ./none", "--data: there is no folder ./none."),
    ("--data here.txt", "--data: HERE/here.txt lists no images."),
    ("--data ./none.csv", "--data: there is no file ./none.csv."),
    ("--data .", "HERE: this folder holds no images (apng, avif, bmp, dib, gif, "),
    ("--data cifar10", "--data_dir: cifar10 needs a folder DIR that holds DIR/cifar-10-batches-py"),
    ("--data imagenet --data_dir none", "--data_dir: none does not exist; imagenet needs"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "message"), FLAGS, ids=[words for words, _ in FLAGS])
def test_settings_that_cannot_be_are_named_and_nothing_is_written(refuse, words, message):
    Path("here.txt").touch()
    line = refuse("pretrain", *DIGITS, *MOCO, *shlex.split(words))
    assert line.startswith(message.replace("HERE", str(Path.cwd())))
    assert [path.name for path in Path().iterdir()] == ["here.txt"]


@pytest.mark.parametrize("method", ["insdis", "cmc"])
def test_more_negatives_than_samples(refuse, method: str):
    line = refuse("pretrain", *DIGITS, "--method", method, "--negatives", "1437")
    assert line.startswith("--negatives: 1437 are more than the 1436 other samples of the data;")


def test_a_device_that_is_not_there(refuse, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert refuse("pretrain", "--device", "cuda").startswith("--device: cuda is not available here")


@pytest.mark.parametrize("logger", ["wandb", "mlflow", "trackio"])
def test_a_logger_that_is_not_installed(refuse, monkeypatch, logger: str):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    line = refuse("pretrain", *DIGITS, *MOCO, "--logger", logger)
    assert line == f"--logger: {logger} is not installed; pip install {logger}."
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("pretrian", "unknown command 'pretrian'. Did you mean 'pretrain'?"),
        ("knn", "RUN is required. See unmix knn --help."),
        ("knn none", "none: there is no such run folder."),
        ("knn none --K 3", "--K: unknown flag. Did you mean --k?"),
        ("probe none", "none: there is no such run folder."),
        ("compare none", "none: there is no such run folder."),
        ("recipes mocco", "RECIPE: 'mocco' is not a recipe. Did you mean 'moco'?"),
        ("preview --data digits", "--out is required."),
        ("preview --IM --out x.txt", "--out: x.txt must end in .png, .svg or .pdf."),
        ("preview --IM --g_prob 2 --out x.png", "--g_prob: 2 is out of range"),
        ("demo --epochs 0", "--epochs: 0 is out of range; it must be at least 1."),
        ("demo --data photoz", "--data: 'photoz' is unknown. Did you mean 'photos'?"),
    ],
)
def test_mistakes_with_the_other_commands(refuse, words: str, message: str):
    assert refuse(*shlex.split(words)).startswith(message)
    assert list(Path().iterdir()) == []


# --- YAML and Python --------------------------------------------------------------------------

YAML = [
    ("epochs: [", "--config: c.yaml line 1 is not valid YAML."),
    ("- epochs", "--config: c.yaml must hold lines of the form `setting: value`."),
    ("epochs: 3\nlr: 1\nepochs: 4", "--config: c.yaml lines 1 and 3 both set epochs; keep one."),
    ("epocs: 3", "--epocs: unknown setting. Did you mean --epochs?"),
    ("3: 4", "--3: unknown setting."),
    ("epochs: ten", "--epochs: 'ten' is not an integer."),
    ("epochs: 1.5", "--epochs: 1.5 is not an integer."),
    ("epochs: true", "--epochs: True is not an integer."),
    ("epochs: null", "--epochs: None is not an integer."),
    ("lr: [1]", "--lr: [1] is not a number."),
    ("lr: .nan", "--lr: nan is out of range; it must be greater than 0."),
    ("IM: yes please", "--IM: 'yes please' is not true or false."),
    ("IM: 1", "--IM: 1 is not true or false."),
    ("jitter: 3", "--jitter: 3 is not a list of 4 numbers."),
    ("jitter: [1, 2]", "--jitter: [1, 2] must be 4 numbers."),
    ("jitter: [a, b, c, d]", "--jitter: 'a' is not a number."),
    ("milestones: 5 6", "--milestones: '5 6' is not a list of numbers."),
    ("queue_size: big", "--queue_size: 'big' is not an integer."),
    ("temperature: hot", "--temperature: 'hot' is not a number."),
    ("head: 3", "--head: '3' is unknown. Known: linear, mlp."),
    ("view: Lab", "--view: applies only to --method cmc."),
    ("method: [moco]", "--method: ['moco'] is unknown."),
    ("data_dir: [x]", "--data_dir: ['x'] is not a string."),
]


@pytest.mark.parametrize(("text", "message"), YAML, ids=[text for text, _ in YAML])
def test_a_config_file_with_a_mistake(refuse, text: str, message: str):
    Path("c.yaml").write_text(text)
    assert refuse("pretrain", "--config", "c.yaml").startswith(message)
    assert [path.name for path in Path().iterdir()] == ["c.yaml"]


def test_a_config_file_that_is_no_text(refuse):
    Path("c.yaml").write_bytes(b"\xff\xfe\x80")
    line = refuse("pretrain", "--config", "c.yaml")
    assert line == "--config: c.yaml cannot be read (it is not a text file)."


@pytest.mark.parametrize("words", [{"epochs": "ten"}, {"lr": [1]}, {"IM": "no"}, {"size": 8.5}])
def test_python_calls_are_checked_as_flags_are(words: dict[str, Any]):
    with pytest.raises(UserError, match=f"^{next(iter(words))}: .* is not "):
        pretrain(data="digits", **words)
    assert list(Path().iterdir()) == []


# --- images -----------------------------------------------------------------------------------


def test_odd_images_are_converted_and_broken_ones_named_and_counted(tmp_path, capsys):
    images = tmp_path / "images"
    for mode, kind in {"L": "png", "I;16": "png", "RGBA": "png", "P": "png", "CMYK": "jpg"}.items():
        picture(images / f"{mode[0]}{len(mode)}.{kind}", mode)
    assert main(on(images)) == 0
    assert "Skipped" not in capsys.readouterr().out

    (images / "empty.png").touch()
    (images / "text.jpg").write_text("no image")
    whole = picture(images / "cut.png").read_bytes()
    (images / "cut.png").write_bytes(whole[: len(whole) // 2])
    for workers in ("0", "1"):
        shutil.rmtree("r")
        assert main([*on(images), "--epochs", "2", "--workers", workers]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        (line,) = [line for line in out.splitlines() if "Skipped" in line]
        assert line.startswith(f"Skipped 3 image files that cannot be read, first {images}/")
        assert line.endswith("; listed in r/skipped.csv")
        assert out.count("has no classes, so kNN and linear probes are off.") == 1


@pytest.mark.parametrize("workers", ["0", "1"])
def test_strict_makes_a_broken_image_an_error(refuse, tmp_path, workers: str):
    images = pictures(tmp_path / "images")
    (images / "empty.png").touch()
    line = refuse(*on(images), "--strict", "--workers", workers)
    assert line.startswith(f"--strict: {images}/empty.png: the file is empty; fix or remove the f")
    assert not Path("r").exists()


def test_a_folder_whose_images_are_all_or_nearly_all_broken(refuse, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for i in range(6):
        (images / f"{i}.png").touch()
    assert refuse(*on(images)).startswith(f"{images}: no image could be read")
    picture(images / "whole.png")
    held = refuse(*on(images))
    assert held.startswith(
        f"--data: of 7 images of {images}, 1 can be read; pretraining needs 2. S"
    )
    streamed = refuse(*on(images), "--resident", "no")
    assert streamed.startswith(f"--data: no batch of {images} had 2 images that can be read")
    assert not Path("r").exists()


def test_one_image_is_not_enough(refuse, tmp_path):
    images = pictures(tmp_path / "images", 1)
    line = refuse(*on(images))
    assert line == f"--data: {images} has 1 training image; pretraining needs 2."


def test_images_smaller_than_the_crop_and_fewer_than_a_batch_are_no_mistake(tmp_path):
    words = [*on(pictures(tmp_path / "images", 3)), "--size", "32", "--batch_size", "64"]
    assert main(words) == 0
    assert json.loads(Path("r/results.json").read_text())["training"]["steps"] == 1


def test_a_folder_without_classes_has_no_accuracies(refuse, tmp_path, capsys):
    images = pictures(tmp_path / "images")
    assert main([*on(images), "--evaluate", "--knn_every", "1"]) == 0
    said = capsys.readouterr().out
    assert f"{images} has no classes, so kNN and linear probes are off." in said
    assert "top-1" not in said
    line = refuse("knn", "r", "--device", "cpu")
    assert line.startswith(f"--data: {images} has no classes, and kNN needs them: the images of ")
    (tmp_path / "list.csv").write_text(f"path,label\n{next(images.iterdir())},\n")
    line = refuse("knn", "r", "--device", "cpu", "--data", tmp_path / "list.csv")
    assert "and kNN needs them: a label for each image of the list." in line
