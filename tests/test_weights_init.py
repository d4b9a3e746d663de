"""Runs that start from weights: every method, resuming, and imported runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import nn

import unmix
from checkpoints import RESNETS, VITS, randomized, resnet, vit
from harness import KINDS, N_DATA, OF_PATCHES, backbone_of, build, given_to, options_of
from unmix import methods
from unmix.cli import main, parse_pretrain
from unmix.commands import compare, embed, import_weights, knn
from unmix.config import Settings
from unmix.errors import UserError
from unmix.results import load_results
from unmix.training import pretrain
from unmix.training.console import silent
from unmix.training.run.command import flags_of
from unmix.training.run.folder import RunFolder
from unmix.training.run.initial import start_of
from unmix.training.run.parts import build_method
from unmix.weights import open_weights

TINY: dict[str, Any] = {
    "method": "simclr", "data": "digits", "limit": 64, "batch_size": 32, "epochs": 1, "size": 16,
    "backbone": "resnet10", "width": 0.125, "stem": "small", "evaluate": False, "knn_every": 0,
    "device": "cpu", "precision": "32", "logger": "none", "workers": 0, "dim": 8, "hidden": 8,
}  # fmt: skip


def small(seed: int = 5) -> nn.Module:
    return randomized(unmix.backbones.build("resnet10", width=0.125, stem="small", size=16), seed)


def weights_of(backbone: nn.Module, folder: Path, name: str = "w.pth") -> Path:
    path = folder / name
    torch.save({"state_dict": backbone.state_dict(), "epoch": 7}, path)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_copies_of_the_encoder_are_the_imported_one_and_heads_are_fresh(kind: str, tmp_path: Path):
    name, variant = KINDS[kind]
    of = kind if kind in OF_PATCHES else name
    given = randomized(backbone_of(of), 9)
    path = weights_of(given, tmp_path)
    torch.manual_seed(0)
    backbone = backbone_of(of)
    open_weights(str(path)).load(backbone)
    options = {**options_of(name), **variant, **given_to(name)}
    method = methods.build(name, backbone, N_DATA, **options)
    copies = [m for m in method.modules() if type(m) is type(given)]
    assert copies
    assert any(copy is method.backbone for copy in copies)
    for copy in copies:
        for key, tensor in given.state_dict().items():
            assert torch.equal(copy.state_dict()[key], tensor), key
    fresh = build(kind)
    inside = {id(t) for copy in copies for t in (*copy.parameters(), *copy.buffers())}
    own = dict([*method.named_parameters(), *method.named_buffers()])
    other = dict([*fresh.named_parameters(), *fresh.named_buffers()])
    assert own.keys() == other.keys()
    for key, tensor in own.items():
        if id(tensor) not in inside:
            assert torch.equal(tensor, other[key]), key


@pytest.mark.parametrize("name", ["moco", "byol", "densecl", "dino", "simclr", "simdino", "tico"])
def test_a_run_builds_its_method_from_the_weights(name: str, tmp_path: Path):
    """With the same seed the head is that of a run without them."""
    given = small()
    path = weights_of(given, tmp_path)
    words = {k: v for k, v in TINY.items() if k not in ("dim", "hidden")} | {"method": name}
    settings = Settings.of({**words, **options_of(name), "init": str(path)})
    start = start_of(settings.model)
    assert start is not None
    method = build_method(settings, 64, 16, start)
    assert start.loaded is not None
    assert start.loaded.missing == ()
    fresh = build_method(settings, 64, 16).state_dict()
    imported = {id(t) for m in method.modules() if isinstance(m, type(given))
                for t in m.state_dict(keep_vars=True).values()}  # fmt: skip
    for key, tensor in method.backbone.state_dict().items():
        assert torch.equal(tensor, given.state_dict()[key])
    rest = {k: v for k, v in method.state_dict(keep_vars=True).items() if id(v) not in imported}
    assert rest
    for key, tensor in rest.items():
        assert torch.equal(tensor, fresh[key]), key


def test_a_run_starts_from_a_file_and_goes_on_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    given = small()
    path = weights_of(given, tmp_path)
    words = {**TINY, "lr": 1e-12, "warmup_epochs": 0, "run": "a", "init": "w.pth"}
    pretrain(**words)
    said = capsys.readouterr().out
    assert "of the encoder from" in said
    assert "w.pth (torchvision ResNet)" in said
    saved = yaml.safe_load(Path("a/config.yaml").read_text())
    assert saved["init"] == str(path.absolute())
    assert len(saved["init_sha256"]) == 64
    trained = unmix.load_encoder("a").backbone.state_dict()
    assert torch.allclose(trained["conv1.weight"], given.state_dict()["conv1.weight"])
    # Another run, of the same weights, from the run's folder.
    pretrain(**{**words, "run": "b", "init": "a"})
    other = unmix.load_encoder("b").backbone.state_dict()
    assert torch.allclose(other["conv1.weight"], trained["conv1.weight"])
    # The file is needed no more once there is a checkpoint.
    path.unlink()
    for name in ("encoder.safetensors", "results.json"):
        Path("a", name).unlink()
    pretrain(**words)
    assert Path("a/results.json").exists()
    pretrain(run="a")
    # A run that has no checkpoint yet needs it, and the same.
    for checkpoint in Path("a/checkpoints").iterdir():
        checkpoint.unlink()
    for name in ("encoder.safetensors", "results.json"):
        Path("a", name).unlink()
    with pytest.raises(UserError, match=r"w\.pth does not exist"):
        pretrain(run="a")
    weights_of(small(6), tmp_path)
    with pytest.raises(UserError, match="is not the file that it was"):
        pretrain(run="a")
    with pytest.raises(UserError, match="holds another run: its init is"):
        pretrain(run="a", init="b")


def test_weights_of_another_network_leave_nothing_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    torch.save({"state_dict": resnet().state_dict()}, tmp_path / "w.pth")
    run = tmp_path / "run"
    flags = [word for k, v in TINY.items() if k != "evaluate" for word in (f"--{k}", str(v))]
    assert main(["pretrain", *flags, "--run", str(run), "--init", str(tmp_path / "w.pth")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("unmix: error: --init: ")
    assert "give --backbone resnet18, --width 1, --stem large" in said
    assert not run.exists()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two classes of 24 px that differ in color."""
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", 8), ("val", 4)):
        for label, color in (("red", 0), ("blue", 2)):
            folder = tmp_path / "pictures" / split / label
            folder.mkdir(parents=True)
            for n in range(count):
                pixels = torch.randint(0, 100, (24, 24, 3), generator=generator)
                pixels[..., color] += 120
                Image.fromarray(pixels.byte().numpy()).save(folder / f"{n}.png")
    return tmp_path / "pictures"


