"""The loss of a mixture is shared between its two images, whatever the targets are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unmix.credit import of_partner, shared_loss
from unmix.errors import UserError
from unmix.mixtures import PairDraw, ScaleMix, UnMix
from unmix.mixtures.draws import whole_image

SIZE = (4, 4)
D = 5
sizes = st.integers(2, 9)
seeds = st.integers(0, 2**31)
kinds = st.sampled_from(["batch", "sample"])


def linear(query: Tensor, target: Tensor) -> Tensor:
    """-<q, t>, one number a sample: its gradients are the other argument, so shares can be read."""
    return -(query * target).sum(dim=1)


def cosine(query: Tensor, target: Tensor) -> Tensor:
    return 2 - 2 * torch.cosine_similarity(query, target)


def cross_entropy(query: Tensor, target: Tensor) -> Tensor:
    """In-batch negatives are the columns; the loss is not linear in anything."""
    return torch.nn.functional.cross_entropy(query, target.softmax(dim=1), reduction="none")


def correlation(query: Tensor, target: Tensor) -> Tensor:
    """A scalar per batch, as in Barlow Twins."""
    return (query.T @ target / len(query) - torch.eye(D)).square().sum()


PER_SAMPLE = [linear, cosine, cross_entropy]


def pairing(n: int, weight: Tensor, partner: Tensor | None = None) -> PairDraw:
    """A global mixture with the batch reversed, or the given partner; weights (1,) or (N,)."""
    if partner is None:
        partner = torch.arange(n - 1, -1, -1)
    return PairDraw(partner, whole_image(n, *SIZE), weight.expand(n), SIZE, len(weight) > 1)


def vectors(n: int, seed: int) -> tuple[Tensor, Tensor, torch.Generator]:
    """Queries and targets (N, D) in double precision, and the generator after them."""
    generator = torch.Generator().manual_seed(seed)
    query, target = torch.randn(2, n, D, generator=generator, dtype=torch.float64)
    return query, target, generator


def weights(n: int, kind: str, generator: torch.Generator) -> Tensor:
    return torch.rand(n if kind == "sample" else 1, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("loss", [*PER_SAMPLE, correlation])
@settings(max_examples=25, deadline=None)
@given(sizes, seeds)
def test_weight_one_gives_the_clean_loss_and_weight_zero_the_partners(
    loss: Callable[[Tensor, Tensor], Tensor], n: int, seed: int
) -> None:
    query, target, _ = vectors(n, seed)
    own = shared_loss(loss, query, target, pairing(n, torch.ones(1)))
    other = shared_loss(loss, query, target, pairing(n, torch.zeros(1)))
    torch.testing.assert_close(own, loss(query, target).mean())
    torch.testing.assert_close(other, loss(query, target.flip(0)).mean())


@pytest.mark.parametrize("loss", PER_SAMPLE)
@settings(max_examples=25, deadline=None)
@given(sizes, seeds, kinds)
def test_exchanging_the_two_images_and_their_shares_changes_nothing(
    loss: Callable[[Tensor, Tensor], Tensor], n: int, seed: int, kind: str
) -> None:
    query, target, generator = vectors(n, seed)
    weight = weights(n, kind, generator)
    one = shared_loss(loss, query, target, pairing(n, weight))
    other = shared_loss(loss, query, target.flip(0), pairing(n, 1 - weight))
    torch.testing.assert_close(one, other)


def involution(n: int, generator: torch.Generator) -> Tensor:
    """A random permutation that is its own inverse."""
    order = torch.randperm(n, generator=generator)
    partner = torch.arange(n)
    for i in range(0, n - 1, 2):
        a, b = order[i], order[i + 1]
        partner[a], partner[b] = b, a
    return partner


@pytest.mark.parametrize("loss", [*PER_SAMPLE, correlation])
@settings(max_examples=25, deadline=None)
@given(sizes, seeds)
def test_the_two_term_form_is_the_published_one_with_the_flipped_mixture(
    loss: Callable[[Tensor, Tensor], Tensor], n: int, seed: int
) -> None:
    """lam L(m, y) + (1 - lam) L(flip(m), y) (Shen et al. 2022, Eq. 3); the features are flipped."""
    query, target, generator = vectors(n, seed)
    lam = weights(n, "batch", generator)
    partner = involution(n, generator)
    published = lam * loss(query, target).mean() + (1 - lam) * loss(query[partner], target).mean()
    ours = shared_loss(loss, query, target, pairing(n, lam, partner))
    torch.testing.assert_close(ours, published.squeeze())


@settings(max_examples=50, deadline=None)
@given(sizes, seeds, kinds)
def test_the_partner_is_a_target_and_each_image_has_its_share_of_the_gradient(
    n: int, seed: int, kind: str
) -> None:
    """A released implementation never permutes the second target, so the weight cancels there.

    With -<q, t> the gradient of query i is -(w t_i + (1 - w) t_p(i)) / N, and its share toward the
    partner's target alone is 1 - w.
    """
    generator = torch.Generator().manual_seed(seed)
    partner = torch.randperm(n, generator=generator)
    weight = weights(n, kind, generator)
    target = torch.eye(n, dtype=torch.float64)
    query = torch.randn(n, n, generator=generator, dtype=torch.float64).requires_grad_()
    shared_loss(linear, query, target, pairing(n, weight, partner)).backward()
    assert query.grad is not None
    shares = -n * query.grad
    for i, (p, w) in enumerate(zip(partner.tolist(), weight.expand(n).tolist(), strict=True)):
        expected = torch.zeros(n, dtype=torch.float64)
        expected[i] += w
        expected[p] += 1 - w
        torch.testing.assert_close(shares[i], expected)


@settings(max_examples=25, deadline=None)
@given(sizes, seeds, kinds)
def test_a_target_draws_its_own_mixture_and_those_it_is_the_partner_of(
    n: int, seed: int, kind: str
) -> None:
    """The gradient of target j, where targets take one: -(w_j q_j + sum of (1 - w_i) q_i) / N."""
    query, target, generator = vectors(n, seed)
    partner = torch.randint(n, (n,), generator=generator)
    weight = weights(n, kind, generator)
    target.requires_grad_()
    shared_loss(linear, query, target, pairing(n, weight, partner)).backward()
    w = weight.expand(n)[:, None]
    expected = (w * query).index_add(0, partner, (1 - w) * query)
    torch.testing.assert_close(target.grad, -expected / n)


def test_all_weights_count_and_total_one() -> None:
    """Of a constant loss every draw gives the constant, as much as the clean part weighs."""
    generator = torch.Generator().manual_seed(0)
    for per in ("batch", "sample"):
        for _ in range(20):
            draw = UnMix(per=per).draw((7, 3, 8, 8), generator)  # type: ignore[arg-type]
            query, target = torch.zeros(2, 7, 1)
            loss = shared_loss(lambda q, t: torch.full((7,), 3.0), query, target, draw)
            assert loss.item() == pytest.approx(3.0)


class Assignment(NamedTuple):
    keys: Tensor
    rows: Tensor


STRUCTURES: dict[str, Callable[[Tensor], Any]] = {
    "tensor": lambda t: t,
    "tuple": lambda t: (t, t + 1),
    "list": lambda t: [t, t + 1],
    "dict": lambda t: {"keys": t, "rows": t + 1},
    "namedtuple": lambda t: Assignment(t, t + 1),
    "nested": lambda t: {"a": (t, [t + 1]), "b": Assignment(t, t)},
}


def leaves(target: Any) -> list[Tensor]:
    if isinstance(target, Tensor):
        return [target]
    parts = target.values() if isinstance(target, dict) else target
    return [leaf for part in parts for leaf in leaves(part)]


@pytest.mark.parametrize("name", STRUCTURES)
def test_the_partners_target_is_found_in_every_structure(name: str) -> None:
    target = STRUCTURES[name](torch.arange(12.0).view(4, 3))
    partner = torch.tensor([2, 0, 3, 3])
    picked = of_partner(target, partner)
    assert type(picked) is type(target)
    for ours, whole in zip(leaves(picked), leaves(target), strict=True):
        assert torch.equal(ours, torch.stack([whole[2], whole[0], whole[3], whole[3]]))
    if isinstance(target, dict):
        assert list(picked) == list(target)


@pytest.mark.parametrize("name", STRUCTURES)
def test_the_shared_loss_takes_targets_of_every_structure(name: str) -> None:
    query, target, generator = vectors(6, 0)
    draw = pairing(6, weights(6, "sample", generator))

    def loss(q: Tensor, t: Any) -> Tensor:
        return sum((linear(q, leaf) for leaf in leaves(t)), torch.zeros(()))

    structure = STRUCTURES[name](target)
    expected = sum(shared_loss(linear, query, leaf, draw) for leaf in leaves(structure))
    torch.testing.assert_close(shared_loss(loss, query, structure, draw), expected)


def test_integer_targets_are_picked_and_not_mixed() -> None:
    """Memory banks compare with row numbers, of which there is no weighted mean."""
    rows = torch.tensor([[0, 7], [1, 5], [2, 9]])
    assert torch.equal(of_partner(rows, torch.tensor([2, 1, 0])), rows.flip(0))


@pytest.mark.parametrize("target", [3.0, "keys", [torch.zeros(2), 1]])
def test_a_target_without_tensors_is_a_type_error(target: Any) -> None:
    with pytest.raises(TypeError, match="targets must hold tensors, not"):
        of_partner(target, torch.tensor([1, 0]))


@settings(max_examples=25, deadline=None)
@given(sizes, seeds)
def test_a_loss_coupled_over_the_batch_takes_one_weight_a_batch(n: int, seed: int) -> None:
    query, target, generator = vectors(n, seed)
    lam = weights(n, "batch", generator)
    ours = shared_loss(correlation, query, target, pairing(n, lam))
    expected = lam * correlation(query, target) + (1 - lam) * correlation(query, target.flip(0))
    torch.testing.assert_close(ours, expected.squeeze())


def test_a_coupled_loss_with_a_weight_a_sample_is_a_users_mistake() -> None:
    query, target, generator = vectors(4, 0)
    draw = pairing(4, weights(4, "sample", generator))
    with pytest.raises(UserError, match=r"^per: .* one weight per batch") as caught:
        shared_loss(correlation, query, target, draw)
    assert "\n" not in str(caught.value)


def test_a_loss_in_bfloat16_keeps_its_type() -> None:
    """The draw's float32 weights do not promote it."""
    query, target, generator = vectors(4, 0)
    draw = pairing(4, torch.rand(4, generator=generator))
    loss = shared_loss(linear, query.bfloat16(), target.bfloat16(), draw)
    assert loss.dtype == torch.bfloat16


