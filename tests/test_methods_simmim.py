"""SimMIM: its loss written out and put together from lightly's modules, its masks, its mixtures."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmix.credit import RULES
from unmix.errors import UserError
from unmix.methods import Progress, SimMIM
from unmix.mixtures import CutMix, MixUp
from unmix.step import Mixture, objective
from unmix.stepper import Stepper


def simmim(seed: int = 0, **options: Any) -> SimMIM:
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(seed)
    vit = VisionTransformer(
        img_size=16, patch_size=4, embed_dim=16, depth=2, num_heads=2, num_classes=0,
        dynamic_img_size=True,
    )  # fmt: skip
    return SimMIM(vit, **{"mask_side": 1} | options)


def images(seed: int = 0, n: int = 4, size: int = 16) -> Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def loss_of(method: SimMIM, x: Tensor, mixture: Mixture | None = None) -> Tensor:
    index = torch.arange(len(x))
    return objective(method, [x], index, torch.Generator().manual_seed(0), mixture).loss


def test_loss_and_gradients_are_those_of_lightlys_example() -> None:
    """Its encoder with our weights, put together as its example of SimMIM does."""
    from lightly.models import utils
    from lightly.models.modules import MaskedVisionTransformerTIMM

    method, x = simmim(), images()
    ours = loss_of(method, x)
    ours.backward()
    masked = method.masked(len(x), (4, 4), x.device).flatten(1)
    idx_mask = masked.nonzero()[:, 1].unflatten(0, (4, -1)) + 1
    token = nn.Parameter(method.mask_token.detach()[None].clone())
    encoder = MaskedVisionTransformerTIMM(
        vit=simmim(1).f.vit, mask_token=token, pos_embed_initialization="skip"
    )
    encoder.vit.load_state_dict(method.f.vit.state_dict())
    decoder = nn.Linear(16, 48)
    decoder.load_state_dict(method.g.state_dict())
    encoded = encoder.encode(images=x, idx_mask=idx_mask)
    predicted = decoder(utils.get_at_index(encoded, idx_mask))
    target = utils.get_at_index(utils.patchify(x, 4), idx_mask - 1)
    theirs = F.l1_loss(predicted, target)
    theirs.backward()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    for (name, p), q in zip(method.f.vit.named_parameters(), encoder.vit.parameters(), strict=True):
        assert p.grad is not None, name
        assert q.grad is not None, name
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(method.g.weight.grad, decoder.weight.grad)
    assert method.mask_token.grad is not None
    torch.testing.assert_close(method.mask_token.grad, encoder.mask_token.grad[0])


def test_the_loss_is_the_mean_difference_of_masked_pixels() -> None:
    """As released: sum over masked pixels, by their number and the channels."""
    method, x = simmim(mask_side=2), images()
    query = method.query(x)
    side, channels = 4, 3
    found = query["pixels"].unflatten(3, (side, side, channels))
    pixels = found.permute(0, 5, 1, 3, 2, 4).reshape(4, 3, 16, 16)
    mask = query["masked"].repeat_interleave(side, 1).repeat_interleave(side, 2)[:, None].float()
    difference = F.l1_loss(x, pixels, reduction="none")
    expected = (difference * mask).sum() / mask.sum() / channels
    torch.testing.assert_close(loss_of(method, x), expected)


@pytest.mark.parametrize(("side", "ratio", "squares"), [(1, 0.6, 10), (2, 0.6, 3), (2, 0.5, 2)])
def test_whole_squares_are_masked_the_released_number_of_them(
    side: int, ratio: float, squares: int
) -> None:
    method = simmim(mask_side=side, mask_ratio=ratio)
    masked = method.masked(5, (4, 4), torch.device("cpu"))
    cells = F.avg_pool2d(masked[:, None].float(), side)
    assert cells.unique().tolist() == [0, 1]
    assert cells.sum(dim=(1, 2, 3)).tolist() == [squares] * 5
    assert len(masked.unique(dim=0)) > 1


def test_masks_are_new_at_each_step_and_the_same_within_one() -> None:
    method, found = simmim(), []
    for step in range(2):
        method.begin_step(Progress(step, 9, 3, seed=5))
        found.append(method.masked(6, (4, 4), torch.device("cpu")))
        assert torch.equal(found[-1], method.masked(6, (4, 4), torch.device("cpu")))
    assert not torch.equal(*found)


def test_masked_patches_are_not_seen() -> None:
    """What is in them changes the target alone."""
    method, x = simmim().eval(), images()
    query = method.query(x)
    hidden = query["masked"].repeat_interleave(4, 1).repeat_interleave(4, 2)[:, None]
    again = method.query(torch.where(hidden, images(9), x))
    torch.testing.assert_close(again["pixels"], query["pixels"])


def test_the_target_of_a_patch_is_its_owners_pixels() -> None:
    """Boxes of whole patches have one owner each, so a mixture's own patches are the target."""
    method, x = simmim(mask_side=2), images()
    draw = CutMix(per="sample", align=4).draw(x.shape, torch.Generator().manual_seed(3))
    assert draw.is_mixed.any()
    mixed = draw.apply(x)
    found = objective(
        method, [x], torch.arange(4), torch.Generator(), Mixture(draw, RULES["unmix"])
    )
    torch.testing.assert_close(found.mixed, loss_of(method, mixed).detach())
    torch.testing.assert_close(found.loss, loss_of(method, x) + loss_of(method, mixed))


def test_a_global_mixture_takes_both_terms() -> None:
    method, x = simmim(), images()
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


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mask_side": 3}, "squares of 3 x 3 patches do not fill the 4 x 4 patches"),
        ({"mask_side": 4}, "masks all of the 1 squares of an image; use smaller squares"),
        ({"mask_side": 0}, "mask_side"),
        ({"mask_ratio": 0.97}, "0.97 masks all of the 16 squares .* a ratio of 0.938 or less"),
        ({"mask_ratio": 0.0}, "mask_ratio must be greater than 0 and less than 1"),
    ],
)
def test_masks_that_do_not_fit_are_refused_in_a_line(options: Any, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        simmim(**options)
    assert "\n" not in str(error.value)


def test_a_network_without_patches_is_refused_in_a_line() -> None:
    with pytest.raises(UserError, match=r"SimMIM is for the patches.*vit_tiny_patch16_224"):
        SimMIM(SimMIM.build_backbone("resnet18", size=32))


def test_it_learns_to_reconstruct_images_that_it_has_not_seen() -> None:
    """Each image repeats one of four patches, so what is visible says what is masked."""

    def tiled(n: int) -> Tensor:
        patterns = torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(7))
        return patterns[torch.randint(4, (n,), generator=generator)].repeat(1, 1, 4, 4)

    method = simmim()
    step = Stepper(method, total_steps=60, steps_per_epoch=20, mixture=CutMix())
    optimizer = torch.optim.AdamW(method.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        loss = step([tiled(16)])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        assert loss_of(method.eval(), tiled(64)) < 0.5 * loss_of(simmim(), tiled(64))
