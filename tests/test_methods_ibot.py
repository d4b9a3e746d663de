"""iBOT and DINOv2: against lightly's losses and formulas written out; masks; mixtures by patch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightly.loss import DINOLoss, IBOTPatchLoss, KoLeoLoss
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from unmix import backbones
from unmix.credit import UnMixRule
from unmix.errors import UserError
from unmix.methods import IBOT, Progress
from unmix.methods.ibot import Query, koleo, sinkhorn_center
from unmix.methods.masks import block_masks, counts_of_masks, random_masks
from unmix.mixtures import PairDraw, UnMix
from unmix.mixtures.draws import whole_image
from unmix.step import Mixture, objective

N = 6


def ibot(**options: Any) -> Any:
    torch.manual_seed(0)
    vit = VisionTransformer(
        img_size=16, patch_size=4, embed_dim=12, depth=1, num_heads=2, num_classes=0,
        dynamic_img_size=True,
    )  # fmt: skip
    method = IBOT(vit, **{"dim": 7, "hidden": 16, "bottleneck": 5} | options)
    with torch.no_grad():  # teacher and student differ
        for p in method.f.parameters():
            p.add_(0.1 * torch.randn_like(p))
        method.c.normal_(std=0.1)
        method.c_patch.normal_(std=0.1)
    method.begin_step(Progress(3, 1000, 100, 5))
    return method.eval()


def views_of(sizes: tuple[int, ...] = (16, 16, 8)) -> list[Tensor]:
    return [torch.randn(N, 3, side, side, generator=torch.Generator().manual_seed(v))
            for v, side in enumerate(sizes)]  # fmt: skip


def parameters(method: Any) -> list[Tensor]:
    return [p for p in method.f.parameters() if p.requires_grad]


@pytest.mark.parametrize("separate", [False, True])
def test_loss_and_gradient_are_those_of_lightly(separate: bool) -> None:
    """DINOLoss of the class tokens, IBOTPatchLoss of each large view's patches, KoLeoLoss."""
    method, views = ibot(separate_heads=separate, koleo=0.1), views_of()
    found = objective(method, views, torch.arange(N), torch.Generator())
    queries = method.queries(views)
    dino = DINOLoss(7, student_temp=method.T, center_momentum=0.9)
    dino.center.copy_(method.c)
    t = [method.f_t.head.image(method.f_t.backbone.vit(view)) for view in views[:2]]
    expected = dino(t, [queries[v].logits for v in range(3)], teacher_temp=method.tau_t)
    for v in (0, 1):
        patch = IBOTPatchLoss(7, student_temp=method.T)
        patch.center.center = method.c_patch[None].clone()
        tokens = method.f_t.backbone.vit.forward_features(views[v])[:, 1:]
        masked = queries[v].masked
        theirs = method.f_t.head.patch(tokens[masked.flatten(1)])
        expected = expected + 0.5 * patch(theirs, queries[v].patches, masked, method.tau_t)
        expected = expected + 0.1 * KoLeoLoss()(queries[v].pooled)
    torch.testing.assert_close(found.loss, expected, rtol=1e-5, atol=1e-5)
    ours = torch.autograd.grad(found.loss, parameters(method), allow_unused=True)
    wanted = torch.autograd.grad(expected, parameters(method), allow_unused=True)
    for one, other in zip(ours, wanted, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@settings(max_examples=10, deadline=None)
@given(st.integers(2, 12), st.integers(2, 9), st.floats(0.04, 1), st.integers(0, 2**31))
def test_sinkhorn_is_the_published_one(n: int, k: int, tau: float, seed: int) -> None:
    """Rows and columns of exp(logits / tau) made to sum to 1/K and 1/B, three times."""
    logits = torch.randn(n, k, generator=torch.Generator().manual_seed(seed))
    q = (logits.double() / tau).exp().T
    q /= q.sum()
    for _ in range(3):
        q /= q.sum(dim=1, keepdim=True) * k
        q /= q.sum(dim=0, keepdim=True) * n
    found = ((logits - sinkhorn_center(logits, tau)) / tau).softmax(dim=1)
    torch.testing.assert_close(found.double(), (q * n).T, rtol=1e-4, atol=1e-5)


def test_koleo_is_lightly_s_and_needs_two_images() -> None:
    x = torch.randn(9, 5, requires_grad=True)
    torch.testing.assert_close(koleo(x), KoLeoLoss()(x), rtol=1e-5, atol=1e-6)
    (ours,), (theirs,) = torch.autograd.grad(koleo(x), x), torch.autograd.grad(KoLeoLoss()(x), x)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    with pytest.raises(UserError, match="KoLeo"):
        koleo(x[:1])
    with pytest.raises(UserError, match="KoLeo needs 2 images"):
        ibot(koleo=0.1).check_batch(1)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 9), st.integers(2, 9), st.integers(2, 9), st.floats(0.05, 1),
    st.floats(0.05, 0.9), st.floats(0, 0.09), st.booleans(), st.integers(0, 2**31),
)  # fmt: skip
def test_masks_have_their_counts(
    n: int, rows: int, columns: int, share: float, low: float, more: float, block: bool, seed: int
) -> None:
    """At least one image is masked, at least one of its patches, and one is left."""
    generator = torch.Generator().manual_seed(seed)
    count = rows * columns
    counts = counts_of_masks(n, count, share, (low, low + more), generator)
    draw = block_masks if block else random_masks
    masks = draw(counts, (rows, columns), generator)
    assert torch.equal(masks.sum(dim=(1, 2)), counts)
    some = counts[counts > 0]
    assert len(some) == max(1, round(n * share))
    assert some.max() <= min(count - 1, max(1, count * (low + more) + 1e-4))
    assert some.min() >= min(count - 1, max(1, int(count * low + 1e-4)))


