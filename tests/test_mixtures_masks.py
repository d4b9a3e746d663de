"""MixMask's masks, as its released code draws them, and its loss."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import unmix
from harness import Reading, build, views_of
from unmix.backbones import HalfEncoders, attention_map
from unmix.errors import UserError
from unmix.mixtures import (
    AttentiveMix,
    MaskDraw,
    MixMask,
    SaliencyMix,
    SmoothMix,
    Weight,
    spectral_residual,
)
from unmix.mixtures.mixmask import block_mask
from unmix.step import Mixture, objective

# The first five masks of the released code's MaskingGenerator(cells, int(lam * cells**2)), after
# random.seed(7); bits by row (kirill-vish/MixMask, commit 392a0e7, utils.py).
RELEASED = {
    (8, 0.5): ["dfdf0e0c08fcfc00", "f8fcf83838007c7c", "7f7f0e0f0f0f0700", "06067f7e763e3e",
               "1c7fcf0f0f0f0f00"],
    (4, 0.5): ["ee88", "ff00", "30e7", "3333", "4dd8"],
    (8, 0.3): ["c0c00c0c08f8f800", "3003838707878", "313137333300", "2038f8f83818", "f0f2f2f2"],
}  # fmt: skip


@pytest.mark.parametrize(("cells", "lam"), RELEASED)
def test_blocks_are_those_of_the_released_code(cells: int, lam: float) -> None:
    random = Random(7)
    for text in RELEASED[cells, lam]:
        bits = f"{int(text, 16):0{cells**2}b}"
        expected = torch.tensor([bit == "1" for bit in bits]).view(cells, cells)
        assert torch.equal(block_mask(cells, int(lam * cells**2), random), expected)


@settings(max_examples=50, deadline=None)
@given(st.integers(3, 14), st.floats(0, 1), st.integers(0, 2**31))
def test_blocks_never_cover_more_than_was_asked(cells: int, lam: float, seed: int) -> None:
    count = int(lam * cells**2)
    assert int(block_mask(cells, count, Random(seed)).sum()) <= count


def test_half_of_an_image_is_kept_in_whole_cells() -> None:
    draw = MixMask(per="sample").draw((200, 3, 32, 32), torch.Generator().manual_seed(0))
    assert isinstance(draw, MaskDraw)
    cells = draw.mask.view(200, 8, 4, 8, 4).permute(0, 1, 3, 2, 4).flatten(3)
    assert torch.equal(cells.all(3), cells.any(3))
    assert draw.weight.mean() == pytest.approx(0.5, abs=0.01)
    assert draw.weight.max() <= 0.5
    law = MixMask(per="sample", weight=Weight("uniform", low=0.8))
    kept = law.draw((200, 3, 32, 32), torch.Generator().manual_seed(0)).weight
    assert 0.8 < kept.mean() < 0.95


def test_the_loss_is_the_released_codes_written_out() -> None:
    """loss_o + lam loss_m + (1 - lam) loss_m_flip, of MoCo with one direction."""
    method = build("moco-v2")
    views = views_of(method)
    method.begin_step(unmix.methods.Progress(0, 4, 4, 0))
    draw = MixMask().draw(views[0].shape, torch.Generator().manual_seed(3))
    index, generator = torch.arange(8), torch.Generator().manual_seed(0)
    found = objective(method, views, index, generator, Mixture(draw, unmix.rule("unmix")))
    found.loss.backward()
    grads = [p.grad.clone() for p in method.parameters() if p.grad is not None]

    again = build("moco-v2")
    again.begin_step(unmix.methods.Progress(0, 4, 4, 0))
    mask = (~draw.mask[0]).float()  # theirs is 1 where the image is kept
    mixed = mask * views[0] + (1 - mask) * views[0].flip(0)
    q, q_m = (F.normalize(again.f_q(x), dim=1) for x in (views[0], mixed))
    with torch.no_grad():
        k = F.normalize(again.f_k(views[1]), dim=1)
    queue = again.queue.keys.clone()

    def loss(q):
        logits = torch.cat([(q * k).sum(1, keepdim=True), q @ queue.T], dim=1)
        return F.cross_entropy(logits / again.T, torch.zeros(8, dtype=torch.long))

    lam = mask.mean()
    expected = loss(q) + lam * loss(q_m) + (1 - lam) * loss(q_m.flip(0))
    expected.backward()
    torch.testing.assert_close(found.loss, expected, rtol=1e-5, atol=1e-6)
    for ours, parameter in zip(
        grads, [p for p in again.parameters() if p.grad is not None], strict=True
    ):
        torch.testing.assert_close(ours, parameter.grad, rtol=1e-4, atol=1e-6)


def test_a_grid_that_has_no_pixels_for_its_cells_is_refused() -> None:
    with pytest.raises(UserError, match="MixMask: size: a grid of 8 x 8 cells needs images of"):
        MixMask().draw((4, 3, 6, 6))
    with pytest.raises(UserError, match="MixMask: cells must be at least 3, got 2"):
        MixMask(cells=2)


def test_a_spot_is_a_gaussian_and_its_share_is_the_mean() -> None:
    draw = SmoothMix(per="sample").draw((64, 3, 20, 30), torch.Generator().manual_seed(0))
    assert isinstance(draw, MaskDraw)
    rows, columns = torch.meshgrid(torch.arange(20.0), torch.arange(30.0), indexing="ij")
    for mask, weight in zip(draw.mask, draw.weight.tolist(), strict=True):
        top = int(mask.argmax())
        d2 = (rows - top // 30) ** 2 + (columns - top % 30) ** 2
        beside = mask.flatten()[top + 1 if top % 30 < 29 else top - 1]
        sigma2 = -1 / (2 * beside.log())
        assert 0.25 * 30 - 0.01 <= sigma2.sqrt() <= 0.5 * 30 + 0.01
        torch.testing.assert_close(mask, torch.exp(-d2 / (2 * sigma2)), rtol=1e-3, atol=1e-4)
        assert weight == pytest.approx(1 - mask.mean().item(), abs=1e-6)
    with pytest.raises(UserError, match=r"SmoothMix: sigma must be at least 0\.5"):
        SmoothMix(sigma=(0.5, 0.25))


# What StaticSaliencySpectralResidual of opencv-contrib 5.0 gives for the picture of the test.
OPENCV = [0.02977, 0.02441, 0.01374, 0.02623, 0.01833, 0.03206, 0.26373, 0.97727, 0.02212, 0.02245,
          0.01619, 0.03276, 0.01672, 0.01769, 0.02264, 0.01664, 0.01848, 0.01538, 0.02028,
          0.01657]  # fmt: skip


def test_salience_is_that_of_opencv() -> None:
    y, x = np.mgrid[:64, :64] / 64
    picture = 90 + 60 * np.sin(5 * x) + 40 * np.cos(7 * y)
    picture = picture + np.random.default_rng(0).normal(0, 4, (64, 64))
    picture[16:21, 32:42] = 240
    pixels = torch.from_numpy(picture.clip(0, 255).astype(np.uint8))
    found = spectral_residual(pixels.float().expand(2, 3, -1, -1))
    assert found.shape == (2, 64, 64)
    assert divmod(int(found[0].argmax()), 64) == (18, 41)
    torch.testing.assert_close(
        found[0][10:50:8, 10:50:10].flatten(), torch.tensor(OPENCV), rtol=0.02, atol=2e-3
    )
    large = spectral_residual(F.interpolate(pixels.float()[None, None], (96, 96)))
    assert 0.9 < large.max() <= 1
    assert torch.equal(
        spectral_residual(torch.ones(2, 3, 8, 8)).isfinite().all(), torch.tensor(True)
    )


def bright(places: list[tuple[int, int]]) -> Tensor:
    """Gray pictures with a bright square each, (N, 3, 32, 32)."""
    images = torch.rand(len(places), 3, 32, 32, generator=torch.Generator().manual_seed(0)) / 20
    for image, (row, column) in zip(images, places, strict=True):
        image[:, row - 2 : row + 2, column - 2 : column + 2] = 3.0
    return images


@pytest.mark.parametrize("per", ["batch", "sample"])
def test_saliencymix_pastes_around_what_is_salient(per: Any) -> None:
    """As released, of a batch it is the first mixture's partner that says where."""
    images = bright([(8, 8), (8, 24), (24, 8), (24, 24)])
    law = Weight("uniform", low=0.9, high=0.9)
    draw = SaliencyMix(weight=law, per=per).draw_for(images, torch.Generator().manual_seed(0))
    assert isinstance(draw, MaskDraw)
    partner = [3, 2, 1, 0] if per == "sample" else [3, 3, 3, 3]
    places = [(8, 8), (8, 24), (24, 8), (24, 24)]
    masks = draw.mask.expand(4, -1, -1)
    for mask, other in zip(masks, partner, strict=True):
        rows, columns = mask.nonzero().unbind(1)
        row, column = places[other]
        assert abs(rows.float().mean() + 0.5 - row) <= 3
        assert abs(columns.float().mean() + 0.5 - column) <= 3
        assert int(mask.sum()) == 100  # 2 * (int(32 * sqrt(0.1)) // 2), squared
    assert torch.equal(draw.weight, torch.full((4,), 1 - 100 / 1024))


