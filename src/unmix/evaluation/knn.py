"""k-nearest-neighbor classification: weighted, as of InstDisc, and Euclidean, as of W-MSE."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from unmix.errors import UserError, check_number
from unmix.evaluation.metrics import NO_CLASS, accuracy, check_labeled
from unmix.evaluation.protocol import Prediction, Protocol, Task
from unmix.evaluation.selection import NEIGHBORS, TEMPERATURES, best, held_out

__all__ = ["EuclideanKNN", "WeightedKNN", "euclidean_knn_predict", "knn_accuracy", "knn_predict"]

# Larger blocks of queries do not make the matrix product faster.
_MAX_ROWS = 2048


def _check_features(bank: Tensor, labels: Tensor, queries: Tensor, classes: int) -> None:
    check_labeled("train", bank, labels, classes)
    if queries.ndim != 2 or queries.shape[1] != bank.shape[1]:
        raise UserError(
            f"test split: features {tuple(queries.shape)} do not match the bank's "
            f"{tuple(bank.shape)}; both must have the same number of columns"
        )


@torch.inference_mode()
def knn_predict(
    bank: Tensor,
    labels: Tensor,
    queries: Tensor,
    *,
    classes: int,
    k: int = 200,
    temperature: float = 0.1,
    top: int | None = None,
    memory_budget: int = 2**28,
    device: torch.device | str | None = None,
) -> Tensor:
    """Rank the classes of each query by the votes of its k nearest neighbors in the bank.

    A neighbor votes for its class with weight exp(cosine similarity / temperature): InstDisc (Wu
    et al., arXiv 1805.01978, section 3.4), and MoCo's CIFAR-10 demo with k 200 and temperature
    0.1. Similarities are computed in float32, blockwise; the block sizes do not change the
    neighbors, except among equal distances.

    Args:
        bank: Features of the training images, `(N, D)`; they need not be normalized.
        labels: Their classes, int64 `(N,)`.
        queries: Features of the test images, `(M, D)`.
        classes: Number of classes.
        k: Number of neighbors; at most the whole bank votes.
        temperature: Temperature of the weights, greater than 0.
        top: Number of classes to return per query; None for all.
        memory_budget: Bytes that may be allocated on the device, including the normalized features
            and the result, not the inputs.
        device: Where to compute; None for the device of the bank.

    Returns:
        Classes, best first, int64 `(M, classes)` or `(M, top)`, on the CPU. Classes without a
        vote are not ranked: the rest of a row is -1.

    Raises:
        UserError: if k, the temperature or the budget is out of range, or features and labels do
            not match.
    """
    check_number("k", k, at_least=1)
    check_number("temperature", temperature, above=0)
    _check_features(bank, labels, queries, classes)
    device = torch.device(device) if device is not None else bank.device
    k, top = min(k, len(bank)), min(top or classes, classes)
    sizes = _block_sizes(bank, queries, classes, k, top, memory_budget)
    # The result is copied at the end: copying each block would make the host wait.
    result = torch.empty(len(queries), top, dtype=torch.int64, device=device)
    blocks: list[tuple[Tensor, Tensor]] = []
    if sizes.columns == len(bank):
        # A bank that is one block is normalized once.
        blocks = list(_bank_blocks(bank, labels, sizes.columns, device))
    buffer = torch.empty(sizes.rows * (k + sizes.columns), device=device)
    for rows, ranking in zip(queries.split(sizes.rows), result.split(sizes.rows), strict=True):
        again = blocks or _bank_blocks(bank, labels, sizes.columns, device)
        nearest, voters = _nearest(_unit(rows, device), again, k, buffer)
        # The nearest neighbor's weight is set to 1: the ranking is the same, and low temperatures
        # do not overflow.
        votes = (nearest - nearest[:, :1]).div_(temperature).exp_()
        # A weight that underflows still is a vote, so classes without one are set below zero.
        scores = votes.new_full((len(rows), classes), -1.0).scatter_(1, voters, 0.0)
        scores.scatter_add_(1, voters, votes)
        sorted_, order = scores.sort(dim=1, descending=True, stable=True)
        ranking.copy_(order[:, :top].masked_fill_(sorted_[:, :top] < 0, NO_CLASS))
    return result.cpu()


@dataclass(frozen=True)
class _Sizes:
    """Numbers of queries and of bank images that are compared at a time."""

    rows: int
    columns: int


def _block_sizes(
    bank: Tensor, queries: Tensor, classes: int, k: int, top: int, memory_budget: int
) -> _Sizes:
    """Choose the largest blocks within the memory budget.

    Raises:
        UserError: if not even one query against one image fits.
    """
    (n, d), m = bank.shape, len(queries)
    # Features in float32, and normalized; about ten numbers of 8 bytes for each of two sets of
    # neighbors that are merged; scores and their sorting.
    a_query = 8 * d + 4 * k + 80 * k + 32 * classes
    # Likewise; a class; and the values and indices that top-k sorts, in each thread.
    an_image = 8 * d + 8 + 16 * torch.get_num_threads()
    left = memory_budget - 8 * m * top
    rows = max(1, min(m, _MAX_ROWS, left // 4 // a_query))
    columns = (left - rows * a_query) // (an_image + 4 * rows)
    if columns < 1:
        needed = 8 * m * top + a_query + an_image + 4
        raise UserError(
            f"memory_budget: {memory_budget:,} bytes are too few; {k} neighbors of {d} numbers "
            f"and a result of {m:,} x {top} classes need at least {needed:,}"
        )
    if columns >= n:
        rows = max(rows, min(m, _MAX_ROWS, (left - n * an_image) // (a_query + 4 * n)))
    # Equal sizes: a small last block would cost as much to merge as a large one.
    count = -(-n // min(n, columns))
    return _Sizes(rows, -(-n // count))


def _bank_blocks(
    bank: Tensor, labels: Tensor, columns: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the bank in blocks, normalized, on the device, with labels."""
    for block, classes in zip(bank.split(columns), labels.split(columns), strict=True):
        yield _unit(block, device), classes.to(device)


