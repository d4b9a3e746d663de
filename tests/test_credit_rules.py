"""Rules for credit against their formulas, written out image by image; and the bugs of others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from harness import build, global_draw, step, views_of
from unmix.credit import RULES, MixBT, MixCo, Mixed, rule
from unmix.credit.sdmp import Between
from unmix.errors import UserError
from unmix.methods import InstanceDiscrimination
from unmix.mixtures import UnMix
from unmix.stepper import Stepper

N, D, K = 6, 5, 7


class Drawn(NamedTuple):
    owners: Tensor
    shares: Tensor
    per_sample: bool = True


def drawn(n: int = N, *, per_sample: bool = True, seed: int = 0, count: int | None = None) -> Drawn:
    """Shares of pairs, the batch in reverse."""
    generator = torch.Generator().manual_seed(seed)
    own = torch.arange(count or n)
    w = torch.rand(count or n, generator=generator)
    w = w if per_sample else w[:1].expand(count or n)
    owners = torch.stack([own, n - 1 - own], dim=1)
    return Drawn(owners, torch.stack([w, 1 - w], dim=1), per_sample)


class Contrast:
    """InfoNCE against a queue, as MoCo's."""

    coupled, contrastive, per_image, special_rules, views = False, True, False, (), 2
    soft_labels = True
    T = 0.3
    logits, softmax_loss = InstanceDiscrimination.logits, InstanceDiscrimination.softmax_loss

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(5)
        self.queue = torch.nn.functional.normalize(torch.randn(K, D, generator=generator))

    def compare(self, q: Tensor, t: Tensor) -> Tensor:
        scores = torch.cat([(q * t).sum(1, keepdim=True), q @ self.queue.T], dim=1) / self.T
        return scores.logsumexp(1) - scores[:, 0]

    def similarities(self, q: Tensor, t: Tensor) -> tuple[Tensor]:
        return (q @ torch.cat([t, self.queue]).T,)


class Scaled(Contrast):
    """The loss times 2 T, as MoCo v3's."""

    def softmax_loss(self, *args: Any) -> Tensor:  # type: ignore[override]
        return 2 * self.T * super().softmax_loss(*args)  # type: ignore[misc]


class Regress:
    """2 - 2 cos, as BYOL's."""

    coupled, contrastive, per_image, special_rules, views = False, False, False, (), 2
    soft_labels = False

    def compare(self, q: Tensor, t: Tensor) -> Tensor:
        return 2 - 2 * (q * t).sum(1)


class Correlate:
    """Barlow Twins' parts."""

    coupled, contrastive, per_image, special_rules = True, False, False, ("mixbt",)
    soft_labels = False
    penalty = 0.01

    def correlation(self, a: Tensor, b: Tensor, *, unbiased: bool = False) -> Tensor:
        a, b = ((x - x.mean(0)) / x.std(0, correction=int(unbiased)) for x in (a, b))
        return a.T @ b / len(a)