def test_a_run_is_not_made_of_weights_that_lack_some(tmp_path: Path):
    """What starts random is trained after --init; an imported run is measured as it is."""
    state = small(6).state_dict()
    del state["layer4.0.bn2.weight"]
    torch.save({"state_dict": state}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"lacks 1 of the \d+ tensors of .*: layer4\.0\.bn2"):
        import_weights(str(tmp_path / "w.pth"), run=tmp_path / "w", say=silent)
    assert not (tmp_path / "w").exists()


def test_an_imported_checkpoint_is_a_run(
    tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
):
    theirs = resnet()
    torch.save(RESNETS["MoCo"](theirs.state_dict()), tmp_path / "moco.pth.tar")
    run = tmp_path / "published"
    args = ["import", str(tmp_path / "moco.pth.tar"), "--run", str(run), "--size", "32"]
    assert main([*args, "--data", str(pictures), "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "100 of 100 tensors of the encoder from" in said
    assert "(facebook MoCo v1 and v2, Un-Mix, query encoder); not used: fc, encoder_k" in said
    assert "mean 0.485 0.456 0.406, std 0.229 0.224 0.225 (ImageNet's; size as given)" in said
    assert "epochs: 200" in said
    assert main(args) == 2
    assert "is a run already; give a new folder" in capsys.readouterr().err
    results = load_results(run)
    assert (results.method, results.epochs, results.backbone) == ("moco", 200, "resnet18")
    assert {row.protocol for row in results.evaluations} == {"knn", "linear"}
    assert all("data" not in row.details for row in results.evaluations)
    encoder = unmix.load_encoder(run)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(encoder(images), theirs(images))
    # A run on the same pictures stands beside it.
    own = tmp_path / "own"
    pretrain(**{**TINY, "data": str(pictures), "limit": None, "size": 32, "batch_size": 8,
                "stem": "auto", "evaluate": True, "run": str(own)})  # fmt: skip
    capsys.readouterr()
    compared = compare(own, run, out=tmp_path / "compared")
    text = compared.table.text()
    assert "MoCo" in text
    assert "SimCLR" in text
    said = capsys.readouterr().out
    # Settings of a training that is not known are no difference, and no curves are missed.
    assert "MoCo, imported against SimCLR, kNN" in said
    assert re.search(r"^epochs +1 +200$", said, re.MULTILINE)
    assert re.search(r"^backbone +resnet10 +resnet18$", said, re.MULTILINE)
    for word in ("batch size", "queue", "sha256", "no init", "metrics.csv"):
        assert word not in said
    # What trained other weights is not known, and nothing says otherwise.
    torch.save({"state_dict": small(6).state_dict()}, tmp_path / "w.pth")
    import_weights(str(tmp_path / "w.pth"), run=tmp_path / "w", data=str(pictures), say=silent)
    compare(own, tmp_path / "w", out=tmp_path / "compared2")
    said = capsys.readouterr().out
    assert "imported" in said
    assert "imported, imported" not in said
    assert not re.search(r"^stem ", said, re.MULTILINE)  # small, which auto is at 32 px
    assert said.count("simclr") == 1  # of the run, in the column of the methods
    # A run is imported as what it is.
    lines: list[str] = []
    import_weights(str(own), run=tmp_path / "again", say=lines.append)
    assert "method: simclr   epochs: 1" in lines[1]
    again = pretrain(run=str(run))
    assert again.epochs == 200


def test_an_import_without_data_says_what_to_give(tmp_path: Path, pictures: Path):
    torch.save({"state_dict": small().state_dict()}, tmp_path / "w.pth")
    lines: list[str] = []
    run = import_weights(str(tmp_path / "w.pth"), run=tmp_path / "run", say=lines.append)
    text = "\n".join(lines)
    assert "method: unknown" in text
    assert "images: 32 px" in text
    assert "CIFAR-10's" in text
    with pytest.raises(UserError, match="was imported, and its data is unknown; give the data"):
        knn(run, device="cpu")
    with pytest.raises(UserError, match="was imported, and its images are unknown; give them"):
        embed(run, device="cpu", out=tmp_path / "features.npz")
    row = knn(run, device="cpu", data=str(pictures), k=3)
    assert row["data"] == str(pictures)
    with pytest.raises(UserError, match="checkpoint"):
        knn(run, device="cpu", data=str(pictures), features="projector")
    with pytest.raises(UserError, match="was imported and not trained here"):
        parse_pretrain(["--run", str(run)])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"method": "mocco"}, "'mocco' is unknown. Did you mean 'moco'"),
        ({"backbone": "resnet18"}, "its network is resnet10, not resnet18"),
        ({"data": "no/such/folder"}, "no/such/folder"),
        ({"run": ""}, "the value is empty"),
    ],
)
def test_a_refused_import_leaves_nothing_behind(
    words: dict[str, Any], message: str, tmp_path: Path
):
    torch.save({"state_dict": small().state_dict()}, tmp_path / "w.pth")
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(UserError, match=message):
        import_weights(str(tmp_path / "w.pth"), **{"run": tmp_path / "run", **words})
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_transformer_and_cmcs_halves_are_imported(tmp_path: Path):
    import timm

    state = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=32).state_dict()
    torch.save({"teacher": {f"backbone.{k}": v for k, v in state.items()}}, tmp_path / "dino.pth")
    quiet: Any = lambda _: None  # noqa: E731
    run = import_weights(str(tmp_path / "dino.pth"), run=tmp_path / "v", size=32, say=quiet)
    encoder = unmix.load_encoder(run)
    assert encoder.facts["backbone"] == "timm:vit_tiny_patch16_224"
    assert encoder.facts["method"] == "dino"
    theirs = vit("vit_small_patch16_224", img_size=32, num_heads=12)
    torch.save(VITS["MoCo v3"](theirs.state_dict()), tmp_path / "mocov3.pth")
    run = import_weights(str(tmp_path / "mocov3.pth"), run=tmp_path / "m", size=32, say=quiet)
    encoder = unmix.load_encoder(run)
    assert encoder.facts["heads"] == 12
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(encoder(images), theirs(images))
    halves = unmix.backbones.HalfEncoders("resnet10", width=0.125, size=32)
    model = {}
    for ours, theirs in (("l.", "l_to_ab."), ("ab.", "ab_to_l.")):
        for name, tensor in halves.state_dict().items():
            if name.startswith(ours):
                model[f"encoder.module.{theirs}{name.removeprefix(ours)}"] = tensor
    torch.save({"model": model, "epoch": 240}, tmp_path / "cmc.pth")
    run = import_weights(str(tmp_path / "cmc.pth"), run=tmp_path / "c", say=quiet)
    encoder = unmix.load_encoder(run)
    assert encoder.facts["color_space"] == "Lab"
    assert encoder.feature_dim == halves.feature_dim
    assert load_results(run).epochs == 240


