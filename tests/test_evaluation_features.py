"""Features are encoded in evaluation mode without gradients, and the module is left as it was."""

from __future__ import annotations

import copy
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from unmix.backbones import HalfEncoders, attention_map, build, measuring, takes_size
from unmix.data import BrokenImage, FileImages, Skipped, read_uint8
from unmix.errors import UserError
from unmix.evaluation import accuracy, extract, features, split_features
from unmix.evaluation.metrics import check_labeled


def _encoder() -> nn.Sequential:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.BatchNorm1d(5), nn.Dropout(0.5))
    model[2].eval()
    return model


def test_batches_are_encoded_in_order_and_in_evaluation_mode(generator):
    model = _encoder()
    images = torch.randn(7, 3, 2, 2, generator=generator)
    features = extract(model, images.split(3), device="cpu")
    expected = model.eval()(images)
    assert features.dtype == torch.float32
    assert not features.requires_grad
    torch.testing.assert_close(features, expected)


def test_every_part_gets_its_own_mode_back_even_after_an_error():
    model = _encoder()
    modes = [part.training for part in model.modules()]
    assert True in modes
    assert False in modes
    extract(model, [torch.zeros(2, 3, 2, 2)], device="cpu")
    assert [part.training for part in model.modules()] == modes
    with pytest.raises(RuntimeError):
        extract(model, [torch.zeros(2, 3, 9, 9)], device="cpu")
    assert [part.training for part in model.modules()] == modes


@pytest.mark.parametrize("how", ["extract", "takes_size", "feature_dim", "attention_map"])
def test_what_a_network_keeps_for_evaluation_is_of_its_last_weights(how):
    """LeViT keeps its attention biases from the first batch in evaluation mode until `train`."""
    pytest.importorskip("timm")
    model = build("timm:levit_128s", size=32)
    images = torch.randn(2, 3, 32, 32)
    with suppress(UserError):  # it has no map, but was run for one
        {
            "extract": lambda: extract(model, [images], device="cpu"),
            "takes_size": lambda: takes_size(model, 32),
            "feature_dim": lambda: measuring._forward(model, 3, 32),
            "attention_map": lambda: attention_map(model, images),
        }[how]()
    for name, parameter in model.named_parameters():
        if name.endswith("attention_biases"):
            nn.init.normal_(parameter, std=5)
    expected = copy.deepcopy(model).train().eval()(images)
    torch.testing.assert_close(extract(model, [images], device="cpu"), expected)


def test_a_method_of_a_module_puts_the_module_in_evaluation_mode(generator):
    halves = HalfEncoders("resnet10", width=0.125, size=8)
    before = {name: value.clone() for name, value in halves.state_dict().items()}
    extract(halves.features, [torch.randn(4, 3, 8, 8, generator=generator)], device="cpu")
    assert halves.training
    assert all(torch.equal(before[name], value) for name, value in halves.state_dict().items())


def test_autocast_computes_in_the_type_and_returns_float32(generator):
    seen: list[torch.dtype] = []

    def encode(images: Tensor) -> Tensor:
        output = images.flatten(1) @ torch.ones(12, 2)
        seen.append(output.dtype)
        return output

    images = [torch.randn(4, 3, 2, 2, generator=generator)]
    assert extract(encode, images, device="cpu", dtype=torch.bfloat16).dtype == torch.float32
    extract(encode, images, device="cpu")
    assert seen == [torch.bfloat16, torch.float32]


def test_features_can_be_trained_on():
    """They are not inference tensors, which autograd refuses."""
    features = extract(nn.Flatten(), [torch.ones(2, 3, 1, 1)], device="cpu")
    layer = nn.Linear(3, 1)
    layer(features).sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.tolist() == [[2, 2, 2]]


def _pictures(folder: Path, count: int, broken: tuple[int, ...], strict: bool = False):
    """Small pictures of two classes in files, some of them damaged."""
    generator = np.random.default_rng(0)
    paths = [folder / f"{i:02d}.png" for i in range(count)]
    for i, path in enumerate(paths):
        Image.fromarray(generator.integers(0, 256, (12, 12, 3), dtype=np.uint8)).save(path)
        if i in broken:
            path.write_bytes(path.read_bytes()[:60])
    return FileImages(
        name="pictures", split="train", labels=torch.arange(count) % 2, classes=("a", "b"),
        mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2), paths=paths, skipped=Skipped(strict),
    )  # fmt: skip


def _flat(images: Tensor) -> Tensor:
    return images.float()


@pytest.mark.parametrize("workers", [0, 2, None])
def test_files_are_read_the_same_by_any_number_of_workers(workers, tmp_path):
    """Against `read_uint8` of all at once; features, labels, indices and what was skipped."""
    broken = (3, 4, 5, 11)
    plain = _pictures(tmp_path, 14, broken)
    pixels, index = read_uint8(plain, range(14), 8)
    images = replace(plain, skipped=Skipped())
    state = torch.get_rng_state()
    found = split_features(nn.Flatten(), images, _flat, 8, batch_size=2, workers=workers)
    assert torch.equal(torch.get_rng_state(), state)
    assert len(found.features) == 10
    assert torch.equal(found.features, pixels.flatten(1).float())
    assert torch.equal(found.index, index)
    assert torch.equal(found.labels, images.labels[index])
    assert images.skipped.paths == plain.skipped.paths
    assert images.skipped.line() == plain.skipped.line()


