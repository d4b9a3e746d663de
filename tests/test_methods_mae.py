"""MAE and MixMIM: their losses written out and as lightly's, their masks, their mixtures."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor

from unmix.credit import RULES
from unmix.errors import UserError
from unmix.methods import MAE, Progress
from unmix.mixtures import CutMix, MixUp
from unmix.step import Mixture, objective
from unmix.stepper import Stepper


def mae(seed: int = 0, **options: Any) -> MAE:
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(seed)
    vit = VisionTransformer(
        img_size=16, patch_size=4, embed_dim=16, depth=2, num_heads=2, num_classes=0,
        dynamic_img_size=True,
    )  # fmt: skip
    return MAE(vit, **{"decoder_dim": 16, "decoder_depth": 2, "decoder_heads": 2} | options)


def images(seed: int = 0, n: int = 4, size: int = 16) -> Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def loss_of(method: MAE, x: Tensor, mixture: Mixture | None = None) -> Tensor:
    index = torch.arange(len(x))
    return objective(method, [x], index, torch.Generator().manual_seed(0), mixture).loss


def test_loss_and_gradients_are_those_of_lightlys_example() -> None:
    """Its encoder and decoder with our weights, put together as its example of MAE does."""
    from lightly.models import utils
    from lightly.models.modules import MaskedVisionTransformerTIMM
    from lightly.models.modules.masked_vision_transformer_decoder_timm import (
        MaskedVisionTransformerDecoderTIMM,
    )

    method, x = mae(), images()
    ours = loss_of(method, x)
    ours.backward()
    keep = method.kept(len(x), (4, 4), x.device)
    encoder = MaskedVisionTransformerTIMM(vit=mae(1).f.vit, pos_embed_initialization="skip")
    encoder.vit.load_state_dict(method.f.vit.state_dict())
    decoder = MaskedVisionTransformerDecoderTIMM(num_patches=16, embed_dim=16, depth=2, num_heads=2)
    embed, out = deepcopy(method.g.embed), deepcopy(method.g.out)
    names = {"norm", "blocks", "mask_token"}
    state = {k: v for k, v in method.g.state_dict().items() if k.partition(".")[0] in names}
    state["mask_token"] = state["mask_token"][None]
    assert decoder.load_state_dict(state, strict=False) == (["pos_embed"], [])
    idx_keep = torch.cat([torch.zeros(4, 1, dtype=torch.int64), keep + 1], dim=1)
    every = torch.arange(17).expand(4, -1)
    idx_mask = torch.stack(
        [row[~torch.isin(row, kept)] for row, kept in zip(every, idx_keep, strict=True)]
    )
    tokens = embed(encoder.encode(images=x, idx_keep=idx_keep))
    full = utils.repeat_token(decoder.mask_token, (4, 17))
    full = utils.set_at_index(full, idx_keep, tokens.type_as(full))
    decoded = utils.get_at_index(decoder(full), idx_mask)
    predicted = out(decoded)
    target = utils.get_at_index(utils.patchify(x, 4), idx_mask - 1)
    target = utils.normalize_mean_var(target, dim=-1)
    theirs = torch.nn.functional.mse_loss(predicted, target)
    theirs.backward()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    pairs = [(method.f.vit, encoder.vit), (method.g.blocks, decoder.blocks)]
    for mine, other in pairs:
        for (name, p), q in zip(mine.named_parameters(), other.parameters(), strict=True):
            if p.requires_grad:
                assert p.grad is not None, name
                torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-6)
    assert method.g.mask_token.grad is not None
    torch.testing.assert_close(method.g.mask_token.grad, decoder.mask_token.grad[0])


@pytest.mark.parametrize("norm_pix", [True, False])
def test_the_loss_is_the_mean_square_over_masked_patches(norm_pix: bool) -> None:
    method, x = mae(norm_pix=norm_pix), images()
    query, target = method.query(x), method.targets([x], {}, torch.arange(4), torch.Generator())[0]
    total, count = torch.zeros(()), 0
    for i in range(4):
        for r in range(4):
            for c in range(4):
                if not query["masked"][i, r, c]:
                    continue
                patch = x[i, :, 4 * r : 4 * r + 4, 4 * c : 4 * c + 4].permute(1, 2, 0).flatten()
                if norm_pix:
                    patch = (patch - patch.mean()) / (patch.var() + 1e-6).sqrt()
                total = total + (query["pixels"][i, r, c] - patch).square().mean()
                count += 1
    assert count == 4 * 12
    torch.testing.assert_close(loss_of(method, x), total / count)
    torch.testing.assert_close(method.compare(query, target).mean(), total / count)


def test_masks_are_new_at_each_step_and_part_and_the_same_within_one() -> None:
    method = mae()
    found = []
    for step, part in ((0, 0), (1, 0), (1, 1)):
        method.begin_step(Progress(step, 9, 3, seed=5))
        if part:
            method.begin_part(part)
        keep = method.kept(6, (4, 4), torch.device("cpu"))
        assert torch.equal(keep, method.kept(6, (4, 4), torch.device("cpu")))
        assert keep.shape == (6, 4)
        assert len(keep.sort(dim=1).values.unique(dim=0)) > 1
        found.append(keep)
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[1], found[2])


def test_masked_patches_are_not_seen() -> None:
    """What is in them changes the target alone."""
    method, x = mae().eval(), images()
    query = method.query(x)
    hidden = query["masked"].repeat_interleave(4, 1).repeat_interleave(4, 2)[:, None]
    again = method.query(torch.where(hidden, images(9), x))
    torch.testing.assert_close(again["pixels"], query["pixels"])


def test_other_sizes_have_positions_of_their_own() -> None:
    method = mae()
    query = method.query(images(size=24))
    assert query["pixels"].shape == (4, 6, 6, 48)
    assert query["masked"].flatten(1).sum(dim=1).tolist() == [27] * 4


def test_the_target_of_a_patch_is_its_owners_pixels() -> None:
    """Boxes of whole patches have one owner each, so a mixture's own patches are the target."""
    method, x = mae(), images()
    draw = CutMix(per="sample", align=4).draw(x.shape, torch.Generator().manual_seed(3))
    assert draw.is_mixed.any()
    mixed = draw.apply(x)
    found = objective(
        method, [x], torch.arange(4), torch.Generator(), Mixture(draw, RULES["unmix"])
    )
    torch.testing.assert_close(found.mixed, loss_of(method, mixed).detach())
    torch.testing.assert_close(found.loss, loss_of(method, x) + loss_of(method, mixed))


