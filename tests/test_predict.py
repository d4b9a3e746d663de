"""`unmix predict`, `load_classifier`, and exports with a classifier: what `finetune` trained."""

from __future__ import annotations

import csv
import json
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from unmix import load_classifier, load_encoder
from unmix.cli import main
from unmix.commands import embed, export, finetune, predict
from unmix.commands.predict import _Table
from unmix.data import load
from unmix.embedding import Chunks
from unmix.errors import UserError
from unmix.training import RunFolder, pretrain
from unmix.training.console import silent
from unmix.weights import open_weights


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "moco"
    pretrain(
        method="moco", data="digits", epochs=1, run=str(folder), queue_size=256, bn_splits=2,
        backbone="resnet10", width=0.125, size=16, logger="none", device="cpu", workers=0,
        evaluate=False, precision="32",
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def trained(run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A fine-tuning and its row."""
    folder = tmp_path_factory.mktemp("tuned") / "tuned"
    row = finetune(
        run, labels="30%", epochs=6, batch_size=64, lr=0.05, head_lr=0.5, out=str(folder),
        device="cpu", say=silent,
    )  # fmt: skip
    return folder, row


@pytest.fixture
def tuned(trained: tuple[Path, dict[str, Any]], tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained[0], tmp_path / "tuned"))


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def pictures(folder: Path, count: int = 6) -> list[str]:
    """Digits as PNG files, unlabeled."""
    folder.mkdir()
    test = load("digits", "test")
    for i in range(count):
        pixels = test.images[i].permute(1, 2, 0).numpy()
        Image.fromarray(np.ascontiguousarray(pixels)).save(folder / f"{i}.png")
    return [str(folder / f"{i}.png") for i in range(count)]


def test_predictions_are_as_accurate_as_the_fine_tuning_says(
    trained: tuple[Path, dict[str, Any]], tmp_path: Path
):
    folder, row = trained
    said: list[str] = []
    out = predict(
        folder, data="digits", split="test", out=tmp_path / "a.csv", top=3, device="cpu",
        batch_size=100, say=said.append,
    )  # fmt: skip
    rows = table(out)
    assert 15 < row["top1"] < 99  # between chance level and what would hide a mistake
    assert len(rows) == row["test_images"] == 360
    right = [each["predicted"] == each["class"] for each in rows]
    assert f"accuracy: {100 * np.mean(right):.1f}% of 360 test images" in said
    # The fine-tuning was in 32 bits; of its folder alone this machine may compute in bfloat16.
    near = 1e-4 if any("32-true" in line for line in said) else 1
    assert 100 * np.mean(right) == pytest.approx(row["top1"], rel=0, abs=near)
    assert {each["split"] for each in rows} == {"test"}
    assert rows[17]["path"] == "digits/test/17"
    for each in rows:
        p = [float(each[f"probability{end}"]) for end in ("", "_2", "_3")]
        assert p == sorted(p, reverse=True)
        assert 0 < sum(p) <= 1 + 1e-5
        assert len({each[f"predicted{end}"] for end in ("", "_2", "_3")}) == 3


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_a_folder_alone_computes_in_the_precision_of_its_accuracy(
    run: Path, tmp_path: Path, precision: str
):
    """Not in the machine's own, with which an image at the border may be of another class."""
    copied = shutil.copytree(run, tmp_path / "run")
    config = copied / "config.yaml"
    config.write_text(re.sub(r"precision: .*", f"precision: '{precision}'", config.read_text()))
    finetune(
        copied, labels="5%", epochs=1, batch_size=16, out=str(tmp_path / "tuned"), device="cpu",
        say=silent,
    )  # fmt: skip
    assert load_encoder(tmp_path / "tuned").facts["fine_tuned"]["precision"] == precision
    said: list[str] = []
    predict(
        tmp_path / "tuned", data="digits", split="test", out=tmp_path / "a.csv", device="cpu",
        say=said.append,
    )  # fmt: skip
    assert {"32": "cpu, 32-true", "bf16": "cpu, bf16-mixed"}[precision] in "\n".join(said)


def test_of_classes_that_are_equally_likely_the_first_is_written_as_in_the_accuracy():
    """Logits in bfloat16 are often equal, and the accuracy was another one than the file's."""
    logits = np.zeros((5, 30), np.float32)
    logits[:, [2, 5, 17, 23]] = 1.0
    chunk: Any = SimpleNamespace(features=logits, index=np.arange(5))
    split = SimpleNamespace(split="test")
    named: Any = SimpleNamespace(images=split, names=lambda index: list("abcde"))
    rows = list(_Table([str(n) for n in range(30)], 3)._rows(named, chunk, labeled=False))
    assert [row[2::2] for row in rows] == [["2", "5", "17"]] * 5
    assert {row[2] for row in rows} == {str(n) for n in logits.argmax(axis=1)}


def test_python_predicts_as_the_command_does(tuned: Path, tmp_path: Path):
    paths = pictures(tmp_path / "pictures")
    said: list[str] = []
    out = predict(
        tuned, data=str(tmp_path / "pictures"), out=tmp_path / "a.csv", device="cpu",
        say=said.append,
    )  # fmt: skip
    rows = table(out)
    assert [each["path"] for each in rows] == paths
    assert list(rows[0]) == ["path", "split", "predicted", "probability"]
    assert not any("accuracy" in line for line in said)  # nothing says which class they are
    classifier = load_classifier(tuned)
    assert classifier.classes == tuple(load("digits", "test").classes)
    assert classifier.predict(paths) == [each["predicted"] for each in rows]
    found = classifier.probabilities(paths)
    assert torch.allclose(found.sum(dim=1), torch.ones(6))
    # As by hand, from the two files.
    head = load_file(tuned / "head.safetensors")
    logits = load_encoder(tuned).encode(paths) @ head["weight"].T + head["bias"]
    assert torch.allclose(found, logits.softmax(dim=1), atol=1e-6)
    written = torch.tensor([float(each["probability"]) for each in rows])
    assert torch.allclose(written, found.amax(dim=1), atol=0.02)  # bfloat16 on some CPUs
    prepared = torch.stack([classifier.encoder.transform(path) for path in paths])
    assert torch.allclose(classifier(prepared).softmax(dim=1), found, atol=1e-5)


def test_unreadable_images_are_counted_and_listed(tuned: Path, tmp_path: Path):
    paths = pictures(tmp_path / "pictures")
    Path(paths[2]).write_bytes(b"no image")
    said: list[str] = []
    out = predict(
        tuned, data=str(tmp_path / "pictures"), out=tmp_path / "a.csv", device="cpu",
        say=said.append,
    )  # fmt: skip
    assert [each["path"] for each in table(out)] == paths[:2] + paths[3:]
    listed = (tmp_path / "a.csv.skipped.csv").read_text(encoding="utf-8")
    assert paths[2] in listed
    assert any("1" in line and "2.png" in line for line in said)


def test_images_that_it_was_trained_on_do_not_count_as_test_images(tuned: Path, tmp_path: Path):
    said: dict[str, list[str]] = {"all": [], "test": []}
    for split, lines in said.items():
        out = tmp_path / f"{split}.csv"
        predict(tuned, data="digits", split=split, out=out, device="cpu", say=lines.append)
    accuracies = {
        split: [line for line in lines if "accuracy" in line] for split, lines in said.items()
    }
    assert accuracies["all"][0] == accuracies["test"][0]
    assert accuracies["all"][1].endswith("1,437 train images, on which it may have been trained")
    assert len(accuracies["test"]) == 1


def test_deep_images_are_scaled_as_those_that_it_was_trained_on(run: Path, tmp_path: Path):
    """By their own range a folder of dark images alone would be as bright as one of bright ones."""
    generator = np.random.default_rng(0)
    for name, low in (("dim", 400), ("bright", 2400)):
        for i in range(12):
            pixels = generator.integers(low, low + 1600, (16, 16)).astype(np.uint16)
            for folder in (tmp_path / "data" / name, *([tmp_path / "dim"] if low < 999 else [])):
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    out = tmp_path / "tuned"
    assert load_encoder(run).range is None
    finetune(
        run, data=str(tmp_path / "data"), epochs=8, batch_size=8, lr=0.01, head_lr=0.5,
        out=str(out), device="cpu", say=silent,
    )  # fmt: skip
    low, high = load_classifier(out).encoder.range or (0, 0)
    assert 380 < low < 430
    assert 3900 < high < 4010
    words: dict[str, Any] = {"device": "cpu", "say": silent}
    whole = table(predict(out, data=str(tmp_path / "data"), out=tmp_path / "a.csv", **words))
    alone = table(predict(out, data=str(tmp_path / "dim"), out=tmp_path / "b.csv", **words))
    known = [each for each in whole if each["class"] == "dim"]
    facts = ("predicted", "probability")
    of_dim = {Path(each["path"]).name: [each[fact] for fact in facts] for each in known}
    assert of_dim == {Path(each["path"]).name: [each[fact] for fact in facts] for each in alone}
    assert len(of_dim) == 12


def test_only_images_of_known_classes_count(tuned: Path, tmp_path: Path):
    """A folder's classes are told by their names, whatever their order and number."""
    test = load("digits", "test")
    data = tmp_path / "data"
    for i, name in [(0, "zebra"), *((i, str(test.classes[test.labels[i]])) for i in range(1, 40))]:
        (data / name).mkdir(parents=True, exist_ok=True)
        pixels = test.images[i].permute(1, 2, 0).numpy()
        Image.fromarray(np.ascontiguousarray(pixels)).save(data / name / f"{i}.png")
    said: list[str] = []
    out = predict(
        tuned, data=str(data), split="train", out=tmp_path / "a.csv", device="cpu",
        say=said.append,
    )  # fmt: skip
    rows = table(out)
    known = [each for each in rows if each["class"] != "zebra"]
    right = 100 * np.mean([each["class"] == each["predicted"] for each in known])
    line = f"accuracy: {right:.1f}% of {len(known)} train images whose class it knows"
    assert 0 < len(known) < len(rows)
    assert any(each.startswith(line) for each in said)


def test_an_interrupted_command_goes_on(
    tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """What was encoded is kept, and taken for the same classifier alone."""
    words: dict[str, Any] = {
        "data": "digits", "out": tmp_path / "a.csv", "device": "cpu", "say": silent,
    }  # fmt: skip
    whole = predict(tuned, **{**words, "out": tmp_path / "whole.csv"}).read_bytes()
    monkeypatch.setattr(sys.modules["unmix.commands.predict"], "assemble", _stop)
    with pytest.raises(KeyboardInterrupt):
        predict(tuned, **words)
    monkeypatch.undo()
    said: list[str] = []
    head = load_file(tuned / "head.safetensors")
    other = Path(shutil.copytree(tuned, tmp_path / "other"))
    metadata = {"classes": json.dumps(list(load_classifier(tuned).classes))}
    save_file({k: -v for k, v in head.items()}, other / "head.safetensors", metadata)
    with pytest.raises(UserError, match="an unfinished one with"):
        predict(other, **words)
    assert predict(tuned, **{**words, "say": said.append}).read_bytes() == whole
    assert any("continuing" in line for line in said)


def test_a_table_that_was_not_moved_is_not_taken_for_one_with_more_columns(
    tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    words: dict[str, Any] = {
        "data": "digits", "split": "test", "out": tmp_path / "a.csv", "device": "cpu",
        "say": silent,
    }  # fmt: skip
    monkeypatch.setattr(Chunks, "finish", _stop)
    with pytest.raises(KeyboardInterrupt):
        predict(tuned, **words)
    monkeypatch.undo()
    assert "predicted_3" in table(predict(tuned, **words, top=3))[0]


def test_a_folder_without_an_encoder_is_told_what_it_is(
    tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("encoder.safetensors", "result.json"):  # as before a fine-tuning ends
        (tuned / name).unlink()
    words: dict[str, Any] = {"data": "digits", "out": tmp_path / "a.csv", "say": silent}
    for call in (lambda: predict(tuned, **words), lambda: load_classifier(tuned)):
        with pytest.raises(UserError, match=r"when a fine-tuning ends\. To finish it give"):
            call()
    pictures(tmp_path / "pictures")
    with pytest.raises(UserError, match=r"has no encoder\.safetensors; give a run"):
        load_classifier(tmp_path / "pictures")


def test_parts_of_two_preparations_are_not_mixed(
    tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The same weights with another mean are another encoder, for what is encoded in parts."""
    encoder = load_encoder(tuned)
    other = tmp_path / "other"
    other.mkdir()
    facts = {**encoder.facts, "mean": [0.1, 0.1, 0.1]}
    RunFolder(other).write_encoder(encoder.backbone, facts)
    words: dict[str, Any] = {
        "data": "digits", "out": tmp_path / "a.npz", "device": "cpu", "say": silent,
    }  # fmt: skip
    monkeypatch.setattr(sys.modules["unmix.commands.embed"], "assemble", _stop)
    with pytest.raises(KeyboardInterrupt):
        embed(tuned, **words)
    monkeypatch.undo()
    with pytest.raises(UserError, match="an unfinished one with another encoder"):
        embed(other, **words)
    tune: dict[str, Any] = {
        "data": "digits", "labels": "10%", "epochs": 1, "batch_size": 144, "device": "cpu",
        "out": str(tmp_path / "again"), "say": silent,
    }  # fmt: skip
    finetune(tuned, **tune)
    with pytest.raises(UserError, match="holds another fine-tuning"):
        finetune(other, **tune)


def _stop(*args: Any) -> None:
    raise KeyboardInterrupt


def test_a_graph_with_the_classifier_gives_its_logits(tuned: Path, tmp_path: Path):
    """ONNX by onnxruntime, and PyTorch's exported program, from RGB in [0, 1]."""
    onnxruntime = pytest.importorskip("onnxruntime")
    classifier = load_classifier(tuned)
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(classifier.encoder.facts[k])[:, None, None] for k in ("mean", "std"))
    expected = classifier((images - mean) / std).detach()
    said: list[str] = []
    words: dict[str, Any] = {"classifier": True, "pixels": True, "say": said.append}
    path = export(tuned, to="onnx", out=tmp_path / "a.onnx", **words)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert [each.name for each in session.get_outputs()] == ["logits"]
    (found,) = session.run(None, {"images": images.numpy()})
    assert np.allclose(found, expected.numpy(), atol=1e-4)
    names = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
    assert names == list(classifier.classes)
    assert "it gives the logits of 10 classes; its metadata has their names" in said
    path = export(tuned, to="torch-export", out=tmp_path / "a.pt2", **words)
    found = torch.export.load(path).module()(images)
    assert torch.allclose(found, expected, atol=1e-4)
    plain = export(tuned, to="torch-export", out=tmp_path / "b.pt2", say=said.append)
    assert torch.export.load(plain).module()(images).shape == (3, classifier.encoder.feature_dim)
    assert any("--classifier takes it along" in line for line in said)


def test_mistakes_are_told_in_a_line(
    run: Path, tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = ["--data", "digits", "--out", str(tmp_path / "a.csv"), "--device", "cpu"]

    def error(*words: str) -> str:
        assert main(list(words)) == 2
        return capsys.readouterr().err.strip().splitlines()[-1]

    assert "has no classifier; unmix finetune trains one" in error("predict", str(run), *out)
    (run / "finetune" / "all").mkdir(parents=True)
    (run / "finetune" / "all" / "head.safetensors").touch()
    found = error("predict", str(run), *out)
    shutil.rmtree(run / "finetune")
    assert found.endswith(f"its classifier is in {run / 'finetune' / 'all'}.")
    assert "--top: 11, and there are 10 classes" in error(
        "predict", str(tuned), *out, "--top", "11"
    )
    assert "a file that ends in .csv" in error("predict", str(tuned), *out[:2], "--out", "a.txt")
    assert "Did you mean 'predict'?" in error("classify", str(tuned), *out)
    (tmp_path / "a.csv").touch()
    assert "a.csv exists" in error("predict", str(tuned), *out)
    words = ("export", str(tuned), "--to", "torchvision", "--classifier")
    assert "--classifier: applies to onnx and torch-export" in error(*words)
    words = ("export", str(run), "--to", "torch-export", "--classifier")
    assert "has no classifier" in error(*words)


def test_a_classifier_of_another_encoder_is_refused(tuned: Path):
    encoder = load_encoder(tuned)
    with torch.no_grad():
        next(encoder.backbone.parameters()).add_(1)
    RunFolder(tuned).write_encoder(encoder.backbone, encoder.facts)
    with pytest.raises(UserError, match=r"is of another encoder than the one beside it"):
        load_classifier(tuned)
    # Files of earlier versions do not say whose they are.
    head = load_file(tuned / "head.safetensors")
    names = json.dumps([str(i) for i in range(10)])
    save_file(head, tuned / "head.safetensors", {"classes": names})
    assert len(load_classifier(tuned).classes) == 10
    (tuned / "head.safetensors").write_bytes(b"{}")
    with pytest.raises(UserError, match=r"head.safetensors: is damaged"):
        load_classifier(tuned)


@pytest.mark.parametrize("name", ["encoder.safetensors", "head.safetensors"])
def test_a_flipped_bit_is_told_wherever_weights_are_read(tuned: Path, name: str):
    content = bytearray((tuned / name).read_bytes())
    content[-3] ^= 1
    (tuned / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name}: is damaged .*its checksum is wrong"):
        load_classifier(tuned)
    if name == "encoder.safetensors":
        with pytest.raises(UserError, match=r"is damaged .its checksum is wrong.; copy it again"):
            open_weights(str(tuned))