@pytest.mark.parametrize("processes", [1, 2])
def test_an_empty_mixture_of_one_process_has_as_many_comparisons_as_the_others(
    monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    """A comparison may gather over processes, and the one that left it out was waited for."""
    monkeypatch.setattr("unmix.credit.sharing.world_size", lambda: processes)
    asked: list[Tensor] = []

    def loss(query: Tensor, target: Tensor) -> Tensor:
        asked.append(target)
        return (query - target).square().sum(dim=1)

    query, target = torch.randn(4, 3), torch.randn(4, 3)
    empty = PairDraw(torch.arange(3, -1, -1), torch.zeros(4, 4), torch.ones(4), (8, 8), False)
    assert not empty.shares[:, 1].any()
    found = shared_loss(loss, query, target, empty)
    assert len(asked) == processes
    torch.testing.assert_close(found, (query - target).square().sum(dim=1).mean())


def test_a_mixture_of_one_images_crops_costs_one_comparison() -> None:
    """The share of the second column is 0, so its loss is not computed."""
    asked: list[Tensor] = []

    def loss(query: Tensor, target: Tensor) -> Tensor:
        asked.append(target)
        return (query - target).square().sum(dim=1)

    query, target = torch.randn(4, 3), torch.randn(4, 3)
    draw = ScaleMix().draw((4, 3, 8, 8), torch.Generator().manual_seed(0))
    found = shared_loss(loss, query, target, draw)
    assert len(asked) == 1
    torch.testing.assert_close(found, (query - target).square().sum(dim=1).mean())