def test_a_global_mixture_takes_both_terms_token_by_token() -> None:
    method, x = mae(), images()
    draw = MixUp(per="sample").draw(x.shape, torch.Generator().manual_seed(3))
    query = method.query(draw.apply(x))
    target = method.targets([x], {}, torch.arange(4), torch.Generator())[0]
    w = draw.weight
    expected = w * method.compare(query, target)
    expected = expected + (1 - w) * method.compare(query, target[draw.partner])
    found = objective(
        method, [x], torch.arange(4), torch.Generator(), Mixture(draw, RULES["replace"])
    )
    torch.testing.assert_close(found.loss, expected.mean())


def test_mixed_tokens_are_those_of_two_images_and_both_are_reconstructed() -> None:
    """MixMIM's loss written out: patch by patch from the mixture that lacks it."""
    method, x = mae(mixed_tokens=True, mask_ratio=0.5).eval(), images()
    vit, g = method.f.vit, method.g
    keep = method.kept(4, (4, 4), x.device)
    assert len(keep.unique(dim=0)) == 1
    lacked = torch.ones(16, dtype=torch.bool)
    lacked[keep[0]] = False
    embedded = vit.patch_embed(x).flatten(1, 2)
    x_mixed = torch.where(lacked[:, None], embedded.flip(0), embedded) + vit.pos_embed[:, 1:]
    cls = (vit.cls_token + vit.pos_embed[:, :1]).expand(4, -1, -1)
    # Each image's tokens attend to their own alone, so they can be encoded apart.
    own = vit.norm(vit.blocks(torch.cat([cls, x_mixed[:, ~lacked]], dim=1)))[:, 1:]
    other = vit.norm(vit.blocks(x_mixed[:, lacked]))
    loss = torch.zeros(())
    target = method.targets([x], {}, torch.arange(4), torch.Generator())[0].flatten(1, 2)
    for i in range(4):
        for tokens, where, j in ((own, ~lacked, i), (other, lacked, 3 - i)):
            full = g.mask_token.expand(1, 16, -1).clone()
            full[0, where] = g.embed(tokens[i])
            pixels = g.out(g.norm(g.blocks(full + g.positions)))[0]
            loss = loss + (pixels[~where] - target[j][~where]).square().mean(dim=-1).sum() / 64
    torch.testing.assert_close(loss_of(method, x), loss, rtol=1e-5, atol=1e-5)
    assert method.query(x)["masked"].all()
    assert method.across_samples == "partners"
    assert mae().across_samples is None


