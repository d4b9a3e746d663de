"""`unmix export`: what is written loads in its target, with equal features."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

import unmix
from runs import MOCO_RUN, TINY_RUN
from unmix.backbones import BACKBONES, RESNETS, build
from unmix.cli import main
from unmix.commands import export, import_weights, load_method
from unmix.commands.export import _staged
from unmix.data.reading import resize_image
from unmix.errors import UserError
from unmix.evaluation import LoadedEncoder
from unmix.export import TARGETS
from unmix.export.detectron2 import detectron2_name
from unmix.methods import method_class
from unmix.results import write_results
from unmix.training import pretrain
from unmix.training.console import silent
from unmix.training.run.checkpoints import AtomicCheckpoints
from unmix.training.run.folder import RunFolder

KINDS: dict[str, dict[str, Any]] = {
    "large": {"backbone": "resnet18", "stem": "large", "size": 64},
    "medium": {"backbone": "resnet10", "size": 48},
    "small": {"backbone": "resnet10", "size": 16},
    "padded": {"backbone": "resnet18", "stem": "padded", "size": 32},
    "ten": {"backbone": "resnet10", "stem": "large", "size": 64},
    "narrow": {"backbone": "resnet18", "width": 0.25, "size": 32},
    "vit": {"backbone": "timm:vit_tiny_patch16_224", "size": 32, "patch": 8},
    "timm": {"backbone": "timm:resnet18", "size": 64},
    "registers": {"backbone": "timm:vit_tiny_patch16_224", "size": 32, "patch": 8, "depth": 2,
                  "heads": 4, "registers": 3},
    "alexnet": {"backbone": "alexnet", "width": 0.125, "size": 64},
    "convnext": {"backbone": "timm:convnext_atto", "size": 64},
    **{name: {"backbone": name, "width": 0.125, "size": 32} for name in RESNETS},
    "lab": {"method": "cmc", "backbone": "resnet10", "width": 0.25, "size": 16,
            "color_space": "Lab"},
}  # fmt: skip


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Encoder files of each kind, with statistics of batch norm that are not the initial ones."""
    made: dict[str, Path] = {}

    def make(kind: str) -> Path:
        if kind in made:
            return made[kind]
        facts: dict[str, Any] = {
            "method": "moco", "width": 1.0, "stem": "auto", "patch": None, "color_space": "RGB",
            "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3], **KINDS[kind],
        }  # fmt: skip
        torch.manual_seed(0)
        names = ("width", "stem", "size", "patch", "depth", "heads", "registers")
        backbone = method_class(facts["method"]).build_backbone(
            facts["backbone"], **{name: facts[name] for name in names if name in facts}
        )
        for module in backbone.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.running_mean, std=0.1)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
        folder = tmp_path_factory.mktemp(kind)
        RunFolder(folder).write_encoder(backbone, facts)
        made[kind] = folder / "encoder.safetensors"
        return made[kind]

    return make


def images_of(encoder: LoadedEncoder, n: int = 3) -> Tensor:
    size = encoder.views.size
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1))


def exported(file: Path, to: str, out: Path, **options: Any) -> tuple[LoadedEncoder, list[str]]:
    """Export, and give the encoder and the lines of Python that were printed."""
    lines: list[str] = []
    export(file, to=to, out=out, say=lines.append, **options)
    return unmix.load_encoder(file), [line[2:] for line in lines if line.startswith("  ")]


def run_lines(lines: list[str]) -> dict[str, Any]:
    """Execute the printed lines, as a user does who pastes them."""
    names: dict[str, Any] = {}
    exec("\n".join(lines), names)
    return names


@pytest.mark.parametrize("kind", ["large", "medium", "small", "padded", "ten", "timm"])
def test_torchvision(kind: str, encoders: Callable[[str], Path], tmp_path: Path) -> None:
    encoder, lines = exported(encoders(kind), "torchvision", tmp_path / "x.pth")
    model = run_lines(lines)["model"]
    assert not model.training
    assert type(model).__module__ == "torchvision.models.resnet"
    images = images_of(encoder)
    with torch.no_grad():
        torch.testing.assert_close(model(images), encoder(images))


