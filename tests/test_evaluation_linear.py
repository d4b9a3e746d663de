"""The linear probe finds scikit-learn's optimum, never looks at the test labels, and repeats."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from unmix.errors import UserError
from unmix.evaluation import STRENGTHS, linear, linear_probe


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """On busy cores, threads waiting for each other make these small fits many times slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    images, labels = load_digits(return_X_y=True)
    x, y = torch.as_tensor(images, dtype=torch.float32), torch.as_tensor(labels)
    return x[:1200], y[:1200], x[1200:], y[1200:]


def _probe(digits, seed: int = 0) -> dict[str, float]:
    return linear_probe(*digits, classes=10, generator=torch.Generator().manual_seed(seed))


def test_accuracy_is_scikit_learns_at_the_same_strength(digits):
    """strength = 1 / (C N) turns the penalty on the summed loss into one on the mean."""
    result = _probe(digits)
    train, test = linear._standardise(digits[0], digits[2])
    judge = LogisticRegression(C=1 / (result["strength"] * len(train)), max_iter=2000)
    expected = 100 * judge.fit(train, digits[1]).score(test, digits[3])
    assert result["top1"] == pytest.approx(expected, abs=0.4)
    assert result["top1"] > 90
    assert result["top1"] < result["top5"] <= 100
    assert result["strength"] in STRENGTHS
    assert result["seconds"] > 0


def test_weights_are_scikit_learns(digits):
    train, _ = linear._standardise(digits[0], digits[2])
    classifier = linear._classifier(train, 10)
    linear._fit(classifier, train, digits[1], 1e-2)
    judge = LogisticRegression(C=1 / (1e-2 * len(train)), max_iter=2000, tol=1e-8)
    judge.fit(train.double().numpy(), digits[1])
    expected = torch.as_tensor(judge.coef_, dtype=torch.float32)
    torch.testing.assert_close(classifier.weight.detach(), expected, rtol=0, atol=2e-3)


def test_same_generator_gives_the_same_result(digits):
    first, second = _probe(digits), _probe(digits)
    assert {**first, "seconds": 0} == {**second, "seconds": 0}


def test_global_generator_is_not_touched(digits):
    before = torch.get_rng_state()
    _probe(digits)
    assert torch.equal(torch.get_rng_state(), before)


def test_scale_and_offset_of_features_do_not_matter(digits):
    """Standardisation by the training split; a dead unit must not give NaN."""
    x, y, test_x, test_y = digits
    assert (x.std(dim=0) == 0).any()
    moved = linear_probe(
        x * 8 + 3, y, test_x * 8 + 3, test_y, classes=10, generator=torch.Generator().manual_seed(0)
    )
    assert moved["top1"] == pytest.approx(_probe(digits)["top1"], abs=0.2)


def test_test_labels_do_not_choose_the_strength(digits):
    x, y, test_x, test_y = digits
    wrong = linear_probe(
        x, y, test_x, (test_y + 1) % 10, classes=10, generator=torch.Generator().manual_seed(0)
    )
    assert wrong["strength"] == _probe(digits)["strength"]
    assert wrong["top1"] < 10


def test_noisy_features_choose_a_strong_penalty_and_clean_ones_a_weak_one(generator):
    labels = torch.arange(400) % 2
    noise = torch.randn(800, 100, generator=generator)
    noise[:, 0] += torch.cat([labels, labels])
    noisy = linear_probe(noise[:400], labels, noise[400:], labels, classes=2, generator=generator)
    # A class given by many weak, consistent directions needs the weights to grow.
    centres = torch.randn(20, 4, generator=generator)
    points = torch.randn(2000, 4, generator=generator)
    classes = torch.cdist(points, centres).argmin(dim=1)
    clean = linear_probe(
        points[:1000],
        classes[:1000],
        points[1000:],
        classes[1000:],
        classes=20,
        generator=generator,
    )
    assert noisy["strength"] > clean["strength"]


def test_held_out_images_are_a_tenth_of_each_class(generator):
    labels = torch.tensor([0] * 100 + [1] * 50 + [2] * 2 + [3])
    mask = linear._held_out(labels, generator)
    assert [int(mask[labels == c].sum()) for c in range(4)] == [10, 5, 1, 0]


def test_held_out_images_follow_the_generator():
    labels = torch.arange(200) % 4
    first, again, other = (
        linear._held_out(labels, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_mistakes_are_told(generator):
    x, y = torch.zeros(3, 2), torch.arange(3)
    with pytest.raises(UserError, match="train split: no class has two images"):
        linear_probe(x, y, x, y, classes=3, generator=generator)
    with pytest.raises(UserError, match="test split: labels go from 0 to 2"):
        linear_probe(x, y.clamp_max(1), x, y, classes=2, generator=generator)
