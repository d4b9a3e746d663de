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
from unmix.evaluation.selection import held_out


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
    train, test = linear._standardize(digits[0], digits[2])
    judge = LogisticRegression(C=1 / (result["strength"] * len(train)), max_iter=2000)
    expected = 100 * judge.fit(train, digits[1]).score(test, digits[3])
    assert result["top1"] == pytest.approx(expected, abs=0.4)
    assert result["top1"] > 90
    assert result["top1"] < result["top5"] <= 100
    assert result["strength"] in STRENGTHS
    assert result["seconds"] > 0


@pytest.mark.parametrize("covariance", [True, False])
def test_weights_are_scikit_learns(digits, covariance):
    train, _ = linear._standardize(digits[0], digits[2])
    classifier = linear._classifier(train, 10)
    found = linear._covariance(train) if covariance else None
    linear._fit(classifier, train, digits[1], 1e-2, found)
    judge = LogisticRegression(C=1 / (1e-2 * len(train)), max_iter=2000, tol=1e-8)
    judge.fit(train.double().numpy(), digits[1])
    expected = torch.as_tensor(judge.coef_, dtype=torch.float32)
    torch.testing.assert_close(classifier.weight.detach(), expected, rtol=0, atol=2e-3)


def _correlated(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Features of 30 directions whose variances span four orders, and 5 classes of them."""
    x = torch.randn(600, 30, generator=generator) * torch.logspace(-2, 0, 30)
    x = x @ torch.linalg.qr(torch.randn(30, 30, generator=generator)).Q
    return linear._standardize(x, x)[0], x[:, :5].argmax(dim=1)


@pytest.mark.parametrize("strength", STRENGTHS)
def test_the_covariance_changes_the_way_and_not_the_optimum(strength, generator, monkeypatch):
    """Against L-BFGS on the weights themselves, with ten times the iterations, in float64."""
    x, y = _correlated(generator)
    x = x.double()
    plain, fast = linear._classifier(x, 5).double(), linear._classifier(x, 5).double()
    linear._fit(fast, x, y, strength, linear._covariance(x))
    monkeypatch.setattr(linear, "_MAX_ITERATIONS", 1000)
    linear._fit(plain, x, y, strength)
    assert _loss(fast, x, y, strength) < _loss(plain, x, y, strength) + 1e-6
    torch.testing.assert_close(fast(x).softmax(1), plain(x).softmax(1), rtol=0, atol=5e-3)


def test_the_covariance_makes_the_way_shorter(generator, monkeypatch):
    """Ten iterations come nearer to the optimum than ten on the weights themselves."""
    x, y = _correlated(generator)
    monkeypatch.setattr(linear, "_MAX_ITERATIONS", 10)
    losses = []
    for covariance in (None, linear._covariance(x)):
        classifier = linear._classifier(x, 5)
        linear._fit(classifier, x, y, 1e-4, covariance)
        losses.append(_loss(classifier.double(), x, y, 1e-4))
    assert losses[1] < losses[0] - 0.01


def test_a_covariance_that_is_not_that_of_the_features_does_no_harm(digits, generator):
    """The choice of strength fits nine tenths of the images with the covariance of all."""
    train, _ = linear._standardize(digits[0], digits[2])
    other = linear._covariance(train * (torch.rand(64, generator=generator) + 0.5))
    first, second = linear._classifier(train, 10), linear._classifier(train, 10)
    linear._fit(first, train, digits[1], 1e-2)
    linear._fit(second, train, digits[1], 1e-2, other)
    torch.testing.assert_close(second.weight, first.weight, rtol=0, atol=2e-3)


def test_features_too_wide_for_a_covariance_are_fitted_without(digits, monkeypatch):
    expected = _probe(digits)
    monkeypatch.setattr(linear, "_MAX_DECORRELATED", 63)
    assert linear._covariance(digits[0]) is None
    assert _probe(digits)["top1"] == pytest.approx(expected["top1"], abs=0.5)


def _loss(classifier: torch.nn.Linear, x: Tensor, y: Tensor, strength: float) -> float:
    with torch.inference_mode():
        penalty = 0.5 * strength * classifier.weight.square().sum()
        return (torch.nn.functional.cross_entropy(classifier(x.double()), y) + penalty).item()


def test_same_generator_gives_the_same_result(digits):
    first, second = _probe(digits), _probe(digits)
    assert {**first, "seconds": 0} == {**second, "seconds": 0}


def test_global_generator_is_not_touched(digits):
    before = torch.get_rng_state()
    _probe(digits)
    assert torch.equal(torch.get_rng_state(), before)


def test_scale_and_offset_of_features_do_not_matter(digits):
    """Standardization by the training split; a dead unit must not give NaN."""
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
    centers = torch.randn(20, 4, generator=generator)
    points = torch.randn(2000, 4, generator=generator)
    classes = torch.cdist(points, centers).argmin(dim=1)
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
    mask = held_out(labels, generator)
    assert [int(mask[labels == c].sum()) for c in range(4)] == [10, 5, 1, 0]


def test_held_out_images_follow_the_generator():
    labels = torch.arange(200) % 4
    first, again, other = (
        held_out(labels, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_mistakes_are_told(generator):
    x, y = torch.zeros(3, 2), torch.arange(3)
    with pytest.raises(UserError, match="train split: no class has two images"):
        linear_probe(x, y, x, y, classes=3, generator=generator)
    with pytest.raises(UserError, match="test split: labels go from 0 to 2"):
        linear_probe(x, y.clamp_max(1), x, y, classes=2, generator=generator)
