"""Every label-space mixture is what its owners and shares say, pixel by pixel."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor
from torch.nn import functional

from unmix.errors import UserError
from unmix.mixtures import (
    AttentiveMix,
    CropMix,
    CutMix,
    Cutout,
    DirichletMixture,
    FMix,
    GlobalMixture,
    GridMix,
    ImageMixture,
    ManifoldMixture,
    MaskDraw,
    MixMask,
    MixtureDraw,
    MixtureOperator,
    MixUp,
    Operator,
    PatchMixture,
    RandomErasing,
    RegionMixture,
    RegionSwap,
    ResizeMix,
    SaliencyMix,
    ScaleMix,
    SmoothMix,
    UnMix,
    Weight,
    cutmix,
    mix,
    mixup,
)
from unmix.mixtures.fourier import low_frequency_noise
from unmix.mixtures.pasting import PasteDraw

PAIR_KINDS: dict[str, Any] = {
    "mixup": MixUp,
    "cutmix": CutMix,
    "global": lambda **o: UnMix(1.0, **o),
    "region": lambda **o: UnMix(0.0, **o),
    "coin": UnMix,
    "resizemix": ResizeMix,
    "gridmix": lambda **o: GridMix(cells=2, **o),
    "regionswap": lambda **o: RegionSwap(7, **o),
    "fmix": FMix,
    "mixmask": lambda **o: MixMask(cells=3, **o),
    "smoothmix": SmoothMix,
    "saliencymix": SaliencyMix,
    "attentivemix": AttentiveMix,
    "manifold": lambda **o: ManifoldMixture("layer1", **o),
}
PAIRS = [
    build(per=per, pairing=pairing)
    for build in PAIR_KINDS.values()
    for per in ("batch", "sample")
    for pairing in ("reverse", "permutation", "random", "halves", "neighbor")
]
SEVERAL = [
    operator
    for per in ("batch", "sample")
    for operator in (
        DirichletMixture(per=per),
        DirichletMixture(images=5, alpha=0.3, main_at_least=0, per=per),
        PatchMixture(patch_size=2, per=per),
        PatchMixture(patch_size=2, images=3, per=per),
    )
]
OWN = [
    operator
    for per in ("batch", "sample")
    for operator in (
        ScaleMix(per=per),
        CropMix(per=per),
        CropMix(images=4, operation="region", per=per),
        UnMix(per=per, pairing="second_view"),
        FMix(per=per, pairing="second_view"),
    )
]
ALL = [*PAIRS, *SEVERAL, *OWN]
shapes = st.tuples(st.integers(2, 7), st.just(3), st.integers(2, 8), st.integers(2, 8)).map(
    lambda s: (s[0], s[1], 2 * s[2], 2 * s[3])
)
seeds = st.integers(0, 2**31)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(operator: MixtureOperator, shape: tuple[int, ...], seed: int = 0) -> Any:
    features = torch.randn(shape[0], 5, generator=seeded(seed + 7))
    attention = torch.rand(shape[0], 4, 3, generator=seeded(seed + 8))
    given = features if operator.needs_features else None
    return operator.draw_for(images_of(shape, seed), seeded(seed), given, attention)


def images_of(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=seeded(seed + 1))


def one_hot(n: int, height: int, width: int) -> Tensor:
    """Images of n channels, of which image i has ones in channel i: (n, n, H, W)."""
    return torch.eye(n)[:, :, None, None].expand(n, n, height, width).contiguous()


def by_owner(draw: MixtureDraw, n: int) -> Tensor:
    """The shares of all images of the batch, (M, n), as the draw says."""
    return torch.zeros(len(draw.owners), n).scatter_add(1, draw.owners, draw.shares.float())


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(PAIRS + SEVERAL), shapes, seeds)
def test_shares_are_those_of_the_content_and_sum_to_one(operator, shape, seed):
    """Of one-hot images, the mean of a mixture's channel is that image's share."""
    n, _, height, width = shape
    draw = drawn(operator, shape, seed)
    content = draw.apply(one_hot(n, height, width)).mean(dim=(2, 3))
    torch.testing.assert_close(content, by_owner(draw, n), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(draw.shares.sum(dim=1), torch.ones(len(draw.shares)))
    assert isinstance(draw, MixtureDraw)
    assert torch.equal(draw.owners[:, 0], torch.arange(len(draw.owners)))
    assert torch.equal(draw.owners[:, 1], draw.partner)
    torch.testing.assert_close(draw.shares[:, 0], draw.weight)
    if not draw.per_sample:
        assert torch.equal(draw.shares, draw.shares[:1].expand_as(draw.shares))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(PAIRS + SEVERAL), shapes, seeds)
def test_the_other_owners_pixels_come_from_another_view_if_it_is_given(operator, shape, seed):
    n, _, height, width = shape
    draw = drawn(operator, shape, seed)
    own, shares = one_hot(n, height, width), by_owner(draw, n)
    content = draw.apply(own, (3 * own,)).mean(dim=(2, 3))
    expected = 3 * shares
    expected[torch.arange(len(shares)), torch.arange(len(shares))] -= 2 * draw.weight
    torch.testing.assert_close(content, expected, rtol=1e-5, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(PAIRS + SEVERAL), shapes, seeds, st.integers(1, 6), st.integers(1, 6))
def test_a_resized_draw_has_its_owners_and_the_shares_of_its_own_pixels(
    operator, shape, seed, height, width
):
    n, height, width = shape[0], 2 * height, 2 * width
    draw = drawn(operator, shape, seed)
    small = draw.resized(height, width)
    assert torch.equal(small.owners, draw.owners)
    content = small.apply(one_hot(n, height, width)).mean(dim=(2, 3))
    torch.testing.assert_close(content, by_owner(small, n), rtol=1e-5, atol=1e-5)
    same = draw.resized(*shape[2:])
    assert torch.equal(same.apply(images_of(shape)), draw.apply(images_of(shape)))


@pytest.mark.parametrize(
    "operator", [o for o in PAIRS + SEVERAL if not isinstance(o, PatchMixture)], ids=str
)
def test_a_draw_of_half_the_size_has_nearly_the_same_shares(operator):
    draw = drawn(operator, (6, 3, 96, 64))
    torch.testing.assert_close(draw.resized(48, 32).shares, draw.shares, atol=0.04, rtol=0)


@pytest.mark.parametrize("operator", ALL, ids=str)
def test_the_same_seed_gives_the_same_mixtures_and_the_images_stay(operator):
    x = images_of((6, 3, 8, 10))
    others = [images_of(x.shape, number + 5) for number in range(len(operator.extra))]
    before = x.clone()
    first = drawn(operator, x.shape, 3).apply(x, others)
    assert torch.equal(first, drawn(operator, x.shape, 3).apply(x, others))
    assert torch.equal(x, before)
    assert any(
        not torch.equal(first, drawn(operator, x.shape, seed).apply(x, others))
        for seed in range(4, 9)
    )


@pytest.mark.parametrize("operator", ALL, ids=str)
def test_type_and_memory_format_stay(operator):
    x = images_of((6, 3, 8, 10)).to(torch.bfloat16, memory_format=torch.channels_last)
    others = [x + number for number in range(1, 1 + len(operator.extra))]
    for seed in range(4):
        draw = drawn(operator, x.shape, seed)
        mixed = draw.apply(x, others)
        assert mixed.dtype == torch.bfloat16
        assert mixed.is_contiguous(memory_format=torch.channels_last)
        plain = draw.apply(x.contiguous().float(), [view.float() for view in others])
        assert plain.is_contiguous()
        torch.testing.assert_close(mixed.float(), plain, atol=0.06, rtol=0.02)


@pytest.mark.parametrize("operator", ALL, ids=str)
def test_applying_under_compile_gives_the_same_images(operator):
    x = images_of((4, 3, 8, 8))
    others = [images_of(x.shape, number + 5) for number in range(len(operator.extra))]
    draw = drawn(operator, x.shape, 1)
    torch.compiler.reset()  # beyond eight variants it would not be compiled
    compiled = torch.compile(draw.apply, backend="eager")
    torch.testing.assert_close(compiled(x, others), draw.apply(x, others))


@pytest.mark.parametrize("operator", [FMix(), ResizeMix(per="sample")], ids=str)
def test_inductor_gives_the_same_images(operator):
    x = images_of((4, 3, 8, 8))
    draw = drawn(operator, x.shape, 1)
    torch.testing.assert_close(torch.compile(draw.apply)(x), draw.apply(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("per", ["batch", "sample"])
# The sides of a box that is swapped are of its own distribution.
@pytest.mark.parametrize(
    "kind", sorted(PAIR_KINDS.keys() - {"regionswap", "mixmask", "smoothmix", "attentivemix"})
)
def test_weight_1_leaves_the_images_and_weight_0_replaces_them(kind, per):
    x = images_of((5, 3, 8, 8))
    options: dict[str, Any] = {"per": per, "pairing": "reverse"}
    one = drawn(PAIR_KINDS[kind](**options, weight=Weight("uniform", low=1)), x.shape)
    assert torch.equal(one.apply(x), x)
    assert torch.equal(one.weight, torch.ones(5))
    assert not one.is_mixed.any()
    none = drawn(PAIR_KINDS[kind](**options, weight=Weight("uniform", high=0)), x.shape)
    if kind not in ("region", "coin", "cutmix", "saliencymix"):  # a box of a region is clipped
        torch.testing.assert_close(none.apply(x), x.flip(0))
        assert torch.equal(none.weight, torch.zeros(5))


@pytest.mark.parametrize("kind", PAIR_KINDS)
def test_once_a_batch_or_for_each_sample(kind):
    batch, sample = (
        drawn(PAIR_KINDS[kind](per=per), (8, 3, 16, 16)) for per in ("batch", "sample")
    )
    assert not batch.per_sample
    assert len(set(batch.weight.tolist())) == 1
    assert sample.per_sample
    # Blocks and the most attended cells are one of few numbers of cells.
    assert len(set(sample.weight.tolist())) > (1 if kind in ("mixmask", "attentivemix") else 3)


@pytest.mark.parametrize("kind", PAIR_KINDS)
def test_halves_give_half_as_many_mixtures(kind):
    """MixCo: the first half is mixed with the second; of an odd batch the last is left out."""
    for per in ("batch", "sample"):
        x = images_of((7, 3, 8, 8))
        draw = drawn(PAIR_KINDS[kind](per=per, pairing="halves"), x.shape)
        assert draw.owners.tolist() == [[0, 3], [1, 4], [2, 5]]
        mixed = draw.apply(x)
        assert mixed.shape == (3, 3, 8, 8)
        changed = x.clone()
        changed[6] += 1
        assert torch.equal(draw.apply(changed), mixed)


def test_a_draw_of_halves_refuses_half_a_batch():
    draw = UnMix(pairing="halves").draw((8, 3, 4, 4), seeded())
    with pytest.raises(ValueError, match=r"made for \(8, C, 4, 4\)"):
        draw.apply(torch.zeros(4, 3, 4, 4))
    with pytest.raises(ValueError, match=r"made for \(8, C, 4, 4\)"):
        draw.apply(torch.zeros(8, 3, 4, 4), [torch.zeros(8, 3, 4, 5)])


def test_unmix_draws_what_it_always_drew():
    """Bit for bit: weight, coin, centre, in this order, from one uniform number each."""
    for seed in range(20):
        draw = UnMix().draw((6, 3, 20, 30), seeded(seed))
        numbers = seeded(seed)
        lam = torch.rand(1, generator=numbers)
        is_global = bool(torch.rand(1, generator=numbers) < 0.5)
        row, column = (torch.rand(1, 2, generator=numbers) * torch.tensor([20, 30])).long()[0]
        if is_global:
            assert torch.equal(draw.weight, lam.expand(6))
            continue
        root = float(np.sqrt(1 - float(lam)))
        half = (int(20 * root) // 2, int(30 * root) // 2)
        box = [max(row - half[0], 0), max(column - half[1], 0)]
        box += [min(row + half[0], 20), min(column + half[1], 30)]
        assert draw.box[0].tolist() == [int(edge) for edge in box]


# --- laws -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weight", "law"),
    [
        (Weight(), stats.uniform()),
        (Weight(alpha=0.4), stats.beta(0.4, 0.4)),
        (Weight("uniform", low=0.1, high=0.9), stats.uniform(0.1, 0.8)),
        (Weight(larger=True), stats.uniform(0.5, 0.5)),
    ],
)
def test_weights_follow_their_law(weight, law):
    assert stats.kstest(weight.draw(20_000, seeded()).numpy(), law.cdf).pvalue > 0.001


def test_the_larger_of_a_beta_weight_is_folded():
    lam = Weight(alpha=0.5, larger=True).draw(20_000, seeded()).numpy()
    law = stats.beta(0.5, 0.5)
    assert stats.kstest(lam, lambda x: law.cdf(x) - law.cdf(1 - x)).pvalue > 0.001


@pytest.mark.parametrize(("k", "alpha", "floor"), [(3, 1.0, 0.5), (4, 0.5, 0.0)])
def test_dirichlet_shares_follow_their_law(k, alpha, floor):
    """The marginals of Dirichlet(alpha, ..., alpha) are Beta(alpha, (k - 1) alpha)."""
    draw = DirichletMixture(k, alpha, floor).draw((8000, 3, 1, 1), seeded())
    law = stats.beta(alpha, (k - 1) * alpha)
    own = ((draw.shares[:, 0] - floor) / (1 - floor)).numpy()
    assert stats.kstest(own, law.cdf).pvalue > 0.001
    other = (draw.shares[:, 2] / (1 - floor)).numpy()
    assert stats.kstest(other, law.cdf).pvalue > 0.001
    assert draw.weight.min() >= floor - 1e-6


def test_resizemix_sides_follow_the_papers_law():
    draw = ResizeMix(per="sample").draw((20_000, 3, 500, 250), seeded())
    sides = (draw.box[:, 2:] - draw.box[:, :2]) / torch.tensor([500, 250])
    assert stats.kstest(sides[:, 0].numpy() + 0.001, stats.uniform(0.1, 0.7).cdf).pvalue > 0.001
    torch.testing.assert_close(sides[:, 0], sides[:, 1], atol=0.004, rtol=0)
    free = 500 - (draw.box[:, 2] - draw.box[:, 0])
    place = (draw.box[:, 0] / (free + 1)).numpy()
    assert place.mean() == pytest.approx(0.5, abs=0.01)
    assert draw.box.min() >= 0
    assert bool((draw.box[:, 2:] <= torch.tensor([500, 250])).all())


@pytest.mark.parametrize("side", [(32, 32), (15, 22)])
def test_fmix_keeps_lambda_of_the_image_to_a_pixel(side):
    generator = seeded(3)
    lam = Weight().draw(64, seeded(3))
    draw = FMix(per="sample").draw((64, 3, *side), generator)
    torch.testing.assert_close(draw.weight, lam, atol=0.51 / (side[0] * side[1]), rtol=0)


def test_fmix_noise_has_the_papers_spectrum():
    """E|F(f)|^2 falls as f^-6, seen by the Fourier transform of what was drawn."""
    noise = low_frequency_noise(4000, 16, 16, 3.0, seeded())
    power = torch.fft.fft2(noise).abs().square().mean(dim=0)
    rows, columns = np.meshgrid(np.fft.fftfreq(16), np.fft.fftfreq(16), indexing="ij")
    frequency = np.maximum(np.hypot(rows, columns), 1 / 16)
    # The columns 0 and 8 of a real transform are their own mirror images, with half the power.
    inner = np.s_[1:8, 1:8]
    ratio = power.numpy()[inner] * frequency[inner] ** 6
    assert ratio.std() / ratio.mean() < 0.05


def test_fmix_masks_have_few_pieces_and_smooth_outlines():
    """Neighbouring pixels differ far more seldom than in a mask of white noise."""
    mask = FMix(weight=Weight("uniform", 1.0, 0.5, 0.5)).draw((2, 3, 64, 64), seeded()).mask
    assert (mask[:, 1:] != mask[:, :-1]).float().mean() < 0.1


# --- what is pasted ---------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(shapes, seeds, st.sampled_from(["batch", "sample"]))
def test_resizemix_pastes_the_partner_as_pytorch_resizes_it(shape, seed, per):
    x = images_of(shape, seed)
    draw = ResizeMix(per=per).draw(shape, seeded(seed))
    mixed = draw.apply(x)
    for image, own, partner, (top, left, bottom, right) in zip(
        mixed, x, x[draw.partner], draw.box.tolist(), strict=True
    ):
        expected = own.clone()
        # Rows and columns apart: PyTorch 2.14 repeats the first row where the new width is 1.
        for size in ((bottom - top, shape[3]), (bottom - top, right - left)):
            partner = functional.interpolate(
                partner.view(1, 3, -1, shape[3]), size, mode="bilinear", antialias=True
            )[0]
        expected[:, top:bottom, left:right] = partner
        torch.testing.assert_close(image, expected, atol=1e-5, rtol=1e-5)


def test_resizemix_is_exact_under_autocast():
    x = images_of((4, 3, 16, 16))
    draw = ResizeMix(per="sample").draw(x.shape, seeded())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(draw.apply(x), draw.apply(x).float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = draw.apply(x)
    torch.testing.assert_close(inside, draw.apply(x))


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 5), st.integers(5, 20), st.integers(5, 20), seeds)
def test_gridmix_has_whole_cells(cells, height, width, seed):
    x = images_of((3, 2, height, width), seed)
    draw = GridMix(cells=cells, per="sample").draw(x.shape, seeded(seed))
    rows = [round(i * height / cells + 0.4999) for i in range(cells + 1)]
    columns = [round(i * width / cells + 0.4999) for i in range(cells + 1)]
    lam = Weight().draw(3, seeded(seed))
    for mixture, own, partner, weight in zip(
        draw.apply(x), x, x[draw.partner], lam.tolist(), strict=True
    ):
        pasted = 0
        for top, bottom in itertools.pairwise(rows):
            for left, right in itertools.pairwise(columns):
                cell = (slice(None), slice(top, bottom), slice(left, right))
                is_own = torch.equal(mixture[cell], own[cell])
                assert is_own or torch.equal(mixture[cell], partner[cell])
                pasted += not is_own
        if not torch.equal(own, partner):
            assert pasted == pytest.approx((1 - weight) * cells**2, abs=0.501)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 7), st.integers(2, 4), st.integers(1, 3), seeds)
def test_patches_are_whole_and_dealt_out_evenly(n, k, patch, seed):
    x = images_of((n, 2, 3 * patch, 4 * patch), seed)
    for per in ("batch", "sample"):
        draw = PatchMixture(patch, k, per).draw(x.shape, seeded(seed))
        each = 12 // k
        assert torch.allclose(draw.shares[:, 1:], torch.tensor(each / 12))
        mixed = draw.apply(x).unfold(2, patch, patch).unfold(3, patch, patch)
        cut = x.unfold(2, patch, patch).unfold(3, patch, patch)
        patches = draw.patches.expand(n, 3, 4)
        for i in range(n):
            for row in range(3):
                for column in range(4):
                    owner = draw.owners[i, patches[i, row, column]]
                    assert torch.equal(mixed[i, :, row, column], cut[owner, :, row, column])


def test_a_patch_mixture_resized_keeps_its_patches_whole():
    draw = PatchMixture(4).draw((3, 3, 32, 32), seeded())
    small = draw.resized(12, 16)
    assert small.patches.shape == (1, 3, 4)
    assert small.patch_size == 4
    assert torch.equal(small.owners, draw.owners)


def test_sums_are_the_sums_of_the_papers_formula():
    """InputMix: lambda' = 0.5 lambda, and the sample itself has 0.5 more."""
    x = images_of((6, 3, 4, 4))
    draw = DirichletMixture(3, per="sample").draw(x.shape, seeded())
    expected = sum(draw.shares[:, j, None, None, None] * x[draw.owners[:, j]] for j in range(3))
    torch.testing.assert_close(draw.apply(x), expected)
    assert draw.resized(9, 9).apply(x.repeat(1, 1, 2, 2)[:, :, :5, :5]).shape == (6, 3, 5, 5)


