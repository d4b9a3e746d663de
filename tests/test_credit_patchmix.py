"""PatchMix's soft targets against its code's, and DACL's mixup noise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from harness import N, build, step, views_of
from unmix.credit import RULES, Mixed
from unmix.credit.patchmix import Among
from unmix.errors import UserError
from unmix.methods.base import InstanceDiscrimination
from unmix.mixtures import MixupNoise, PairDraw, PatchDraw, PatchMixture
from unmix.mixtures.draws import whole_image
from unmix.randomness import generator_for
from unmix.step import mix_views


def cyclic(m: int) -> PatchDraw:
    """Mixture i has images i to i + m - 1, in equal parts of 4 x 4 patches, as in the code."""
    owners = (torch.arange(N)[:, None] + torch.arange(m)) % N
    patches = (torch.arange(16) % m).view(1, 4, 4)
    return PatchDraw(owners, patches, 4)


@pytest.mark.parametrize("m", [2, 4])
def test_targets_among_mixtures_are_the_released_ones(m: int) -> None:
    """Weights (1 - |m - 1 - k| / m) / m of mixtures i - m + 1 + k, k from 0 to 2 m - 2."""
    ids = torch.arange(N).view(-1, 1)
    mix_target = ((ids - m + 1) + torch.arange(m * 2 - 1) + N) % N
    weights = (1.0 - (m - torch.arange(m * 2 - 1) - 1).abs() / m) / m
    expected = torch.zeros(N, N).scatter_(1, mix_target, weights.expand(N, -1))
    torch.testing.assert_close(Among.of(cyclic(m), N).shares, expected)
    torch.testing.assert_close(expected.sum(dim=1), torch.ones(N))


@pytest.mark.parametrize("m", [2, 4])
def test_the_loss_is_half_of_each_soft_cross_entropy(m: int) -> None:
    """MoCo v3: 2 T times the cross-entropy with keys of images, and with keys of mixtures."""
    method = build("mocov3").eval()
    views, draw = views_of(method), cyclic(m)
    found = step(method, views, RULES["patchmix"], draw)  # type: ignore[arg-type]
    mixed = [draw.apply(view) for view in views]
    with torch.no_grad():
        q = F.normalize(method.query(mixed[0]), dim=1)
        generator, index = torch.Generator(), torch.arange(N)
        k = F.normalize(method.targets(views, {}, index, generator)[1], dim=1)
        m_k = F.normalize(method.targets(mixed, {}, index, generator)[1], dim=1)
    images = torch.zeros(N, N).scatter_(1, draw.owners, 1 / m)
    T: Any = method.T
    losses = [
        F.cross_entropy(q @ keys.T / T, labels)
        for keys, labels in ((k, images), (m_k, Among.of(draw, N).shares))
    ]
    # Both directions of the clean loss are this mixture's, as for the other rules.
    expected = 2 * T * 2 * (losses[0] + losses[1]) / 2
    assert found.mixed is not None
    torch.testing.assert_close(found.mixed, expected, rtol=1e-5, atol=1e-6)
    assert found.clean is not None
    assert RULES["patchmix"].mixture == PatchMixture()


def test_by_halves_the_second_process_counts_its_mixtures_and_not_its_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Half as many mixtures as images are gathered of each process, in their order."""

    class Gathered:
        """The targets of the other process come before or after this one's."""

        T, softmax_loss = 0.3, InstanceDiscrimination.softmax_loss
        logits, before = InstanceDiscrimination.logits, False

        def similarities(self, query: Tensor, target: Tensor) -> tuple[Tensor]:
            both = [target.flip(0).roll(1, 1), target]
            return (query @ torch.cat(both if self.before else both[::-1]).T,)

    draw = PairDraw(
        torch.arange(4) + 4, whole_image(4, 4, 4), torch.full((4,), 0.3), (4, 4), batch=8
    )
    rows = F.normalize(torch.randn(3, 8, 5, generator=generator_for(1)), dim=2)
    targets, method = {1: rows[1]}, Gathered()
    mixed = Mixed(
        method, draw, rows[0, :4], {}, targets, ((0, 1, 1.0),), lambda: {1: rows[2, :4]}, 8
    )
    first = RULES["patchmix"](mixed)
    method.before = True
    monkeypatch.setattr("unmix.credit.sharing.rank", lambda: 1)
    torch.testing.assert_close(RULES["patchmix"](mixed), first)


def test_it_needs_labels() -> None:
    assert "no label to soften" in str(RULES["patchmix"].why_not(build("byol")))
    assert "sample id" in str(RULES["patchmix"].why_not(build("insdis")))


def test_noise_is_apart_for_every_view_and_the_partner_is_another_image() -> None:
    views = [torch.randn(8, 3, 6, 6), torch.randn(8, 3, 6, 6), torch.randn(8, 3, 3, 3)]
    draw = MixupNoise(0.7).draw(views[0].shape, generator_for(3))
    mixed = mix_views(draw, views)
    pairs = [draw.of_view(v).resized(*view.shape[2:]).pairs for v, view in enumerate(views)]
    for view, found, pair in zip(views, mixed, pairs, strict=True):
        w = pair.ratio.view(-1, 1, 1, 1)
        torch.testing.assert_close(found, w * view + (1 - w) * view[pair.partner])
        assert (pair.partner != torch.arange(8)).all()
        assert ((w >= 0.7) & (w <= 1)).all()
    assert not torch.equal(pairs[0].ratio, pairs[1].ratio)
    again = mix_views(draw, views)
    assert all(torch.equal(a, b) for a, b in zip(mixed, again, strict=True))
    many = MixupNoise(0.9).draw((2000, 3, 2, 2), generator_for(0)).pairs
    assert abs(many.ratio.mean().item() - 0.95) < 0.005
    two = MixupNoise().draw((2, 3, 2, 2), generator_for(0)).pairs
    assert two.partner.tolist() == [1, 0]


def test_noise_out_of_range_is_refused() -> None:
    with pytest.raises(UserError, match="dacl_alpha"):
        MixupNoise(1.5)
    assert MixupNoise(1.0).mixed_fraction == 0
