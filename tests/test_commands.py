"""What is done with finished runs: encoders read back, rows in results.json, comparisons."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from unmix.commands import compare, knn, load_method, probe
from unmix.data import load, read_uint8
from unmix.data.reading import resize_batch
from unmix.errors import UserError
from unmix.evaluation import softness_summary
from unmix.evaluation.encoder import LoadedEncoder, load_encoder
from unmix.results import load_results
from unmix.training import pretrain
from unmix.training.console import silent

SMALL: dict[str, Any] = {
    "backbone": "resnet10",
    "width": 0.125,
    "size": 16,
    "logger": "none",
    "device": "cpu",
    "workers": 0,
}


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished runs on digits: `moco`, which kept its epochs' checkpoints, and `cmc`."""
    root = tmp_path_factory.mktemp("runs")
    common = {**SMALL, "data": "digits", "epochs": 2, "checkpoint_every": 1, "knn_every": 1}
    pretrain(method="moco", run=str(root / "moco"), queue_size=256, bn_splits=2, **common)
    pretrain(method="cmc", run=str(root / "cmc"), negatives=64, IM=True, **common)
    return root


@pytest.fixture
def runs(finished: Path, tmp_path: Path) -> Path:
    """A copy of the runs that a test may change."""
    shutil.copytree(finished, tmp_path / "runs")
    return tmp_path / "runs"


@pytest.fixture(scope="session")
def unlabeled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on a folder of images without classes."""
    root = tmp_path_factory.mktemp("unlabeled")
    (root / "images").mkdir()
    pixels = load("digits", "train").images[:24]  # type: ignore[attr-defined]
    for i, digit in enumerate(pixels):
        Image.fromarray(digit.permute(1, 2, 0).numpy()).save(root / "images" / f"{i:02d}.png")
    pretrain(
        method="moco", data=str(root / "images"), run=str(root / "run"), epochs=1, batch_size=8,
        queue_size=16, bn_splits=1, **SMALL,
    )  # fmt: skip
    return root / "run"


@pytest.fixture
def unrendered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made but not drawn into their files, which takes a second each."""
    monkeypatch.setattr("unmix.figures.saving.render", lambda figure, kind: b"<svg></svg>")


def rows(run: Path) -> list[dict[str, Any]]:
    return json.loads((run / "results.json").read_text())["evaluations"]


# --- encoders ---------------------------------------------------------------------------------


def test_the_exported_encoder_gives_the_features_of_the_last_checkpoint(finished: Path):
    images = load("digits", "test").images[:8]  # type: ignore[attr-defined]
    for name, width in (("moco", 64), ("cmc", 128)):
        encoder, method = load_encoder(finished / name), load_method(finished / name)
        features = encoder.encode(images)
        assert features.shape == (8, width)
        assert not encoder.backbone.training
        with torch.inference_mode():
            expected = method.features(encoder.views.plain(resize_batch(images, 16)))
        torch.testing.assert_close(features, expected)


def test_cmc_features_are_those_of_both_halves_side_by_side(finished: Path):
    encoder = load_encoder(finished / "cmc" / "encoder.safetensors")
    images = load("digits", "test").images[:4]  # type: ignore[attr-defined]
    lab = encoder.views.plain(resize_batch(images, 16))
    with torch.inference_mode():
        halves = [encoder.backbone.l(lab[:, :1]), encoder.backbone.ab(lab[:, 1:])]  # type: ignore[operator]
    assert encoder.facts["color_space"] == "Lab"
    torch.testing.assert_close(encoder.encode(images), torch.cat(halves, dim=1))


def test_loading_leaves_the_global_generator_alone(finished: Path):
    before = torch.random.get_rng_state()
    load_encoder(finished / "moco")
    load_method(finished / "cmc")
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_kept_checkpoint_is_of_its_epoch(finished: Path):
    first, last = (load_method(finished / "moco", name) for name in ("epoch-0001", "epoch-0002"))
    end = load_method(finished / "moco")
    name = "f_q.backbone.conv1.weight"
    assert torch.equal(last.state_dict()[name], end.state_dict()[name])
    assert not torch.equal(first.state_dict()[name], end.state_dict()[name])