# --- several views of one image ---------------------------------------------------------------


@pytest.mark.parametrize("operator", OWN, ids=str)
def test_a_mixture_of_ones_own_views_is_all_ones_own(operator):
    x = images_of((5, 3, 8, 8))
    others = [images_of(x.shape, number + 5) for number in range(len(operator.extra))]
    draw = drawn(operator, x.shape)
    assert isinstance(draw, MixtureDraw)
    assert draw.owners.tolist() == [[i, i] for i in range(5)]
    assert torch.equal(draw.weight, torch.ones(5))
    assert draw.shares.tolist() == [[1, 0]] * 5
    assert not draw.per_sample
    with pytest.raises(UserError, match="others: this mixture is of several views of an image"):
        draw.apply(x)
    mixed = draw.apply(x, others)
    changed = [view.clone() for view in others]
    for view in changed:
        view[2] += 1
    moved = (draw.apply(x, changed) != mixed).flatten(1).any(dim=1)
    assert not moved[[0, 1, 3, 4]].any()
    small = [view[:, :, :4, :4] for view in (x, *others)]
    assert draw.resized(4, 4).apply(small[0], small[1:]).shape == (5, 3, 4, 4)


def test_scalemix_pastes_a_box_of_the_second_crop():
    x, y = images_of((300, 1, 12, 12)), images_of((300, 1, 12, 12), 5)
    draw = ScaleMix().draw(x.shape, seeded())
    mixed = draw.apply(x, (y,))
    assert bool(((mixed == x) | (mixed == y)).all())
    for image, other, (top, left, bottom, right) in zip(
        mixed, y, draw.pairs.box.tolist(), strict=True
    ):
        inside = image == other
        assert int(inside.sum()) == (bottom - top) * (right - left)
        assert inside[:, top:bottom, left:right].all()