TINY_VIT: dict[str, Any] = {
    "backbone": "timm:vit_tiny_patch16_224", "size": 16, "patch": 8, "depth": 2, "registers": 1,
}  # fmt: skip


@pytest.mark.parametrize("heads", [None, 6])
def test_a_run_of_a_transformer_is_imported_and_continued_as_it_is(
    heads: int | None, tmp_path: Path
):
    """Depth, registers and attention heads are those of the run, of which shapes show two."""
    made = build_method_encoder("mae", {**TINY_VIT, "heads": heads}, tmp_path / "own")
    lines: list[str] = []
    import_weights(str(tmp_path / "own"), run=tmp_path / "again", say=lines.append)
    assert "(unmix, encoder of MAE)" in lines[0]
    again = unmix.load_encoder(tmp_path / "again")
    assert again.facts["range"] == [0.0, 4095.0]
    assert [again.facts[name] for name in ("depth", "registers", "heads")] == [2, 1, heads or 3]
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(again(images), made.eval()(images))
    other = {name: value for name, value in TINY_VIT.items() if name != "backbone"}
    wrong = unmix.backbones.build(str(TINY_VIT["backbone"]), **other, heads=1)
    with pytest.raises(UserError, match=rf"{heads or 3} attention heads .unmix, encoder of MAE"):
        open_weights(str(tmp_path / "own")).load(wrong)
    right = unmix.backbones.build(str(TINY_VIT["backbone"]), **other, heads=heads)
    assert open_weights(str(tmp_path / "own")).load(right).missing == ()


