"""Synthetic hard negatives (MoCHi, SynCo) and M-Mix against their formulas and released code."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from harness import N, build, global_draw, gradients, step, views_of
from unmix.credit import RULES
from unmix.errors import UserError
from unmix.methods import Progress
from unmix.methods.simclr import multi_sample_mixture
from unmix.negatives import Synthesis

K, D, HARD = 20, 6, 7


def unit(n: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(n, D, generator=torch.Generator().manual_seed(seed)), dim=1)


def made(kind: int, count: int = 5) -> tuple[Tensor, Tensor, Tensor, torch.Generator]:
    """Negatives of one type, the queries, the keys, and the generator to draw the same with."""
    counts: Any = tuple(count if k == kind else 0 for k in range(1, 7))
    q, keys = unit(4, 0).requires_grad_(), unit(K, 1)
    synthesis = Synthesis(counts, HARD, sigma=0.3, delta=0.2, eta=0.1)
    found = synthesis(q, keys, torch.Generator().manual_seed(9))
    assert not found.requires_grad
    torch.testing.assert_close(found.norm(dim=2), torch.ones(4, count))
    return found, q.detach(), keys, torch.Generator().manual_seed(9)


def some(q: Tensor, keys: Tensor, generator: torch.Generator, count: int = 5) -> Tensor:
    """Of the HARD nearest keys of each query, as SynCo's find_hard_negatives."""
    nearest = (q @ keys.T).argsort(dim=1, descending=True)[:, :HARD]
    drawn = torch.randint(HARD, (len(q), count), generator=generator)
    return keys[nearest.gather(1, drawn)]


def test_interpolated_and_mixed_are_mochis_two_kinds() -> None:
    """beta q + (1 - beta) n with beta < 0.5, and alpha n + (1 - alpha) n'."""
    found, q, keys, generator = made(1)
    n, a = some(q, keys, generator), 0.5 * torch.rand(4, 5, 1, generator=generator)
    torch.testing.assert_close(found, F.normalize(a * q[:, None] + (1 - a) * n, dim=2))
    found, q, keys, generator = made(3)
    n, g = some(q, keys, generator), torch.rand(4, 5, 1, generator=generator)
    other = some(q, keys, generator)
    torch.testing.assert_close(found, F.normalize(g * n + (1 - g) * other, dim=2))


def test_extrapolated_and_noised_are_syncos() -> None:
    found, q, keys, generator = made(2)
    n, b = some(q, keys, generator), 1 + 0.5 * torch.rand(4, 5, 1, generator=generator)
    torch.testing.assert_close(found, F.normalize(n + (b - 1) * (n - q[:, None]), dim=2))
    found, q, keys, generator = made(4)
    n = some(q, keys, generator)
    noise = torch.randn(4, 5, D, generator=generator)
    torch.testing.assert_close(found, F.normalize(n + 0.3 * noise, dim=2))


@pytest.mark.parametrize("kind", [5, 6])
def test_perturbed_and_adversarial_follow_the_gradient_of_the_similarity(kind: int) -> None:
    """By autograd, negative by negative, as the released code."""
    found, q, keys, generator = made(kind)
    n = some(q, keys, generator).requires_grad_()
    (gradient,) = torch.autograd.grad(torch.einsum("nd,nrd->nr", q, n).sum(), n)
    move = 0.2 * gradient if kind == 5 else 0.1 * gradient.sign()
    torch.testing.assert_close(found, F.normalize(n + move, dim=2).detach())
    before = torch.einsum("nd,nrd->nr", q, n)
    assert (torch.einsum("nd,nrd->nr", q, found) >= before - 1e-6).all()


def moco(kind: str, counts: tuple[int, ...], **options: Any) -> Any:
    return build(
        "moco-v2", synthetic_negatives=kind, synthetic_counts=counts, hard_negatives=8,
        synthetic_from_epoch=1, **options,
    )  # fmt: skip