def _nearest(
    queries: Tensor, blocks: Iterable[tuple[Tensor, Tensor]], k: int, buffer: Tensor
) -> tuple[Tensor, Tensor]:
    """Find the similarities `(M, k)`, largest first, and classes of the k nearest neighbors.

    Args:
        queries: Normalized, `(M, D)`.
        blocks: The bank, normalized, and its labels.
        k: Number of neighbors.
        buffer: Buffer for the similarities of a block and k more per query.
    """
    m = len(queries)
    nearest = queries.new_full((m, k), -torch.inf)
    voters = torch.zeros(m, k, dtype=torch.int64, device=queries.device)
    for block, classes in blocks:
        width = k + len(block)
        similarity = buffer[: m * width].view(m, width)
        # The nearest so far come first: top-k then rejects nearly all of the block by one
        # comparison each.
        similarity[:, :k] = nearest
        torch.mm(queries, block.T, out=similarity[:, k:])
        nearest, index = similarity.topk(k, dim=1)
        kept = voters.gather(1, index.clamp_max(k - 1))
        new = classes[(index - k).clamp_min_(0)]
        voters = torch.where(index < k, kept, new)
    return nearest, voters


def _unit(features: Tensor, device: torch.device) -> Tensor:
    """Normalize a block in float32 on the device."""
    return normalize(features.to(device).float(), dim=1)


def knn_accuracy(
    bank: Tensor,
    labels: Tensor,
    queries: Tensor,
    query_labels: Tensor,
    *,
    classes: int,
    k: int = 200,
    temperature: float = 0.1,
    memory_budget: int = 2**28,
    device: torch.device | str | None = None,
) -> dict[str, float]:
    """Return the accuracy of `knn_predict`.

    Args:
        bank: As in `knn_predict`.
        labels: Likewise.
        queries: Likewise.
        query_labels: Classes of the test images, int64 `(M,)`.
        classes: As in `knn_predict`.
        k: Likewise.
        temperature: Likewise.
        memory_budget: Likewise.
        device: Likewise.

    Returns:
        "top1" and "top5" in percent. Only classes with a vote count: with k = 1 both agree.

    Raises:
        UserError: as `knn_predict` does, and if `query_labels` do not match the queries.
    """
    check_labeled("test", queries, query_labels, classes)
    ranking = knn_predict(
        bank,
        labels,
        queries,
        classes=classes,
        k=k,
        temperature=temperature,
        top=5,
        memory_budget=memory_budget,
        device=device,
    )
    return accuracy(ranking, query_labels)