@pytest.mark.parametrize(
    ("words", "limits"),
    [
        ({"bit_depth": 12}, [0.0, 4095.0]),
        ({"range": (100.0, 997.0)}, [100.0, 997.0]),
        ({"data": True}, [0.0, 900.0]),  # measured, as a run does
        ({"data": True, "bit_depth": 12}, [0.0, 4095.0]),
        ({}, None),
    ],
)
def test_the_range_of_deep_images_is_kept_with_weights_of_others(
    words: dict[str, Any], limits: list[float] | None, tmp_path: Path
):
    for i in range(4):
        values = np.linspace(0, 900 - i, 64).reshape(8, 8).astype(np.uint16)
        (tmp_path / "deep").mkdir(exist_ok=True)
        Image.fromarray(values).save(tmp_path / "deep" / f"{i}.png")
    if "data" in words:
        words = {**words, "data": str(tmp_path / "deep")}
    torch.save({"state_dict": small().state_dict()}, tmp_path / "w.pth")
    lines: list[str] = []
    run = import_weights(str(tmp_path / "w.pth"), run=tmp_path / "r", say=lines.append, **words)
    # Given again, the recorded command makes the same.
    typed = {name: words[name] for name in ("bit_depth", "range", "data") if name in words}
    flags = flags_of({"run": tmp_path / "r", **typed})
    assert load_results(run).command == shlex.join(["unmix", "import", f"{tmp_path}/w.pth", *flags])
    assert unmix.load_encoder(run).facts["range"] == limits
    assert RunFolder(run).settings().run.limits == (None if limits is None else tuple(limits))
    said = "" if limits is None else f"{limits[0]:g} to {limits[1]:,g} become black to white"
    assert ("black to white" in lines[1]) == (limits is not None)
    assert said in lines[1]