def test_blocks_are_blocks() -> None:
    """Masked patches have more masked neighbors than patches anywhere."""
    counts, generator = torch.full((200,), 30), torch.Generator().manual_seed(0)

    def neighbors(masks: Tensor) -> float:
        return (masks[:, 1:] & masks[:, :-1]).sum().item() / masks.sum().item()

    blocks, anywhere = (d(counts, (14, 14), generator) for d in (block_masks, random_masks))
    assert neighbors(blocks) > 3 * neighbors(anywhere)


def test_masks_are_of_the_seed_the_step_and_the_view() -> None:
    method = ibot()
    first = method.masked(N, 0, (4, 4))
    assert torch.equal(first, method.masked(N, 0, (4, 4)))
    assert not torch.equal(first, method.masked(N, 1, (4, 4)))
    method.begin_step(Progress(4, 1000, 100, 5))
    assert not torch.equal(first, method.masked(N, 0, (4, 4)))


def test_the_mask_token_is_where_the_mask_is() -> None:
    """A masked patch's pixels change nothing, others' do."""
    method, view = ibot(mask_share=1.0), views_of()[0]
    masked = method.masked(N, 0, (4, 4))
    pixels = masked.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, None]
    before = method.query(view).pooled
    torch.testing.assert_close(method.query(torch.where(pixels, 9.0, view)).pooled, before)
    assert (method.query(torch.where(pixels, view, 9.0)).pooled - before).abs().max() > 1e-3


