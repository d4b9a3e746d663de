"""The weighted k-nearest-neighbour classifier of InstDisc and MoCo."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from unmix.errors import UserError, check_number
from unmix.evaluation.accuracy import accuracy, check_labelled

__all__ = ["knn_accuracy", "knn_predict"]


@torch.inference_mode()
def knn_predict(
    bank: Tensor,
    labels: Tensor,
    queries: Tensor,
    *,
    classes: int,
    k: int = 200,
    temperature: float = 0.1,
    memory_budget: int = 2**28,
    device: torch.device | str | None = None,
) -> Tensor:
    """Rank the classes of each query by the votes of its k nearest neighbours in the bank.

    A neighbour votes for its class with weight exp(cosine similarity / temperature): InstDisc (Wu
    et al., arXiv 1805.01978, section 3.4), and MoCo's CIFAR-10 demo with k 200 and temperature
    0.1.

    Args:
        bank: Features of the training images, `(N, D)`; they need not be normalised.
        labels: Their classes, int64 `(N,)`.
        queries: Features of the test images, `(M, D)`.
        classes: Number of classes.
        k: Number of neighbours; at most the whole bank votes.
        temperature: Of the votes; greater than 0.
        memory_budget: Bytes that the similarities of one block of queries may take, at least one
            query a block. The normalised copy of the bank comes on top.
        device: Where to compute; None is where the bank is.

    Returns:
        Classes, best first, int64 `(M, classes)`, on the CPU. Classes without a vote come last.

    Raises:
        UserError: if k or the temperature is out of range, or features and labels do not match.
    """
    check_number("--knn_k", k, at_least=1)
    check_number("--knn_temperature", temperature, above=0)
    check_labelled("train", bank, labels, classes)
    if queries.ndim != 2 or queries.shape[1] != bank.shape[1]:
        raise UserError(
            f"test split: features {tuple(queries.shape)} do not go with the bank's "
            f"{tuple(bank.shape)}; both must have the same number of columns"
        )
    device = torch.device(device) if device is not None else bank.device
    bank = normalize(bank.to(device).float(), dim=1)
    labels = labels.to(device)
    k = min(k, len(bank))
    # A similarity costs 4 bytes; a neighbour its value, its index and its class: 4 + 8 + 8.
    rows = max(1, memory_budget // (4 * len(bank) + 20 * k))
    rankings = []
    for block in queries.split(rows):
        similarity = normalize(block.to(device).float(), dim=1) @ bank.T
        nearest, index = similarity.topk(k, dim=1)
        # The nearest neighbour's weight is set to 1: the ranking is the same, and low temperatures
        # do not overflow.
        votes = ((nearest - nearest[:, :1]) / temperature).exp()
        scores = votes.new_zeros(len(block), classes).scatter_add_(1, labels[index], votes)
        rankings.append(scores.argsort(dim=1, descending=True, stable=True).cpu())
    return torch.cat(rankings)


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
        "top1" and "top5" in percent.

    Raises:
        UserError: as `knn_predict` does, and if `query_labels` do not match the queries.
    """
    check_labelled("test", queries, query_labels, classes)
    ranking = knn_predict(
        bank,
        labels,
        queries,
        classes=classes,
        k=k,
        temperature=temperature,
        memory_budget=memory_budget,
        device=device,
    )
    return accuracy(ranking, query_labels)