@pytest.mark.parametrize("k", [2, 3, 4])
def test_cropmix_asks_for_crops_of_equal_ranges_and_mixes_them_in_any_order(k):
    operator = CropMix(images=k, per="sample")
    lows, highs = zip(*operator.extra, strict=True)
    assert lows[0] == 0.01
    assert highs[-1] == 1
    assert lows[1:] == highs[:-1]
    np.testing.assert_allclose(np.subtract(highs, lows), 0.99 / k)
    n = 200
    crops = [torch.full((n, 3, 2, 2), 10.0**number) for number in range(k)]
    draw = operator.draw((n, 3, 2, 2), seeded())
    mixed = draw.apply(torch.zeros(n, 3, 2, 2), crops)
    expected = torch.empty(n)
    for i in range(n):
        order = draw.order[i].tolist()
        value = 10.0 ** order[0]
        for number, round_ in enumerate(draw.rounds):
            lam = float(round_.ratio[i])
            value = lam * value + (1 - lam) * 10.0 ** order[number + 1]
        expected[i] = value
    torch.testing.assert_close(mixed[:, 0, 0, 0], expected, rtol=1e-4, atol=1e-4)
    assert len({tuple(row) for row in draw.order.tolist()}) == [2, 6, 24][k - 2]
    law = stats.beta(0.4 / k, 0.4 / k)
    lam = Weight(alpha=0.4 / k).draw(5000, seeded()).double().numpy().clip(1e-12, 1 - 1e-7)
    assert np.quantile(lam, 0.25) == pytest.approx(law.ppf(0.25), abs=0.02)