@pytest.mark.parametrize("centering", ["mean", "sinkhorn"])
@pytest.mark.parametrize("region", [False, True])
def test_patches_of_a_mixture_are_compared_with_their_owners(centering: str, region: bool) -> None:
    """An aligned box has one owner a patch and no weight; a global mixture both, by the weight."""
    method, views = ibot(centering=centering, mask_share=1.0), views_of((16, 16))
    partner = torch.arange(N - 1, -1, -1)
    box = torch.tensor([4, 0, 12, 8]).expand(N, 4) if region else whole_image(N, 16, 16)
    ratio = torch.zeros(N) if region else torch.full((N,), 0.3)
    draw = PairDraw(partner, box, ratio, (16, 16), False)
    found = objective(method, views, torch.arange(N), torch.Generator(), Mixture(draw))
    q = method.query(draw.apply(views[0]))
    t = method.targets(views, {}, torch.arange(N), torch.Generator())
    own = method.f_t.backbone.vit.forward_features(views[0])[:, 1:].unflatten(1, (4, 4))
    total = torch.zeros(N)
    for number, (i, r, k) in enumerate(q.masked.nonzero().tolist()):
        log_p = (q.patches[number] / method.T).log_softmax(0)
        inside = 1 <= r < 3 and k < 2
        weights = ({partner[i]: 1.0} if inside else {i: 1.0}) if region else {
            i: 0.3, int(partner[i]): 0.7}  # fmt: skip
        for owner, weight in weights.items():
            logits = method.f_t.head.patch(own[owner, r, k][None])[0]
            p = ((logits - t[0].patch_center[0]) / method.tau_t).softmax(0)
            total[i] -= weight * (p * log_p).sum() / q.masked[i].sum()
    w = draw.weight[0]
    of_class = [w * method.compare(q, t[b]) + (1 - w) * method.compare(
        q, type(t[b])(*(x[partner] for x in t[b]))) for b in (0, 1)]  # fmt: skip
    expected = total.mean() + 0.5 * sum(x.mean() for x in of_class)
    assert found.mixed is not None
    torch.testing.assert_close(found.mixed, expected.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rule", [UnMixRule(), UnMixRule(keeps_clean=False)])
def test_koleo_and_centers_see_clean_images_alone(rule: Any, monkeypatch: Any) -> None:
    views = views_of()
    clean, mixed = ibot(koleo=0.1), ibot(koleo=0.1)
    seen: list[Query] = []
    regularizer = mixed.regularizer
    monkeypatch.setattr(mixed, "regularizer", lambda q, t: seen.extend(q) or regularizer(q, t))
    objective(clean, views, torch.arange(N), torch.Generator()).update_memory()
    mixture = Mixture(UnMix(1.0), rule)
    objective(
        mixed, views, torch.arange(N), torch.Generator().manual_seed(0), mixture
    ).update_memory()
    assert len(seen) == 2
    for v in (0, 1):
        torch.testing.assert_close(seen[v].pooled, clean.query(views[v], v).pooled)
    torch.testing.assert_close(mixed.c, clean.c)
    torch.testing.assert_close(mixed.c_patch, clean.c_patch)


def test_sinkhorn_is_of_clean_images_alone() -> None:
    """The targets, with their centers, are the same with a mixture."""
    method, views = ibot(centering="sinkhorn"), views_of()
    seen: list[Any] = []
    targets = method.targets
    method.targets = lambda *a: seen.append(targets(*a)) or seen[-1]
    for mixture in (None, Mixture(UnMix(1.0))):
        objective(method, views, torch.arange(N), torch.Generator().manual_seed(0), mixture)
    for one, other in zip(seen[0][0], seen[1][0], strict=True):
        assert torch.equal(one, other)


def test_centers_move_toward_the_means_of_logits() -> None:
    method, views = ibot(separate_heads=True), views_of()
    before, patches = method.c.clone(), method.c_patch.clone()
    objective(method, views, torch.arange(N), torch.Generator()).update_memory()
    tokens = [method.f_t.backbone.vit.forward_features(view) for view in views[:2]]
    of_class = torch.cat([method.f_t.head.image(t[:, 0]) for t in tokens]).mean(0)
    of_patch = torch.cat([method.f_t.head.patch(t[:, 1:].flatten(0, 1)) for t in tokens]).mean(0)
    torch.testing.assert_close(method.c, 0.9 * before + 0.1 * of_class, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(method.c_patch, 0.9 * patches + 0.1 * of_patch, rtol=1e-4, atol=1e-5)


def test_a_resnet_has_no_patches() -> None:
    with pytest.raises(UserError, match=r"iBOT.*vision transformer.*use `backbone=\"timm:vit_tiny"):
        IBOT(backbones.build("resnet10", width=0.125, size=16))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mask_ratio_min": 0.01, "mask_ratio_max": 0.05}, "mask none of the 16 patches"),
        ({"mask_ratio_min": 0.98, "mask_ratio_max": 0.99}, "leave none of the 16 patches"),
        ({"mask_ratio_min": 0.6, "mask_ratio_max": 0.5}, "at most 0.5"),
        ({"mask_share": 0.0}, "greater than 0"),
        ({"koleo": -1.0}, "at least 0"),
        ({"centering": "median"}, "sinkhorn"),
        ({"masks": "disc"}, "block"),
    ],
)
def test_values_that_cannot_work_are_told(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        ibot(**options)


def test_the_last_layers_are_frozen_at_first() -> None:
    method, views = ibot(separate_heads=True, freeze_last_epochs=1), views_of()
    method.begin_step(Progress(0, 1000, 100))
    result = objective(method, views, torch.arange(N), torch.Generator())
    result.loss.backward()
    result.update_memory()
    assert method.f.head.image.last.weight.grad is None
    assert method.f.head.patch.last.weight.grad is None
    assert isinstance(method.f.head, nn.Module)
    assert method.f.head.mask_token.grad.abs().sum() > 0
