"""An exported encoder in a user's hands: any pictures in, features out, heads, fine-tuning."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import unmix
from unmix.data import load
from unmix.evaluation import LoadedEncoder, load_encoder, split_features
from unmix.methods import MoCo, method_class
from unmix.training.run.folder import RunFolder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of two classes and of all shapes, one of them a large JPEG, one turned by EXIF."""
    root = tmp_path_factory.mktemp("pictures")
    numbers = np.random.default_rng(0)
    shapes = [(40, 60), (32, 32), (200, 300), (50, 33), (36, 36)]
    for i, (height, width) in enumerate(shapes * 2):
        path = root / "ab"[i % 2] / f"{i}.{'jpg' if height == 200 else 'png'}"
        path.parent.mkdir(exist_ok=True)
        image = Image.fromarray(numbers.integers(0, 256, (height, width, 3), dtype=np.uint8))
        exif = Image.Exif()
        exif[274] = 6 if i == 3 else 1
        image.save(path, exif=exif)
    return root


def exported(root: Path, *, width: float = 0.125) -> LoadedEncoder:
    torch.manual_seed(0)
    backbone = unmix.backbones.build("resnet10", width=width, size=32)
    facts: dict[str, Any] = {
        "method": "moco", "backbone": "resnet10", "width": width, "stem": "auto", "size": 32,
        "patch": None, "color_space": "RGB", "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3],
    }  # fmt: skip
    MoCo(backbone, 8, queue_size=8, bn_splits=1)
    RunFolder(root).write_encoder(backbone, facts)
    return load_encoder(root)


@pytest.fixture
def encoder(tmp_path: Path) -> LoadedEncoder:
    return exported(tmp_path)


def test_paths_get_the_features_of_the_evaluation(encoder: LoadedEncoder, folder: Path) -> None:
    images = load(folder, "train")
    expected = split_features(encoder.features, images, encoder.views.plain, 32).features
    paths = [images.place(i) for i in range(len(images))]  # type: ignore[attr-defined]
    assert torch.equal(encoder.encode(paths), expected)
    assert torch.equal(encoder.encode(iter(paths), batch_size=3), expected)
    torch.testing.assert_close(encoder.encode(str(paths[0])), expected[:1])


@pytest.mark.parametrize("dtype", [str, bytes, object])
def test_an_array_of_paths_is_a_list_of_them(
    encoder: LoadedEncoder, folder: Path, dtype: type
) -> None:
    paths = [str(path) for path in sorted(folder.rglob("*.png"))[:3]]
    assert torch.equal(encoder.encode(np.array(paths, dtype)), encoder.encode(paths))


@pytest.mark.parametrize("turned", [np.s_[:, ::-1], np.s_[..., ::-1]])
def test_images_may_be_turned_or_of_opencv(encoder: LoadedEncoder, turned: Any) -> None:
    """Their strides are negative, which PyTorch does not take."""
    pixels = np.random.default_rng(0).integers(256, size=(2, 32, 32, 3), dtype=np.uint8)
    expected = encoder.encode(np.ascontiguousarray(pixels[turned]))
    assert torch.equal(encoder.encode(pixels[turned]), expected)
    one = [pixels[0][:, ::-1] if turned == np.s_[:, ::-1] else pixels[0][..., ::-1]]
    assert torch.equal(encoder.encode(one), encoder.encode([one[0].copy()]))


def test_pillows_images_are_prepared_as_their_files(encoder: LoadedEncoder, folder: Path) -> None:
    paths = sorted(folder.rglob("*.png"))
    assert torch.equal(encoder.encode([Image.open(p) for p in paths]), encoder.encode(paths))
    gray = Image.open(paths[0]).convert("L")
    assert torch.equal(encoder.encode(gray), encoder.encode(gray.convert("RGB")))


def test_pixels_get_the_features_of_the_evaluation(encoder: LoadedEncoder) -> None:
    images = load("photos", "test").evenly(5)  # of 48 px, so they are resized
    expected = split_features(encoder.features, images, encoder.views.plain, 32).features
    pixels = images.images  # type: ignore[attr-defined]
    assert torch.equal(encoder.encode(pixels), expected)
    last = pixels.permute(0, 2, 3, 1)
    assert torch.equal(encoder.encode(last), expected)
    assert torch.equal(encoder.encode(last.numpy()), expected)
    torch.testing.assert_close(encoder.encode(list(last.numpy())), expected)
    torch.testing.assert_close(encoder.encode(pixels[0]), expected[:1])


def test_the_transform_is_for_a_data_loader(encoder: LoadedEncoder, folder: Path) -> None:
    paths = sorted(folder.rglob("*.png"))
    transform = pickle.loads(pickle.dumps(encoder.transform))
    batch = torch.stack([transform(Image.open(path)) for path in paths])
    assert batch.shape == (len(paths), 3, 32, 32)
    torch.testing.assert_close(encoder(batch), encoder.encode(paths))
    assert len(pickle.dumps(encoder.transform)) < 10_000


def test_it_is_a_module_with_the_length_of_its_features(encoder: LoadedEncoder) -> None:
    assert isinstance(encoder, nn.Module)
    assert not encoder.training
    assert encoder.feature_dim == encoder(torch.zeros(2, 3, 32, 32)).shape[1] == 64
    assert not any(p.requires_grad for p in encoder.parameters())