def test_cropmix_permutes_the_channels_of_what_comes_in():
    x = images_of((40, 3, 6, 6))
    draw = CropMix(operation="region", permute=True, per="sample").draw(x.shape, seeded())
    crops = (x, x)
    mixed = draw.apply(x, crops)
    assert not torch.equal(mixed, x)
    torch.testing.assert_close(mixed.sum(dim=1), x.sum(dim=1))
    for image, own, order, (top, left, bottom, right) in zip(
        mixed, x, draw.channels[0], draw.rounds[0].box.tolist(), strict=True
    ):
        expected = own.clone()
        expected[:, top:bottom, left:right] = own[order][:, top:bottom, left:right]
        assert torch.equal(image, expected)


def test_cropmix_refuses_another_number_of_crops():
    x = images_of((4, 3, 6, 6))
    with pytest.raises(ValueError, match="mixes 3 crops of each image, not 2"):
        CropMix(images=3).draw(x.shape, seeded()).apply(x, (x, x))


def test_mixtures_of_pairs_ask_for_a_second_view_only_where_it_is_mixed_in():
    assert UnMix().extra == ()
    assert UnMix(pairing="second_view").extra == (None,)
    assert ScaleMix().extra == (None,)
    assert not FMix().needs_features
    assert FMix(pairing="neighbor").needs_features


