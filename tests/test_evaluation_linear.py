"""The linear probe finds scikit-learn's optimum, never looks at the test labels, and repeats."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.nn import functional as F

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


def _probe(digits, seed: int = 0, **words) -> dict[str, float]:
    return linear_probe(*digits, classes=10, generator=torch.Generator().manual_seed(seed), **words)


class Images(list[tuple[Tensor, Tensor]]):
    """Features and labels as they are, in one block."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        super().__init__([(x, y)])
        self.mean = x.mean(dim=0)

    def __len__(self) -> int:
        return len(self[0][1])


def _standardized(x: Tensor, y: Tensor) -> Images:
    return Images((x - x.mean(dim=0)) / x.std(dim=0, correction=0).clamp(min=1e-9), y)


def _classifier(features: int = 64, classes: int = 10) -> torch.nn.Linear:
    return linear._classifier(features, classes, torch.device("cpu"))


def test_accuracy_is_scikit_learns_at_the_same_strength(digits):
    """strength = 1 / (C N) turns the penalty on the summed loss into one on the mean."""
    result = _probe(digits)
    scaler = StandardScaler().fit(digits[0])
    judge = LogisticRegression(C=1 / (result["strength"] * len(digits[0])), max_iter=2000)
    judge.fit(scaler.transform(digits[0]), digits[1])
    expected = 100 * judge.score(scaler.transform(digits[2]), digits[3])
    assert result["top1"] == pytest.approx(expected, abs=0.4)
    assert result["top1"] > 90
    assert result["top1"] < result["top5"] <= 100
    assert result["strength"] in STRENGTHS
    assert result["seconds"] > 0


@pytest.mark.parametrize("covariance", [True, False])
def test_weights_are_scikit_learns(digits, covariance):
    train = _standardized(*digits[:2])
    classifier = _classifier()
    found = linear._covariance(train) if covariance else None
    linear._fit(classifier, train, 1e-2, found)
    judge = LogisticRegression(C=1 / (1e-2 * len(train)), max_iter=2000, tol=1e-8)
    judge.fit(train[0][0].double().numpy(), digits[1])
    expected = torch.as_tensor(judge.coef_, dtype=torch.float32)
    torch.testing.assert_close(classifier.weight.detach(), expected, rtol=0, atol=2e-3)


def _correlated(generator: torch.Generator) -> Images:
    """Features of 30 directions whose variances span four orders, and 5 classes of them."""
    x = torch.randn(600, 30, generator=generator) * torch.logspace(-2, 0, 30)
    x = x @ torch.linalg.qr(torch.randn(30, 30, generator=generator)).Q
    return _standardized(x, x[:, :5].argmax(dim=1))


@pytest.mark.parametrize("strength", STRENGTHS)
def test_the_covariance_changes_the_way_and_not_the_optimum(strength, generator, monkeypatch):
    """Against L-BFGS on the weights themselves, with ten times the iterations, in float64."""
    ((x, y),) = _correlated(generator)
    x = x.double()
    plain, fast = _classifier(30, 5).double(), _classifier(30, 5).double()
    linear._fit(fast, Images(x, y), strength, linear._covariance(Images(x, y)))
    monkeypatch.setattr(linear, "_MAX_ITERATIONS", 1000)
    linear._fit(plain, Images(x, y), strength)
    assert _loss(fast, x, y, strength) < _loss(plain, x, y, strength) + 1e-6
    torch.testing.assert_close(fast(x).softmax(1), plain(x).softmax(1), rtol=0, atol=5e-3)


def test_the_covariance_makes_the_way_shorter(generator, monkeypatch):
    """Ten iterations come nearer to the optimum than ten on the weights themselves."""
    train = _correlated(generator)
    monkeypatch.setattr(linear, "_MAX_ITERATIONS", 10)
    losses = []
    for covariance in (None, linear._covariance(train)):
        classifier = _classifier(30, 5)
        linear._fit(classifier, train, 1e-4, covariance)
        losses.append(_loss(classifier.double(), *train[0], 1e-4))
    assert losses[1] < losses[0] - 0.01


def test_a_covariance_that_is_not_that_of_the_features_does_no_harm(digits, generator):
    """The choice of strength fits nine tenths of the images with the covariance of all."""
    train = _standardized(*digits[:2])
    moved = train[0][0] * (torch.rand(64, generator=generator) + 0.5)
    first, second = _classifier(), _classifier()
    linear._fit(first, train, 1e-2)
    linear._fit(second, train, 1e-2, linear._covariance(Images(moved, digits[1])))
    torch.testing.assert_close(second.weight, first.weight, rtol=0, atol=2e-3)


def test_features_too_wide_for_a_covariance_are_fitted_without(digits, monkeypatch):
    expected = _probe(digits)
    monkeypatch.setattr(linear, "_MAX_DECORRELATED", 63)
    assert linear._covariance(Images(*digits[:2])) is None
    assert _probe(digits)["top1"] == pytest.approx(expected["top1"], abs=0.5)


# Bytes per image: 12 for each of 64 features and 16 for each of 10 classes; all of 1,200 images
# need 1,113,600. The raw features are 307,200.
@pytest.mark.parametrize("budget", [200_000, 1_100_000])
def test_features_larger_than_the_memory_are_fitted_in_blocks(digits, budget, monkeypatch):
    """To the same optimum; with the raw features on the device or fetched each time."""
    seen = []
    monkeypatch.setattr(linear, "linear", lambda x, *w: seen.append(len(x)) or F.linear(x, *w))
    expected, whole = _probe(digits), max(seen)
    seen.clear()
    found = _probe(digits, memory_budget=budget)
    assert whole == 1200
    assert max(seen) == budget // 2 // (12 * 64 + 16 * 10)
    assert found["strength"] == expected["strength"]
    assert found["top1"] == pytest.approx(expected["top1"], abs=0.2)
    assert found["top5"] == pytest.approx(expected["top5"], abs=0.2)


@pytest.mark.parametrize("size", [7, 1200])
def test_blocks_are_standardized_as_scikit_learn_does(digits, size):
    """Also without rounding errors where the mean is large; constant features become 0."""
    x = torch.cat([digits[0] + 1000.1, torch.full((1200, 1), 0.1)], dim=1)
    mean, std = linear._mean_and_std(x.split(size), torch.device("cpu"))
    expected = StandardScaler().fit(x.double())
    torch.testing.assert_close(mean.double(), torch.as_tensor(expected.mean_), rtol=1e-6, atol=0)
    dead = torch.as_tensor(expected.var_) < 1e-12
    wanted = torch.as_tensor(expected.var_).sqrt()
    torch.testing.assert_close(std[~dead].double(), wanted[~dead], rtol=1e-6, atol=0)
    assert dead.any()
    assert (std[dead] == 0).all()


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