@pytest.mark.parametrize("parts", [1, 2, 3, 9])
def test_parts_are_the_whole_in_order_whatever_can_be_read(parts, tmp_path):
    """Of 7 batches of 2 images; with 9 parts some have none, and a batch is broken as a whole."""
    broken = (2, 3, 5)
    images = _pictures(tmp_path, 13, broken)
    whole = split_features(nn.Flatten(), images, _flat, 8, batch_size=2, workers=0)
    told: list[tuple[int, int]] = []
    found = [
        split_features(
            nn.Flatten(), images, _flat, 8, batch_size=2, workers=0, part=(number, parts),
            progress=lambda done, total: told.append((done, total)),
        )
        for number in range(parts)
    ]  # fmt: skip
    assert torch.equal(torch.cat([each.index for each in found]), whole.index)
    with_images = [each.features for each in found if len(each.index)]
    assert torch.equal(torch.cat(with_images), whole.features)
    assert torch.equal(torch.cat([each.labels for each in found]), whole.labels)
    assert max(total for _, total in told) <= -(-7 // parts) * 2


def test_a_split_that_cannot_be_read_is_told(tmp_path):
    images = _pictures(tmp_path, 3, (0, 1, 2))
    with pytest.raises(UserError, match="none of the 3 images of the train split is readable"):
        split_features(nn.Flatten(), images, _flat, 8, batch_size=2, workers=0)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_strict_set_ends_at_its_first_broken_file_whoever_reads_it(workers, tmp_path):
    images = _pictures(tmp_path, 6, (2, 3), strict=True)
    with pytest.raises(BrokenImage) as caught:
        split_features(nn.Flatten(), images, _flat, 8, batch_size=2, workers=workers)
    assert caught.value.path == images.paths[2]


@pytest.mark.parametrize("most", [0, 100, 10**6])
def test_features_of_another_device_are_fetched_in_pieces_and_in_order(most, monkeypatch):
    """The meta device stands for a GPU; its tensors have shapes and no values."""
    monkeypatch.setattr(features, "_MAX_HELD", most)
    fetched = []
    monkeypatch.setattr(Tensor, "cpu", lambda self: fetched.append(len(self)) or self)
    batches = [torch.empty(n, 5, device="meta") for n in (4, 3, 2)]
    assert [len(part) for part in features._fetched(batches)] == fetched
    assert fetched == {0: [4, 3, 2], 100: [7, 2], 10**6: [9]}[most]


def test_no_images_are_told():
    with pytest.raises(UserError, match="--data: there are no images"):
        extract(nn.Flatten(), [], device="cpu")


def test_diverged_encoder_is_told():
    images = torch.zeros(3, 1, 1, 2)
    images[1, 0, 0, 0] = float("nan")
    with pytest.raises(UserError, match=r"^the features of 1 of 3 images"):
        extract(nn.Flatten(), [images], device="cpu")


def test_accuracy_counts_first_and_first_five():
    ranking = torch.tensor([[0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0]])
    result = accuracy(ranking, torch.tensor([0, 4, 0]))
    first, five = result["top1"], result["top5"]
    assert (first, five) == (pytest.approx(100 / 3), pytest.approx(200 / 3))


def test_classes_of_different_sizes_count_alike_in_their_mean():
    """Three images of class 1, all right; one of class 2, wrong; none of class 0."""
    ranking = torch.tensor([[1, 0, 2], [1, 0, 2], [1, 2, 0], [0, 1, 2]])
    result = accuracy(ranking, torch.tensor([1, 1, 1, 2]))
    assert (result["top1"], result["mean_per_class"]) == (75.0, 50.0)
    assert "mean_per_class" not in accuracy(ranking, torch.tensor([1, 1, 2, 2]))


def test_accuracy_of_fewer_than_five_classes_is_100_for_top5():
    assert accuracy(torch.tensor([[1, 0]]), torch.tensor([0])) == {"top1": 0.0, "top5": 100.0}


@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        (torch.zeros(3, 2), torch.zeros(2, dtype=torch.int64), "do not match"),
        (torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), "N at least 1"),
        (torch.zeros(2), torch.zeros(2, dtype=torch.int64), "must be"),
        (
            torch.zeros(2, 2),
            torch.tensor([0, 5]),
            "labels go from 0 to 5; they must go from 0 to 4",
        ),
        (torch.zeros(2, 2), torch.tensor([-1, 0]), "labels go from -1 to 0"),
    ],
)
def test_labels_that_do_not_fit_are_told(features: Tensor, labels: Tensor, message: str):
    with pytest.raises(UserError, match=f"train split: .*{message}"):
        check_labeled("train", features, labels, 5)
