"""Synthetic hard negatives: mixtures of a query's nearest keys, and of the query with them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from unmix.transfer import to_device

__all__ = ["Synthesis"]


@dataclass(frozen=True)
class Synthesis:
    """Makes negatives of the keys that are nearest to a query; none of them has a gradient.

    With n, n' drawn from the `hard` nearest keys of q, and all results unit vectors:

        1. interpolated  a q + (1 - a) n,   a ~ U(0, 0.5)
        2. extrapolated  q + b (n - q),     b ~ U(1, 1.5)
        3. mixed         g n + (1 - g) n',  g ~ U(0, 1)
        4. noised        n + N(0, sigma^2)
        5. perturbed     n + delta grad_n (q . n) = n + delta q
        6. adversarial   n + eta sign(grad_n (q . n)) = n + eta sign(q)

    MoCHi's are the types 1 (s') and 3 (s) (Kalantidis et al. 2020, NeurIPS, Eqs. 3 and 4); SynCo's
    all six (Giakoumoglou and Stathaki 2024, arXiv 2410.02401, and its code).

    Attributes:
        counts: How many of each type a query has.
        hard: N, how many of the nearest keys they are made of.
        sigma: Standard deviation of type 4.
        delta: Step of type 5.
        eta: Step of type 6.
    """

    counts: tuple[int, int, int, int, int, int]
    hard: int
    sigma: float = 0.01
    delta: float = 0.01
    eta: float = 0.01

    @torch.no_grad()
    def __call__(self, query: Tensor, keys: Tensor, generator: torch.Generator) -> Tensor:
        """The negatives of queries (N, D), of keys (K, D): unit vectors (N, sum of counts, D)."""
        nearest = (query @ keys.T).topk(self.hard, dim=1).indices
        q = query[:, None]

        def some(count: int) -> Tensor:
            drawn = torch.randint(
                self.hard, (len(query), count), generator=generator, device=generator.device
            )
            return keys[nearest.gather(1, to_device(drawn, query.device))]

        def uniform(count: int, low: float, high: float) -> Tensor:
            drawn = torch.rand(len(query), count, 1, generator=generator, device=generator.device)
            return to_device(low + (high - low) * drawn, query.device)

        made = []
        for kind, count in enumerate(self.counts, start=1):
            if count == 0:
                continue
            n = some(count)
            if kind == 1:
                a = uniform(count, 0.0, 0.5)
                n = a * q + (1 - a) * n
            elif kind == 2:
                n = q + uniform(count, 1.0, 1.5) * (n - q)
            elif kind == 3:
                g = uniform(count, 0.0, 1.0)
                n = g * n + (1 - g) * some(count)
            elif kind == 4:
                noise = torch.randn(n.shape, generator=generator, device=generator.device)
                n = n + self.sigma * to_device(noise, n.device)
            else:
                n = n + (self.delta * q if kind == 5 else self.eta * q.sign())
            made.append(F.normalize(n, dim=2))
        return torch.cat(made, dim=1)