@pytest.mark.parametrize(
    "kind",
    ["large", "medium", "small", "padded", "ten", "timm", "vit", "registers", "convnext"],
)
def test_timm(kind: str, encoders: Callable[[str], Path], tmp_path: Path) -> None:
    pytest.importorskip("timm")
    encoder, lines = exported(encoders(kind), "timm", tmp_path / "x.safetensors")
    model = run_lines(lines)["model"]
    assert not model.training
    assert type(model).__module__.startswith("timm.")
    images = images_of(encoder)
    with torch.no_grad():
        torch.testing.assert_close(model(images), encoder(images))


@pytest.mark.parametrize("kind", ["large", "small", "padded", "timm", "vit", "registers"])
def test_lightly(kind: str, encoders: Callable[[str], Path], tmp_path: Path) -> None:
    pytest.importorskip("lightly")
    from lightly.models.modules import MoCoProjectionHead

    encoder, lines = exported(encoders(kind), "lightly", tmp_path / "x.pth")
    backbone = run_lines(lines)["backbone"]

    class MoCo(nn.Module):  # as in lightly's examples
        def __init__(self, backbone: nn.Module) -> None:
            super().__init__()
            self.backbone = backbone
            self.projection_head = MoCoProjectionHead(encoder.feature_dim, 32, 16)

        def forward(self, x: Tensor) -> Tensor:
            return self.projection_head(self.backbone(x).flatten(start_dim=1))

    model = MoCo(backbone).eval()
    images = images_of(encoder)
    with torch.no_grad():
        features = model.backbone(images).flatten(start_dim=1)
        torch.testing.assert_close(features, encoder(images), atol=1e-5, rtol=1e-4)
        assert model(images).shape == (3, 16)


@pytest.mark.parametrize("kind", [*BACKBONES, "registers", "convnext", "lab"])
def test_safetensors(kind: str, encoders: Callable[[str], Path], tmp_path: Path) -> None:
    encoder, lines = exported(encoders(kind), "safetensors", tmp_path / "x.safetensors")
    weights = run_lines(lines[:2])["weights"]
    own = encoder.backbone.state_dict()
    assert weights.keys() == own.keys()
    assert all(torch.equal(weights[name], own[name]) for name in own)
    again = unmix.load_encoder(tmp_path / "x.safetensors")
    images = images_of(encoder)
    assert torch.equal(again(images), encoder(images))
    assert again.facts["mean"] == encoder.facts["mean"]