# --- other draws of another size --------------------------------------------------------------


@pytest.mark.parametrize("operator", [ImageMixture(0.7, 2, 0.5, 1.0, 2, 0.5), Cutout(4, 1.0)])
def test_image_space_draws_can_be_resized(operator):
    """On images of blocks, mixing and shrinking can change places but for the boxes' rounding."""
    x = torch.randn(8, 3, 4, 4, generator=seeded()).repeat_interleave(4, 2).repeat_interleave(4, 3)
    draw = operator.draw(x.shape, seeded(1))
    assert torch.equal(draw.resized(16, 16).apply(x), draw.apply(x))
    large = draw.resized(32, 32).apply(x.repeat_interleave(2, 2).repeat_interleave(2, 3))
    assert torch.equal(large[:, :, ::2, ::2], draw.apply(x))


def test_boxes_are_scaled_to_the_nearest_pixel():
    box = torch.tensor([[0, 0, 224, 224], [3, 112, 100, 150]])
    draw = PasteDraw(torch.tensor([1, 0]), box, (224, 224), True, 2).resized(96, 48)
    assert draw.box.tolist() == [[0, 0, 96, 48], [1, 24, 43, 32]]


def test_masks_take_the_nearest_pixel_as_pytorch_does():
    mask = torch.rand(2, 13, 9, generator=seeded()) < 0.5
    small = MaskDraw(torch.tensor([1, 0]), mask, 2).resized(5, 7).mask
    expected = functional.interpolate(mask[None].float(), (5, 7), mode="nearest-exact")
    assert torch.equal(small, expected[0].bool())