def test_encoder_files_that_cannot_be_used_are_told_in_one_line(finished: Path, tmp_path: Path):
    source = finished / "moco" / "encoder.safetensors"
    weights = load_file(source)
    facts = {key: json.dumps(value) for key, value in load_encoder(source).facts.items()}
    path = tmp_path / "encoder.safetensors"

    def message() -> str:
        with pytest.raises(UserError) as caught:
            load_encoder(tmp_path)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "has no encoder.safetensors; give a run folder" in message()
    (tmp_path / "config.yaml").touch()
    assert "has no encoder.safetensors; it is written when a run ends" in message()
    path.write_bytes(source.read_bytes()[:-100])
    assert "is damaged or not a safetensors file" in message()
    path.write_bytes(b"not an encoder")
    assert "is damaged or not a safetensors file" in message()
    save_file(weights, path)
    assert "does not say its method" in message()
    save_file(weights, path, {**facts, "backbone": json.dumps("resnet18")})
    assert "does not match the resnet18 of width 0.125" in message()
    assert "layer1.1.conv1.weight is missing" in message()
    save_file({**weights, "fc.weight": torch.zeros(2)}, path, facts)
    assert "fc.weight is unexpected" in message()
    save_file(weights, path, {**facts, "width": json.dumps(0.25)})
    assert "conv1.weight has shape (8, 3, 3, 3), not (16, 3, 3, 3)" in message()
    for wrong in ({"mean": "3"}, {"size": '"x"'}, {"backbone": '"resnet7"'}, {"width": "null"}):
        save_file(weights, path, {**facts, **wrong})
        assert str(path) in message()
    with pytest.raises(UserError, match="there is no such run folder or encoder file"):
        load_encoder(tmp_path / "nowhere")


