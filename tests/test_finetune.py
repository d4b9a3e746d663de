"""`unmix finetune`: rows, files, resuming, and mistakes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from unmix.cli import main
from unmix.commands import export, finetune, import_weights, knn
from unmix.commands.finished import FinishedRun
from unmix.commands.rows import NotSavedError
from unmix.data import load
from unmix.errors import UserError
from unmix.evaluation import load_encoder
from unmix.evaluation.labeled import Amount, choose_labeled, read_list
from unmix.per_image import per_image
from unmix.randomness import generator_for
from unmix.results import load_results
from unmix.training import RunFolder, pretrain
from unmix.training.console import silent

SMALL: dict[str, Any] = {
    "backbone": "resnet10", "width": 0.125, "size": 16, "logger": "none", "device": "cpu",
    "workers": 0,
}  # fmt: skip
# Two steps an epoch.
QUICK: dict[str, Any] = {
    "labels": "10%", "epochs": 2, "batch_size": 72, "lr": 0.05, "head_lr": 0.5, "device": "cpu",
}  # fmt: skip


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    pretrain(
        method="moco", data="digits", epochs=1, run=str(root / "moco"), queue_size=256,
        bn_splits=2, **SMALL,
    )  # fmt: skip
    return root / "moco"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "moco")
    return tmp_path / "moco"


def work_of(run: Path) -> Path:
    (folder,) = (run / "finetune").iterdir()
    return folder


def test_a_tenth_of_the_labels_trains_the_whole_encoder(run: Path):
    before = load_file(run / "encoder.safetensors")
    row = finetune(run, **{**QUICK, "epochs": 8}, say=silent)
    assert (row["protocol"], row["settings"], row["epoch"]) == ("finetune-10%", "swav", 1)
    assert (row["train_images"], row["test_images"]) == (144, 360)
    assert row["top1"] > 25  # chance level is 10
    folder = work_of(run)
    after = load_file(folder / "encoder.safetensors")
    assert not torch.equal(before["conv1.weight"], after["conv1.weight"])
    assert all(torch.equal(v, load_file(run / "encoder.safetensors")[k]) for k, v in before.items())
    # The list is balanced, and names what was trained on.
    lines = (folder / "labels.txt").read_text().splitlines()
    assert lines[0] == "# 10%, balanced, seed 0: 144 images"
    listed = load("digits", "train").labels[list(map(int, lines[1:]))]
    assert set(listed.bincount(minlength=10).tolist()) == {14, 15}
    # Per image, as `compare` needs it.
    kept = per_image(run, load_results(run).final("finetune-10%"))
    assert len(kept.correct) == 360
    assert 100 * kept.correct.mean() == pytest.approx(row["top1"])
    assert not list(folder.glob("*.ckpt"))


def test_the_list_of_the_labeled_images_trains_on_the_same_ones(run: Path, tmp_path: Path):
    """Also of images that have no files, whose names are their places in the split."""
    finetune(run, **QUICK, seed=3, say=silent)
    digits = load("digits", "train")
    chosen = choose_labeled(
        digits.labels, digits.classes, Amount("10%"), generator_for(3, "labels")
    )
    path = work_of(run) / "labels.txt"
    assert read_list(path, digits).tolist() == chosen.tolist()
    assert chosen.tolist() != list(range(len(chosen)))


def test_a_folder_is_of_one_encoder_and_one_seed(run: Path, tmp_path: Path):
    """Another encoder of the same settings is not taken for the one that was trained there."""
    words = {**{k: v for k, v in QUICK.items() if k != "labels"}, "epochs": 1, "batch_size": 720}
    out = str(tmp_path / "tuned")
    finetune(run, **words, out=out, say=silent)
    assert finetune(run, **words, out=out, say=silent)  # complete
    with pytest.raises(UserError, match=r"--out: .* holds another fine-tuning"):
        finetune(run, **words, out=out, seed=1, say=silent)
    encoder: Any = load_encoder(run)
    with torch.no_grad():
        encoder.backbone.conv1.weight += 1
    RunFolder(run).write_encoder(encoder.backbone, encoder.facts)
    with pytest.raises(UserError, match=r"--out: .* holds another fine-tuning"):
        finetune(run, **words, out=out, say=silent)


def test_a_row_that_was_lost_returns(run: Path):
    row = finetune(run, **QUICK, say=silent)
    content = json.loads((run / "results.json").read_text())
    content["evaluations"] = [e for e in content["evaluations"] if "finetune" not in e["protocol"]]
    (run / "results.json").write_text(json.dumps(content))
    assert finetune(run, **QUICK, say=silent) == row
    assert load_results(run).final("finetune-10%").top1 == row["top1"]


def test_what_is_written_predicts_as_the_row_says(run: Path):
    row = finetune(run, **QUICK, say=silent)
    encoder = load_encoder(work_of(run))
    head = load_file(work_of(run) / "head.safetensors")
    test = load("digits", "test")
    views = FinishedRun.open(run, "cpu").features(encoder.features, test)
    logits = views.features @ head["weight"].T + head["bias"]
    right = (logits.argmax(dim=1) == test.labels).double().mean()
    assert 100 * float(right) == pytest.approx(row["top1"], abs=0.6)  # bfloat16 on some CPUs
    with safe_open(work_of(run) / "head.safetensors", "pt") as file:
        assert json.loads(file.metadata()["classes"]) == list(test.classes)


def test_commands_read_the_fine_tuned_encoder_and_one_exported_for_a_hub(run: Path, tmp_path: Path):
    finetune(run, **QUICK, say=silent)
    tuned = knn(work_of(run), data="digits", device="cpu", k=5, say=silent)
    assert tuned == knn(
        work_of(run) / "encoder.safetensors", data="digits", device="cpu", k=5, say=silent
    )
    hub = export(run, to="hub", out=str(tmp_path / "hub"), say=silent)
    own = knn(run / "encoder.safetensors", device="cpu", k=5, say=silent)
    found = knn(hub, data="digits", device="cpu", k=5, say=silent)
    assert found["top1"] == pytest.approx(own["top1"], abs=1)
    with pytest.raises(UserError, match="give the data"):
        knn(hub, device="cpu", say=silent)


def test_the_same_command_gives_the_same_and_trains_once(run: Path):
    lines: list[str] = []
    first = finetune(run, **QUICK, say=silent)
    again = finetune(run, **QUICK, say=lines.append)
    assert again == first
    assert lines[-1].endswith("(complete; --overwrite trains it again)")
    anew = finetune(run, **QUICK, overwrite=True, say=silent)
    assert anew == first
    other = finetune(run, **QUICK, seed=1, say=silent)
    assert other["seed"] == 1
    assert len(list((run / "finetune").iterdir())) == 2


def test_an_interrupted_training_goes_on_to_the_same_result(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    shutil.copytree(run, tmp_path / "whole")
    whole = finetune(tmp_path / "whole", **{**QUICK, "epochs": 3}, say=silent)
    step = lightning.LightningModule.optimizer_step
    steps = []

    def stop(self: Any, *args: Any, **words: Any) -> Any:
        steps.append(1)
        if len(steps) == 5:
            raise KeyboardInterrupt
        return step(self, *args, **words)

    monkeypatch.setattr(lightning.LightningModule, "optimizer_step", stop)
    with pytest.raises(KeyboardInterrupt):
        finetune(run, **{**QUICK, "epochs": 3}, say=silent)
    assert "finetune-10%" not in {e.protocol for e in load_results(run).evaluations}
    assert (work_of(run) / "last.ckpt").exists()
    lines: list[str] = []
    row = finetune(run, **{**QUICK, "epochs": 3}, say=lines.append)
    assert "continuing after epoch 2" in lines
    assert next(line for line in lines if line.startswith("epoch")).startswith("epoch 3/3")
    assert row == whole
    ours, theirs = (
        load_file(work_of(r) / "encoder.safetensors") for r in (run, tmp_path / "whole")
    )
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


def test_mixtures_of_the_labeled_images_have_a_row_of_their_own(run: Path):
    plain = finetune(run, **QUICK, say=silent)
    words = {**QUICK, "epochs": 8, "mix": "coin", "beta": 0.8}
    row = finetune(run, **words, say=silent)
    assert (row["mix"], row["beta"]) == ("coin", 0.8)
    assert "mix" not in plain
    assert row["top1"] > 25  # chance level is 10
    kept = [e for e in load_results(run).evaluations if e.protocol == "finetune-10%"]
    assert len(kept) == 2
    lines: list[str] = []
    assert finetune(run, **words, say=lines.append) == row
    assert "8 epochs at lr 0.05, mixed by coin with beta 0.8, epoch 1: top-1" in lines[-1]


def test_a_row_that_could_not_be_kept_is_measured_again(run: Path, monkeypatch):
    def full(*_: Any, **__: Any) -> None:
        raise NotSavedError("the disk is full", [{}])

    with monkeypatch.context() as patch:
        patch.setattr("unmix.commands.finished.add_row", full)
        with pytest.raises(NotSavedError):
            finetune(run, **QUICK, say=silent)
    lines: list[str] = []
    row = finetune(run, **QUICK, say=lines.append)
    assert not any(line.startswith("epoch") for line in lines)
    assert load_results(run).final("finetune-10%").top1 == row["top1"]


def test_rates_are_chosen_on_held_out_labels(run: Path):
    lines: list[str] = []
    words = {k: v for k, v in QUICK.items() if k not in ("lr", "head_lr")}
    row = finetune(run, **words, select=True, say=lines.append)
    tried = [line for line in lines if line.startswith("rates ")]
    assert len(tried) == 5
    assert tried[0].startswith("rates 0.01 and 0.2: ")
    assert tried[0].endswith("of 14 held-out images")
    assert row["selected"] == "lr, head_lr"
    assert row["chosen"]["head_lr"] == pytest.approx(20 * row["chosen"]["lr"])
    assert "lr" not in row
    kept = json.loads((work_of(run) / "select.json").read_text())
    best = max(kept.values())
    assert kept[f"{row['chosen']['lr'] / 0.01:g}"] == best


def test_a_list_of_labels_and_random_weights_have_rows_of_their_own(run: Path, tmp_path: Path):
    path = tmp_path / "mine.txt"
    path.write_text("\n".join(map(str, range(0, 200, 2))))
    words = {k: v for k, v in QUICK.items() if k != "labels"}
    row = finetune(run, label_list=str(path), **words, say=silent)
    assert (row["protocol"], row["train_images"]) == ("finetune-list", 100)
    scratch = finetune(run, label_list=str(path), from_scratch=True, **words, say=silent)
    assert scratch["start"] == "random"
    assert len([e for e in load_results(run).evaluations if e.protocol == "finetune-list"]) == 2


def test_a_fine_tuned_encoder_says_so_wherever_it_goes(run: Path, tmp_path: Path):
    """Its card called it self-supervised, and said that nothing was measured."""
    row = finetune(run, **QUICK, say=silent)
    facts = load_encoder(work_of(run)).facts["fine_tuned"]
    assert (facts["data"], facts["top1"], len(facts["classes"])) == ("digits", row["top1"], 10)
    lines: list[str] = []
    out = export(work_of(run), to="hub", out=tmp_path / "hub", say=lines.append)
    assert any("head.safetensors, is left out" in line for line in lines)
    card = (out / "README.md").read_text()
    assert "pretrained by MoCo, then fine-tuned on the labels of 144 images of digits in 10" in card
    assert f"| Fine-tuned (10%) | digits | {row['top1']:.1f} | one seed |" in card
    assert "| `head_lr` | 0.5 |" in card
    assert "self-supervised" not in card
    again = import_weights(str(out / "model.safetensors"), run=tmp_path / "again", say=silent)
    assert load_encoder(again).facts["fine_tuned"] == facts
    card = (export(again, to="hub", say=silent) / "README.md").read_text()
    assert "It had been fine-tuned on labels." in card
    shutil.rmtree(run / "finetune")
    finetune(run, **QUICK, from_scratch=True, say=silent)
    card = (export(work_of(run), to="hub", say=silent) / "README.md").read_text()
    assert "trained from random weights on the labels of" in card
    assert "pretrained" not in card
    assert "| From scratch (10%) | digits |" in card


def test_a_file_alone_needs_a_folder_of_its_own(run: Path, tmp_path: Path):
    file = tmp_path / "alone.safetensors"
    shutil.copy(run / "encoder.safetensors", file)
    with pytest.raises(UserError, match="--out: an encoder file alone has no run folder"):
        finetune(file, data="digits", **QUICK, say=silent)
    out = tmp_path / "tuned"
    row = finetune(file, data="digits", out=str(out), **QUICK, say=silent)
    assert row["data"] == "digits"
    assert load_encoder(out).feature_dim == 64
    assert finetune(file, data="digits", out=str(out), **QUICK, say=silent) == row
    words = {**QUICK, "labels": "20%", "data": "digits", "say": silent}
    with pytest.raises(UserError, match="tuned holds another fine-tuning; give another folder"):
        finetune(file, out=str(out), **words)
    with pytest.raises(UserError, match="moco holds other files; give a new folder"):
        finetune(file, out=str(run), **words)


def test_images_without_classes_are_told(run: Path, tmp_path: Path):
    for i in range(3):
        Image.new("RGB", (16, 16), (80 * i, 0, 0)).save(tmp_path / f"{i}.png")
    message = "has no classes, and fine-tuning needs them: the images of each class in a folder"
    with pytest.raises(UserError, match=message):
        finetune(run, data=str(tmp_path), **QUICK, say=silent)


def test_a_class_that_training_has_not_is_told(run: Path, tmp_path: Path):
    for split, names in (("train", "ab"), ("test", "abc")):
        for name in names:
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for i in range(3):
                Image.new("RGB", (16, 16), (80 * i, 0, 0)).save(folder / f"{i}.png")
    with pytest.raises(UserError, match=r"class 'c' is not in train/"):
        finetune(run, data=str(tmp_path / "data"), **QUICK, say=silent)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--labels", "1%x"], "--labels: '1%x' is neither a share such as 1%"),
        (["--labels", "0.3%"], "--labels: 0.3% of 1,437 images is 4, less than one for each of the "
                               "10 classes; use 1% or more"),
        (["--labels", "143"], "--labels: class '8' has 1"),
        (["--labels", "10%", "--label_list", "x"], "--labels: 10% does not apply with"),
        (["--label_list", "none.txt"], "--label_list: none.txt cannot be read"),
        (["--protocol", "swaw"], "--protocol: 'swaw' is unknown. Did you mean 'swav'"),
        (["--select", "--lr", "1"], "--lr: is what --select chooses"),
        (["--batch_size", "1"], "--batch_size: 1 is out of range"),
        (["--lr_decay", "2"], "--lr_decay: 2 is out of range"),
        (["--lr", "0"], "--lr: 0 is out of range"),
        (["--mix", "globel"], "--mix: 'globel' is unknown. Did you mean 'global'"),
        (["--mix", "cutmix"], "--mix: 'cutmix' is unknown. Did you mean 'region'"),
        (["--mix", "scalemix"], "--mix: scalemix needs more than the images of a batch; "
                                    "use coin, global, region, "),
        (["--beta", "0.8"], "--beta: is of --mix; give it too"),
        (["--mix", "global", "--beta", "0"], "--beta: 0 is out of range"),
    ],
)  # fmt: skip
def test_mistakes_are_told(finished: Path, refuse: Callable[..., str], words: list[str], message):
    line = refuse("finetune", finished, "--device", "cpu", *words)
    assert line.startswith(message)
    assert not (finished / "finetune").exists()


def test_the_command_line_says_what_it_does(run: Path, capsys: pytest.CaptureFixture[str]):
    words = ["--labels", "20", "--epochs", "1", "--batch_size", "100", "--device", "cpu"]
    assert main(["finetune", str(run), *words]) == 0
    text = capsys.readouterr().out
    assert "fine-tuning on 200 of 1,437 images, 1 epoch (eval_semisup.py" in text
    assert "fine-tuned on 20 per class (swav), 1 epoch at lr 0.01, epoch 1: top-1 " in text
    assert "fewer than the batch" not in text
    words = ["--labels", "20", "--epochs", "1", "--protocol", "simclr", "--device", "cpu"]
    assert main(["finetune", str(run), *words]) == 0
    assert (
        "note: 200 images are fewer than the batch of 4,096, so an epoch is one step; "
        "--batch_size makes more, and scales the rates" in capsys.readouterr().out
    )