# --- the interface ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "operator", [*ALL, GlobalMixture(), RegionMixture(), ImageMixture(), Cutout(), RandomErasing()],
    ids=str,
)  # fmt: skip
def test_every_operator_is_of_one_base_and_describes_itself(operator):
    assert isinstance(operator, Operator)
    assert operator.describe()
    assert "\n" not in operator.describe()
    if operator in ALL:
        assert isinstance(operator, MixtureOperator)
        assert operator.per in ("batch", "sample")
        assert operator.one_draw.startswith("one ")
        assert dataclasses.replace(operator, per="sample").per == "sample"


def test_one_call_mixes_a_batch_and_returns_the_draw():
    """MixUp is lambda x_i + (1 - lambda) x_j, CutMix x_j within a box; the draw says which."""
    x = torch.rand(6, 3, 8, 8, generator=seeded())
    mixed, draw = mixup(x, alpha=0.4, generator=seeded(1))
    lam = draw.weight.view(-1, 1, 1, 1)
    torch.testing.assert_close(mixed, lam * x + (1 - lam) * x[draw.partner])
    assert len(lam.unique()) == 1
    assert torch.equal(mixed, mixup(x, alpha=0.4, generator=seeded(1))[0])
    mixed, draw = cutmix(x, per="sample", pairing="reverse", generator=seeded(2))
    pasted = (mixed == x.flip(0)).all(dim=1)
    torch.testing.assert_close(draw.weight, 1 - pasted.float().mean(dim=(1, 2)))
    assert torch.equal(torch.where(pasted[:, None], x.flip(0), x), mixed)
    mixed, draw = mix(x, FMix(), seeded(3))
    assert torch.equal(mixed, FMix().draw(x.shape, seeded(3)).apply(x))
    with pytest.raises(UserError, match=r"^MixUp: alpha must be greater than 0, got 0"):
        mixup(x, alpha=0)


