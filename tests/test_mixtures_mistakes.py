"""What a draw, `mix` and `shared_loss` refuse, so that nothing is mixed or weighted wrongly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

import unmix
from unmix import UserError, shared_loss

X = torch.rand(6, 3, 8, 8)
Q, T = torch.rand(6, 4), torch.rand(6, 4)


def distance(q, t):
    return (q - t).square().mean(dim=1)


@pytest.mark.parametrize("per", ["batch", "sample"])
@pytest.mark.parametrize(
    ("loss", "shape"),
    [
        (lambda q, t: distance(q, t)[:, None], r"\(6, 1\)"),
        (lambda q, t: q @ t.T, r"\(6, 6\)"),
        (lambda q, t: distance(q, t)[:2], r"\(2,\)"),
    ],
)
def test_a_loss_of_another_shape_is_not_broadcast(loss, shape, per):
    """(6, 1) by six weights gave a matrix, whose mean weighs every loss by the mean weight."""
    draw = unmix.MixUp(per=per).draw(X.shape)
    with pytest.raises(UserError, match=rf"loss: it gives {shape} for 6 mixtures.*\(6,\)"):
        shared_loss(loss, Q, T, draw)


def test_a_scalar_of_one_dimension_is_a_scalar():
    """Times six weights it was six losses: each with the mean of the weights."""

    def loss(q, t):
        return functional.mse_loss(q, t)[None]

    draw = unmix.MixUp().draw(X.shape)
    expected = shared_loss(functional.mse_loss, Q, T, draw)
    torch.testing.assert_close(shared_loss(loss, Q, T, draw), expected)
    with pytest.raises(UserError, match="a scalar loss per batch needs one weight per batch"):
        shared_loss(loss, Q, T, unmix.MixUp(per="sample").draw(X.shape))


@pytest.mark.parametrize(
    "operator",
    [unmix.UnMix(), unmix.FMix(), unmix.ResizeMix(), unmix.DirichletMixture(), unmix.MixUp()],
    ids=str,
)
def test_a_target_has_a_row_for_each_image(operator):
    """Of both views' targets in one tensor, the first six rows were taken."""
    draw = operator.draw(X.shape)
    for rows in (torch.cat([T, T]), T[:3], {"a": T, "b": [torch.cat([T, T])]}):
        with pytest.raises(UserError, match=r"target: \((12|3), 4\) where 6 images were mixed"):
            shared_loss(lambda q, t: q.mean(1), Q, rows, draw)
    shared_loss(distance, Q[:3], T, unmix.MixUp(pairing="halves").draw(X.shape))


def test_what_is_no_draw_or_no_loss_is_named():
    draw = unmix.UnMix().draw(X.shape)
    with pytest.raises(UserError, match="loss: the first argument is the loss"):
        shared_loss(Q, functional.mse_loss, T, draw)
    for given in (unmix.UnMix(), unmix.ImageMixture().draw(X.shape)):
        with pytest.raises(UserError, match=r"draw: a \w+ says nobody's share"):
            shared_loss(functional.mse_loss, Q, T, given)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: unmix.UnMix().draw(X), "shape: give that of the images, images.shape"),
        (lambda: unmix.mixup(X[0]), r"shape: \(3, 8, 8\); a draw is for a batch"),
        (lambda: unmix.Cutout().draw(X[0].shape), r"shape: \(3, 8, 8\); a draw is for a batch"),
        (lambda: unmix.mixup(X.numpy()), "images: ndarray; give a tensor"),
        (lambda: unmix.UnMix().draw(X.shape).apply(X.numpy()), "a tensor .* not to ndarray"),
        (
            lambda: unmix.UnMix().draw(X.shape).apply(X, X),
            r"others: is a list of views, .*view\]",
        ),
        (lambda: unmix.mix(X, unmix.UnMix), "operator: UnMix is no mixture; .* unmix.UnMix()"),
        (lambda: unmix.mix(X, unmix.Cutout()), "operator: Cutout is of image space"),
        (lambda: unmix.mix(X, unmix.ScaleMix()), r"operator: ScaleMix\(\) as given needs further"),
        (lambda: unmix.mix(X, unmix.ManifoldMixture("layer1")), "needs a layer's output"),
        (lambda: unmix.mix(X, unmix.AttentiveMix()), "needs attention"),
        (lambda: unmix.mixup(X, pairing="neighbor"), "needs features"),
        (lambda: unmix.mixup(X, generator=0), "generator: 0 is none of PyTorch"),
        (lambda: unmix.mixup(X, generator=np.random.default_rng(0)), "is none of PyTorch"),
        (lambda: unmix.mixup(X, "1"), "MixUp: alpha must be a number, got '1'"),
        (lambda: unmix.MixUp(weight=0.3), "MixUp: weight: 0.3 is no distribution of lambda"),
        (lambda: unmix.GridMix(cells=2.5), "GridMix: cells must be a whole number, got 2.5"),
        (lambda: unmix.ResizeMix(tau=0.3), "ResizeMix: tau must be 2 numbers, got 0.3"),
        (lambda: unmix.RandomErasing(0.3), "area_ratio_range must be 2 numbers, got 0.3"),
    ],
)
def test_mistakes_are_told_in_a_line(call, says):
    with pytest.raises(UserError, match=says) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("operator", [unmix.ScaleMix(), unmix.CutMix(), unmix.DirichletMixture()])
@pytest.mark.parametrize("other", [(255 * X).to(torch.uint8), X[:, :1]])
def test_views_in_other_units_or_channels_are_not_mixed_in(operator, other):
    """Pixels to 255 were pasted into normalized images, and gray was spread over the colors."""
    draw = operator.draw(X.shape)
    with pytest.raises(UserError, match=r"others: .* views are of the same units and channels"):
        draw.apply(X, [other])
    with pytest.raises(UserError, match=r"others: torch.float32 .* images are torch.uint8"):
        draw.apply((255 * X).to(torch.uint8), [X])


def test_a_color_is_written_into_tensors_alone():
    with pytest.raises(UserError, match=r"images: a draw is applied to a tensor .* not to list"):
        unmix.Cutout().draw(X.shape).apply([X])


def test_a_fixed_lambda_is_a_distribution():
    draw = unmix.MixUp(weight=unmix.Weight("uniform", low=0.3, high=0.3)).draw(X.shape)
    torch.testing.assert_close(draw.weight, torch.full((6,), 0.3))
    assert unmix.GridMix(cells=np.int64(2)).cells == 2  # numbers of NumPy are numbers


def test_masks_are_mixed_where_most_of_the_weight_is():
    """By the draw that mixed their images; PyTorch has no limits of bool."""
    draw = unmix.MixUp(weight=unmix.Weight("uniform", low=0.7, high=0.7)).draw(X.shape)
    mask = X[:, :1] > 0
    assert torch.equal(draw.apply(mask), mask)
    box = unmix.CutMix().draw(X.shape)
    assert torch.equal(box.apply(mask), box.apply(mask.float()) > 0.5)
