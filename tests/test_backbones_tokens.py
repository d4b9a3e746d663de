"""Tokens of a vision transformer: as timm's, dropped before the blocks, at any size."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unmix.backbones import TokenEncoder, build
from unmix.backbones.tokens import patches_of, sine_cosine_positions
from unmix.errors import UserError
from unmix.methods import method_class


def vit(**options: Any) -> Any:
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    small = {
        "img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2,
        "num_classes": 0, "dynamic_img_size": True,
    }  # fmt: skip
    made = VisionTransformer(**{**small, **options}).eval()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    return made


MODELS: dict[str, dict[str, Any]] = {
    "class": {},
    "registers": {"reg_tokens": 3},
    "patches alone": {"class_token": False, "global_pool": "avg", "fc_norm": False},
    "norm after pooling": {"global_pool": "avg"},
    "no_embed_class": {"reg_tokens": 2, "no_embed_class": True},
    "norm before": {"pre_norm": True},
    "another size": {"img_size": 24},
    "fixed size": {"dynamic_img_size": False},
}


@pytest.mark.parametrize("name", MODELS)
def test_all_tokens_are_those_of_timm(name: str) -> None:
    model, images = vit(**MODELS[name]), torch.randn(3, 3, 16, 16)
    encoder = TokenEncoder(model, "mae")
    tokens = encoder(images)
    torch.testing.assert_close(tokens.pooled, model(images))
    whole = model.forward_features(images)
    if name == "norm after pooling":
        whole = model.fc_norm(whole)
    torch.testing.assert_close(torch.cat([tokens.prefix, tokens.patches], dim=1), whole)
    assert tokens.prefix.shape[1] == model.num_prefix_tokens
    assert tokens.patches.shape == (3, 16, 16)
    assert encoder.grid(images) == (4, 4)
    assert (encoder.side, encoder.feature_dim, encoder.channels) == (4, 16, 3)


@pytest.mark.parametrize("name", ["class", "registers", "no_embed_class"])
def test_dropped_tokens_are_in_no_block(name: str) -> None:
    """As lightly encodes the kept ones; what is in a dropped patch changes nothing."""
    from lightly.models.modules import MaskedVisionTransformerTIMM

    model, images = vit(**MODELS[name]), torch.randn(3, 3, 16, 16)
    keep = torch.stack([torch.randperm(16)[:5] for _ in range(3)])
    lengths: list[int] = []
    hook = model.blocks[0].register_forward_hook(lambda _, args, out: lengths.append(out.shape[1]))
    found = TokenEncoder(model, "mae")(images, keep)
    hook.remove()
    prefix = model.num_prefix_tokens
    assert lengths == [prefix + 5]
    dropped = torch.ones(3, 16).scatter(1, keep, 0).reshape(3, 4, 4)
    other = images + dropped.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, None]
    again = TokenEncoder(model, "mae")(other, keep)
    torch.testing.assert_close(again.patches, found.patches)
    torch.testing.assert_close(again.pooled, found.pooled)
    if name == "class":
        theirs = MaskedVisionTransformerTIMM(vit=deepcopy(model), pos_embed_initialization="skip")
        theirs.vit.load_state_dict(model.state_dict())
        every = torch.cat([torch.zeros(3, 1, dtype=torch.int64), keep + 1], dim=1)
        expected = theirs.encode(images, idx_keep=every)
        torch.testing.assert_close(torch.cat([found.prefix, found.patches], dim=1), expected)


def test_masked_tokens_are_the_mask_token_with_their_position() -> None:
    model = vit()
    images, token = torch.randn(2, 3, 16, 16), torch.randn(1, 16)
    masked = torch.rand(2, 16) < 0.4
    found = TokenEncoder(model, "ibot")(images, masked=masked, mask_token=token)
    embedded = model.patch_embed(images).reshape(2, 16, 16)
    embedded[masked] = token
    x = torch.cat([model.cls_token.expand(2, -1, -1), embedded], dim=1) + model.pos_embed
    torch.testing.assert_close(found.pooled, model.forward_head(model.norm(model.blocks(x))))


def test_attention_within_groups_is_that_of_each_group_alone() -> None:
    model = vit(class_token=False, global_pool="avg", fc_norm=False)
    images, group = torch.randn(2, 3, 16, 16), torch.arange(16) % 3
    same = (group[:, None] == group)[None, None]
    encoder = TokenEncoder(model, "mixmim")
    embedded = model._pos_embed(model.patch_embed(images))
    found = encoder.encode(embedded, attention=same).patches
    for g in range(3):
        keep = (group == g).nonzero().T.expand(2, -1)
        alone = TokenEncoder(model, "mixmim")(images, keep).patches
        torch.testing.assert_close(found[:, group == g], alone)


ROTARY = ("vit_small_patch16_dinov3", "vit_small_patch16_rope_mixed_224", "eva02_tiny_patch14_224")


def rotary(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    return build(f"timm:{name}", size=16, patch=4, heads=2, depth=2, **options).eval()


@pytest.mark.parametrize("size", [16, 24])
@pytest.mark.parametrize("name", ROTARY)
def test_rotary_positions_go_with_the_patches_that_are_kept(name: str, size: int) -> None:
    """All of them are timm's tokens, in any order; some are those that attend to these alone."""
    model, images = rotary(name), torch.randn(2, 3, size, size)
    count, prefix = (size // 4) ** 2, model.num_prefix_tokens
    encoder = TokenEncoder(model, "ibot")
    close: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}
    whole = model.forward_features(images)
    whole = model.fc_norm(whole) if isinstance(model.norm, nn.Identity) else whole
    found = encoder(images)
    torch.testing.assert_close(torch.cat([found.prefix, found.patches], dim=1), whole)
    torch.testing.assert_close(found.pooled, model(images))
    order = torch.stack([torch.randperm(count) for _ in range(2)])
    shuffled = encoder(images, order)
    rows = order[:, :, None].expand_as(found.patches)
    torch.testing.assert_close(shuffled.patches, found.patches.gather(1, rows), **close)
    keep = order[:, : count // 3]
    there = torch.zeros(2, prefix + count, dtype=torch.bool)
    there[:, :prefix] = True
    there.scatter_(1, keep + prefix, True)
    masked = model.forward_features(images, attn_mask=there[:, None, None])
    masked = model.fc_norm(masked) if isinstance(model.norm, nn.Identity) else masked
    rows = keep[:, :, None].expand(-1, -1, masked.shape[2])
    expected = masked[:, prefix:].gather(1, rows)
    torch.testing.assert_close(encoder(images, keep).patches, expected, **close)


@pytest.mark.parametrize("name", ROTARY)
def test_a_transformer_with_rotary_positions_can_do_without_a_class_token(name: str) -> None:
    model = rotary(name, class_token=False, pooling="average")
    images = torch.randn(2, 3, 16, 16)
    assert model.cls_token is None
    tokens = model.forward_features(images)[:, model.num_prefix_tokens :]
    torch.testing.assert_close(model(images), tokens.mean(dim=1))


@pytest.mark.parametrize("method", ["mae", "ijepa"])
def test_rotary_positions_stay_the_models_own(method: str) -> None:
    """Methods whose positions are fixed sines and cosines leave them."""
    own = dict(rotary(ROTARY[2]).named_parameters())
    assert own["pos_embed"].requires_grad
    torch.manual_seed(0)
    made = method_class(method).build_backbone(
        f"timm:{ROTARY[2]}", size=16, patch=4, heads=2, depth=2, class_token=True
    )
    assert torch.equal(dict(made.named_parameters())["pos_embed"], own["pos_embed"])


def test_checkpointed_blocks_have_the_same_gradients() -> None:
    grads: list[list[Tensor]] = []
    images, keep = torch.randn(2, 3, 16, 16), torch.arange(6).expand(2, -1)
    for on in (False, True):
        model = vit()
        model.set_grad_checkpointing(on)
        TokenEncoder(model, "mae")(images, keep).patches.square().sum().backward()
        grads.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(grads[0]) == len(grads[1]) > 10
    for plain, again in zip(*grads, strict=True):
        torch.testing.assert_close(plain, again)


def test_patches_and_positions_are_those_of_lightly() -> None:
    from lightly.models import utils

    images = torch.randn(2, 3, 8, 12)
    # lightly takes squares alone
    square = torch.randn(2, 3, 8, 8)
    assert torch.equal(patches_of(square, 4).flatten(1, 2), utils.patchify(square, 4))
    assert patches_of(images, 4).shape == (2, 2, 3, 48)
    tile = images[1, :, 4:, 8:].permute(1, 2, 0).flatten()
    assert torch.equal(patches_of(images, 4)[1, 1, 2], tile)
    theirs = utils.get_2d_sine_cosine_positional_embedding(16, 5, cls_token=False)
    torch.testing.assert_close(sine_cosine_positions(16, 5, 5), torch.as_tensor(theirs).float())


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (lambda: build("resnet10", width=0.125), "vit_tiny_patch16_224"),
        (lambda: build("timm:resnet18"), "vit_tiny_patch16_224"),
        (lambda: vit(patch_size=(2, 4)), "2 x 4"),
        (lambda: vit(patch_drop_rate=0.2), "patch_drop_rate"),
    ],
)
def test_a_network_without_such_tokens_is_refused_in_a_line(model: Any, words: str) -> None:
    with pytest.raises(UserError, match="MAE is for") as error:
        TokenEncoder(model(), "MAE")
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_images_that_patches_do_not_fill_are_refused_in_a_line() -> None:
    with pytest.raises(UserError, match="do not fill images of 14 x 16"):
        TokenEncoder(vit(), "mae")(torch.randn(2, 3, 14, 16))
    with pytest.raises(UserError, match="dynamic_img_size"):
        TokenEncoder(vit(dynamic_img_size=False), "mae")(torch.randn(2, 3, 24, 24))