def test_moco_contrasts_with_them_from_their_epoch_on_and_the_queue_never_gets_them() -> None:
    """Loss and gradients as logits of positive, queue and synthetic negatives."""
    method, plain = moco("mochi", (3, 4)), build("moco-v2")
    views = views_of(method)
    method.begin_step(Progress(0, 12, 3))
    torch.testing.assert_close(step(method, views).loss, step(plain, views).loss)
    method.begin_step(Progress(3, 12, 3))
    method.eval()
    state = method.draws.get_state()
    found = step(method, views)
    found.loss.backward()
    mine = {name: gradient.clone() for name, gradient in gradients(method).items()}
    method.zero_grad()

    method.draws.set_state(state)
    q = method.query(views[0])
    with torch.no_grad():
        k = method.f_k(views[1])
        negatives = Synthesis((3, 0, 4, 0, 0, 0), 8)(q, method.queue.keys, method.draws)
    assert negatives.shape[1] == 7
    scores = torch.cat(
        [(q * k).sum(1, keepdim=True), q @ method.queue.keys.T,
         torch.einsum("nd,nrd->nr", q, negatives)], dim=1,
    )  # fmt: skip
    expected = F.cross_entropy(scores / method.T, torch.zeros(N, dtype=torch.long))
    expected.backward()
    torch.testing.assert_close(found.loss, expected, rtol=1e-5, atol=1e-6)
    for name, gradient in gradients(method).items():
        torch.testing.assert_close(mine[name], gradient, rtol=1e-4, atol=1e-6)
    before = method.queue.keys.clone()
    found.update_memory()
    assert (method.queue.keys != before).any(dim=1).sum() == N


def test_the_same_step_draws_the_same_and_soft_labels_have_them_too() -> None:
    method = moco("synco", (1, 2, 3, 1, 1, 1)).eval()
    views, losses = views_of(method), []
    for _ in range(2):
        method.begin_step(Progress(4, 12, 3, seed=5))
        losses.append(step(method, views).loss)
    assert torch.equal(*losses)
    assert method.similarities(method.query(views[0]), unit(N, 3)[:, :1].expand(N, 16))[
        0
    ].shape == (N, N + 32 + 9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"synthetic_negatives": "mochi", "hard_negatives": 33}, "33 are more than the 32 keys"),
        ({"synthetic_negatives": "mochi", "hard_negatives": 8, "contrast": "nce"}, "use softmax"),
        ({"synthetic_negatives": "synco", "hard_negatives": 8, "synthetic_counts": (1, 2)},
         "1 2 is not 6 numbers of synco"),
        ({"synthetic_negatives": "mochi", "hard_negatives": 8, "synthetic_counts": (0, 0)},
         "0 0 is not 2 numbers of mochi"),
        ({"synthetic_counts": (1, 2)}, "give `synthetic_negatives` too, mochi or synco"),
        ({"synthetic_from_epoch": 0}, "give `synthetic_negatives` too, mochi or synco"),
        ({"synthetic_negatives": "mochy"}, "Did you mean 'mochi'"),
    ],
    ids=lambda value: str(value)[:24],
)  # fmt: skip
def test_numbers_that_do_not_go_together_are_refused(options: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build("moco", **options)


def test_m_mix_is_the_released_attention_over_the_batch() -> None:
    """Cosines above the threshold through a softmax, the product not normalized; then NT-Xent."""
    method, temperature = build("simclr", mmix_threshold=0.2, temperature=0.4).eval(), 0.4
    z1, z2 = unit(N, 1).requires_grad_(), unit(N, 2).requires_grad_()
    loss = method.compare(z1, z2).mean()
    found = torch.autograd.grad(loss, (z1, z2))

    attention = (z1 @ z1.T).detach()
    attention = torch.where(attention > 0.2, attention, torch.tensor(-9e15)).softmax(dim=1)
    out_1 = attention @ z1
    out = torch.cat([out_1, z2])
    others = ~torch.eye(2 * N, dtype=torch.bool)
    total = (torch.exp(out @ out.T / temperature) * others).sum(dim=1)
    positive = torch.exp((out_1 * z2).sum(dim=1) / temperature).repeat(2)
    expected = -(positive / total).log().mean()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    for mine, theirs in zip(found, torch.autograd.grad(expected, (z1, z2)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
    assert torch.allclose(multi_sample_mixture(z1, 1.0), z1)
    assert build("simclr").mmix_threshold == 1.0


@pytest.mark.parametrize("rule", ["unmix", "imix", "mixco", "sdmp_released", "patchmix"])
def test_m_mix_is_of_the_mixtures_queries_too(rule: str) -> None:
    """Whether a rule compares losses or similarities; it changed losses alone."""
    mixed = []
    for threshold in (1.0, -1.0):
        method = build("simclr", mmix_threshold=threshold).eval()
        found = step(method, views_of(method), RULES[rule], global_draw(0.3))
        mixed.append(found.mixed.item() if found.mixed is not None else found.loss.item())
    assert mixed[0] != pytest.approx(mixed[1], rel=1e-6)
