"""The weight of a mixture: which law lambda follows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from unmix.errors import check_choice, check_number
from unmix.randomness import beta, uniform

__all__ = ["LAWS", "Weight", "dirichlet"]

LAWS = ("beta", "uniform")


@dataclass(frozen=True)
class Weight:
    """The law of lambda, the share of an image's own content.

    Args:
        law: "beta" for Beta(beta, beta), as mixup (Zhang et al. 2018), or "uniform".
        beta: Parameter of the Beta law; above 0.
        low: Least value of the uniform law, in [0, 1].
        high: Greatest value of the uniform law, in [low, 1].
        larger: Take max(lambda, 1 - lambda), so that an image stays the main one of its mixture
            (Lee et al. 2021, i-Mix, released code).

    Raises:
        UserError: if a number is out of its range.
    """

    law: Literal["beta", "uniform"] = "beta"
    beta: float = 1.0
    low: float = 0.0
    high: float = 1.0
    larger: bool = False

    def __post_init__(self) -> None:
        check_choice("--unmix_weight", self.law, LAWS)
        check_number("--beta", self.beta, above=0)
        check_number("low", self.low, at_least=0, at_most=1)
        check_number("high", self.high, at_least=self.low, at_most=1)

    def draw(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw n values of lambda: float32 (n,) on the CPU, in [0, 1]."""
        if self.law == "beta":
            lam = beta(self.beta, self.beta, (n,), generator).cpu()
        else:
            lam = self.low + (self.high - self.low) * uniform((n,), generator).cpu()
        return torch.maximum(lam, 1 - lam) if self.larger else lam

    def __str__(self) -> str:
        law = f"Beta({self.beta:g}, {self.beta:g})"
        if self.law == "uniform":
            law = f"U({self.low:g}, {self.high:g})"
        return f"the larger of lambda and 1 - lambda, {law}" if self.larger else law


def dirichlet(alpha: float, n: int, k: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw n points of Dirichlet(alpha, ..., alpha): float32 (n, k) on the CPU, rows sum to 1.

    PyTorch's own takes no generator, so the numbers are NumPy's, seeded by the generator.
    """
    device = generator.device if generator is not None else torch.device("cpu")
    seed = torch.randint(2**63 - 1, (), generator=generator, device=device).item()
    numbers = np.random.default_rng(int(seed)).dirichlet([alpha] * k, size=n)
    return torch.as_tensor(numbers, dtype=torch.float32)
