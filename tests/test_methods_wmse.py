"""W-MSE: whitening and loss against the golden values, sub-batches, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unmix import backbones
from unmix.credit import of_partner
from unmix.errors import UserError
from unmix.methods import WMSE
from unmix.methods.wmse import Grouped, whiten
from unmix.step import objective


def wmse(**options: Any) -> WMSE:
    backbone = backbones.build("resnet10", width=0.125, size=8)
    return WMSE(backbone, **{"dim": 4, "hidden": 16, "sub_batch": 6} | options)


def random(n: int, dim: int, seed: int) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)) + 2


def test_value_and_gradients_are_the_published_ones(golden):
    """One whitening over the whole batch."""
    g = golden("wmse")
    z0, z1 = g["z0"].requires_grad_(), g["z1"].requires_grad_()
    torch.testing.assert_close(whiten(z0), g["white0"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(whiten(z1), g["white1"], rtol=1e-4, atol=1e-5)
    n, dim = z0.shape
    loss = wmse(dim=dim, sub_batch=n).compare(z0, Grouped(z1, torch.rand(n, 1)))
    loss.backward()
    torch.testing.assert_close(loss, g["loss"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(z0.grad, g["grad0"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(z1.grad, g["grad1"], rtol=1e-4, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.integers(9, 40), st.integers(0, 2**31))
def test_whitened_features_have_no_mean_and_the_identity_as_covariance(n: int, seed: int) -> None:
    z = whiten(random(n, 4, seed))
    torch.testing.assert_close(z.mean(dim=0), torch.zeros(4), rtol=0, atol=1e-4)
    torch.testing.assert_close(torch.cov(z.T), torch.eye(4), rtol=0, atol=1e-3)


def test_the_loss_is_the_mean_over_sub_batches_of_the_keys_order() -> None:
    """Whitened with the inverse square root's Cholesky form of PyTorch, group by group."""
    method = wmse(iterations=2)
    a, b, keys = random(13, 4, 0), random(13, 4, 1), random(13, 2, 2)
    losses = []
    for iteration in range(2):
        order = sorted(range(13), key=lambda i: keys[i, iteration].item())
        for rows in (order[:7], order[7:]):
            white = []
            for v in (a[rows], b[rows]):
                W = torch.linalg.cholesky(torch.cov(v.T)).inverse()
                white.append((v - v.mean(dim=0)) @ W.T)
            cosine = torch.cosine_similarity(*white)
            losses += (2 - 2 * cosine).tolist()
    assert method.compare(a, Grouped(b, keys)).item() == pytest.approx(
        sum(losses) / len(losses), rel=1e-4
    )


def test_a_partners_target_keeps_its_sub_batches() -> None:
    """Exchanged by partner, the target's rows are whitened with the same rows as before.

    So a mixture that is its partner's image costs what the image costs.
    """
    method = wmse()
    a, target = random(12, 4, 0), Grouped(random(12, 4, 1), random(12, 1, 2))
    partner = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    loss = method.compare(a[partner], of_partner(target, partner))
    torch.testing.assert_close(loss, method.compare(a, target))
    other = method.compare(a[partner], Grouped(target.v[partner], target.keys))
    assert not torch.isclose(loss, other)


def test_four_views_are_compared_in_all_six_pairs() -> None:
    """Each pair once, with one sixth; the first view is query of three and target of none."""
    method = wmse(views=4)
    assert method.views == 4
    assert sorted(sorted(pair[:2]) for pair in method.pairs) == [
        [a, b] for a in range(4) for b in range(a + 1, 4)
    ]
    assert {pair.share for pair in method.pairs} == {1 / 6}
    assert [sum(pair.target == b for pair in method.pairs) for b in range(4)] == [0, 2, 2, 2]
    views = [torch.randn(12, 3, 8, 8) for _ in range(4)]
    result = objective(method, views, torch.arange(12), torch.Generator())
    assert result.loss.isfinite()


def test_views_share_their_sub_batches_and_steps_do_not() -> None:
    method = wmse(views=4, iterations=3)
    views = [torch.randn(12, 3, 8, 8) for _ in range(4)]
    queries, generator = method.queries(views), torch.Generator().manual_seed(0)
    one = method.targets(views, queries, torch.arange(12), generator)
    two = method.targets(views, queries, torch.arange(12), generator)
    assert set(one) == {1, 2, 3}
    assert all(target.keys.shape == (12, 3) for target in one.values())
    assert all(torch.equal(target.keys, one[1].keys) for target in one.values())
    assert not torch.equal(one[1].keys, two[1].keys)


def test_a_singular_covariance_gives_no_number_unless_epsilon_mends_it() -> None:
    """Never a wrong one: the trainer stops at a loss that is not finite."""
    v = random(4, 4, 0)
    assert whiten(v).isnan().any()
    assert whiten(torch.zeros(9, 4)).isnan().all()
    assert whiten(v, 0.01).isfinite().all()


@pytest.mark.parametrize(
    ("options", "batch_size", "message"),
    [
        (
            {"sub_batch": 4},
            12,
            "--sub_batch: the covariance of 4 features over 4 samples is singular; use --sub_batch "
            "5 or more, --dim 3 or less, or --epsilon above 0, such as 0.01.",
        ),
        (
            {"sub_batch": 8},
            3,
            "--batch_size: the covariance of 4 features over 3 samples is singular; use "
            "--batch_size 5 or more, --dim 2 or less, or --epsilon above 0, such as 0.01.",
        ),
    ],
)
def test_a_singular_covariance_is_told_before(
    options: dict[str, Any], batch_size: int, message: str
) -> None:
    """What the message recommends is then accepted."""
    with pytest.raises(UserError) as caught:
        wmse(**options).check_batch(batch_size)
    assert caught.value.on_command_line() == message
    wmse(**options, epsilon=0.01).check_batch(batch_size)
    wmse(**options, dim=2).check_batch(batch_size)
    wmse(sub_batch=max(5, options["sub_batch"])).check_batch(max(5, batch_size))


def test_the_smallest_batch_has_more_samples_than_features() -> None:
    assert wmse().smallest_batch == 5
    assert wmse(epsilon=0.1).smallest_batch == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"views": 3}, "--views: 3 is out of range; it must be 2 or 4."),
        ({"sub_batch": 1}, "--sub_batch: 1 is out of range; it must be at least 2."),
        (
            {"epsilon": 1.5},
            "--epsilon: 1.5 is out of range; it must be at least 0 and at most 1.",
        ),
    ],
)
def test_bad_numbers_are_told(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        wmse(**options)
    assert caught.value.on_command_line() == message


def test_the_head_may_see_all_views_in_one_batch() -> None:
    """Then its batch norm has one batch of twice the size, and the backbone's still one a view."""
    sizes: dict[bool, tuple[list[int], list[int]]] = {}
    for joint in (False, True):
        method = wmse(joint_head=joint)
        sizes[joint] = ([], [])
        for part, found in zip((method.f, method.g), sizes[joint], strict=True):
            part.register_forward_hook(lambda m, x, y, found=found: found.append(len(x[0])))
        views = [torch.randn(6, 3, 8, 8) for _ in range(2)]
        queries = method.queries(views)
        loss = objective(method, views, torch.arange(6), torch.Generator()).loss
        assert loss.isfinite()
    assert sizes[False] == ([6] * 4, [6] * 4)
    assert sizes[True] == ([6] * 4, [12] * 2)
    method.eval()
    torch.testing.assert_close(method.queries(views)[1], method.query(views[1], 1))
    assert queries[0].shape == queries[1].shape
