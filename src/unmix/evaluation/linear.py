"""Linear probe on cached features; the L2 strength is chosen on held-out training images."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

from unmix.errors import check_number
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
    memory_budget: int | None = None,
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
        memory_budget: Bytes that may be allocated on the device, besides a covariance. Features
            that need more are standardized and fitted in blocks, which changes the last digits of
            sums, and are copied block by block from where they are if they alone need half of it.
            None for half of a GPU's free memory, and 4 GiB elsewhere.

    Returns:
        "top1" and "top5" in percent, the "strength" chosen, and the "seconds" it took.

    Raises:
        UserError: if features and labels do not match, no class has two images, or the budget is
            less than 1.
    """
    prediction = _predict(
        train_features, train_labels, test_features, test_labels, classes, generator, device,
        memory_budget,
    )  # fmt: skip
    return {**accuracy(prediction.ranking, test_labels), **prediction.details}


def _predict(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    classes: int,
    generator: torch.Generator,
    device: torch.device | str | None,
    memory_budget: int | None = None,
) -> Prediction:
    started = time.perf_counter()
    check_labeled("train", train_features, train_labels, classes)
    check_labeled("test", test_features, test_labels, classes)
    device = torch.device(device) if device is not None else train_features.device
    if memory_budget is None:
        memory_budget = _half_of_free_memory(device)
    check_number("memory_budget", memory_budget, at_least=1)
    unseen = held_out(train_labels.cpu(), generator)
    train = _blocks(train_features, train_labels, classes, device, memory_budget)
    covariance = _covariance(train)
    strength = _choose_strength(train, unseen, classes, covariance)
    classifier = _classifier(train_features.shape[1], classes, device)
    _fit(classifier, train, strength, covariance)
    test = replace(train, features=test_features, labels=test_labels)
    with torch.inference_mode():
        ranking = [classifier(x).topk(min(5, classes), dim=1).indices.cpu() for x, _ in test]
    details = {"strength": strength, "seconds": time.perf_counter() - started}
    return Prediction(torch.cat(ranking), details)


def _half_of_free_memory(device: torch.device) -> int:
    """In bytes; 4 GiB elsewhere than on a GPU."""
    return torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else 2**32


@dataclass(frozen=True)
class _Blocks:
    """Standardized features and labels of images, on a device, in blocks.

    Attributes:
        features: `(N, D)`, as they came.
        labels: int64 `(N,)`.
        mean: Of the training images, `(D,)`, on the device.
        std: Likewise.
        size: Images of a block. One that has all is kept; others are made each time.
        index: Which of the images, int64; None for all.
    """

    features: Tensor
    labels: Tensor
    mean: Tensor
    std: Tensor
    size: int
    index: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels if self.index is None else self.index)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter([self._whole]) if len(self) <= self.size else self._made()

    @cached_property
    def _whole(self) -> tuple[Tensor, Tensor]:
        return next(self._made())

    def _made(self) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(self), self.size):
            rows = slice(start, start + self.size)
            which = rows if self.index is None else self.index[rows]
            x = self.features[which].to(self.mean.device).float()
            yield (x - self.mean) / self.std, self.labels[which].to(self.mean.device)


def _blocks(
    features: Tensor, labels: Tensor, classes: int, device: torch.device, memory_budget: int
) -> _Blocks:
    """Standardized training features, in one block if the budget allows it."""
    n, d = features.shape
    # Of float32: the features as they are, standardized, and those that are not held out; the
    # scores and what their loss and its gradient need.
    if n * (12 * d + 16 * classes) <= memory_budget:
        std, mean = torch.std_mean(features.to(device).float(), dim=0, correction=0)
        size = n
    else:
        size = max(1, memory_budget // 2 // (12 * d + 16 * classes))
        if features.nbytes <= memory_budget // 2:
            features = features.to(device)
        mean, std = _mean_and_std(features.split(size), device)
    # Dead units stay zero instead of dividing by zero.
    return _Blocks(features, labels, mean, torch.where(std > 0, std, 1.0), size)


def _mean_and_std(parts: Sequence[Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    """Over the rows of all parts, summed in float64, part by part."""

    def average(of: Callable[[Tensor], Tensor]) -> Tensor:
        sums = [of(part.to(device).float()).sum(dim=0, dtype=torch.float64) for part in parts]
        return (torch.stack(sums).sum(dim=0) / sum(map(len, parts))).float()

    mean = average(lambda x: x)
    return mean, average(lambda x: (x - mean).square()).sqrt()


def _covariance(features: _Blocks) -> Tensor | None:
    """Return the covariance of standardized features, float64 `(D, D)`; None if D is too large."""
    d = len(features.mean)
    if d > _MAX_DECORRELATED:
        return None
    products = torch.zeros(d, d, dtype=torch.float64, device=features.mean.device)
    for x, _ in features:
        products += x.T @ x
    return products / len(features)


def _choose_strength(
    features: _Blocks, unseen: Tensor, classes: int, covariance: Tensor | None
) -> float:
    fitted = replace(features, index=torch.where(~unseen)[0])
    held = replace(features, index=torch.where(unseen)[0])
    classifier = _classifier(len(features.mean), classes, features.mean.device)
    best, best_right, worse = STRENGTHS[0], -1, 0
    for strength in STRENGTHS:
        _fit(classifier, fitted, strength, covariance)
        with torch.inference_mode():
            right = sum(int((classifier(x).argmax(dim=1) == y).sum()) for x, y in held)
        if right > best_right:
            best, best_right, worse = strength, right, 0
        else:
            worse += 1
        # Weaker strengths take longest to fit; after two without improvement the optimum is passed.
        if worse == 2:
            break
    return best


def _classifier(features: int, classes: int, device: torch.device) -> nn.Linear:
    """Return a classifier of zeros, without using the global generator."""
    layer = nn.utils.skip_init(nn.Linear, features, classes, device=device)
    assert isinstance(layer, nn.Linear)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _fit(
    classifier: nn.Linear, features: _Blocks, strength: float, covariance: Tensor | None = None
) -> None:
    """Minimize the penalized loss, starting from the classifier's weights.

    Args:
        classifier: Its weights are changed in place.
        features: `(N, D)` in blocks, with labels.
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
        w = weight().detach().requires_grad_()
        total = 0.5 * strength * w.square().sum()
        total.backward()
        for x, y in features:
            # Not x @ w.T, whose gradient takes six times as long on a CPU.
            part = cross_entropy(linear(x, w, bias), y) * (len(y) / len(features))
            part.backward()
            total = total.detach() + part.detach()
        weight().backward(w.grad)
        return total

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
