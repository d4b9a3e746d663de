"""What a run measures, when, and with which weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from unmix.commands import load_method
from unmix.data import ImageSet, TensorImages, load
from unmix.errors import UserError
from unmix.evaluation import evaluate_features, knn_accuracy, load_encoder, split_features
from unmix.evaluation.baselines import accuracies, raw_pixels
from unmix.randomness import generator_for
from unmix.results import RunResults
from unmix.training import pretrain

TINY: dict[str, Any] = {
    "method": "moco",
    "data": "digits",
    "limit": 200,
    "backbone": "resnet10",
    "width": 0.25,
    "size": 8,
    "batch_size": 50,
    "epochs": 2,
    "knn_k": 10,
    "queue_size": 64,
    "bn_splits": 1,
    "logger": "none",
    "device": "cpu",
    "precision": "32",
}


def run(folder: Path, **words: Any) -> RunResults:
    return pretrain(run=str(folder), **{**TINY, **words})


def rows(results: RunResults) -> list[tuple[str, int]]:
    return [(row.protocol, row.epoch) for row in results.evaluations]


def digits(split: str) -> TensorImages:
    found = load("digits", split)
    assert isinstance(found, TensorImages)
    return found


def neighbors(encode: Any, prepare: Any) -> float:
    """Top-1 of 10 neighbors among 200 of the digits, with nothing between."""
    train, test = digits("train").evenly(200), digits("test")
    assert train.labels is not None
    assert test.labels is not None
    with torch.inference_mode():
        features = [encode(prepare(images.images)) for images in (train, test)]
    scores = knn_accuracy(
        features[0], train.labels, features[1], test.labels, classes=10, k=10, temperature=0.1
    )
    return scores["top1"]


def test_the_last_row_is_of_the_weights_that_are_exported(tmp_path: Path) -> None:
    """Also where the last epoch is one of those that are measured on the way."""
    results = run(tmp_path / "run", knn_every=1)
    assert rows(results) == [("knn", 1), ("knn", 2), ("linear", 2)]
    encoder = load_encoder(tmp_path / "run")
    top1 = neighbors(encoder.features, encoder.views.plain)
    final = results.final("knn")
    assert final is not None
    assert final.top1 == pytest.approx(top1)


def test_the_rows_on_the_way_are_of_their_epochs(tmp_path: Path) -> None:
    results = run(tmp_path / "run", knn_every=1, checkpoint_every=1, evaluate=False)
    method = load_method(tmp_path / "run", "epoch-0001")
    plain = load_encoder(tmp_path / "run").views.plain
    assert results.evaluations[0].top1 == pytest.approx(neighbors(method.features, plain))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({"knn_every": 0}, [("knn", 2), ("linear", 2)]),
        ({"knn_every": 1, "evaluate": False}, [("knn", 1)]),
        ({"knn_every": 0, "evaluate": False}, []),
        ({"knn_every": 0, "linear_every": 1}, [("linear", 1), ("knn", 2), ("linear", 2)]),
    ],
)
def test_what_is_measured_is_what_was_asked_for(
    words: dict[str, Any], expected: list[tuple[str, int]], tmp_path: Path
) -> None:
    assert rows(run(tmp_path / "run", **words)) == expected


def test_the_projectors_output_is_measured_if_asked_for(tmp_path: Path) -> None:
    results = run(tmp_path / "run", knn_every=0, features="projector", head="mlp", dim=16)
    final = results.final("knn")
    assert final is not None
    assert final.details["features"] == "projector"
    method = load_method(tmp_path / "run", "last")
    plain = load_encoder(tmp_path / "run").views.plain
    projected = neighbors(method.projections, plain)
    assert final.top1 == pytest.approx(projected)
    assert projected != pytest.approx(neighbors(method.features, plain))


# --- features and baselines -------------------------------------------------------------------


def plain(images: Tensor) -> Tensor:
    return images.float() / 255 - 0.3


def test_raw_pixels_are_measured_as_scikit_learn_measures_them() -> None:
    """kNN by weights exp(cosine / T); the probe within a few percent of a logistic regression."""
    train, test = digits("train").evenly(400), digits("test")
    found = accuracies(raw_pixels, train, test, plain, 8, generator=generator_for(0))
    assert train.labels is not None
    assert test.labels is not None
    x, y = plain(train.images).flatten(1).numpy(), train.labels.numpy()
    t, labels = plain(test.images).flatten(1).numpy(), test.labels.numpy()
    theirs = KNeighborsClassifier(200, weights=lambda d: np.exp((1 - d) / 0.1), metric="cosine")
    assert found["knn"] == pytest.approx(100 * theirs.fit(x, y).score(t, labels), abs=0.3)
    probe = LogisticRegression(max_iter=300).fit(x, y)
    assert found["linear"] == pytest.approx(100 * probe.score(t, labels), abs=4)


def test_a_split_is_encoded_in_batches_without_a_difference() -> None:
    images = digits("test")
    whole = split_features(raw_pixels, images, plain, 8, batch_size=1000)
    cut = split_features(raw_pixels, images, plain, 8, batch_size=7)
    assert torch.equal(whole.features, cut.features)
    assert torch.equal(whole.features, plain(images.images).flatten(1))
    assert images.labels is not None
    assert whole.labels is not None
    assert torch.equal(whole.labels, images.labels)
    assert torch.equal(whole.index, torch.arange(len(images)))


def test_more_neighbors_than_images_are_as_many_as_there_are() -> None:
    train = split_features(raw_pixels, digits("train").evenly(40), plain, 8)
    test = split_features(raw_pixels, digits("test").evenly(40), plain, 8)
    (measured,) = evaluate_features(train, test, 10, ("knn",), k=200, generator=generator_for(0))
    assert measured.row["k"] == 40
    with pytest.raises(UserError, match="knn"):
        evaluate_features(train, test, 10, ("kn",), generator=generator_for(0))


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 60), st.integers(1, 80), st.booleans())
def test_evenly_takes_distinct_images_in_order_from_the_first_to_the_last(
    n: int, count: int, labeled: bool
) -> None:
    """Every image carries its own label, and neighbors are equally far apart to a step of 1."""
    numbers = torch.arange(n)
    images: ImageSet = TensorImages(
        name="numbers", split="train", mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2),
        labels=numbers if labeled else None,
        classes=tuple(map(str, range(n))) if labeled else None,
        images=numbers.to(torch.uint8)[:, None, None, None].expand(n, 3, 2, 2),
    )  # fmt: skip
    taken = images.evenly(count)
    assert isinstance(taken, TensorImages)
    found = taken.images[:, 0, 0, 0].long()
    assert len(taken) == min(count, n)
    assert found[0] == 0
    assert count == 1 or found[-1] == n - 1
    gaps = found.diff()
    assert bool((gaps >= 1).all())
    assert len(gaps) == 0 or gaps.max() - gaps.min() <= 1
    if labeled:
        assert taken.labels is not None
        assert torch.equal(taken.labels, found)
    else:
        assert taken.labels is None
    assert replace(taken, images=taken.images).name == "numbers"