@pytest.mark.parametrize(
    "kind", ["small", "padded", "large", "registers", "alexnet", "convnext", "lab"]
)
def test_onnx(kind: str, encoders: Callable[[str], Path], tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    encoder, lines = exported(encoders(kind), "onnx", tmp_path / "x.onnx")
    for n in (1, 2, 5):  # any number of images
        images = images_of(encoder, n)
        found = run_lines(["import numpy", f"images = numpy.zeros({n})", *lines[:2]])["session"]
        (features,) = found.run(None, {"images": images.numpy()})
        np.testing.assert_allclose(features, encoder(images).numpy(), atol=1e-4)
    told = found.get_modelmeta().custom_metadata_map
    assert json.loads(told["unmix"])["mean"] == [0.5, 0.4, 0.3]
    assert [path.name for path in tmp_path.iterdir()] == ["x.onnx"]
    assert onnxruntime is not None


@pytest.mark.parametrize("opset", [18, 23])
def test_opsets(opset: int, encoders: Callable[[str], Path], tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    exported(encoders("small"), "onnx", tmp_path / "x.onnx", opset=opset)
    model = onnx.load(tmp_path / "x.onnx")
    assert {each.domain: each.version for each in model.opset_import}[""] == opset


@pytest.mark.parametrize("kind", ["alexnet", "small", "resnet50", "registers", "convnext", "lab"])
def test_torch_export(kind: str, encoders: Callable[[str], Path], tmp_path: Path) -> None:
    encoder, lines = exported(encoders(kind), "torch-export", tmp_path / "x.pt2")
    model = run_lines(lines)["model"]
    for n in (1, 2, 5):
        images = images_of(encoder, n)
        expected = encoder(images)
        scale = expected.abs().max().clamp(min=1)
        torch.testing.assert_close(model(images) / scale, expected / scale)


def test_a_graph_says_how_images_are_prepared(
    encoders: Callable[[str], Path], tmp_path: Path
) -> None:
    """Neither the range of more than 8 bits, nor that images of its size are not resized."""
    plain = unmix.load_encoder(encoders("small"))
    RunFolder(tmp_path).write_encoder(plain.backbone, {**plain.facts, "range": [100.0, 4095.0]})
    lines: list[str] = []
    file = tmp_path / "encoder.safetensors"
    export(file, to="torch-export", out=tmp_path / "x.pt2", say=lines.append)
    extra = {"unmix.json": ""}
    torch.export.load(tmp_path / "x.pt2", extra_files=extra)
    told = json.loads(extra["unmix.json"])
    assert told["range"] == "values 100 to 4095 of images of more than 8 bits become 0 to 1"
    assert "shorter side to 18 px, " in told["resize"]
    assert "unless it has 16 px already" in told["resize"]
    assert all(told[key] in lines[1] for key in ("input", "resize", "range"))
    card = export(file, to="hub", out=tmp_path / "hub", say=silent) / "README.md"
    assert f"V{told['range'][1:]}." in card.read_text()
    encoder = unmix.load_encoder(file)
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    mean, std = (np.array(told_of, np.float32) for told_of in ([0.5, 0.4, 0.3], [0.2, 0.25, 0.3]))
    by_hand = torch.from_numpy((pixels.astype(np.float32) / 255 - mean) / std).permute(2, 0, 1)
    torch.testing.assert_close(encoder.transform(pixels), by_hand)


@pytest.mark.parametrize("kind", ["small", "lab"])
@pytest.mark.parametrize("to", ["onnx", "torch-export"])
def test_a_graph_may_prepare_its_pixels(
    to: str, kind: str, encoders: Callable[[str], Path], tmp_path: Path
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    out = tmp_path / ("x.onnx" if to == "onnx" else "x.pt2")
    encoder, _ = exported(encoders(kind), to, out, pixels=True)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (3, 3, 16, 16), dtype=torch.uint8, generator=generator)
    scaled = pixels.float() / 255
    if to == "onnx":
        session = onnxruntime.InferenceSession(str(out))
        found = torch.from_numpy(session.run(None, {"images": scaled.numpy()})[0])
    else:
        found = torch.export.load(out).module()(scaled)
    torch.testing.assert_close(found, encoder.encode(pixels), atol=1e-4, rtol=1e-4)


# --- detectron2 ---------------------------------------------------------------------------------


def norm(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    keys = ("running_mean", "running_var", "weight", "bias")
    mean, var, scale, bias = (weights.pop(f"{name}.norm.{key}") for key in keys)
    return functional.batch_norm(x, mean, var, scale, bias)


def detectron2_forward(images: Tensor, weights: dict[str, Tensor], config: dict) -> Tensor:
    """detectron2's ResNet in evaluation mode, written from its architecture; uses up the weights.

    The stem, then res2 to res5, whose first blocks have a shortcut where the channels change. Of a
    bottleneck the 3x3 convolution has the stride (STRIDE_IN_1X1 is false).
    """
    depth = config["DEPTH"]
    blocks = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}[depth]
    stem = weights.pop("stem.conv1.weight")
    assert len(stem) == config["STEM_OUT_CHANNELS"]
    x = norm(functional.conv2d(images, stem, stride=2, padding=3), weights, "stem.conv1").relu()
    x = functional.max_pool2d(x, 3, 2, 1)
    out_channels = config["RES2_OUT_CHANNELS"]
    for stage, count in enumerate(blocks):
        for block in range(count):
            name, stride = f"res{stage + 2}.{block}", 2 if block == 0 and stage else 1
            y = x
            strides = (stride, 1) if depth < 50 else (1, stride, 1)
            for number, step in enumerate(strides, start=1):
                kernel = weights.pop(f"{name}.conv{number}.weight")
                y = functional.conv2d(y, kernel, stride=step, padding=kernel.shape[-1] // 2)
                y = norm(y, weights, f"{name}.conv{number}")
                y = y.relu() if number < len(strides) else y
            assert y.shape[1] == out_channels * 2**stage
            if x.shape[1] != y.shape[1] or stride != 1:
                kernel = weights.pop(f"{name}.shortcut.weight")
                x = norm(functional.conv2d(x, kernel, stride=stride), weights, f"{name}.shortcut")
            x = (x + y).relu()
    return x.mean((2, 3))


@pytest.mark.parametrize("kind", ["large", "timm", "fifty"])
def test_detectron2(kind: str, encoders: Callable[[str], Path], tmp_path: Path) -> None:
    KINDS["fifty"] = {"backbone": "resnet50", "width": 0.25, "stem": "large", "size": 64}
    encoder, lines = exported(encoders(kind), "detectron2", tmp_path / "x.pkl")
    assert lines[-1] == f"cfg.merge_from_file('{tmp_path}/x.yaml')"
    with open(tmp_path / "x.pkl", "rb") as file:
        content = pickle.load(file, encoding="latin1")  # as detectron2's checkpointer
    assert {"model", "__author__", "matching_heuristics"} == content.keys()
    assert all(isinstance(value, np.ndarray) for value in content["model"].values())
    config = yaml.safe_load((tmp_path / "x.yaml").read_text())
    assert config["MODEL"]["WEIGHTS"] == str(tmp_path / "x.pkl")
    assert config["MODEL"]["PIXEL_MEAN"] == [127.5, 102.0, 76.5]
    assert config["INPUT"]["FORMAT"] == "RGB"
    weights = {name: torch.from_numpy(value) for name, value in content["model"].items()}
    images = images_of(encoder)
    found = detectron2_forward(images, weights, config["MODEL"]["RESNETS"])
    torch.testing.assert_close(found, encoder(images), atol=1e-5, rtol=1e-4)
    assert weights == {}


@pytest.mark.parametrize("depth", [18, 34, 50, 101])
def test_detectron2_has_these_names_and_shapes(depth: int) -> None:
    """The table is of detectron2's own networks; with its code the features were equal, to 0."""
    known = json.loads((Path(__file__).parent / "detectron2.json").read_text())[f"resnet{depth}"]
    with torch.device("meta"):
        ours = build(f"resnet{depth}", stem="large").state_dict()
    found = {
        detectron2_name(name): list(value.shape)
        for name, value in ours.items()
        if not name.endswith("num_batches_tracked")
    }
    assert found == known


# --- Hugging Face -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["large", "ten", "timm", "vit", "registers"])
def test_a_hub_folder_loads_in_timm(
    kind: str, encoders: Callable[[str], Path], tmp_path: Path
) -> None:
    timm = pytest.importorskip("timm")
    encoder, lines = exported(encoders(kind), "hub", tmp_path / "hub", license="apache-2.0")
    model = run_lines(lines)["model"]
    assert not model.training
    images = images_of(encoder)
    with torch.no_grad():
        torch.testing.assert_close(model(images), encoder(images))
    assert sorted(path.name for path in (tmp_path / "hub").iterdir()) == [
        "README.md", "config.json", "model.safetensors",
    ]  # fmt: skip
    config = timm.data.resolve_model_data_config(model)
    assert list(config["mean"]) == [0.5, 0.4, 0.3]
    assert tuple(config["input_size"]) == (3, encoder.views.size, encoder.views.size)
    # timm's own preparation is that of the evaluation, to the rounding of its pixels.
    from PIL import Image

    picture = Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (150, 100, 3), dtype=np.uint8)
    )
    prepared = timm.data.create_transform(**config)(picture)
    torch.testing.assert_close(prepared, encoder.transform(picture), atol=0.03, rtol=0)
    assert resize_image(picture, encoder.views.size).size == (encoder.views.size,) * 2
    assert torch.equal(unmix.load_encoder(tmp_path / "hub")(images), encoder(images))


@pytest.mark.parametrize("kind", ["small", "narrow", "lab"])
def test_a_hub_folder_of_what_timm_has_not_loads_in_unmix(
    kind: str, encoders: Callable[[str], Path], tmp_path: Path
) -> None:
    encoder, lines = exported(encoders(kind), "hub", tmp_path / "hub")
    again = run_lines(lines)["encoder"]
    images = images_of(encoder)
    assert torch.equal(again(images), encoder(images))
    card = (tmp_path / "hub" / "README.md").read_text()
    assert "library_name: unmix" in card
    assert 'unmix.load_encoder("FOLDER")' in card


def test_the_card_says_what_was_trained_and_how_sure_its_results_are(tmp_path: Path) -> None:
    common: dict[str, Any] = {**MOCO_RUN, "knn_k": 20}
    for seed in range(3):
        pretrain(run=str(tmp_path / f"s{seed}"), seed=seed, **common)
    pretrain(run=str(tmp_path / "other"), **{**common, "batch_size": 25})
    tops = []
    for seed in range(3):
        results = json.loads((tmp_path / f"s{seed}" / "results.json").read_text())
        tops.append(next(r["top1"] for r in results["evaluations"] if r["protocol"] == "knn"))
    out = export(tmp_path / "s0", to="hub", license="mit", say=silent)
    assert out == tmp_path / "s0" / "export" / "hub"
    card = (out / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["license"] == "mit"
    assert front["pipeline_tag"] == "image-feature-extraction"
    mean, std = np.mean(tops), np.std(tops, ddof=1)
    assert f"| {tops[0]:.1f} | {mean:.1f} ± {std:.1f} (n = 3) |" in card
    assert "digits; train: 1,437 images in 10 classes" in card
    assert "| `batch_size` | 50 |" in card
    assert "MoCo" in card
    assert str(tmp_path) not in card
    alone = export(tmp_path / "other", to="hub", say=silent)
    assert "| one seed |" in (alone / "README.md").read_text()
    assert "pretrained without labels by MoCo for 1 epoch, with unmix." in card


def test_the_card_of_imported_weights_claims_no_training(tmp_path: Path) -> None:
    weights = build("resnet10", width=0.125, stem="small", size=16).state_dict()
    torch.save({"state_dict": weights}, tmp_path / "theirs.pth")
    run = import_weights(str(tmp_path / "theirs.pth"), run=tmp_path / "r", size=16, say=silent)
    card = (export(run, to="hub", say=silent) / "README.md").read_text()
    digest = hashlib.sha256((tmp_path / "theirs.pth").read_bytes()).hexdigest()
    assert (
        f"pretrained elsewhere, and imported into unmix from theirs.pth (SHA-256 {digest})" in card
    )
    assert "What it was pretrained on, and how, is not recorded here." in card
    for word in ("## Recipe", "Trained with", "batch_size", str(tmp_path)):
        assert word not in card
    words: dict[str, Any] = {
        **TINY_RUN, "method": "simclr", "data": "digits", "limit": 32, "batch_size": 16, "dim": 8,
        "stem": "small", "size": 16, "hidden": 8, "evaluate": False,
    }  # fmt: skip
    pretrain(run=str(tmp_path / "on"), init=str(tmp_path / "theirs.pth"), **words)
    card = (export(tmp_path / "on", to="hub", say=silent) / "README.md").read_text()
    start = f"starting from theirs.pth (SHA-256 {digest}), with unmix."
    # Whether theirs were trained on labels is not known.
    assert f", pretrained by SimCLR for 1 epoch, {start}" in card
    assert str(tmp_path) not in card


# --- mistakes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "to", "why"),
    [
        ("narrow", "torchvision", "has ResNets of width 1 only, and this encoder has width 0.25"),
        ("lab", "torchvision", "this encoder is two half-encoders"),
        ("vit", "torchvision", "has no timm:vit_tiny_patch16_224"),
        ("narrow", "timm", "has ResNets of width 1 only"),
        ("lab", "lightly", "two half-encoders"),
        ("small", "detectron2", "this is resnet10"),
        ("narrow", "detectron2", "has the stem of 224 pixels only"),
        ("vit", "detectron2", "this is timm:vit_tiny_patch16_224"),
        ("alexnet", "torchvision", "has no alexnet with these layers"),
        ("alexnet", "timm", "has no alexnet with these layers"),
        ("alexnet", "detectron2", "this is alexnet"),
    ],
)
def test_what_a_target_cannot_represent(
    kind: str, to: str, why: str, encoders: Callable[[str], Path], tmp_path: Path,
    refuse: Callable[..., str],
) -> None:  # fmt: skip
    name = f"x{TARGETS[to].endings[0]}"
    line = refuse("export", encoders(kind), "--to", to, "--out", tmp_path / "a" / name)
    assert line.startswith(f"--to: {to} ")
    assert why in line
    assert not list(tmp_path.iterdir())


def test_mistakes_are_one_line_each(
    encoders: Callable[[str], Path], tmp_path: Path, refuse: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    file, out = encoders("small"), tmp_path / "x.pth"
    assert "to is required" in refuse("export", file)
    assert "Did you mean 'torchvision'?" in refuse("export", file, "--to", "torchvison")
    line = refuse("export", file, "--to", "onnx", "--opset", 7)
    assert line == "--opset: 7 is out of range; it must be at least 18 and at most 23."
    line = refuse("export", file, "--to", "timm", "--opset", 18)
    assert line == "--opset: applies to onnx, not to timm."
    assert "onnx and torch-export, not to hub" in refuse("export", file, "--to", "hub", "--pixels")
    words = ["export", str(file), "--to", "torchvision", "--out", str(out)]
    out.write_bytes(b"mine")
    line = refuse(*words)
    assert line == f"--out: {out} exists; give another name, or --overwrite to replace it."
    assert out.read_bytes() == b"mine"
    assert main([*words, "--overwrite"]) == 0
    assert len(torch.load(out, weights_only=True)) == len(load_file(file))
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "README.md").write_text("mine")
    line = refuse("export", file, "--to", "hub", "--out", tmp_path / "hub")
    assert "exists; give another name" in line
    assert "is a folder; give a file" in refuse("export", file, "--to", "onnx", "--out", tmp_path)
    # timm reads a file by its extension, so this would be written and could not be loaded.
    line = refuse("export", file, "--to", "timm", "--out", tmp_path / "y.pth")
    assert line == (
        f"--out: {tmp_path / 'y.pth'} has another extension; give a file that ends in "
        f".safetensors, such as {tmp_path / 'y.safetensors'}."
    )
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert "pip install 'unmix[onnx]'" in refuse("export", file, "--to", "onnx")


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"

    def written() -> None:
        with _staged(folder) as stage:
            (stage / "x").write_bytes(b"half")
            raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="No space left on device"):
        written()
    assert not list(tmp_path.iterdir())


