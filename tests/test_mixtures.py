"""Mixtures: what they conserve, what they touch, and that a draw can be replayed anywhere."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unmix import transfer
from unmix.config import MixtureSettings
from unmix.errors import UserError
from unmix.mixtures import (
    Cutout,
    GlobalMixture,
    ImageMixture,
    PairDraw,
    RandomErasing,
    RegionMixture,
    UnMix,
    box_area,
)

OPERATORS = [
    GlobalMixture(),
    RegionMixture(),
    ImageMixture(g_prob=0.5, r_prob=0.5, r_pixel_decay=0.9),
    UnMix(),
    UnMix(per="sample"),
    UnMix(per="sample", pairing="permutation"),
    Cutout(mask_size=7, cutout_p=0.7),
    RandomErasing(random_erasing_prob=0.7),
]
shapes = st.tuples(st.integers(2, 9), st.integers(1, 3), st.integers(2, 24), st.integers(2, 24))
seeds = st.integers(0, 2**31)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images_of(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=seeded(seed + 1))


@pytest.mark.parametrize("operator", OPERATORS, ids=str)
def test_a_draw_replayed_gives_the_same_images_and_leaves_its_input(operator):
    x = images_of((8, 3, 12, 10))
    before = x.clone()
    draw = operator.draw(x.shape, seeded(3))
    first, second = draw.apply(x), draw.apply(x)
    assert torch.equal(first, second)
    assert torch.equal(x, before)
    again = operator.draw(x.shape, seeded(3))
    assert torch.equal(again.apply(x), first)


@pytest.mark.parametrize("operator", OPERATORS, ids=str)
def test_two_views_in_one_call_and_in_two_calls_get_the_same_mixture(operator):
    """Stacking views along the channels, as the released code does, changes nothing."""
    x1, x2 = images_of((8, 3, 12, 10), 1), images_of((8, 3, 12, 10), 2)
    draw = operator.draw(x1.shape, seeded(5))
    stacked = draw.apply(torch.cat([x1, x2], dim=1))
    torch.testing.assert_close(stacked, torch.cat([draw.apply(x1), draw.apply(x2)], dim=1))


@pytest.mark.parametrize("operator", OPERATORS, ids=str)
def test_applying_under_compile_gives_the_same_images(operator):
    x = images_of((6, 3, 8, 8))
    draw = operator.draw(x.shape, seeded(1))
    torch.compiler.reset()  # beyond eight variants it would not be compiled
    compiled = torch.compile(draw.apply, backend="eager")
    torch.testing.assert_close(compiled(x), draw.apply(x))


@pytest.mark.parametrize("operator", OPERATORS, ids=str)
def test_memory_format_and_dtype_stay(operator):
    x = images_of((8, 3, 12, 10)).to(torch.bfloat16, memory_format=torch.channels_last)
    mixed = operator.draw(x.shape, seeded(2)).apply(x)
    assert mixed.dtype == x.dtype
    assert mixed.is_contiguous(memory_format=torch.channels_last)


@settings(max_examples=40, deadline=None)
@given(shapes, seeds)
def test_a_region_mixture_is_made_of_the_two_images_pixels_and_nothing_else(shape, seed):
    x = images_of(shape, seed)
    draw = RegionMixture().draw(shape, seeded(seed))
    mixed, other = draw.apply(x), x[draw.partner]
    own_pixels = (mixed == x).all(dim=1)
    other_pixels = (mixed == other).all(dim=1)
    assert bool((own_pixels | other_pixels).all())
    pasted = (~own_pixels).sum(dim=(1, 2))
    same_image = draw.partner == torch.arange(shape[0])
    area = torch.where(same_image, 0, box_area(draw.box))
    assert torch.equal(pasted, area)
    height, width = shape[2:]
    torch.testing.assert_close(draw.weight, 1 - box_area(draw.box) / (height * width))


@settings(max_examples=40, deadline=None)
@given(shapes, seeds)
def test_a_global_mixture_conserves_the_mean(shape, seed):
    """The mean of a mixture is the weighted mean of the two images' means."""
    x = images_of(shape, seed)
    draw = GlobalMixture().draw(shape, seeded(seed))
    means, weight = x.mean(dim=(1, 2, 3)), draw.weight
    expected = weight * means + (1 - weight) * means[draw.partner]
    torch.testing.assert_close(draw.apply(x).mean(dim=(1, 2, 3)), expected, rtol=1e-4, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(shapes, seeds, st.sampled_from(["batch", "sample"]), st.sampled_from([0.0, 0.5, 1.0]))
def test_unmix_weight_is_the_share_of_own_content(shape, seed, per, prob):
    """On images of ones mixed with zeros the mean of a mixture is the weight itself."""
    draw = UnMix(prob, per=per).draw(shape, seeded(seed))
    n = shape[0]
    for i in range(n):
        if draw.partner[i] == i:
            continue
        x = torch.zeros(shape)
        x[i] = 1
        torch.testing.assert_close(draw.apply(x)[i].mean(), draw.weight[i], atol=1e-5, rtol=1e-5)


def test_unmix_as_published_has_one_weight_one_coin_and_the_batch_reversed():
    kinds = set()
    for seed in range(40):
        draw = UnMix().draw((6, 3, 16, 16), seeded(seed))
        assert draw.partner.tolist() == [5, 4, 3, 2, 1, 0]
        assert len(set(draw.weight.tolist())) == 1
        kinds.add("global" if draw.ratio[0] > 0 else "region")
    assert kinds == {"global", "region"}


def test_unmix_coin_has_its_probability_and_the_published_mean_weights():
    """Global: mean 0.5. Region: 1 - 0.299 at 32 pixels, after clipping."""
    draw = UnMix(0.5, per="sample").draw((40_000, 3, 32, 32), seeded(0))
    is_global = box_area(draw.box) == 32 * 32
    assert is_global.float().mean().item() == pytest.approx(0.5, abs=0.01)
    assert draw.weight[is_global].mean().item() == pytest.approx(0.5, abs=0.01)
    assert draw.weight[~is_global].mean().item() == pytest.approx(0.701, abs=0.01)


def test_image_space_statistics_at_the_defaults():
    """P(untouched) = 0.9 ** 4 = 0.656; rounds a stage are Binomial(2, 0.1)."""
    draw = ImageMixture().draw((60_000, 3, 8, 8), seeded(0))
    assert 1 - draw.is_mixed.float().mean().item() == pytest.approx(0.656, abs=0.006)
    rounds = sum((own.ratio < 1).long() for own in draw.own)
    assert [(rounds == k).float().mean().item() for k in range(3)] == pytest.approx(
        [0.81, 0.18, 0.01], abs=0.006
    )


@pytest.mark.parametrize(("size", "area"), [(224, 0.317), (64, 0.310), (32, 0.299)])
def test_mean_pasted_area_is_the_published_one(size, area):
    draw = RegionMixture().draw((200_000, 3, size, size), seeded(0))
    assert (1 - draw.weight).mean().item() == pytest.approx(area, abs=0.002)


def test_the_march_2020_slip_pastes_always_and_bimodally():
    """method.md a2.1: mean pasted area .29, P(area < 1%) = .33, P(> 50%) = .27 at 224 px."""
    flags = MixtureSettings(IM=True, IM_type="region", r_beta=0.1, r_num=1, r_prob=1.0)
    (region,) = flags.image_space().draw((100_000, 3, 224, 224), seeded(0)).regions
    area = 1 - region.weight
    assert area.mean().item() == pytest.approx(0.29, abs=0.01)
    assert (area < 0.01).float().mean().item() == pytest.approx(0.33, abs=0.01)
    assert (area > 0.5).float().mean().item() == pytest.approx(0.27, abs=0.01)


@settings(max_examples=25, deadline=None)
@given(shapes, seeds, st.integers(0, 3), st.integers(0, 3), st.sampled_from([0.0, 0.3, 1.0]))
def test_image_space_is_its_rounds_one_after_another(shape, seed, g_num, r_num, probability):
    """IM = RM(GM(images)), where what is pasted is itself GM of an image of the batch."""
    x = images_of(shape)
    draw = ImageMixture(
        g_num=g_num, g_prob=probability, r_num=r_num, r_prob=probability, r_pixel_decay=0.8
    ).draw(shape, seeded(seed))
    mixed = x
    for round_ in draw.own:
        mixed = round_.onto(mixed, x)
    for number, (region, rounds) in enumerate(zip(draw.regions, draw.partners, strict=True)):
        if number == 0:
            mixed = mixed * draw.decay[:, None, None, None]
        others = x[region.partner]
        for round_ in rounds:
            others = round_.onto(others, x)
        rows = region.is_mixed.nonzero().squeeze(1)
        mixed = region.blend(mixed, others[rows], rows)
    torch.testing.assert_close(draw.apply(x), mixed)
    touched = draw.is_mixed
    assert torch.equal(draw.apply(x)[~touched], x[~touched])


def test_image_space_copies_its_numbers_to_the_device_twice(monkeypatch):
    """Places and shares: with a copy each, a GPU's step would wait for the host."""
    x, copied = images_of((8, 3, 6, 6)), []
    draw = ImageMixture(g_prob=1.0, r_prob=1.0).draw(x.shape, seeded(0))
    monkeypatch.setattr(transfer, "to_device", lambda t, *how: copied.append(t) or t)
    draw.apply(x)
    assert [each.dtype for each in copied] == [torch.int64, torch.float32]


def test_pixel_decay_acts_only_where_the_first_region_round_fired():
    x = images_of((200, 3, 8, 8))
    draw = ImageMixture(g_num=0, r_prob=0.5, r_num=2, r_pixel_decay=0.5).draw(x.shape, seeded(0))
    mixed = draw.apply(x)
    first = draw.regions[0].ratio < 1
    assert 0 < first.sum() < 200
    untouched_corner = [i for i in range(200) if not first[i] and not draw.regions[1].is_mixed[i]]
    assert torch.equal(mixed[untouched_corner], x[untouched_corner])
    assert torch.equal(draw.decay[first], torch.full((int(first.sum()),), 0.5))


@pytest.mark.parametrize(("height", "width"), [(20, 40), (40, 20)])
def test_cutout_and_erasing_keep_rows_and_columns_apart(height, width):
    """A square that must lie inside does, on images that are not square."""
    x = torch.ones(500, 1, height, width)
    mixed = Cutout(mask_size=20, cutout_p=1, cutout_inside=True).draw(x.shape, seeded(0)).apply(x)
    assert ((mixed == 0).sum(dim=(1, 2, 3)) == 400).all()
    draw = RandomErasing(random_erasing_prob=1.0).draw(x.shape, seeded(0))
    rows, columns = (draw.box[:, 2] - draw.box[:, 0]), (draw.box[:, 3] - draw.box[:, 1])
    assert bool((draw.box[:, 2] <= height).all())
    assert bool((draw.box[:, 3] <= width).all())
    share = box_area(draw.box) / (height * width)
    assert share[draw.is_mixed].max() <= 0.4
    assert rows.max() > columns.max() if height > width else rows.max() < columns.max()


def test_cutout_outside_is_clipped_and_erasing_writes_one_value():
    x = torch.zeros(300, 3, 16, 16) - 5
    mixed = Cutout(mask_size=8, cutout_p=1, mask_color=2).draw(x.shape, seeded(0)).apply(x)
    areas = (mixed == 2).sum(dim=(1, 2, 3)) // 3
    assert areas.max() == 64
    assert areas.min() < 64
    erased = RandomErasing(random_erasing_prob=1).draw(x.shape, seeded(0)).apply(x)
    values = [set(image[image > -5].tolist()) for image in erased]
    assert all(len(value) <= 1 for value in values)
    assert min(v for value in values for v in value) > 0


@pytest.mark.parametrize(("size", "side"), [(224, 50), (96, 21), (64, 14), (32, 7), (8, 2), (1, 1)])
def test_cutout_takes_the_published_share_of_the_side(size, side):
    """50 of 224 pixels; what is given is taken as it is."""
    x = torch.ones(4, 1, size, size)
    draw = Cutout(cutout_p=1, cutout_inside=True).draw(x.shape, seeded(0))
    assert ((draw.box[:, 2:] - draw.box[:, :2]) == side).all()
    assert Cutout(mask_size=50).side(size, size) == 50


@pytest.mark.parametrize("size", [(32, 32), (20, 45)])
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("side", [None, 7, 20, 50])
def test_the_share_that_cutout_erases_is_that_of_its_draws(size, inside, side):
    """The mean of 20,000 draws within 1% of the image, and none above the most."""
    if inside and side == 50:
        return
    cutout = Cutout(mask_size=side, cutout_p=1, cutout_inside=inside)
    top, left, bottom, right = cutout.draw((20_000, 3, *size), seeded(0)).box.T
    shares = ((bottom - top) * (right - left)).double() / (size[0] * size[1])
    mean, most = cutout.erased(*size)
    assert mean == pytest.approx(float(shares.mean()), abs=0.01)
    assert most == pytest.approx(float(shares.max()), abs=1e-6)


def test_mask_size_larger_than_the_image_is_told():
    with pytest.raises(UserError, match=r"mask_size: 50 does not fit inside images of 32 x 32"):
        Cutout(mask_size=50, cutout_inside=True).draw((4, 3, 32, 32))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"g_prob": 1.5}, "g_prob: 1.5 is out of range"),
        ({"g_alpha": 0.0}, "g_alpha: 0 is out of range"),
        ({"r_num": -1}, "r_num: -1 is out of range"),
        ({"unmix_prob": -0.1}, "unmix_prob: -0.1 is out of range"),
        ({"beta": float("nan")}, "beta: nan is out of range"),
        ({"IM_type": "regoin"}, "Did you mean 'region'"),
        ({"area_ratio_range": (0.5, 0.2)}, "area_ratio_range: 0.2 is out of range"),
    ],
)
def test_wrong_flags_are_named(flags, message):
    with pytest.raises(UserError) as caught:
        MixtureSettings(**flags)
    assert message in caught.value.on_command_line()