def test_a_given_range_replaces_that_of_a_run(tmp_path: Path):
    build_method_encoder("mae", {**TINY_VIT}, tmp_path / "own")
    for words, expected in (({"bit_depth": 10}, 1023.0), ({"range": (0.0, 7.0)}, 7.0)):
        again = tmp_path / str(expected)
        import_weights(str(tmp_path / "own"), run=again, say=silent, **words)
        assert unmix.load_encoder(again).facts["range"] == [0.0, expected]
    with pytest.raises(UserError, match="cannot be combined with `range`"):
        import_weights(str(tmp_path / "own"), run=tmp_path / "no", bit_depth=8, range=(0.0, 1.0))


def build_method_encoder(method: str, words: dict[str, Any], folder: Path) -> nn.Module:
    """An encoder as a run writes it, in a folder of its own."""
    options = {name: value for name, value in words.items() if name != "backbone"}
    made = methods.method_class(method).build_backbone(words["backbone"], **options)
    facts = {
        "method": method, "width": 1.0, "stem": "auto", "color_space": "RGB", **words,
        "mean": [0.5] * 3, "std": [0.2] * 3, "range": [0.0, 4095.0],
    }  # fmt: skip
    folder.mkdir()
    RunFolder(folder).write_encoder(randomized(made), facts)
    return made


def test_cmcs_color_space_is_that_of_the_run(tmp_path: Path):
    facts = {
        "method": "cmc", "backbone": "resnet10", "width": 0.125, "stem": "auto", "size": 16,
        "color_space": "YCbCr", "mean": [0.5] * 3, "std": [0.2] * 3, "range": None,
    }  # fmt: skip
    halves = unmix.backbones.HalfEncoders("resnet10", width=0.125, size=16)
    (tmp_path / "own").mkdir()
    RunFolder(tmp_path / "own").write_encoder(randomized(halves), facts)
    run = import_weights(str(tmp_path / "own"), run=tmp_path / "again", say=silent)
    assert unmix.load_encoder(run).facts["color_space"] == "YCbCr"


def test_of_a_run_the_encoder_alone_is_taken_which_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    pretrain(**TINY, run=str(tmp_path / "a"))
    capsys.readouterr()
    pretrain(**TINY, run=str(tmp_path / "b"), init=str(tmp_path / "a"))
    said = capsys.readouterr().out
    assert "(unmix, encoder of SimCLR)" in said
    assert f"To go on with all of it: unmix pretrain --run {tmp_path / 'a'}" in said
    pretrain(**TINY, run=str(tmp_path / "c"), init=str(tmp_path / "a" / "encoder.safetensors"))
    assert "To go on with all of it" not in capsys.readouterr().out