@torch.inference_mode()
def euclidean_knn_predict(
    bank: Tensor,
    labels: Tensor,
    queries: Tensor,
    *,
    classes: int,
    k: int = 5,
    top: int | None = None,
    memory_budget: int = 2**28,
    device: torch.device | str | None = None,
) -> Tensor:
    """Rank the classes of each query by how many of its k nearest neighbors they have.

    The classifier of W-MSE (arXiv 2007.06346, section 4; eval/knn.py): Euclidean distances between
    features as they are, each neighbor one vote, k 5. Of classes with equally many votes the one
    with the smaller index is first, as in scikit-learn's `KNeighborsClassifier`.

    Args:
        bank: Features of the training images, `(N, D)`.
        labels: Their classes, int64 `(N,)`.
        queries: Features of the test images, `(M, D)`.
        classes: Number of classes.
        k: Number of neighbors; at most the whole bank votes.
        top: Number of classes to return per query; None for all.
        memory_budget: Bytes for the distances of one block of queries.
        device: Where to compute; None for the device of the bank.

    Returns:
        Classes as of `knn_predict`: best first, int64, on the CPU, -1 for those without a vote.

    Raises:
        UserError: if k is out of range, or features and labels do not match.
    """
    check_number("k", k, at_least=1)
    _check_features(bank, labels, queries, classes)
    device = torch.device(device) if device is not None else bank.device
    bank, labels = bank.to(device).float(), labels.to(device)
    k, top = min(k, len(bank)), min(top or classes, classes)
    rows = max(1, min(_MAX_ROWS, memory_budget // (16 * len(bank))))
    result = [torch.empty(0, top, dtype=torch.int64)]
    for block in queries.split(rows):
        # Not by the product of matrices, whose rounding would reorder near neighbors.
        distances = torch.cdist(
            block.to(device).float(), bank, compute_mode="donot_use_mm_for_euclid_dist"
        )
        voters = labels[distances.topk(k, dim=1, largest=False).indices]
        votes = torch.zeros(len(block), classes, device=device)
        votes.scatter_add_(1, voters, torch.ones_like(voters, dtype=votes.dtype))
        sorted_, order = votes.sort(dim=1, descending=True, stable=True)
        result.append(order[:, :top].masked_fill_(sorted_[:, :top] == 0, NO_CLASS).cpu())
    return torch.cat(result)


class EuclideanKNN(Protocol):
    """`euclidean_knn_predict` by as many neighbors as the task says, or as there are images."""

    def predict(self, task: Task) -> Prediction:
        """Predict the classes of the test images."""
        check_labeled("test", *task.splits[2:], task.classes)

        def ranking(bank: Tensor, labels: Tensor, queries: Tensor, k: int) -> Tensor:
            return euclidean_knn_predict(
                bank, labels, queries, classes=task.classes, k=k, top=5, device=task.device
            )

        train, train_labels, test, _ = task.splits
        k = min(task.k, len(train))
        if not task.select:
            return Prediction(ranking(train, train_labels, test, k), {"k": k})
        (k,) = _selected(task, [(n,) for n in NEIGHBORS], ranking)
        chosen = {"selected": "k", "chosen": {"k": k}}
        return Prediction(ranking(train, train_labels, test, k), chosen)


class WeightedKNN(Protocol):
    """`knn_predict` by as many neighbors as the task says, or as there are training images."""

    def predict(self, task: Task) -> Prediction:
        """Predict the classes of the test images."""
        train, train_labels, test, test_labels = task.splits
        k, temperature = min(task.k, len(train)), task.temperature
        check_labeled("test", test, test_labels, task.classes)

        def ranking(bank: Tensor, labels: Tensor, queries: Tensor, k: int, t: float) -> Tensor:
            return knn_predict(
                bank, labels, queries, classes=task.classes, k=k, temperature=t, top=5,
                device=task.float64_device,
            )  # fmt: skip

        if not task.select:
            settings = {"k": k, "temperature": temperature}
            return Prediction(ranking(train, train_labels, test, k, temperature), settings)
        k, temperature = _selected(task, [(n, t) for n in NEIGHBORS for t in TEMPERATURES], ranking)
        chosen = {"selected": "k, temperature", "chosen": {"k": k, "temperature": temperature}}
        return Prediction(ranking(train, train_labels, test, k, temperature), chosen)


def _selected(task: Task, grid: Sequence[tuple[Any, ...]], ranking: Callable[..., Tensor]) -> Any:
    """The settings, the number of neighbors first, that predict held-out training images best.

    The neighbors are those that are not held out; a number that they do not have is left out.
    """
    features, labels, _, _ = task.splits
    unseen = held_out(labels, task.generator)
    bank = features[~unseen], labels[~unseen]

    def score(candidate: tuple[Any, ...]) -> float:
        found = ranking(*bank, features[unseen], *candidate)
        return float((found[:, 0] == labels[unseen]).double().mean())

    possible = [each for each in grid if each[0] <= len(bank[0])]
    return best(possible or [(len(bank[0]), *grid[0][1:])], score)[0]