# --- checkpoints ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs that kept both."""
    run = tmp_path_factory.mktemp("kept") / "run"
    pretrain(**{**MOCO_RUN, "epochs": 2, "knn_every": 1, "checkpoint_every": 1, "run": str(run)})
    return run


def features_at(run: Path, checkpoint: str, encoder: LoadedEncoder) -> Tensor:
    with torch.inference_mode():
        return load_method(run, checkpoint).features(images_of(encoder))


def test_the_encoder_of_a_kept_checkpoint_is_a_file_for_every_command(kept: Path, tmp_path: Path):
    out = export(kept, to="safetensors", checkpoint="epoch-0001", say=silent)
    assert out == kept / "export" / "epoch-0001" / "model.safetensors"
    encoder, end = unmix.load_encoder(out), unmix.load_encoder(kept)
    assert encoder.facts == end.facts
    found = encoder(images_of(encoder))
    torch.testing.assert_close(found, features_at(kept, "epoch-0001", encoder))
    assert not torch.allclose(found, end(images_of(encoder)))
    import_weights(str(out), run=str(tmp_path / "run"), say=silent)
    torch.testing.assert_close(unmix.load_encoder(tmp_path / "run")(images_of(encoder)), found)


def test_the_card_of_a_checkpoint_has_its_epoch_and_the_results_of_that(kept: Path, tmp_path: Path):
    rows = json.loads((kept / "results.json").read_text())["evaluations"]
    cards = {}
    for name in ("epoch-0001", None):
        out = export(kept, to="hub", out=tmp_path / str(name), checkpoint=name, say=silent)
        cards[name] = (out / "README.md").read_text()
    assert "for 1 of 2 epochs, with unmix" in cards["epoch-0001"]
    assert "for 2 epochs, with unmix" in cards[None]
    results = {
        name: card.split("\n## Results\n")[1].split("\n## ")[0] for name, card in cards.items()
    }
    assert "Linear" in results[None]
    assert "Linear" not in results["epoch-0001"]  # measured at the end alone
    for name, epoch in (("epoch-0001", 1), (None, 2)):
        (knn,) = [row["top1"] for row in rows if (row["protocol"], row["epoch"]) == ("knn", epoch)]
        assert f"{knn:.1f}" in results[name]


