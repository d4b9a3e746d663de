"""SimDINO and SimDINOv2: their losses against those published, what the coding rate is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from unmix.credit import IMix, UnMixRule
from unmix.errors import UserError
from unmix.methods import SimDINO
from unmix.methods.simdino import WithPatches, coding_rate, expansion
from unmix.mixtures import CutMix, UnMix
from unmix.step import Mixture, objective


class Flat(nn.Module):
    """A backbone of one linear layer, for crops of two sizes."""

    feature_dim = 8

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(F.adaptive_avg_pool2d(x, 2).flatten(1))


def simdino(**options: Any) -> Any:
    return SimDINO(Flat(), **{"dim": 5, "hidden": 16} | options)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def views_of(n: int = 6) -> list[Tensor]:
    return [normal(n, 3, side, side, seed=v) for v, side in enumerate((4, 4, 2, 2))]


def published(s: Tensor, t: Tensor, epsilon: float, weight: float, smooth: bool) -> Tensor:
    """Of all crops (V, N, d) and the teacher's (2, N, d): cosines, and a log-determinant."""
    (views, n, d), total, terms = s.shape, torch.zeros(()), 0
    for b in range(2):
        for v in range(views):
            if v != b:
                total = total - F.cosine_similarity(s[v], t[b], dim=1).mean()
                terms += 1
    s, t = F.normalize(s, dim=2), F.normalize(t, dim=2)
    rates = []
    for v in range(2):
        z = (s[v] + t[v]) / 2 if smooth else s[v]
        eigenvalues = torch.linalg.eigvalsh(z.T @ z / n)
        rates.append(0.5 * torch.log(1 + d / epsilon * eigenvalues.clamp(min=0)).sum())
    return 1 + total / terms - weight * (d + n) / (d * n) * torch.stack(rates).mean()


@settings(max_examples=15, deadline=None)
@given(
    st.integers(2, 12), st.integers(0, 3), st.floats(0.02, 1), st.floats(0.1, 2), st.booleans(),
    st.integers(0, 2**31),
)  # fmt: skip
def test_loss_and_gradient_are_the_published_ones(
    n: int, local: int, epsilon: float, weight: float, smooth: bool, seed: int
) -> None:
    """Up to the constant 1: published is - cos, here half the squared distance."""
    method = simdino(epsilon=epsilon, coding_rate=weight, smooth=smooth)
    z = normal(2 + local, n, 5, seed=seed).double().requires_grad_()
    t = normal(2, n, 5, seed=seed + 1).double()
    pairs = method.pairs_of(2 + local)
    assert sum(share for _, _, share in pairs) == pytest.approx(1)
    queries = z.float()
    found = sum(share * method.compare(queries[a], t[b].float()).mean() for a, b, share in pairs)
    regularized = [queries[v] for v in method.regularized_views(2 + local)]
    found = found + method.regularizer(regularized, dict(enumerate(t.float())))
    wanted = published(z, t, epsilon, weight, smooth)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)
    (ours,) = torch.autograd.grad(found, z)
    (theirs,) = torch.autograd.grad(wanted, z)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_the_rate_grows_with_the_directions_that_are_used() -> None:
    """0 for none; of one direction and of three, by the formula."""
    assert coding_rate(torch.zeros(4, 3), 0.5) == 0
    one = coding_rate(torch.tensor([[1.0, 0, 0]] * 6), 0.5)
    assert one.item() == pytest.approx(0.5 * torch.log(torch.tensor(1 + 3 / 0.5)).item())
    spread = coding_rate(torch.eye(3).repeat(2, 1), 0.5)
    assert spread.item() == pytest.approx(1.5 * torch.log(torch.tensor(1 + 1 / 0.5)).item())
    assert spread > one
    assert expansion(torch.eye(3).repeat(2, 1), 0.5).item() == pytest.approx(spread.item() / 2)


