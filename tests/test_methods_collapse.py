"""What keeps a method's features apart: without it all images get the same, with it they do not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unmix.evaluation.metrics import effective_rank, spread
from unmix.methods import (
    BYOL,
    WMSE,
    BarlowTwins,
    LeJEPA,
    Method,
    Progress,
    SimDINO,
    SimSiam,
    TiCo,
    VICReg,
)
from unmix.step import objective

IMAGES, STEPS = 64, 300


@pytest.fixture(autouse=True)
def _the_global_generator_left_as_it_was() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


class Flat(nn.Module):
    """A backbone of one linear layer."""

    feature_dim = 16

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(12, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1))


def trained(method: Method, optimizer: torch.optim.Optimizer) -> Tensor:
    """Train on a few random images with noise for views, and give their projections."""
    images, generator = torch.randn(IMAGES, 3, 2, 2), torch.Generator().manual_seed(0)
    for number in range(STEPS):
        method.begin_step(Progress(number, STEPS, STEPS))
        views = [images + 0.5 * torch.randn_like(images) for _ in range(2)]
        loss = objective(method, views, torch.arange(IMAGES), generator).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return method.projections(images).detach()


def sgd(method: Method) -> torch.optim.Optimizer:
    parameters = [p for p in method.parameters() if p.requires_grad]
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


def adam(method: Method) -> torch.optim.Optimizer:
    return torch.optim.Adam(method.parameters(), lr=3e-3)


def byol(guarded: bool) -> Tensor:
    """The guard: the predictor, and a target network that takes no gradient."""
    method: Any = BYOL(Flat(), dim=8, hidden=32, encoder_momentum=0.9)  # type: ignore[arg-type]
    if not guarded:
        method.q = nn.Identity()

        def targets(views: Sequence[Tensor], *rest: Any) -> dict[int, Tensor]:
            return {b: method.projections(views[b]) for b in (0, 1)}

        method.targets = targets
    return trained(method, sgd(method))


def simsiam(guarded: bool) -> Tensor:
    """The guard: the stop-gradient (section 4.1 and figure 2 of the paper)."""
    method: Any = SimSiam(Flat(), dim=8, hidden=32, predictor_hidden=8)  # type: ignore[arg-type]
    method.g = nn.Linear(16, 8)  # batch norm at the end would keep so few features apart
    if not guarded:

        def targets(views: Any, queries: Any, *rest: Any) -> dict[int, Tensor]:
            return {b: queries[b].z for b in (0, 1)}

        method.targets = targets
    return trained(method, sgd(method))


def vicreg(guarded: bool) -> Tensor:
    """The guard: the variance term."""
    variance = 25.0 if guarded else 0.0
    method = VICReg(Flat(), dim=8, hidden=32, variance=variance)  # type: ignore[arg-type]
    return trained(method, adam(method))


def wmse(guarded: bool) -> Tensor:
    """The guard: whitening."""
    method: Any = WMSE(Flat(), dim=4, hidden=32, sub_batch=32)  # type: ignore[arg-type]
    if not guarded:
        method.compare = lambda query, target: (query - target.v).square().mean()
    return trained(method, adam(method))


def lejepa(guarded: bool) -> Tensor:
    """The guard: SIGReg."""
    sigreg = 0.1 if guarded else 0.0
    method: Any = LeJEPA(Flat(), dim=8, hidden=32, sigreg=sigreg, slices=16)  # type: ignore[arg-type]
    return trained(method, adam(method))


def tico(guarded: bool) -> Tensor:
    """The guard: the covariance contrast."""
    rho = 8.0 if guarded else 0.0
    method = TiCo(Flat(), dim=8, hidden=32, covariance=rho, encoder_momentum=0.5)  # type: ignore[arg-type]
    return trained(method, sgd(method))


def simdino(guarded: bool) -> Tensor:
    """The guard: the coding rate."""
    rate = 1.0 if guarded else 0.0
    method: Any = SimDINO(Flat(), dim=8, hidden=32, coding_rate=rate, encoder_momentum=0.9)  # type: ignore[arg-type]
    return trained(method, adam(method))


@pytest.mark.parametrize("run", [byol, lejepa, simdino, simsiam, tico, vicreg, wmse])
def test_without_its_guard_all_images_get_the_same_feature(run: Any) -> None:
    assert spread(run(False)) < 0.1
    assert spread(run(True)) > 0.5


def barlow(off_diagonal: float) -> Tensor:
    """The guard: the part of the loss that decorrelates features."""
    method = BarlowTwins(Flat(), dim=8, hidden=32, off_diagonal=off_diagonal)  # type: ignore[arg-type]
    return trained(method, adam(method))


def test_without_the_off_diagonal_part_barlow_twins_features_fall_onto_few_directions() -> None:
    """Standardised features keep their spread: what collapses is their rank."""
    kept, lost = (z - z.mean(dim=0) for z in (barlow(0.1), barlow(0.0)))
    assert effective_rank(kept) > 1.5 * effective_rank(lost)
    assert spread(kept) > 0.5