def test_a_batch_of_one_and_images_of_one_pixel_are_told():
    with pytest.raises(UserError, match="at least 2 images in a batch, not 1"):
        UnMix().draw((1, 3, 8, 8))
    with pytest.raises(UserError, match="a region mixture needs images of at least 2 x 2"):
        RegionMixture().draw((4, 3, 1, 1))
    assert UnMix(1.0).draw((4, 3, 1, 1)).weight.shape == (4,)


def test_the_name_of_a_setting_says_what_is_mixed():
    assert MixtureSettings().name == "none"
    assert MixtureSettings(IM=True, IM_type="region").name == "region"
    assert MixtureSettings(unmix=True).name == "Un-Mix"
    assert MixtureSettings(IM=True, unmix=True).name == "IM + Un-Mix"


def test_a_draw_made_for_other_images_is_refused():
    draw = UnMix().draw((4, 3, 8, 8), seeded(0))
    with pytest.raises(ValueError, match=r"made for \(4, C, 8, 8\)"):
        draw.apply(torch.zeros(5, 3, 8, 8))


def test_a_single_weight_is_a_pair_draw_with_box_and_ratio():
    """The published global mixture by hand: lam x + (1 - lam) flip(x)."""
    x = images_of((4, 3, 5, 7))
    lam = torch.full((4,), 0.3)
    box = torch.tensor([[0, 0, 5, 7]]).expand(4, 4)
    draw = PairDraw(torch.arange(3, -1, -1), box, lam, (5, 7), per_sample=False)
    torch.testing.assert_close(draw.apply(x), 0.3 * x + 0.7 * x.flip(0))
