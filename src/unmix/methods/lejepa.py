"""LeJEPA: views predict their center, embeddings are Gaussian (Balestriero and LeCun 2025)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from unmix.backbones import feature_dim, mlp
from unmix.distributed import gather_with_gradient, world_size
from unmix.errors import check_number
from unmix.methods.base import Pair, Progress, full_precision
from unmix.methods.multicrop import MultiCrop
from unmix.methods.projected import check_sizes
from unmix.randomness import generator_for
from unmix.transfer import to_device

__all__ = ["LeJEPA", "epps_pulley", "unit_directions"]


class LeJEPA(MultiCrop):
    """Every view's embedding predicts the center of the large views'; SIGReg prevents collapse.

    Query: z = g(f(x)) of any view. Target: the mean of the large views' z, with its gradient.
    Compared by the mean square of the difference. No stop-gradient, momentum encoder or negatives:
    the sliced Epps-Pulley test of the clean views' embeddings against N(0, I) is in the loss,

        L = (1 - lambda) mean_v |z_v - c|^2 / dim  +  lambda mean_v SIGReg(z_v).

    Args:
        backbone: Images to pooled features (N, D); any module, see `unmix.backbones.feature_dim`.
        dim: Length of z.
        hidden: Width of the projector's two hidden layers.
        sigreg: lambda, the weight of SIGReg against the prediction, in [0, 1]; 0 leaves it out.
        slices: Random directions of a step in which embeddings are tested.
        knots: Points at which the characteristic function is compared.
        t_max: The largest of these points.
    """

    across_samples = "samples that SIGReg tests"
    target_queries: Collection[int] = (0, 1)
    target_gradient = True

    def __init__(
        self,
        backbone: nn.Module,
        *,
        dim: int = 64,
        hidden: int = 2048,
        sigreg: float = 0.05,
        slices: int = 1024,
        knots: int = 17,
        t_max: float = 3.0,
    ) -> None:
        check_sizes("LeJEPA", dim=dim, hidden=hidden, slices=slices)
        check_number("sigreg", sigreg, at_least=0, at_most=1, owner="LeJEPA")
        check_number("knots", knots, at_least=2, owner="LeJEPA")
        check_number("t_max", t_max, above=0, owner="LeJEPA")
        super().__init__(backbone, mlp((feature_dim(backbone), hidden, hidden, dim)))
        self.dim, self.lambda_, self.slices = dim, sigreg, slices
        self.knots, self.t_max = knots, t_max
        self.directions = unit_directions(dim, slices, generator_for(0, "slices", 0))

    def begin_step(self, progress: Progress) -> None:
        """Draw the directions of a step, the same on every process."""
        generator = generator_for(progress.seed, "slices", progress.step)
        self.directions = unit_directions(self.dim, self.slices, generator)

    def pairs_of(self, count: int) -> Sequence[Pair]:
        """Every view with the center, which is target 0."""
        return [Pair(v, 0, (1 - self.lambda_) / count) for v in range(count)]

    def predict(self, output: Tensor, number: int) -> Tensor:
        """z: (N, dim), unchanged."""
        return output

    def targets(
        self,
        views: Sequence[Tensor],
        queries: Mapping[int, Any],
        index: Tensor,
        generator: torch.Generator,
    ) -> dict[int, Tensor]:
        """The center c of the two large views' embeddings (N, dim), with its gradient."""
        return {0: (queries[0] + queries[1]) / 2}

    def compare(self, query: Tensor, target: Tensor) -> Tensor:
        """|z - c|^2 / dim: losses (N,)."""
        with full_precision(query):
            return (query.float() - target.float()).square().mean(dim=1)

    def regularized_views(self, count: int) -> Collection[int]:
        """All clean views: a mixture's embedding is no draw of a unit Gaussian."""
        return range(count) if self.lambda_ else ()

    def regularizer(self, queries: Sequence[Tensor], targets: Mapping[int, Any]) -> Tensor:
        """lambda SIGReg: the mean over views of the test in each direction, a scalar."""
        with full_precision(queries[0]):
            directions = to_device(self.directions, queries[0].device).float()
            tested = [
                epps_pulley(z.float() @ directions, self.knots, self.t_max).mean() for z in queries
            ]
            return self.lambda_ * torch.stack(tested).mean()


def unit_directions(dim: int, slices: int, generator: torch.Generator) -> Tensor:
    """Random unit vectors, the columns of (dim, slices)."""
    drawn = torch.randn(
        dim, slices, generator=generator, device=generator.device, dtype=torch.float32
    )
    return nn.functional.normalize(drawn, dim=0)


def epps_pulley(x: Tensor, knots: int = 17, t_max: float = 3.0) -> Tensor:
    """The Epps-Pulley statistic of the columns against N(0, 1), over the samples of all processes.

        T = N int |phi_x(t) - phi(t)|^2 phi(t) dt,  phi(t) = exp(-t^2 / 2),

    by the trapezoidal rule on [0, t_max], doubled, since the integrand is even (section 4.2;
    `EppsPulley` of the released code).

    Args:
        x: (N, slices).
        knots: Points of the rule.
        t_max: The last point.

    Returns:
        (slices,), at least 0; with a gradient.
    """
    t = torch.linspace(0, t_max, knots, device=x.device)
    phi = (-t.square() / 2).exp()
    x_t = x.unsqueeze(2) * t
    means = torch.stack([x_t.cos().mean(dim=0), x_t.sin().mean(dim=0)])
    real, imaginary = gather_with_gradient(means.unsqueeze(0)).mean(dim=0)
    difference = (real - phi).square() + imaginary.square()
    return len(x) * world_size() * 2 * torch.trapezoid(difference * phi, t, dim=1)