class Malice:
    """What runs code when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


def test_a_checkpoint_that_would_run_code_is_refused_and_runs_none(runs: Path):
    target = runs / "touched"
    torch.save({"state_dict": Malice(target)}, runs / "moco" / "checkpoints" / "last.ckpt")
    with pytest.raises(UserError, match=r"last\.ckpt: is not a checkpoint that can be read"):
        load_method(runs / "moco")
    assert not target.exists()


def test_checkpoints_that_cannot_be_used_are_told_in_one_line(runs: Path):
    with pytest.raises(UserError, match=r"no checkpoint 'first'; it has epoch-0001, epoch-0002"):
        load_method(runs / "moco", "first")
    shutil.copy(runs / "cmc/checkpoints/last.ckpt", runs / "moco/checkpoints/last.ckpt")
    with pytest.raises(UserError, match=r"does not match the run in"):
        load_method(runs / "moco")
    torch.save({"weights": 1}, runs / "moco" / "checkpoints" / "last.ckpt")
    with pytest.raises(UserError, match="holds no state_dict"):
        load_method(runs / "moco")


# --- kNN --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["moco", "cmc"])
def test_knn_repeats_what_the_run_measured_and_replaces_its_row(runs: Path, name: str):
    before = rows(runs / name)
    row = knn(runs / name, device="cpu", say=silent)
    assert row == next(r for r in before if r["protocol"] == "knn" and r["epoch"] == 2)
    assert rows(runs / name) == before


def test_other_settings_stand_beside_the_runs_own_row(runs: Path):
    run = runs / "moco"
    before, final = rows(run), load_results(run).final("knn")
    few = knn(run, k=5, device="cpu", say=silent)
    projector = knn(run, features="projector", device="cpu", say=silent)
    transfer = knn(run, data="photos", device="cpu", say=silent)
    after = rows(run)
    assert all(row in after for row in [*before, few, projector, transfer])
    assert len(after) == len(before) + 3
    assert load_results(run).final("knn") == final
    assert (transfer["data"], transfer["train_images"]) == ("photos", 4000)
    assert "data" not in few
    knn(run, k=5, device="cpu", say=silent)
    assert rows(run) == after


def test_the_runs_own_data_by_name_is_no_transfer(runs: Path):
    assert "data" not in knn(runs / "moco", data="digits", device="cpu", say=silent)


def test_knn_says_on_what_it_computes_and_one_line(runs: Path):
    lines: list[str] = []
    row = knn(runs / "moco", k=1437, device="cpu", threads=1, say=lines.append)
    assert row["k"] == row["train_images"] == 1437
    assert len(lines) == 2
    assert re.fullmatch(r"encoder: resnet10, width [\d.]+   device: cpu, .*, 1 thread", lines[0])
    assert lines[1].startswith("kNN, k 1437, T 0.1, backbone features, epoch 2: top-1 ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"k": 0}, "--k: 0 is out of range"),
        ({"k": 1438}, "--k: 1438 is more than the 1,437 training images"),
        ({"metric": "manhattan"}, "--metric: 'manhattan' is unknown"),
        ({"metric": "euclidean", "temperature": 1}, "--temperature: 1 does not apply to --metric"),
        ({"select": True, "k": 5}, "--k: is what --select chooses"),
        ({"layer": "layer9"}, "--layer: the encoder has no layer 'layer9'. Did you mean 'layer"),
        ({"layer": "7"}, "--layer: 7 is none of the ResNet's layers: 1 maxpool, 2 layer1"),
        ({"layer": "layer1", "features": "projector"}, "--layer: layer1 is a layer of the backb"),
        ({"temperature": 0}, "--temperature: 0 is out of range"),
        ({"features": "head"}, "--features: 'head' is unknown"),
        ({"data": "photoz"}, "--data: 'photoz' is unknown. Did you mean 'photos'"),
        ({"device": "tpu"}, "--device: 'tpu' is unknown"),
    ],
)
def test_knn_refuses_values_that_cannot_be(finished: Path, words: dict[str, Any], message: str):
    with pytest.raises(UserError) as caught:
        knn(finished / "moco", say=silent, **words)
    assert caught.value.on_command_line().startswith(message)


def test_measuring_needs_a_finished_run_and_classes(unlabeled: Path, runs: Path, tmp_path: Path):
    with pytest.raises(UserError, match="there is no such run folder"):
        knn(tmp_path / "nothing", say=silent)
    for measure in (knn, probe):
        with pytest.raises(UserError, match=r"--data: .*images has no classes, and (kNN|a probe)"):
            measure(unlabeled, device="cpu", say=silent)
    assert knn(unlabeled, data="digits", device="cpu", say=silent)["data"] == "digits"
    (runs / "moco" / "results.json").unlink()
    with pytest.raises(UserError, match="a run folder has one once its run has finished"):
        knn(runs / "moco", say=silent)


def test_an_encoder_of_another_run_is_told(runs: Path):
    shutil.copy(runs / "cmc/encoder.safetensors", runs / "moco/encoder.safetensors")
    with pytest.raises(UserError, match="is of another run: its method is cmc, not moco"):
        knn(runs / "moco", device="cpu", say=silent)


# --- probes -----------------------------------------------------------------------------------


def test_the_linear_probe_repeats_what_the_run_measured(runs: Path):
    before = rows(runs / "moco")
    (row,) = probe(runs / "moco", device="cpu", say=silent)
    old = next(r for r in before if r["protocol"] == "linear")
    assert {**row, "seconds": 0} == {**old, "seconds": 0}
    assert len(rows(runs / "moco")) == len(before)


def test_all_checkpoints_make_a_curve_over_epochs(runs: Path):
    measured = probe(runs / "moco", checkpoint="all", device="cpu", say=silent)
    assert [row["epoch"] for row in measured] == [1, 2]
    curve = load_results(runs / "moco").of("linear")
    assert [(row.epoch, row.top1) for row in curve] == [(r["epoch"], r["top1"]) for r in measured]
    (first,) = probe(runs / "moco", checkpoint="epoch-0001", device="cpu", say=silent)
    assert first["top1"] == measured[0]["top1"]


@pytest.mark.parametrize(("name", "protocol"), [("moco", "cmc"), ("cmc", "moco")])
def test_published_protocols_learn_and_can_be_repeated(runs: Path, name: str, protocol: str):
    words = {"protocol": protocol, "epochs": 2, "lr": 0.5, "device": "cpu", "say": silent}
    (row,) = probe(runs / name, **words)
    assert row["top1"] > 20  # chance level is 10
    assert (row["epochs"], row["lr"], row["features"]) == (2, 0.5, "backbone")
    (again,) = probe(runs / name, **words)
    assert again["top1"] == row["top1"]
    assert len([r for r in rows(runs / name) if r["protocol"] == protocol]) == 1


def test_a_probe_leaves_the_encoder_as_it_was(runs: Path):
    file = runs / "moco" / "encoder.safetensors"
    before = file.read_bytes()
    probe(runs / "moco", protocol="moco", epochs=1, device="cpu", say=silent)
    assert file.read_bytes() == before


def test_published_protocols_stream_files_and_name_broken_ones(runs: Path, tmp_path: Path):
    digits = load("digits", "train")
    assert digits.labels is not None
    for label in (0, 1):
        for part, which in (("train", slice(40)), ("test", slice(40, 60))):
            folder = tmp_path / "tree" / part / str(label)
            folder.mkdir(parents=True)
            for i in (digits.labels == label).nonzero().flatten()[which].tolist():
                pixels = digits.images[i].permute(1, 2, 0).numpy()  # type: ignore[attr-defined]
                Image.fromarray(pixels).save(folder / f"{i}.png")
    (tmp_path / "tree" / "train" / "0" / "broken.png").write_bytes(b"")
    lines: list[str] = []
    (row,) = probe(
        runs / "moco", protocol="moco", epochs=20, lr=1, device="cpu",
        data=str(tmp_path / "tree"), say=lines.append,
    )  # fmt: skip
    assert row["data"] == str(tmp_path / "tree")
    assert row["test_images"] == 40
    assert row["top1"] > 75  # zeros against ones, where chance level is 50
    assert "Skipped 1 image file" in lines[-1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"protocol": "simclr"}, "--protocol: 'simclr' is unknown"),
        ({"epochs": 5}, "--epochs: 5 does not apply to --protocol linear"),
        ({"lr": 0.1}, "--lr: 0.1 does not apply to --protocol linear"),
        ({"select": True}, "--select does not apply to --protocol linear"),
        ({"protocol": "swav", "select": True, "lr": 1}, "--lr: is what --select chooses"),
        ({"protocol": "swav", "weight_decay": -1}, "--weight_decay: -1 is out of range"),
        ({"protocol": "knn"}, "--protocol: 'knn' is unknown"),
        ({"protocol": "cmc", "epochs": 0}, "--epochs: 0 is out of range"),
        ({"protocol": "cmc", "lr": -1}, "--lr: -1 is out of range"),
        ({"checkpoint": "epoch-0003"}, "--checkpoint: 'epoch-0003' is unknown"),
    ],
)
def test_a_probe_refuses_values_that_cannot_be(finished: Path, words: dict, message: str):
    with pytest.raises(UserError) as caught:
        probe(finished / "moco", device="cpu", say=silent, **words)
    assert caught.value.on_command_line().startswith(message)


def test_all_checkpoints_need_checkpoints(unlabeled: Path):
    with pytest.raises(UserError, match="has no checkpoints of earlier epochs; pretrain with --ch"):
        probe(unlabeled, checkpoint="all", data="digits", device="cpu", say=silent)


def test_other_ways_to_measure_have_rows_of_their_own(runs: Path):
    """Layers, metrics and chosen settings stand beside what tables show."""
    run = runs / "moco"
    final = {p: load_results(run).final(p) for p in ("knn", "linear")}
    common = {"device": "cpu", "say": silent}
    euclidean = knn(run, metric="euclidean", **common)
    assert (euclidean["protocol"], euclidean["k"]) == ("knn-euclidean", 5)
    assert "temperature" not in euclidean
    layer = knn(run, layer="5", **common)
    assert (layer["layer"], layer["k"]) == ("5", 200)
    chosen = knn(run, select=True, **common)
    assert set(chosen["chosen"]) == {"k", "temperature"}
    (early,) = probe(run, layer="layer2", **common)
    (first,) = probe(run, layer="layer2", checkpoint="epoch-0001", **common)
    assert (early["layer"], early["epoch"], first["epoch"]) == ("layer2", 2, 1)
    (half,) = probe(runs / "cmc", layer="5", protocol="whitening", epochs=3, **common)
    assert (half["layer"], half["epochs"], half["top1"] > 20) == ("5", 3, True)
    assert all(row in rows(run) for row in (euclidean, layer, chosen, early, first))
    assert {p: load_results(run).final(p) for p in ("knn", "linear")} == final
    lines: list[str] = []
    (swav,) = probe(run, protocol="swav", epochs=1, select=True, device="cpu", say=lines.append)
    assert set(swav["chosen"]) == {"lr", "weight_decay"}
    assert re.match(
        r"swav probe, 1 epoch, lr [\d.]+, weight_decay .* \(chosen on held-out", lines[-1]
    )


# --- comparing --------------------------------------------------------------------------------

FIGURES = {f"{stem}.{kind}" for stem in ("accuracy", "time", "curves") for kind in ("png", "svg")}
PREDICTIONS = {"predictions.png", "predictions.svg", "softness.json"}


def test_compare_writes_everything_beside_the_runs(runs: Path):
    lines: list[str] = []
    folder = compare([runs / "moco", runs / "cmc"], device="cpu", say=lines.append).folder
    assert folder == runs / "compare"
    written = {path.name for path in folder.iterdir()}
    assert written == FIGURES | PREDICTIONS | {"report.html", "compare.json"}
    # One seed of each, told in words; then the table.
    assert lines[0].startswith("CMC + IM against MoCo, kNN: no verdict from 1 paired seed")
    assert "of these two encoders, not of their methods" in lines[0]
    assert lines[1].startswith("Cost of CMC + IM against MoCo: ")
    heads = [line.splitlines()[0].split()[:2] for line in lines[2:6]]
    assert [head[0] for head in heads] == ["setting", heads[1][0], "condition", "run"]
    content = json.loads((folder / "compare.json").read_text())
    assert content["verdicts"] == lines[0].rstrip().splitlines()
    assert set(content["conditions"]) == {"MoCo", "CMC + IM"}
    report = (folder / "report.html").read_text()
    assert f">unmix compare {runs / 'moco'} {runs / 'cmc'} --device cpu<" in report
    assert "Prediction curves" in report
    assert "batch_size" in report
    assert report.index("No verdict") < report.index("<table")


@pytest.mark.usefixtures("unrendered")
def test_softness_is_measured_over_the_whole_test_set(runs: Path):
    folder = compare([runs / "moco", runs / "cmc"], device="cpu", say=silent).folder
    found = json.loads((folder / "softness.json").read_text())
    assert (found["data"], found["split"], found["images"]) == ("digits", "test", 360)
    assert list(found["runs"]) == ["MoCo", "CMC + IM"]
    encoder = load_encoder(runs / "moco")
    images, _ = read_uint8(load("digits", "test"), torch.arange(360), 16)
    expected = softness_summary(encoder.encode(images))
    for name, (mean, _) in expected.items():
        # The run encodes in bfloat16 where the machine is fast at it.
        assert found["runs"]["MoCo"][name]["mean"] == pytest.approx(mean, rel=0.03)


@pytest.mark.usefixtures("unrendered")
def test_one_run_compares_with_itself_alone(runs: Path, tmp_path: Path):
    folder = compare([runs / "cmc"], out=tmp_path / "out", device="cpu", say=silent).folder
    assert {path.name for path in folder.iterdir()} >= FIGURES | PREDICTIONS


@pytest.mark.usefixtures("unrendered")
def test_transfer_accuracies_are_not_shown_as_the_runs_own(runs: Path):
    knn(runs / "moco", data="photos", device="cpu", say=silent)
    data = json.loads((runs / "moco" / "results.json").read_text())
    data["evaluations"] = [row for row in data["evaluations"] if "data" in row]
    (runs / "moco" / "results.json").write_text(json.dumps(data))
    lines: list[str] = []
    compare([runs / "moco"], device="cpu", say=lines.append)
    (table,) = [line for line in lines if line.startswith("run ")]
    head = table.splitlines()[0]
    assert "kNN on photos" in head
    assert "linear" not in head
    assert "kNN on photos" in lines[0]


@pytest.mark.usefixtures("unrendered")
def test_runs_without_classes_have_curves_of_training_images(unlabeled: Path, tmp_path: Path):
    run = shutil.copytree(unlabeled, tmp_path / "run")
    content = json.loads((run / "results.json").read_text())
    (run / "results.json").write_text(json.dumps({**content, "evaluations": []}))
    lines: list[str] = []
    folder = compare([run], out=tmp_path / "out", device="cpu", say=lines.append).folder
    found = json.loads((folder / "softness.json").read_text())
    assert (found["split"], found["images"]) == ("train", 24)
    report = (folder / "report.html").read_text()
    assert "Measures are over 24 training images of" in report
    assert not (folder / "accuracy.png").exists()
    assert any("no accuracy against epochs" in line for line in lines)


@pytest.mark.usefixtures("unrendered")
def test_runs_on_different_data_have_no_prediction_curves(
    runs: Path, unlabeled: Path, tmp_path: Path
):
    lines: list[str] = []
    folder = compare(
        [runs / "moco", unlabeled], out=tmp_path / "out", device="cpu", say=lines.append
    ).folder
    assert not (folder / "softness.json").exists()
    assert any("The runs are on different data" in line for line in lines)


@pytest.mark.usefixtures("unrendered")
def test_a_missing_encoder_or_metrics_leaves_out_only_what_needs_it(runs: Path):
    (runs / "moco" / "encoder.safetensors").unlink()
    (runs / "moco" / "metrics.csv").unlink()
    lines: list[str] = []
    folder = compare([runs / "moco"], device="cpu", say=lines.append).folder
    assert {path.name for path in folder.iterdir()} == {
        "accuracy.png", "accuracy.svg", "time.png", "time.svg", "report.html", "compare.json",
    }  # fmt: skip
    assert any(line.startswith("There are no prediction curves: ") for line in lines)
    assert any(line.startswith("moco has no curves: ") for line in lines)


@pytest.mark.usefixtures("unrendered")
def test_runs_of_one_name_are_told_apart_and_unlike_measurements_named(runs: Path, tmp_path: Path):
    shutil.copytree(runs, tmp_path / "others")
    other = tmp_path / "others" / "moco" / "results.json"
    other.write_text(other.read_text().replace('"k": 200', '"k": 20'))
    lines: list[str] = []
    folder = compare([runs / "moco", other.parent], device="cpu", say=lines.append).folder
    assert folder == tmp_path / "compare"
    softness = json.loads((folder / "softness.json").read_text())
    assert list(softness["runs"]) == ["runs/moco", "others/moco"]
    ways = "k is 200 for runs/moco, 20 for others/moco."
    assert f"kNN was measured with different settings: {ways}" in lines


@pytest.mark.parametrize(
    ("names", "out", "message"),
    [
        ([], None, "no run was given"),
        (["moco", "nothing"], None, "nothing: there is no such run folder"),
        (["moco", "moco"], None, "is given 2 times"),
        (["moco"], "moco/config.yaml", "is a file; give a folder"),
    ],
)
def test_compare_names_the_mistake(finished: Path, names: list[str], out: str, message: str):
    with pytest.raises(UserError, match=message):
        compare([finished / n for n in names], out=out and finished / out, device="cpu", say=silent)


@pytest.mark.usefixtures("unrendered")
def test_features_below_zero_leave_out_the_prediction_curves(
    runs: Path, monkeypatch: pytest.MonkeyPatch
):
    """An encoder that does not end in a ReLU, as some of timm's, has no such curves."""
    plain, below = LoadedEncoder.features, list[object]()

    def features(self: LoadedEncoder, images: torch.Tensor) -> torch.Tensor:
        below.append(self)  # the first encoder's are negative
        return plain(self, images) - 9.0 * (self is below[0])

    monkeypatch.setattr("unmix.evaluation.encoder.LoadedEncoder.features", features)
    lines: list[str] = []
    compare([runs / "moco"], device="cpu", say=lines.append)
    assert any(
        "There are no prediction curves: " in line and "its features can be negative" in line
        for line in lines
    )
    below.clear()
    lines.clear()
    found = compare([runs / "moco", runs / "cmc"], device="cpu", say=lines.append)
    assert any(line.startswith("There are no prediction curves of MoCo: ") for line in lines)
    assert list(json.loads((found / "softness.json").read_text())["runs"]) == ["CMC + IM"]
