"""Who is mixed with whom."""

from __future__ import annotations

import torch
from torch import Tensor

from unmix.errors import check_choice

__all__ = ["PAIRINGS", "cyclic_owners", "nearest", "partners"]

PAIRINGS = ("reverse", "permutation", "halves", "neighbor", "second_view")
"""How partners are chosen; see `unmix.UnMix`."""


def partners(
    pairing: str,
    n: int,
    generator: torch.Generator | None = None,
    features: Tensor | None = None,
) -> Tensor:
    """The partner of each mixture of a batch of n images.

    Args:
        pairing: "reverse" (i with N - 1 - i, Un-Mix; the middle image of an odd batch is its own
            partner), "permutation" (a random one, oneself included, mixup), "halves" (the first
            half with the second, so there are n // 2 mixtures and of an odd batch the last image is
            in none, MixCo), "neighbor" (the nearest other image, see `nearest`) or "second_view"
            (oneself).
        n: Images in the batch.
        generator: For "permutation".
        features: For "neighbor": what the nearness is that of, (n, D).

    Returns:
        int64 (M,), on the CPU, but for "neighbor" on the features' device.

    Raises:
        UserError: if there is no such pairing.
        ValueError: if "neighbor" is given no features, or not n of them.
    """
    check_choice("--unmix_pairing", pairing, PAIRINGS)
    if pairing == "reverse":
        return torch.arange(n - 1, -1, -1)
    if pairing == "permutation":
        return _permutation(n, generator)
    if pairing == "halves":
        return torch.arange(n // 2) + n // 2
    if pairing == "second_view":
        return torch.arange(n)
    if features is None or len(features) != n:
        raise ValueError(
            f"the pairing by neighbours of {n} images needs features (N, D) of them, "
            f"not {None if features is None else tuple(features.shape)}"
        )
    return nearest(features)


@torch.no_grad()
def nearest(features: Tensor) -> Tensor:
    """The index of the nearest other row, by the cosine: int64 (N,), on the features' device.

    Nothing is read back to the host, so this may be called within a step.
    """
    with torch.autocast(features.device.type, enabled=False):
        unit = torch.nn.functional.normalize(features.detach().float(), dim=1)
        return (unit @ unit.T).fill_diagonal_(-torch.inf).argmax(dim=1)


def cyclic_owners(n: int, k: int, generator: torch.Generator | None = None) -> Tensor:
    """Oneself and the next k - 1 images in a shuffled batch, int64 (n, k).

    Every image is in k mixtures, and the k owners of a mixture differ as long as k <= n; in a
    smaller batch they come round again.
    """
    order = _permutation(n, generator)
    steps = torch.arange(n)[:, None] + torch.arange(k)
    owners = torch.empty(n, k, dtype=torch.int64)
    owners[order] = order[steps % n]
    return owners


def _permutation(n: int, generator: torch.Generator | None) -> Tensor:
    device = generator.device if generator is not None else torch.device("cpu")
    return torch.randperm(n, generator=generator, device=device).cpu()
