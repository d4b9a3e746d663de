"""Linear probe on cached features; the L2 strength is chosen on held-out training images."""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

from unmix.evaluation.metrics import accuracy, check_labeled
from unmix.evaluation.protocol import Prediction, Protocol, Task
from unmix.evaluation.selection import held_out

__all__ = ["STRENGTHS", "LinearProbe", "linear_probe"]

STRENGTHS = (1.0, 1e-1, 1e-2, 1e-3, 1e-4)
"""L2 strengths tried, from strong to weak, so that each fit starts from a smoother one."""

_MAX_ITERATIONS = 100
# With more features the covariance and its factor would cost more than they save.
_MAX_DECORRELATED = 8192


def linear_probe(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    classes: int,
    generator: torch.Generator,
    device: torch.device | str | None = None,
) -> dict[str, float]:
    """Fit a linear classifier on frozen features, and evaluate it on the test features.

    Features are standardized with the training split. The loss is the mean cross-entropy plus half
    the L2 strength times the squared weights (not the biases), minimized over the full batch by
    L-BFGS, in coordinates in which the features are nearly uncorrelated: the optimum is the same,
    found in a third of the iterations. The strength is the one of `STRENGTHS` with the best
    accuracy on a stratified tenth of the training images, the stronger of equal ones; then all
    training images are fitted. The test labels are used for the result alone.

    Args:
        train_features: `(N, D)`.
        train_labels: int64 `(N,)`; some class must have two images or more.
        test_features: `(M, D)`.
        test_labels: int64 `(M,)`.
        classes: Number of classes.
        generator: CPU generator that draws the held-out images.
        device: Where to compute; None for the device of the training features.

    Returns:
        "top1" and "top5" in percent, the "strength" chosen, and the "seconds" it took.

    Raises:
        UserError: if features and labels do not match, or no class has two images.
    """
    prediction = _predict(
        train_features, train_labels, test_features, test_labels, classes, generator, device
    )
    return {**accuracy(prediction.ranking, test_labels), **prediction.details}


def _predict(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    classes: int,
    generator: torch.Generator,
    device: torch.device | str | None,
) -> Prediction:
    started = time.perf_counter()
    check_labeled("train", train_features, train_labels, classes)
    check_labeled("test", test_features, test_labels, classes)
    device = torch.device(device) if device is not None else train_features.device
    unseen = held_out(train_labels.cpu(), generator).to(device)
    train, test = _standardize(train_features.to(device).float(), test_features.to(device).float())
    labels = train_labels.to(device)
    covariance = _covariance(train)
    strength = _choose_strength(train, labels, unseen, classes, covariance)
    classifier = _classifier(train, classes)
    _fit(classifier, train, labels, strength, covariance)
    with torch.inference_mode():
        ranking = classifier(test).topk(min(5, classes), dim=1).indices.cpu()
    return Prediction(ranking, {"strength": strength, "seconds": time.perf_counter() - started})


def _standardize(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    std, mean = torch.std_mean(train, dim=0, correction=0)
    # Dead units stay zero instead of dividing by zero.
    std = torch.where(std > 0, std, 1.0)
    return (train - mean) / std, (test - mean) / std


def _covariance(features: Tensor) -> Tensor | None:
    """Return the covariance of standardized features, float64 `(D, D)`; None if D is too large."""
    n, d = features.shape
    return (features.T @ features).double() / n if d <= _MAX_DECORRELATED else None


def _choose_strength(
    features: Tensor, labels: Tensor, mask: Tensor, classes: int, covariance: Tensor | None
) -> float:
    fitted, fitted_labels = features[~mask], labels[~mask]
    unseen, unseen_labels = features[mask], labels[mask]
    classifier = _classifier(features, classes)
    best, best_right, worse = STRENGTHS[0], -1, 0
    for strength in STRENGTHS:
        _fit(classifier, fitted, fitted_labels, strength, covariance)
        with torch.inference_mode():
            right = int((classifier(unseen).argmax(dim=1) == unseen_labels).sum())
        if right > best_right:
            best, best_right, worse = strength, right, 0
        else:
            worse += 1
        # Weaker strengths take longest to fit; after two without improvement the optimum is passed.
        if worse == 2:
            break
    return best


def _classifier(features: Tensor, classes: int) -> nn.Linear:
    """Return a classifier of zeros, without using the global generator."""
    layer = nn.utils.skip_init(nn.Linear, features.shape[1], classes, device=features.device)
    assert isinstance(layer, nn.Linear)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _fit(
    classifier: nn.Linear,
    features: Tensor,
    labels: Tensor,
    strength: float,
    covariance: Tensor | None = None,
) -> None:
    """Minimize the penalized loss, starting from the classifier's weights.

    Args:
        classifier: Its weights are changed in place.
        features: `(N, D)`.
        labels: int64 `(N,)`.
        strength: L2 strength, greater than 0.
        covariance: Approximate covariance of the features; it preconditions, and does not change
            the optimum.
    """
    factor, back = _coordinates(classifier, strength, covariance)
    start = classifier.weight.detach()
    moved = (start.clone() if factor is None else start @ factor).requires_grad_()
    bias = classifier.bias.detach().clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [moved, bias],
        max_iter=_MAX_ITERATIONS,
        tolerance_grad=1e-5,
        tolerance_change=1e-7,
        line_search_fn="strong_wolfe",
    )

    def weight() -> Tensor:
        return moved if back is None else moved @ back

    def loss() -> Tensor:
        optimizer.zero_grad()
        w = weight()
        penalty = 0.5 * strength * w.square().sum()
        # Not features @ w.T, whose gradient takes six times as long on a CPU.
        value = cross_entropy(linear(features, w, bias), labels) + penalty
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    with torch.no_grad():
        classifier.weight.copy_(weight())
        classifier.bias.copy_(bias)


def _coordinates(
    classifier: nn.Linear, strength: float, covariance: Tensor | None
) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """Return a Cholesky factor of the approximate curvature for one class, and its inverse.

    The curvature of the softmax is p (1 - p), about one over the number of classes, and that of the
    penalty is the strength. In coordinates `weight @ factor` it is nearly the same in all
    directions, so that L-BFGS needs few iterations.
    """
    if covariance is None:
        return None, None
    curvature = covariance / classifier.out_features
    curvature.diagonal().add_(strength)
    factor = torch.linalg.cholesky(curvature)
    identity = torch.eye(len(factor), dtype=factor.dtype, device=factor.device)
    back = torch.linalg.solve_triangular(factor, identity, upper=False)
    return factor.to(classifier.weight.dtype), back.to(classifier.weight.dtype)


class LinearProbe(Protocol):
    """The classifier of `linear_probe`."""

    def predict(self, task: Task) -> Prediction:
        """Predict the classes of the test images."""
        return _predict(*task.splits, task.classes, task.generator, task.float64_device)