@pytest.mark.parametrize("rule", [UnMixRule(), UnMixRule(keeps_clean=False), IMix()])
def test_the_rate_is_of_clean_features_alone(rule: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the rule does with the clean loss."""
    method = simdino().eval()
    views, seen = views_of(), {}
    regularizer = method.regularizer

    def spy(q: Any, t: Any) -> Tensor:
        seen.update(queries=q, targets=t)
        return regularizer(q, t)

    monkeypatch.setattr(method, "regularizer", spy)
    found = objective(
        method, views, torch.arange(6), torch.Generator().manual_seed(0), Mixture(UnMix(1.0), rule)
    )
    assert found.mixed is not None
    clean = method.queries(views)
    assert len(seen["queries"]) == 2
    for v in (0, 1):
        torch.testing.assert_close(seen["queries"][v], clean[v])
        torch.testing.assert_close(
            seen["targets"][v], method.f_t.head(method.f_t.backbone(views[v]))
        )


def test_the_rate_would_push_mixtures_from_between_their_images() -> None:
    """Features between two images' are coded with less, and the gradient raises what codes them."""
    a = F.normalize(normal(40, 5), dim=1)
    between = ((a + a.roll(1, 0)) / 2).requires_grad_()
    rate = coding_rate(between, 0.05)
    assert rate < coding_rate(a, 0.05)
    (gradient,) = torch.autograd.grad(rate, between)
    assert (gradient * between).sum() > 0


def test_a_mixture_is_compared_with_both_images_teachers() -> None:
    """w 1/2 |z - z'|^2 + (1 - w) 1/2 |z - z'[p]|^2, with each large view."""
    method = simdino().eval()
    views = views_of()
    draw = UnMix(1.0).draw((6, 3, 4, 4), torch.Generator().manual_seed(5))
    found = objective(method, views, torch.arange(6), torch.Generator(), Mixture(draw))
    z = F.normalize(method.query(draw.apply(views[0])), dim=1)
    w, p = draw.shares[:, 0], draw.owners[:, 1]
    expected = torch.zeros(())
    for b in (0, 1):
        t = F.normalize(method.f_t.head(method.f_t.backbone(views[b])), dim=1)
        own, other = (z - t).square().sum(1) / 2, (z - t[p]).square().sum(1) / 2
        expected = expected + 0.5 * (w * own + (1 - w) * other).mean()
    assert found.mixed is not None
    torch.testing.assert_close(found.mixed, expected.detach(), rtol=1e-5, atol=1e-6)


def test_without_a_weight_no_view_is_regularized() -> None:
    assert tuple(simdino(coding_rate=0.0).regularized_views(4)) == ()


@pytest.mark.parametrize(
    ("flag", "value"),
    [("epsilon", 0.0), ("coding_rate", -1.0), ("dim", 0), ("hidden", 0), ("encoder_momentum", 2.0)],
)
def test_values_out_of_range_are_told(flag: str, value: float) -> None:
    with pytest.raises(UserError) as caught:
        simdino(**{flag: value})
    assert caught.value.on_command_line().startswith(f"--{flag}: {value:g} is out of range")


# --- SimDINOv2: patches too -------------------------------------------------------------------


def v2(**options: Any) -> Any:
    torch.manual_seed(0)
    vit = VisionTransformer(
        img_size=16, patch_size=4, embed_dim=16, depth=1, num_heads=2, num_classes=0,
        dynamic_img_size=True,
    )  # fmt: skip
    method: Any = SimDINO(vit, **{"dim": 5, "hidden": 16, "patch_weight": 1.0} | options)
    with torch.no_grad():
        method.mask_token.normal_()
        for p in method.f_t.parameters():
            p.add_(0.1 * torch.randn(p.shape))
    return method


def large(n: int = 6) -> list[Tensor]:
    return [normal(n, 3, side, side, seed=v) for v, side in enumerate((16, 16, 8))]


def test_loss_and_gradient_with_patches_are_the_published_ones() -> None:
    """Of the same head; each masked patch counts by their number in its view (`CosinePatchLoss`).

    Up to the constants: 1, and the share of the views that are masked.
    """
    method, views = v2(patch_weight=0.7), large()
    found = objective(method, views, torch.arange(6), torch.Generator()).loss
    found.backward()
    ours = {name: p.grad.clone() for name, p in method.named_parameters() if p.requires_grad}
    method.zero_grad()
    vit, head, teacher = method.f.backbone.vit, method.f.head, method.f_t
    s, t, patches = [], [], torch.zeros(())
    for v, view in enumerate(views):
        x = vit.patch_embed(view)
        mask = method.masks.draw(6, v, (4, 4)) if v < 2 else None
        if mask is not None:
            x = torch.where(mask[..., None], method.mask_token, x)
        x = vit.norm(vit.blocks(vit._pos_embed(x)))
        s.append(head(x[:, 0]))
        if mask is None:
            continue
        with torch.no_grad():
            y = teacher.head(teacher.backbone.vit.forward_features(view))
        t.append(y[:, 0])
        cosine = F.cosine_similarity(head(x[:, 1:]), y[:, 1:], dim=2)
        weight = mask.flatten(1) / mask.sum(dim=(1, 2)).clamp(min=1)[:, None]
        patches = patches - (cosine * weight).sum() / 12
    share = sum(method.masks.draw(6, v, (4, 4)).any(2).any(1).float().mean() for v in (0, 1)) / 2
    wanted = published(torch.stack(s), torch.stack(t), 0.05, 1.0, True) + 0.7 * (patches + share)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    wanted.backward()
    for name, p in method.named_parameters():
        if p.requires_grad:
            torch.testing.assert_close(ours[name], p.grad, rtol=1e-4, atol=1e-5)
    assert method.mask_token.grad.abs().sum() > 0


def test_the_target_of_a_patch_is_the_feature_of_its_owner() -> None:
    method, views = v2(mask_share=1.0), large()
    draw = CutMix(per="sample", align=4).draw(views[0].shape, torch.Generator().manual_seed(3))
    assert draw.is_mixed.any()
    found = objective(method, views, torch.arange(6), torch.Generator(), Mixture(draw)).mixed
    query = method.query(draw.apply(views[0]))
    targets = method.targets(views, {}, torch.arange(6), torch.Generator())
    owner = draw.apply(torch.arange(6.0).view(6, 1, 1, 1).expand(6, 1, 16, 16))[:, 0, ::4, ::4]
    expected, place = torch.zeros(()), 0
    for i in range(6):
        for row, column in query.masked[i].nonzero().tolist():
            own = targets[0].patches[int(owner[i, row, column]), row, column]
            cosine = F.cosine_similarity(query.patches[place], own, dim=0)
            expected = expected + (1 - cosine) / query.masked[i].sum() / 6
            place += 1
    assert place == len(query.patches)
    w, p = draw.shares[:, 0], draw.owners[:, 1]
    images = torch.zeros(())
    for b in (0, 1):
        both = [method.compare(query, WithPatches(targets[b].z[rows])) for rows in (slice(None), p)]
        images = images + 0.5 * (w * both[0] + (1 - w) * both[1]).mean()
    torch.testing.assert_close(found, (images + expected).detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"patch_weight": -1.0}, "patch_weight must be at least 0"),
        ({"mask_ratio_max": 0.03, "mask_ratio_min": 0.01}, "would mask none of the 16 patches"),
        ({"mask_ratio_max": 1.0}, "mask_ratio_max must be"),
    ],
)
def test_masks_that_do_not_fit_are_refused_in_a_line(options: Any, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        v2(**options)
    assert "\n" not in str(error.value)


def test_patches_need_a_vision_transformer() -> None:
    with pytest.raises(UserError, match=r"SimDINOv2 is for the patches.*vit_tiny_patch16_224"):
        simdino(patch_weight=1.0)
