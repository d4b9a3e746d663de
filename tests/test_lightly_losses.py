"""lightly's losses with a mixture, as docs/examples.md says which `criterion` each one is."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from lightly import loss as lightly
from torch import Tensor

import unmix

N, D = 6, 16
STATELESS = {
    "NegativeCosineSimilarity": lightly.NegativeCosineSimilarity,
    "NTXentLoss": lightly.NTXentLoss,
    "DCLLoss": lightly.DCLLoss,
    "BarlowTwinsLoss": lightly.BarlowTwinsLoss,
    "VICRegLoss": lightly.VICRegLoss,
}


def drawn() -> tuple[Any, Tensor, Tensor]:
    draw = unmix.UnMix(pairing="permutation").draw((N, 3, 8, 8), torch.Generator().manual_seed(2))
    assert 0 < draw.weight[0] < 1
    return draw, torch.randn(N, D), torch.randn(N, D)


def shared(each: Any, draw: Any) -> Tensor:
    """w l(q, t) + (1 - w) l(q, t[p]), of a loss that takes the rows of the target."""
    w = draw.weight[0]
    return w * each(torch.arange(N)) + (1 - w) * each(draw.partner)


@pytest.mark.parametrize("name", STATELESS)
def test_a_loss_that_keeps_nothing_is_its_own_criterion(name):
    draw, q, t = drawn()
    criterion = STATELESS[name]()
    found = unmix.shared_loss(criterion, q, t, draw)
    torch.testing.assert_close(found, shared(lambda rows: criterion(q, t[rows]), draw))


def test_swav_predicts_clean_codes_from_the_mixture():
    draw, q, t = drawn()
    criterion = lightly.SwaVLoss()
    found = unmix.shared_loss(lambda q, t: criterion([t], [q]), q, t, draw)
    codes = lightly.swav_loss.sinkhorn(t, iterations=3, epsilon=0.05)
    log_p = (q / 0.1).log_softmax(dim=1)
    torch.testing.assert_close(
        found, shared(lambda rows: -(codes[rows] * log_p).sum(1).mean(), draw)
    )


def test_dino_compares_the_mixture_with_the_teacher():
    draw, q, t = drawn()
    criterion = lightly.DINOLoss(output_dim=D)
    criterion([t, t], [q])
    center = criterion.center.clone().flatten()
    found = unmix.shared_loss(lambda q, t: copy.deepcopy(criterion)([t, t], [q]), q, t, draw)
    assert torch.equal(criterion.center.flatten(), center)
    assert center.any()

    def each(rows: Tensor) -> Tensor:
        p = ((t[rows] - center) / 0.04).softmax(dim=1)
        return -(p * (q / 0.1).log_softmax(dim=1)).sum(1).mean()

    torch.testing.assert_close(found, shared(each, draw))


def test_tico_leaves_its_covariance_to_the_clean_call():
    draw, q, t = drawn()
    criterion = lightly.TiCoLoss()
    criterion(torch.randn(N, D), t)
    before = criterion.C.clone()
    found = unmix.shared_loss(
        lambda q, t: criterion(q, t, update_covariance_matrix=False), q, t, draw
    )
    assert torch.equal(criterion.C, before)
    torch.testing.assert_close(
        found,
        shared(lambda rows: criterion(q, t[rows], update_covariance_matrix=False), draw),
    )