@pytest.mark.parametrize(
    ("old", "present"),
    [
        (lambda: UnMix(unmix_prob=0.2, beta=0.4), UnMix(0.2, alpha=0.4)),
        (lambda: Weight(law="beta", beta=0.4), Weight(alpha=0.4)),
        (lambda: RegionMixture(beta=0.4), CutMix(0.4, "sample", "random")),
        (lambda: GlobalMixture(0.4), MixUp(0.4, "sample", "random")),
        (lambda: FMix(pairing="neighbour"), FMix(pairing="neighbor")),
    ],
)
def test_old_names_of_parameters_and_operators_work(old, present):
    assert dataclasses.asdict(old()) == dataclasses.asdict(present)


def test_an_old_name_beside_the_present_one_is_refused():
    with pytest.raises(TypeError, match="UnMix: beta is the old name of alpha"):
        UnMix(alpha=0.2, beta=0.3)
    with pytest.raises(TypeError, match="old name"):
        dataclasses.replace(UnMix(alpha=0.2), beta=0.3)


def test_two_distributions_of_lambda_are_refused():
    with pytest.raises(UserError, match="both say how lambda is distributed"):
        MixUp(alpha=0.4, weight=Weight("uniform"))


def test_random_partners_are_uniform_over_the_batch_self_included():
    partner = MixUp(pairing="random").draw((8, 3, 2, 2), seeded()).partner
    counts = torch.stack(
        [MixUp(pairing="random").draw((8, 3, 2, 2), seeded(k)).partner for k in range(500)]
    )
    assert partner.shape == (8,)
    assert stats.chisquare(counts.flatten().bincount(minlength=8).numpy()).pvalue > 1e-3
    assert 0.09 < float((counts == torch.arange(8)).float().mean()) < 0.16