def test_the_card_has_no_result_of_another_epoch(kept: Path, tmp_path: Path) -> None:
    """A probe of an early checkpoint alone was the result of the end, also of a run beside it."""
    run = tmp_path / "a"
    shutil.copytree(kept, run, ignore=shutil.ignore_patterns("export"))
    content = json.loads((run / "results.json").read_text())
    content["evaluations"].append({"protocol": "whitening", "epoch": 1, "top1": 12.3, "top5": 50.0,
                                   "features": "backbone"})  # fmt: skip
    write_results(run / "results.json", content)
    other = tmp_path / "b"
    shutil.copytree(run, other)
    for name in ("config.yaml", "results.json"):
        text = (other / name).read_text()
        (other / name).write_text(
            text.replace("seed: 0", "seed: 1").replace('seed": 0', 'seed": 1')
        )
    card = (export(run, to="hub", say=silent) / "README.md").read_text()
    assert "n = 2" in card
    assert "12.3" not in card
    early = export(run, to="hub", checkpoint="epoch-0001", say=silent) / "README.md"
    assert "12.3" in early.read_text()
    extending = (other / "config.yaml").read_text().replace("epochs: 2", "epochs: 4")
    (other / "config.yaml").write_text(extending)
    last = (export(run, to="hub", checkpoint="last", say=silent) / "README.md").read_text()
    assert "top-1" not in last.split("## Results")[1].split("##")[0]