def features(seed: int, n: int = N) -> Tensor:
    x = torch.randn(n, D, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(x)


def mixed(method: Any, draw: Drawn, query: Tensor | None = None, **changes: Any) -> Mixed:
    targets = {0: features(1), 1: features(2)}
    of_mixtures = {0: features(3), 1: features(4)}
    query = features(7, len(draw.owners)) if query is None else query
    made = Mixed(
        method, draw, query, {0: features(8), 1: features(9)}, targets, ((0, 1, 1.0),),
        lambda: of_mixtures, N,
    )  # fmt: skip
    return replace(made, **changes)


def test_un_mix_is_the_sum_of_both_images_shares() -> None:
    for method in (Contrast(), Regress()):
        draw = drawn()
        m = mixed(method, draw)
        expected = 0.0
        for i in range(N):
            w, j, q = draw.shares[i, 0], N - 1 - i, m.query[i : i + 1]
            expected += w * method.compare(q, m.targets[1][i : i + 1]).item() / N
            expected += (1 - w) * method.compare(q, m.targets[1][j : j + 1]).item() / N
        assert RULES["unmix"](m).item() == pytest.approx(float(expected), rel=1e-5)
        assert torch.equal(RULES["unmix"](m), RULES["replace"](m))
    assert RULES["unmix"].keeps_clean
    assert not RULES["replace"].keeps_clean


def test_targets_count_as_they_do_in_the_clean_loss() -> None:
    """Of three pairs two have view 1 for their target; the mixture meets each view's once."""
    m = mixed(Regress(), drawn(), pairs=((0, 1, 0.5), (1, 0, 0.25), (2, 1, 0.25)))
    alone = [RULES["unmix"](replace(m, pairs=((0, b, 1.0),))) for b in (0, 1)]
    torch.testing.assert_close(RULES["unmix"](m), 0.25 * alone[0] + 0.75 * alone[1])


def test_i_mix_is_the_cross_entropy_over_the_batch_and_the_queue() -> None:
    """The keys of the batch are negatives of each other, which Un-Mix's are not."""
    method, draw = Contrast(), drawn()
    m = mixed(method, draw)
    logits = torch.cat([m.targets[1], method.queue]) @ m.query.T / method.T
    labels = torch.zeros(N, N + K)
    for i in range(N):
        labels[i, i] += draw.shares[i, 0]
        labels[i, N - 1 - i] += draw.shares[i, 1]
    expected = torch.nn.functional.cross_entropy(logits.T, labels)
    torch.testing.assert_close(RULES["imix"](m), expected)
    assert not RULES["imix"].keeps_clean


def test_i_mix_without_labels_is_the_weighted_loss_as_for_byol() -> None:
    m = mixed(Regress(), drawn())
    assert torch.equal(RULES["imix"](m), RULES["unmix"](m))


def test_mixco_has_soft_labels_at_its_own_temperature_and_half_as_many_mixtures() -> None:
    """The first half of the batch mixed with the second; T_mix 0.05, whatever T is."""
    method = Contrast()
    own = torch.arange(N // 2)
    w = torch.rand(N // 2, generator=torch.Generator().manual_seed(3))
    draw = Drawn(torch.stack([own, own + N // 2], 1), torch.stack([w, 1 - w], 1))
    m = mixed(method, draw)
    logits = m.query @ torch.cat([m.targets[1], method.queue]).T / 0.05
    labels = torch.zeros(N // 2, N + K)
    labels[own, own], labels[own, own + N // 2] = w, 1 - w
    expected = torch.nn.functional.cross_entropy(logits, labels)
    torch.testing.assert_close(RULES["mixco"](m), expected)
    torch.testing.assert_close(rule("mixco", share=0.5)(m), 0.5 * expected)
    assert not torch.equal(rule("mixco", temperature=0.2)(m), expected)


def test_sdmp_compares_with_sources_and_with_mixtures() -> None:
    """c from the smaller shares; 1 / (1 + c) and c / (1 + c); halves, all as in its code."""
    method, draw = Regress(), drawn()
    m = mixed(method, draw)
    w, expected = draw.shares[:, 0], 0.0
    for i in range(N):
        j, q = N - 1 - i, m.query[i : i + 1]
        common = min(w[i], 1 - w[j]) + min(1 - w[i], w[j])
        for targets, own in ((m.targets, w[i]), (m.targets_of_mixtures(), 1 / (1 + common))):
            expected += own * method.compare(q, targets[1][i : i + 1]).item() / (2 * N)
            expected += (1 - own) * method.compare(q, targets[1][j : j + 1]).item() / (2 * N)
    assert RULES["sdmp"](m).item() == pytest.approx(float(expected), rel=1e-5)


def test_sdmp_knows_what_two_mixtures_have_in_common_in_any_order() -> None:
    """With images of one pixel value each: what both mixtures have of each image, summed."""
    w = torch.tensor([0.2, 0.7, 0.4, 0.9, 0.3])
    p = torch.tensor([1, 2, 0, 4, 3])  # in a circle of three, and in a pair
    contents = torch.zeros(5, 5)
    for i in range(5):
        contents[i, i], contents[i, p[i]] = w[i], 1 - w[i]
    common = torch.minimum(contents, contents[p]).sum(1)
    owners = torch.stack([torch.arange(5), p], dim=1)
    between = Between.of(Drawn(owners, torch.stack([w, 1 - w], dim=1)))
    torch.testing.assert_close(between.shares[:, 0], 1 / (1 + common))
    torch.testing.assert_close(between.shares[:, 1], common / (1 + common))


def test_sdmp_leaves_out_the_mixture_itself_where_both_views_are_targets() -> None:
    """Its own view's mixture is the same picture; that share goes to the other view."""
    m = mixed(Regress(), drawn())
    both = RULES["sdmp"](replace(m, pairs=((0, 1, 0.5), (1, 0, 0.5))))
    torch.testing.assert_close(both, RULES["sdmp"](m))


@pytest.mark.parametrize("seed", range(3))
def test_sdmp_as_released_is_minus_the_log_of_the_weighted_probability(seed: int) -> None:
    """-log(w p_i + (1 - w) p_j), times 2 T and halved, for sources and for mixtures.

    With gradients: they are not those of the weighted sum of -log p.
    """
    method, draw = Scaled(), drawn(seed=seed)
    query = features(7 + seed).requires_grad_()
    m = mixed(method, draw, query)
    w, j = draw.shares[:, 0], torch.arange(N).flip(0)
    expected, sums = torch.zeros(()), torch.zeros(())
    common = torch.minimum(w, 1 - w[j]) + torch.minimum(1 - w, w[j])
    for targets, own, other in (
        (m.targets, w, 1 - w),
        (m.targets_of_mixtures(), 1 / (1 + common), common / (1 + common)),
    ):
        p = (query @ torch.cat([targets[1], method.queue]).T / method.T).softmax(1)
        mine, others = p[torch.arange(N), torch.arange(N)], p[torch.arange(N), j]
        expected = expected - method.T * (own * mine + other * others).log().mean()
        sums = sums - method.T * (own * mine.log() + other * others.log()).mean()
    loss = RULES["sdmp_released"](m)
    torch.testing.assert_close(loss, expected)
    wanted, found, of_sums = (
        torch.autograd.grad(x, query, retain_graph=True)[0] for x in (expected, loss, sums)
    )
    torch.testing.assert_close(found, wanted)
    assert loss < sums  # -log is convex
    assert (found - of_sums).norm() > 0.1 * of_sums.norm()


def test_mix_bt_is_the_released_codes_number_at_batch_16() -> None:
    """Deviations with N - 1 and no epsilon, products over N: 12% less than with N in both."""
    from unmix import backbones
    from unmix.methods import BarlowTwins

    n, lam = 16, 0.3
    method = BarlowTwins(backbones.build("resnet10", width=0.125, size=8), dim=D, hidden=8)
    query, a, b = (torch.randn(n, D, generator=torch.Generator().manual_seed(s)) for s in (1, 2, 3))
    index = torch.randperm(n, generator=torch.Generator().manual_seed(4))
    owners = torch.stack([torch.arange(n), index], 1)
    draw = Drawn(owners, torch.tensor([[lam, 1 - lam]]).expand(n, 2), False)
    m = replace(mixed(method, draw, query), queries={0: a, 1: b}, samples=n)
    values = {}
    for correction in (0, 1):
        m_, a_, b_ = (x - x.mean(0) for x in (query, a, b))
        m_, a_, b_ = (
            (x / ((x**2).sum(0) / (n - correction)).sqrt()).double() for x in (m_, a_, b_)
        )
        total = 0.0
        for z in (a_, b_):
            found = m_.T @ z / n
            wanted = (lam * a_.T @ z + (1 - lam) * b_[index].T @ z) / n
            total = total + ((found - wanted) ** 2).sum()
        values[correction] = 5.0 * method.penalty * total.item()
    assert RULES["mixbt"](m).item() == pytest.approx(values[1], rel=1e-4)
    assert values[1] == pytest.approx(values[0] * (15 / 16) ** 2, rel=1e-6)


def test_mix_bt_wants_the_mixture_of_the_correlations() -> None:
    """The released code's two terms, with a scale and Barlow Twins' own weight."""
    method, draw = Correlate(), drawn(per_sample=False)
    m = mixed(method, draw)
    w, p = draw.shares[0, 0], draw.owners[:, 1]
    a, b = m.queries[0], m.queries[1]

    def c(x: Tensor, y: Tensor) -> Tensor:
        return method.correlation(x, y, unbiased=True)

    expected = (c(m.query, a) - w * c(a, a) - (1 - w) * c(b[p], a)).square().sum()
    expected = expected + (c(m.query, b) - w * c(a, b) - (1 - w) * c(b[p], b)).square().sum()
    torch.testing.assert_close(MixBT(share=3.0)(m), 3.0 * 0.01 * expected)
    assert RULES["mixbt"].partner_view == 1


def test_mix_bt_is_nothing_for_a_mixture_that_is_its_own_image() -> None:
    draw = Drawn(drawn().owners, torch.tensor([[1.0, 0.0]]).expand(N, 2), False)
    assert MixBT()(mixed(Correlate(), draw, query=features(8))).item() < 1e-10


def test_image_space_is_the_clean_loss_with_another_first_view() -> None:
    m = mixed(Regress(), drawn(), pairs=((0, 1, 0.5), (1, 0, 0.5)))
    method = Regress()
    expected = method.compare(m.query, m.targets[1]).mean() / 2
    expected = expected + method.compare(m.queries[1], m.targets[0]).mean() / 2
    torch.testing.assert_close(RULES["image_space"](m), expected)


def test_image_space_by_halves_compares_each_mixture_with_its_own_image() -> None:
    own, method = torch.arange(N // 2), Regress()
    draw = Drawn(torch.stack([own, own + N // 2], 1), torch.full((N // 2, 2), 0.5))
    m = mixed(method, draw, pairs=((0, 1, 0.5), (1, 0, 0.5)))
    expected = method.compare(m.query, m.targets[1][: N // 2]).mean() / 2
    expected = expected + method.compare(m.queries[1], m.targets[0]).mean() / 2
    torch.testing.assert_close(RULES["image_space"](m), expected)


class Swapped(NamedTuple):
    scores: Tensor
    codes: Tensor


class Assign:
    """SwAV's swapped prediction, both ways."""

    coupled, contrastive, per_image, soft_labels = False, False, False, False
    special_rules = ("swav_released",)

    def compare(self, q: Swapped, t: Swapped) -> Tensor:
        return ell(q.scores, t.codes) + ell(t.scores, q.codes)


def ell(z: Tensor, q: Tensor) -> Tensor:
    return -(q * z.log_softmax(1)).sum(1)


def swapped(seed: int) -> Swapped:
    return Swapped(3 * features(seed), (4 * features(seed + 10)).softmax(1))


def test_swav_shares_by_the_authors_formula_and_the_released_code_by_another() -> None:
    """lam [l(z_m, q_s) + l(z_s, q_m)] + (1 - lam) [l(z_m reversed, q_s) + l(z_s, q_m reversed)]."""
    draw, method = drawn(per_sample=False), Assign()
    m_, s = swapped(1), swapped(2)
    m = replace(mixed(method, draw), query=m_, targets={1: s})
    lam = draw.shares[0, 0]
    z_r, q_r = m_.scores.flip(0), m_.codes.flip(0)
    formula = lam * (ell(m_.scores, s.codes) + ell(s.scores, m_.codes)).mean()
    formula = formula + (1 - lam) * (ell(z_r, s.codes) + ell(s.scores, q_r)).mean()
    torch.testing.assert_close(RULES["unmix"](m), formula)
    # As released: the prediction is not reversed, so the partner's codes are no target of it.
    released = lam * (ell(m_.scores, s.codes) + ell(s.scores, m_.codes)).mean()
    released = released + (1 - lam) * (ell(m_.scores, s.codes) + ell(s.scores, q_r)).mean()
    torch.testing.assert_close(RULES["swav_released"](m), released)
    assert not torch.allclose(formula, released)


@given(seed=st.integers(0, 10**6), name=st.sampled_from(["unmix", "imix", "mixco"]))
@settings(max_examples=30, deadline=None)
def test_exchanging_the_two_images_and_their_shares_changes_nothing(seed: int, name: str) -> None:
    """Of pairs in reverse: sample i's mixture is its partner's, with the shares the other way."""
    draw = drawn(seed=seed, per_sample=False)
    m = mixed(Contrast(), draw, query=features(seed))
    other = Drawn(draw.owners, draw.shares.flip(1), False)
    torch.testing.assert_close(
        RULES[name](m), RULES[name](replace(m, draw=other, query=m.query.flip(0)))
    )


@pytest.mark.parametrize(
    ("name", "method"),
    [("unmix", Contrast()), ("imix", Contrast()), ("mixco", Contrast()),
     ("unmix", Regress()), ("imix", Regress())],
    ids=lambda x: x if isinstance(x, str) else type(x).__name__,
)  # fmt: skip
def test_the_partner_is_pulled_by_its_share(name: str, method: Any) -> None:
    """The gradient toward the two targets is as their shares, where nothing else pulls on them.

    In a released code the partner is no target at all, for its index is never applied.
    """
    w = 0.3
    draw = Drawn(torch.tensor([[0, 1]]), torch.tensor([[w, 1 - w]]))
    query = features(7, 1)
    pull = []
    for shares in ([1.0, 0.0], [0.0, 1.0], [w, 1 - w]):
        target = torch.stack([features(1)[0], features(1)[0]]).requires_grad_()
        m = replace(
            mixed(method, draw, query=query), samples=2, targets={1: target},
            draw=Drawn(draw.owners, torch.tensor([shares])),
        )  # fmt: skip
        RULES[name](m).backward()
        assert target.grad is not None
        pull.append(target.grad)
    torch.testing.assert_close(pull[2], w * pull[0] + (1 - w) * pull[1])
    assert pull[1][1].norm() > 0
    if not method.contrastive:
        torch.testing.assert_close(pull[2][1].norm() / pull[2][0].norm(), torch.tensor((1 - w) / w))


@pytest.mark.parametrize("name", ["unmix", "imix"])
def test_a_mixture_of_three_images_has_three_targets(name: str) -> None:
    """Dirichlet weights: as if each owner were one image of a pair, in turn."""
    owners = torch.tensor([[0, 1, 2], [1, 2, 0], [2, 0, 1]])
    shares = torch.tensor([[0.5, 0.3, 0.2]]).expand(3, 3)
    m = replace(
        mixed(Contrast(), Drawn(owners, shares), query=features(7, 3)),
        targets={1: features(1, 3)}, samples=3,
    )  # fmt: skip
    parts = [
        RULES[name](replace(m, draw=Drawn(owners[:, [k]], torch.ones(3, 1)))) for k in range(3)
    ]
    torch.testing.assert_close(RULES[name](m), 0.5 * parts[0] + 0.3 * parts[1] + 0.2 * parts[2])


def test_reasons_are_given_where_a_rule_does_not_apply() -> None:
    assert "scalar per batch" in str(RULES["imix"].why_not(Correlate()))
    assert "label" in str(RULES["mixco"].why_not(Regress()))
    assert "scalar per batch" in str(RULES["sdmp"].why_not(Correlate()))
    assert "scalar per batch" in str(RULES["sdmp_released"].why_not(Correlate()))
    assert "probabilities" in str(RULES["sdmp_released"].why_not(Regress()))
    assert "correlation" in str(RULES["mixbt"].why_not(Regress()))
    assert "codes" in str(RULES["swav_released"].why_not(Regress()))
    assert "frozen teacher" in str(RULES["exact"].why_not(Regress()))
    assert RULES["mixbt"].why_not(Correlate()) is None
    assert RULES["swav_released"].why_not(Assign()) is None


def test_unknown_rules_and_numbers_are_refused() -> None:
    with pytest.raises(UserError, match=r"^rule: 'imixx' is unknown. Did you mean 'imix'"):
        rule("imixx")
    with pytest.raises(UserError, match=r'^temperature: is not for `rule="imix"`'):
        rule("imix", temperature=0.1)
    with pytest.raises(UserError, match=r"^MixCo: temperature must be greater than 0"):
        MixCo(temperature=0)
    with pytest.raises(UserError, match=r"^UnMixRule: share must be"):
        rule("unmix", share=-1.0)


NCE = ("moco-nce", "insdis-nce", "cmc-nce", "pirl-nce")


def nce(kind: str, **options: Any) -> Any:
    return (
        build("pirl", contrast="nce", **options) if kind == "pirl-nce" else build(kind, **options)
    )


@pytest.mark.parametrize("kind", NCE)
def test_imix_shares_the_loss_of_nce_which_is_no_softmax(kind: str) -> None:
    """It took the softmax's before, whatever `contrast` was, and Z was never estimated."""
    losses = []
    for name in ("imix", "replace"):
        method = nce(kind).eval()
        losses.append(step(method, views_of(method), RULES[name], global_draw(0.3)).loss.item())
        assert all(z > 0 for n, z in method.named_buffers() if n.endswith("Z"))
    softmax = nce(kind, contrast="softmax") if kind != "pirl-nce" else build("pirl")
    other = step(softmax.eval(), views_of(softmax), RULES["imix"], global_draw(0.3)).loss.item()
    assert losses[0] == losses[1] != pytest.approx(other)


@pytest.mark.parametrize("kind", NCE)
def test_rules_that_soften_a_softmax_are_refused_with_nce(kind: str) -> None:
    """And with what they do is said: the default of InsDis and CMC is NCE."""
    method = nce(kind)
    with pytest.raises(UserError) as error:
        Stepper(method, steps_per_epoch=1, epochs=1, mixture=UnMix(), rule="mixco")
    assert error.value.on_command_line().endswith(
        "its loss is no softmax over samples, so there is no label to soften; with --contrast "
        "softmax it is."
    )
    assert {"mixco", "patchmix", "sdmp_released"} <= {
        name for name, rule in RULES.items() if rule.refusal(method)
    }