def test_positions_are_fixed_in_a_network_that_is_built_and_kept_in_one_that_is_given() -> None:
    from lightly.models import utils

    name = "timm:vit_tiny_patch16_224"
    fixed: Any = MAE.build_backbone(name, size=16, patch=4, depth=1, registers=2).pos_embed
    theirs = utils.get_2d_sine_cosine_positional_embedding(192, 4, cls_token=False)
    torch.testing.assert_close(fixed[0, -16:], torch.as_tensor(theirs).float())
    assert not fixed[0, :-16].any()
    assert not fixed.requires_grad
    given: Any = mae().f.vit
    assert given.pos_embed.requires_grad
    assert MAE(given, decoder_dim=16, decoder_heads=2).backbone.pos_embed is given.pos_embed


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mask_ratio": 0.97}, "leaves none of the 16 patches of an image; use smaller patches"),
        ({"mask_ratio": 0.0}, "mask_ratio must be greater than 0 and less than 1"),
        ({"mask_ratio": 1.0}, "mask_ratio must be greater than 0 and less than 1"),
        ({"decoder_dim": 18, "decoder_heads": 3}, "must be a multiple of 4"),
        ({"decoder_dim": 16, "decoder_heads": 3}, "of its 3 attention heads"),
        ({"decoder_depth": 0}, "decoder_depth"),
    ],
)
def test_masks_and_sizes_that_do_not_fit_are_refused_in_a_line(options: Any, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        mae(**options)
    assert "\n" not in str(error.value)


def test_a_network_without_patches_is_refused_in_a_line() -> None:
    for name in ("resnet18", "timm:resnet18"):
        with pytest.raises(UserError, match=r"MAE is for the patches.*vit_tiny_patch16_224"):
            MAE(MAE.build_backbone(name, size=32))
    with pytest.raises(UserError, match="MAE is for the patches"):
        MAE.build_backbone("resnet18", size=32, patch=4)


def tiled(n: int, generator: torch.Generator) -> Tensor:
    """Each image repeats one of four patches, brighter or darker: the rest says what is masked."""
    patterns = torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(7))
    chosen = patterns[torch.randint(4, (n,), generator=generator)]
    brightness = torch.randn(n, 1, 4, 4, generator=generator)
    return chosen.repeat(1, 1, 4, 4) + brightness.repeat_interleave(4, 2).repeat_interleave(4, 3)


@pytest.mark.parametrize("mixed_tokens", [False, True])
def test_it_learns_to_reconstruct_images_that_it_has_not_seen(mixed_tokens: bool) -> None:
    """Beside mixtures; below 1, the loss of predicting each patch's mean."""
    method = mae(mixed_tokens=mixed_tokens, mask_ratio=0.5, decoder_depth=1)
    step = Stepper(method, total_steps=60, steps_per_epoch=20, mixture=CutMix())
    optimizer = torch.optim.AdamW(method.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        loss = step([tiled(16, generator)])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        assert loss_of(method.eval(), tiled(64, generator)) < 0.5
        assert loss_of(mae(mixed_tokens=mixed_tokens), tiled(64, generator)) > 0.9