def test_a_head_is_trained_on_what_it_gives(encoder: LoadedEncoder) -> None:
    features = encoder.encode(torch.randint(256, (6, 3, 32, 32), dtype=torch.uint8))
    assert not features.is_inference()
    assert not features.requires_grad
    head = nn.Linear(encoder.feature_dim, 2)
    nn.functional.cross_entropy(head(features), torch.arange(6) % 2).backward()
    assert head.weight.grad is not None
    assert head.weight.grad.abs().sum() > 0


def test_it_is_fine_tuned_where_gradients_are_asked_for(encoder: LoadedEncoder) -> None:
    head = nn.Linear(encoder.feature_dim, 2)
    optimizer = torch.optim.SGD([*encoder.parameters(), *head.parameters()], 0.1)
    before = encoder.backbone.conv1.weight.detach().clone()  # type: ignore[union-attr]
    images = torch.randint(256, (6, 3, 32, 32), dtype=torch.uint8)
    logits = head(encoder.encode(images, grad=True))
    nn.functional.cross_entropy(logits, torch.arange(6) % 2).backward()
    optimizer.step()
    assert not torch.equal(before, encoder.backbone.conv1.weight)  # type: ignore[union-attr]
    assert not encoder.encode(images).requires_grad


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.rand(2, 3, 32, 32), r"float32 \(2, 3, 32, 32\) must be uint8.*0 to 255.*255 \* x"),
        (np.zeros((2, 3, 32, 32), np.int64), "int64.*must be uint8"),
        (torch.zeros(2, 4, 32, 32, dtype=torch.uint8), "1 or 3 channels"),
        (torch.zeros(2, 3, 32, 3, dtype=torch.uint8), "is ambiguous"),
        (torch.zeros(3, 3, 3, dtype=torch.uint8), "image 0: the shape.*ambiguous"),
        ([], "images: there are none"),
        (torch.zeros(0, 3, 8, 8, dtype=torch.uint8), "images: there are none"),
        ([np.zeros((9, 9, 3), np.uint8), 7], "image 1: is a int; give a PIL image"),
        (5, "images: a int; give PIL images"),
        ({"image": 1}, "images: a dict"),
        (Image.new("F", (9, 9)), "image 0: its pixels are floating-point"),
        (np.full((9, 9, 3), None), "image 0: is a list; give a PIL image"),
        ([np.full((9, 9, 3), None)], r"image 0: object \(9, 9, 3\) must be uint8"),
        ([np.array(["a", "b"])], r"image 0: <U1 \(2,\) must be uint8"),
        ("no/such.png", "no/such.png: No such file"),
        (".", "holds no images"),
    ],
)
def test_what_is_no_picture_is_refused_by_name(
    encoder: LoadedEncoder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    images: Any,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(unmix.UserError, match=message) as found:
        encoder.encode(images)
    assert "\n" not in str(found.value)


def test_a_broken_file_is_named(encoder: LoadedEncoder, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"nothing")
    with pytest.raises(unmix.UserError, match=r"broken.png: not an image"):
        encoder.encode([*sorted(folder.rglob("*.png")), tmp_path / "broken.png"])


def test_a_folder_is_encoded_in_the_order_of_its_paths(
    encoder: LoadedEncoder, folder: Path
) -> None:
    paths = sorted(folder.rglob("*.*"))
    assert torch.equal(encoder.encode(folder), encoder.encode(paths))
    assert torch.equal(encoder.encode(str(folder / "a")), encoder.encode(paths[:5]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_pixels_are_prepared_in_the_type_of_the_weights(
    encoder: LoadedEncoder, dtype: torch.dtype
) -> None:
    pixels = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    expected = encoder.encode(pixels)
    features = encoder.to(dtype).encode(pixels)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, expected, atol=0.05, rtol=0.05)


def test_it_is_the_same_whatever_pytorchs_default_type_is(
    encoder: LoadedEncoder, tmp_path: Path
) -> None:
    pixels = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    torch.set_default_dtype(torch.float64)
    try:
        found = load_encoder(tmp_path).encode(pixels)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found, encoder.encode(pixels))


@pytest.mark.parametrize("halves", [False, True])
def test_it_is_copied_pickled_saved_and_compiled_as_any_module(
    halves: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    method = "cmc" if halves else "moco"
    facts: dict[str, Any] = {
        "method": method, "backbone": "resnet10", "width": 0.125, "stem": "auto", "size": 16,
        "patch": None, "color_space": "Lab" if halves else "RGB", "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.25, 0.3], "range": [0, 4095],
    }  # fmt: skip
    backbone = method_class(method).build_backbone("resnet10", width=0.125, stem="auto", size=16)
    RunFolder(tmp_path).write_encoder(backbone, facts)
    encoder = load_encoder(tmp_path)
    images = torch.randn(3, 3, 16, 16)
    expected = encoder(images)
    assert expected.shape == (3, encoder.feature_dim)
    assert all(name.startswith("backbone.") for name in encoder.state_dict())
    pixels = np.full((20, 30, 3), 100, dtype=np.uint8)
    for other in (copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):
        assert torch.equal(other(images), expected)
        assert torch.equal(other.transform(pixels), encoder.transform(pixels))
        assert other.range == (0, 4095)
        with torch.no_grad():
            next(other.parameters()).zero_()
        assert torch.equal(encoder(images), expected)
        other.load_state_dict(encoder.state_dict())
        assert torch.equal(other(images), expected)
    compiled = torch.compile(encoder, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), expected)
    assert not encoder.training
    assert encoder.train().training
    assert encoder.eval().to(torch.float64)(images.double()).dtype == torch.float64