def test_attentivemix_pastes_the_cells_that_are_looked_at_most() -> None:
    attention = torch.rand(4, 7, 7, generator=torch.Generator().manual_seed(0))
    images = bright([(8, 8)] * 4)[:, :, :28, :28]
    draw = AttentiveMix(per="sample").draw_for(images, None, None, attention)
    assert isinstance(draw, MaskDraw)
    for number, mask in enumerate(draw.mask):
        cells = mask.view(7, 4, 7, 4).permute(0, 2, 1, 3).flatten(2)
        assert torch.equal(cells.all(2), cells.any(2))
        assert int(cells.all(2).sum()) == 6
        theirs = attention[3 - number]
        assert theirs[cells.all(2)].min() > theirs[~cells.all(2)].max()
    assert torch.allclose(draw.weight, torch.tensor(1 - 6 / 49))


def test_the_map_is_the_class_tokens_attention_or_the_last_activation() -> None:
    """And the encoder is as it was: modes, statistics, gradients."""
    timm = pytest.importorskip("timm")
    vit = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, num_classes=0
    )
    vit.train()
    vit.blocks[0].eval()
    images = torch.randn(2, 3, 32, 32)
    found = attention_map(vit, images)
    assert found.shape == (2, 4, 4)
    assert vit.training
    assert not vit.blocks[0].training
    # Written out, with attention that is not fused.
    vit.eval()
    attn = vit.blocks[-1].attn
    tokens = vit.blocks[0](vit._pos_embed(vit.patch_embed(images)))
    q, k, _ = attn.qkv(vit.blocks[-1].norm1(tokens)).view(2, 17, 3, 3, 64).permute(2, 0, 3, 1, 4)
    weights = (q[:, :, 0:1] @ k.transpose(2, 3) / 8).softmax(3)[:, :, 0, 1:].mean(1)
    torch.testing.assert_close(found.flatten(1), weights.detach(), rtol=1e-4, atol=1e-6)

    net = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3), torch.nn.BatchNorm2d(5), torch.nn.Flatten())
    before = {name: value.clone() for name, value in net.state_dict().items()}
    expected = net[1].eval()(net[0](images)).square().sum(1)
    net.train()
    torch.testing.assert_close(attention_map(net, images), expected)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    with pytest.raises(UserError, match="mixture: Linear has no map"):
        attention_map(torch.nn.Linear(3, 2), torch.randn(2, 3))