def unfinished(kept: Path, folder: Path) -> Path:
    """A copy of a run as a killed one leaves it."""
    shutil.copytree(kept, folder, ignore=shutil.ignore_patterns("export"))
    for name in ("encoder.safetensors", "results.json"):
        (folder / name).unlink()
    return folder


def test_a_run_that_is_not_complete_gives_the_encoder_of_a_checkpoint(kept: Path, tmp_path: Path):
    run = unfinished(kept, tmp_path / "run")
    with pytest.raises(UserError, match=r"export .*run --to safetensors --checkpoint last"):
        export(run, to="safetensors", say=silent)
    with pytest.raises(UserError, match=r"export .*run --to safetensors --checkpoint last"):
        pretrain(**{**MOCO_RUN, "init": str(run), "run": str(tmp_path / "next")})
    encoder = unmix.load_encoder(export(run, to="safetensors", checkpoint="last", say=silent))
    end = unmix.load_encoder(kept)
    assert encoder.facts == end.facts
    assert torch.equal(encoder(images_of(end)), end(images_of(end)))
    card = export(run, to="hub", checkpoint="last", say=silent) / "README.md"
    assert " (checkpoint last of a run of 2 epochs) with unmix" in card.read_text()


def test_a_checkpoint_of_an_earlier_version_needs_the_runs_encoder(kept: Path, tmp_path: Path):
    run = tmp_path / "run"
    shutil.copytree(kept, run, ignore=shutil.ignore_patterns("export"))
    path = run / "checkpoints" / "epoch-0001.ckpt"
    content = AtomicCheckpoints().load_checkpoint(path)
    del content["encoder"]
    AtomicCheckpoints().save_checkpoint(content, path)
    found = unmix.load_encoder(export(run, to="safetensors", checkpoint="epoch-0001", say=silent))
    assert found.facts == unmix.load_encoder(kept).facts
    (run / "encoder.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no encoder\.safetensors; it is written when"):
        export(run, to="timm", checkpoint="epoch-0001", say=silent)


@pytest.mark.parametrize("name", ["epoch-0007", "../checkpoints/last", ""])
def test_a_checkpoint_that_a_run_does_not_have_is_named(kept: Path, name: str):
    message = rf"no checkpoint {name!r}; it has epoch-0001, epoch-0002, last"
    with pytest.raises(UserError, match=message):
        export(kept, to="safetensors", checkpoint=name, say=silent)


def test_an_encoder_file_has_no_checkpoints(encoders: Callable[[str], Path]):
    with pytest.raises(UserError, match="is an encoder file, which has no last; give the run fold"):
        export(encoders("small"), to="safetensors", checkpoint="last", say=silent)
