"""Detection: folders of VOC and COCO, Faster R-CNN on an encoder, and what it learns."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torchvision.ops import FrozenBatchNorm2d

from unmix.backbones import HalfEncoders, build
from unmix.cli import main
from unmix.commands import detect
from unmix.commands.detect import _folder, _sides
from unmix.commands.finished import FinishedRun
from unmix.detection import evaluate, faster_rcnn, load_boxes
from unmix.detection.coco import load_coco
from unmix.detection.training import DetectionSchedule, Detector
from unmix.detection.voc import read_xml
from unmix.errors import Interrupted, UserError
from unmix.results import load_results
from unmix.training import pretrain
from unmix.training.run.folder import RunFolder

SIDE = 64
COLORS = {"blue": (0, 0, 255), "red": (255, 0, 0)}


def picture(seed: int) -> tuple[Image.Image, list[tuple[str, list[int]]]]:
    """Gray noise with one or two colored squares, and their boxes."""
    g = np.random.default_rng(seed)
    pixels = g.integers(96, 160, (SIDE, SIDE, 3), np.uint8)
    found = []
    for number, (name, color) in enumerate(COLORS.items()):
        if g.random() < 0.35 and (found or number == 0):
            continue
        side = int(g.integers(20, 33))
        x, y = int(g.integers(0, 33 - side)) + number * SIDE // 2, int(g.integers(0, SIDE - side))
        x = min(x, SIDE - side)
        pixels[y : y + side, x : x + side] = color
        found.append((name, [x, y, x + side, y + side]))
    return Image.fromarray(pixels), found


def coco(folder: Path, splits: dict[str, int]) -> Path:
    (folder / "annotations").mkdir(parents=True)
    for offset, (split, count) in enumerate(splits.items()):
        (folder / split).mkdir()
        content: dict[str, Any] = {
            "images": [], "annotations": [],
            "categories": [{"id": 7, "name": "red"}, {"id": 3, "name": "blue"}],
        }  # fmt: skip
        ids = {"red": 7, "blue": 3}
        for number in range(count):
            image, objects = picture(1000 * offset + number)
            image.save(folder / split / f"{number}.png")
            entry = {"id": number, "file_name": f"{number}.png", "width": SIDE, "height": SIDE}
            content["images"].append(entry)
            for name, (x, y, right, bottom) in objects:
                content["annotations"].append(
                    {"id": len(content["annotations"]), "image_id": number,
                     "category_id": ids[name], "bbox": [x, y, right - x, bottom - y],
                     "iscrowd": 0}
                )  # fmt: skip
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return folder


XML = (
    "<annotation><filename>{name}.png</filename><size><width>64</width><height>64</height>"
    "<depth>3</depth></size>{objects}</annotation>"
)
OBJECT = (
    "<object><name>{label}</name><difficult>{hard}</difficult><bndbox><xmin>{0}</xmin>"
    "<ymin>{1}</ymin><xmax>{2}</xmax><ymax>{3}</ymax></bndbox></object>"
)


def voc(folder: Path, splits: dict[str, int]) -> Path:
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / part).mkdir(parents=True)
    for offset, (split, count) in enumerate(splits.items()):
        names = [f"{split}{number}" for number in range(count)]
        for number, name in enumerate(names):
            image, objects = picture(1000 * offset + number)
            image.save(folder / "JPEGImages" / f"{name}.png")
            boxes = [
                OBJECT.format(x + 1, y + 1, right, bottom, label=label, hard=0)
                for label, (x, y, right, bottom) in objects
            ]
            text = XML.format(name=name, objects="".join(boxes))
            (folder / "Annotations" / f"{name}.xml").write_text(text)
        (folder / "ImageSets/Main" / f"{split}.txt").write_text("\n".join(names) + "\n")
    return folder


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return coco(tmp_path_factory.mktemp("squares") / "coco", {"train2017": 48, "val2017": 16})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("run") / "r"
    pretrain(
        run=str(folder), method="simclr", data="digits", backbone="resnet10", width=0.25, size=16,
        stem="large",
        limit=64, batch_size=16, epochs=1, knn_every=0, evaluate=False, logger="none", device="cpu",
        precision="32",
    )  # fmt: skip
    return folder


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def call(*words: object) -> str:
        capsys.readouterr()
        assert main([*map(str, words)]) == 2
        return capsys.readouterr().err.strip().removeprefix("unmix: error: ")

    return call


SMALL: dict[str, Any] = {
    "train_sides": (64, 64), "test_side": 64, "longest": 64, "device": "cpu", "threads": 1,
    "workers": 0, "proposals": 24,
}  # fmt: skip


def test_both_layouts_give_the_same_boxes(tmp_path: Path) -> None:
    counts = {"train": 6, "val": 3}
    one = load_boxes(voc(tmp_path / "VOCdevkit" / "VOC2012", counts).parent)
    other = load_boxes(coco(tmp_path / "coco", counts))
    for ours, theirs in zip(one, other, strict=True):
        assert ours.classes == theirs.classes == ("blue", "red")
        assert len(ours) == len(theirs)
        for (a, x), (b, y) in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b)
            torch.testing.assert_close(x["boxes"], y["boxes"])
            assert x["labels"].tolist() == y["labels"].tolist()
    image, target = one[0][0]
    left, top, right, bottom = target["boxes"][0].int().tolist()
    color = COLORS[one[0].classes[int(target["labels"][0]) - 1]]
    inside = image[:, top:bottom, left:right].flatten(1).T
    assert (inside == torch.tensor(color) / 255).all()


def test_the_test_images_beside_a_trainval_file_are_tested_on(tmp_path: Path) -> None:
    """VOC's usual names in COCO's layout: "trainval" has "val" in it, and was the test file too."""
    folder = coco(tmp_path, {"trainval2007": 4, "test2007": 3})
    for file in (folder / "annotations").iterdir():
        file.rename(file.with_name(file.name.replace("instances", "pascal")))
    train, test = load_boxes(str(folder))
    names = [{one.path for one in images.images} for images in (train, test)]
    assert [len(each) for each in names] == [4, 3]
    assert not names[0] & names[1]


def test_images_of_12_bits_are_scaled_as_in_the_pretraining(tmp_path: Path) -> None:
    folder = coco(tmp_path, {"train": 1, "val": 1})
    one = load_boxes(folder)[0].images[0].path
    deep = np.full((64, 64), 2048, dtype=np.uint16)
    Image.fromarray(deep).save(one)
    assert float(load_boxes(folder)[0][0][0].max()) < 0.04
    pixels, _ = load_boxes(folder, (0.0, 4095.0))[0][0]
    assert float(pixels.max()) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("head", ["fpn", "c4"])
def test_it_learns_to_find_colored_squares(
    head: str, run: Path, squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """AP50 far above that of the same detector before training, end to end."""
    train_images, test_images = load_boxes(squares)
    torch.manual_seed(0)  # by chance an untrained one has up to 30 of these few pictures
    untrained = faster_rcnn(
        build("resnet10", width=0.25, stem="large"), 2, head=head, mean=(0.5,) * 3,
        std=(0.25,) * 3, sides=(64,), longest=64, proposals=24,
    )  # fmt: skip
    before = evaluate(untrained, test_images)["ap50"]
    out = tmp_path / "detector.safetensors"
    steps = {"fpn": 40, "c4": 60}[head]
    row = detect(
        run, data=str(squares), head=head, steps=steps, batch_size=4, lr=0.08, out=str(out), **SMALL
    )
    assert before < 20
    assert row["ap50"] > before + 30
    assert row["ap"] <= row["ap50"]
    assert set(row["per_class"]) == {"blue", "red"}
    content = json.loads((run / "results.json").read_text())
    assert content["detection"][-1]["ap50"] == row["ap50"]
    load_results(run)
    assert out.stat().st_size > 1e5
    assert "AP50" in capsys.readouterr().out
    assert len(train_images) == 48


def test_training_draws_the_sides_that_are_given_and_no_other() -> None:
    assert _sides(480, 800) == (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
    assert _sides(64, 64) == (64,)


def test_a_detector_is_repeated_by_its_seed(run: Path, squares: Path) -> None:
    rows = [detect(run, data=str(squares), steps=2, batch_size=2, **SMALL) for _ in range(2)]
    assert rows[0]["loss"] == rows[1]["loss"]
    kept = json.loads((run / "results.json").read_text())["detection"]
    assert len([r for r in kept if r["steps"] == 2]) == 1


def test_an_interrupted_training_goes_on_to_the_same_result(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """By a signal within the steps; by an error, from the step that was saved last."""
    few = coco(tmp_path / "coco", {"train2017": 12, "val2017": 4})  # an epoch has two steps
    words = {"data": str(few), "steps": 12, "batch_size": 5, "seed": 3, **SMALL}
    whole = shutil.copytree(run, tmp_path / "whole")
    expected = detect(whole, **words, out=str(tmp_path / "whole.safetensors"))
    assert not (whole / "detection").exists() or not list((whole / "detection").iterdir())
    step, fail = Detector.training_step, {5: "signal", 9: "error"}

    def interrupted(self: Detector, *batch: Any) -> Any:
        kind = fail.pop(self.step, None)
        if kind == "error":
            raise RuntimeError("the machine is gone")
        loss = step(self, *batch)
        if kind == "signal":
            os.kill(os.getpid(), signal.SIGTERM)
        return loss

    monkeypatch.setattr(Detector, "training_step", interrupted)
    with pytest.raises(Interrupted):
        detect(run, **words, out=str(tmp_path / "parts.safetensors"))
    with pytest.raises(RuntimeError, match="gone"):
        detect(run, **words, out=str(tmp_path / "parts.safetensors"))
    found = detect(run, **words, out=str(tmp_path / "parts.safetensors"))
    said = capsys.readouterr().out
    assert "continuing after step 6" in said
    assert "continuing after step 9" in said
    for name in ("ap", "ap50", "ap75", "per_class", "loss"):
        assert found[name] == expected[name]
    one, other = (load_file(tmp_path / f"{n}.safetensors") for n in ("whole", "parts"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not list((run / "detection").glob("*"))


def test_a_training_of_an_encoder_with_another_mean_is_not_gone_on_with(
    run: Path, squares: Path, tmp_path: Path
) -> None:
    images, _ = load_boxes(str(squares))
    folder = shutil.copytree(run, tmp_path / "run")
    names = []
    for mean in ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5], [0.4, 0.5, 0.5]):
        encoder = FinishedRun.open(folder, "cpu").encoder
        RunFolder(folder).write_encoder(encoder.backbone, {**encoder.facts, "mean": mean})
        names.append(_folder(FinishedRun.open(folder, "cpu"), {}, images).name)
    assert names[0] == names[1] != names[2]


def test_the_same_data_by_another_path_is_the_same_row(
    run: Path, squares: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = {"steps": 1, "batch_size": 2, "seed": 8, **SMALL}
    detect(run, data=str(squares), **words)
    monkeypatch.chdir(squares)
    detect(run, data=".", **words)
    rows = json.loads((run / "results.json").read_text())["detection"]
    assert [r["data"] for r in rows if r["seed"] == 8] == [str(squares)]


def test_an_encoder_alone_is_not_resumed_and_says_so(
    run: Path, squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = shutil.copy(run / "encoder.safetensors", tmp_path)
    detect(alone, data=str(squares), steps=1, batch_size=2, **SMALL)
    said = capsys.readouterr().out
    assert "this training starts anew if it is interrupted" in said
    assert "this is not saved" in said
    assert [path.name for path in tmp_path.iterdir()] == ["encoder.safetensors"]


@pytest.mark.parametrize("stem", ["small", "large"])
def test_the_encoder_is_copied_whole_and_its_strides_are_those_of_the_anchors(stem: str) -> None:
    backbone = build("resnet18", width=0.25, stem=stem, size=64)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    words: dict[str, Any] = {"mean": (0.5,) * 3, "std": (0.2,) * 3}
    model = faster_rcnn(backbone, 3, **words)
    body = model.backbone.body.state_dict()
    assert {k: v.shape for k, v in body.items()} == {k: v.shape for k, v in before.items()}
    assert all(torch.equal(body[name], before[name]) for name in before)
    first = 1 if stem == "small" else 4
    assert model.rpn.anchor_generator.sizes == tuple((8 * first * 2**k,) for k in range(5))
    frozen = faster_rcnn(backbone, 3, head="c4", batch_norm="frozen", **words)
    fixed = [m for m in frozen.modules() if isinstance(m, FrozenBatchNorm2d)]
    assert len(fixed) == sum(isinstance(m, torch.nn.BatchNorm2d) for m in backbone.modules())
    assert isinstance(frozen.roi_heads.box_head.norm, torch.nn.BatchNorm2d)
    assert all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items())


def test_what_is_no_resnet_is_refused_with_the_reason() -> None:
    words: dict[str, Any] = {"mean": (0.5,) * 3, "std": (0.2,) * 3}
    with pytest.raises(UserError, match="a vision transformer has one map of one stride"):
        faster_rcnn(build("timm:vit_tiny_patch16_224", size=32), 2, **words)
    with pytest.raises(UserError, match="CMC's two encoders"):
        faster_rcnn(HalfEncoders("resnet10", width=0.1), 2, **words)
    with pytest.raises(UserError, match="AlexNet has no four stages"):
        faster_rcnn(build("alexnet", width=0.05, size=32), 2, **words)
    timm = faster_rcnn(build("timm:resnet18", size=64), 2, **words)
    assert timm.rpn.anchor_generator.sizes[0] == (32,)


def test_the_rate_is_divided_by_ten_twice_after_a_warmup() -> None:
    schedule = DetectionSchedule(steps=24_000)
    assert schedule.rate(0) == pytest.approx(1 / 101)
    assert [schedule.rate(s) for s in (100, 17_999, 18_000, 22_000)] == pytest.approx(
        [1, 1, 0.1, 0.01]
    )


def test_wrong_annotations_are_counted(tmp_path: Path) -> None:
    folder = coco(tmp_path / "coco", {"train": 3, "val": 2})
    file = folder / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    wrong: list[dict[str, Any]] = [
        {"id": 90, "image_id": 99, "category_id": 7, "bbox": [0, 0, 5, 5]},
        {"id": 91, "image_id": 0, "category_id": 8, "bbox": [0, 0, 5, 5]},
        {"id": 92, "image_id": 0, "category_id": 7, "bbox": [70, 70, 5, 5]},
        {"id": 93, "image_id": 0, "category_id": 7, "bbox": [60, 60, 20, 2]},
        {"id": 94, "image_id": 0, "category_id": 7, "bbox": [6, 6, 0, 5]},
        {"id": 95, "image_id": 0, "category_id": 7, "bbox": [6, 6, 5]},
        {"id": 96, "image_id": 0, "category_id": 7, "bbox": [6, 6, 5, 5], "iscrowd": 1},
    ]
    before = len(load_boxes(folder)[0].images[0].boxes)
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] != 2] + wrong
    file.write_text(json.dumps(content))
    train_images, _ = load_boxes(folder)
    assert train_images.noted.lines() == [
        "note: 1 x annotation of an image that is not listed: left out (annotation 90)",
        "note: 1 x annotation of a category that is not listed: left out (annotation 91)",
        "note: 1 x annotation without a box of four numbers: left out (annotation 95)",
        "note: 1 x box outside its image: left out (image 0)",
        "note: 1 x box that reaches out of its image: cut to it (image 0)",
        "note: 1 x box without area: left out (image 0)",
        "note: 1 x image without a box: used as background (image 2)",
    ]
    assert len(train_images.images[0].boxes) == before + 2
    assert len(train_images[0][1]["boxes"]) == before + 1  # no crowd in training
    assert train_images[2][1]["boxes"].shape == (0, 4)


def test_an_annotation_cannot_harm(tmp_path: Path) -> None:
    """No entities, no way out of the folder, nothing that is not XML."""
    bomb = '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;">]><a>&c;</a>'
    for text, why in (
        (bomb.encode(), "document type or entities"),
        (bomb.replace("DOCTYPE", "doctype").encode("utf-8-sig"), "document type or entities"),
        (bomb.encode("utf-16"), "is not valid XML"),
        (b"<a><b></a>", "is not valid XML"),
        (b"", "is not valid XML"),
    ):
        file = tmp_path / "a.xml"
        file.write_bytes(text)
        with pytest.raises(UserError, match=why):
            read_xml(file)
    folder = coco(tmp_path / "coco", {"train": 2, "val": 1})
    picture(0)[0].save(tmp_path / "secret.png")
    file = folder / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    content["images"][0]["file_name"] = "../../secret.png"
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match="leads out of"):
        load_coco(folder, (file, folder / "annotations" / "instances_val.json"))


def test_mistakes_are_one_line(
    run: Path, squares: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    go = ("detect", run, "--data")
    assert refused("detect", run).startswith("--data is required")
    assert refused(*go, tmp_path / "no").startswith("--data: there is no folder")
    (tmp_path / "plain").mkdir()
    assert "neither VOC's layout" in refused(*go, tmp_path / "plain")
    assert refused(*go, squares, "--steps", "0").startswith("--steps: 0 is out of range")
    assert refused(*go, squares, "--head", "dc5").startswith("--head: 'dc5'")
    assert refused(*go, squares, "--longest", "100").startswith("--longest: 100 is out of range")
    assert refused(*go, squares, "--out", squares).endswith("exists; give another file.")
    folder = voc(tmp_path / "voc", {"train": 2, "val": 1})
    (folder / "JPEGImages" / "train0.png").unlink()
    assert "its image" in refused(*go, folder)
    for text, why in (("{", "cannot be read as JSON"), ("[]", "has no list of images")):
        other = coco(tmp_path / f"c{len(text)}", {"train": 1, "val": 1})
        (other / "annotations" / "instances_val.json").write_text(text)
        assert why in refused(*go, other)