@pytest.mark.parametrize("prefix", ["class", "registers", "none"])
def test_a_transformers_map_has_its_positions_in_it(prefix: str) -> None:
    """Of rotary positions, which are applied after queries and keys; against timm's own weights."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    tokens = {"class": {}, "registers": {"num_reg_tokens": 4}, "none": {"class_token": False}}
    vit = timm.create_model(
        "eva02_tiny_patch14_224", img_size=32, patch_size=8, depth=2, embed_dim=48, num_heads=3,
        num_classes=0, **tokens[prefix],
    ).eval()  # fmt: skip
    images = torch.randn(2, 3, 32, 32)
    found = attention_map(vit, images)
    weights: list[Tensor] = []
    attn = vit.blocks[-1].attn
    attn.fused_attn = False
    attn.attn_drop.register_forward_hook(lambda _, __, output: weights.append(output))
    torch.testing.assert_close(attention_map(vit, images), found, rtol=1e-4, atol=1e-6)
    first = slice(0, 1) if prefix != "none" else slice(None)
    before = vit.num_prefix_tokens
    expected = weights[0].detach()[:, :, first, before:].mean(dim=(1, 2)).unflatten(1, (4, 4))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_a_biased_transformers_map_has_the_bias_in_it() -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    vit = timm.create_model(
        "beit_base_patch16_224", img_size=32, patch_size=8, depth=2, embed_dim=48, num_heads=3,
        num_classes=0,
    ).eval()  # fmt: skip
    torch.nn.init.normal_(vit.blocks[-1].attn.relative_position_bias_table)
    images = torch.randn(2, 3, 32, 32)
    found = attention_map(vit, images)
    vit.blocks[-1].attn.fused_attn = False
    torch.testing.assert_close(attention_map(vit, images), found, rtol=1e-4, atol=1e-6)


def test_channels_that_come_last_are_no_rows_and_tokens_no_map() -> None:
    """Before, a Swin's map was of rows of channels, and a Mixer's that of its first layer."""
    timm = pytest.importorskip("timm")
    swin = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=64, window_size=4, depths=(1, 1), num_heads=(1, 2),
        embed_dim=16, num_classes=0,
    ).eval()  # fmt: skip
    images = torch.randn(2, 3, 64, 64)
    expected = swin.forward_features(images).detach().square().sum(dim=3)
    torch.testing.assert_close(attention_map(swin, images), expected)
    assert expected.shape == (2, 8, 8)
    mixer = timm.create_model("mixer_s32_224", img_size=64, num_classes=0)
    with pytest.raises(UserError, match="mixture: MlpMixer has no map that says where it looks"):
        attention_map(mixer, images)
    xcit = timm.create_model("xcit_nano_12_p16_224", img_size=64, num_classes=0)
    with pytest.raises(UserError, match="Xcit has no map"):
        attention_map(xcit, images)


def test_both_half_encoders_look() -> None:
    halves = HalfEncoders("resnet10", width=0.125, size=16).eval()
    images = torch.randn(2, 3, 16, 16)
    maps = [attention_map(halves.l, images[:, :1]), attention_map(halves.ab, images[:, 1:])]
    expected = sum(each / each.mean(dim=(1, 2), keepdim=True) for each in maps)
    torch.testing.assert_close(attention_map(halves, images), expected)


def test_maps_and_masks_stay_on_the_device() -> None:
    """Nothing that depends on the images is read back."""
    images = bright([(8, 8), (8, 24), (24, 8), (24, 24)])
    with Reading() as seen:
        salience = spectral_residual(images)
        for draw in (
            SaliencyMix(per="sample").draw(images.shape, None, None, salience),
            AttentiveMix().draw(images.shape, None, None, salience),
        ):
            assert draw.apply(images).shape == images.shape
            assert draw.shares.shape == (4, 2)
            draw.resized(16, 16)
    assert seen.read == []


@pytest.mark.parametrize("name", ["moco", "barlow", "dino", "cmc"])
@pytest.mark.parametrize("operator", [SaliencyMix(), AttentiveMix(), SmoothMix(), MixMask()])
def test_methods_take_steps_with_them(name: str, operator: Any) -> None:
    step = unmix.Stepper(build(name), steps_per_epoch=3, epochs=2, mixture=operator)
    loss = step(views_of(step.method), torch.arange(8))
    loss.backward()
    assert loss.isfinite()
    assert step.mixed is not None