# --- bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Weight("betta"), "Weight: distribution: 'betta' is unknown. Did you mean 'beta'?"),
        (lambda: Weight(alpha=0), "Weight: alpha must be greater than 0, got 0"),
        (
            lambda: Weight("uniform", low=0.5, high=0.2),
            "Weight: high must be at least 0.5 and at most 1, got 0.2",
        ),
        (lambda: FMix(pairing="revers"), "FMix: pairing: 'revers' is unknown. Did you mean"),
        (lambda: GridMix(per="image"), "GridMix: per: 'image' is unknown."),
        (lambda: GridMix(cells=1), "GridMix: cells must be at least 2, got 1"),
        (
            lambda: ResizeMix(tau=(0.5, 0.2)),
            "ResizeMix: tau must be at least 0.5 and at most 1, got 0.2",
        ),
        (lambda: PatchMixture(images=1), "PatchMixture: images must be at least 2, got 1"),
        (lambda: DirichletMixture(images=1), "DirichletMixture: images must be at least 2"),
        (lambda: CropMix(images=5), "CropMix: images must be at least 2 and at most 4, got 5"),
        (
            lambda: ManifoldMixture("layer1", pairing="second_view"),
            "ManifoldMixture: pairing: second_view mixes pixels of two views",
        ),
        (
            lambda: PatchMixture(16).draw((4, 3, 40, 40)),
            "PatchMixture: patch_size: patches of 16 pixels do not divide images of 40 x 40; use "
            "that of the transformer, such as 10.",
        ),
        (
            lambda: PatchMixture(16, images=5).draw((4, 3, 32, 32)),
            "PatchMixture: images: 5 images cannot share the 4 patches of images of 32 x 32 pixels",
        ),
        (
            lambda: GridMix(cells=8).draw((4, 3, 6, 6)),
            "GridMix: size: a grid of 8 x 8 cells needs images of at least as many pixels, not 6",
        ),
        (lambda: FMix().draw((1, 3, 8, 8)), "batch_size: a mixture needs at least 2 images"),
    ],
)
def test_mistakes_are_told_in_one_line(build, message):
    with pytest.raises(UserError) as caught:
        build()
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
