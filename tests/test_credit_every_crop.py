"""Every student crop mixed by a draw of its own against clean teachers, as EsViT's code does it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from harness import N, build, gradients, settled, step, views_of
from unmix.config import Settings
from unmix.config.mixtures import MixtureSettings
from unmix.credit import RULES, UnMixRule, rule
from unmix.errors import UserError
from unmix.losses import sinkhorn
from unmix.methods import Method
from unmix.mixtures import ManifoldMixture, MixUp, ScaleMix, UnMix
from unmix.randomness import generator_for
from unmix.step import Mixture, objective
from unmix.together import Names, check_together
from unmix.training.loading.loaders import Batch
from unmix.training.run.parts import build_parts


def one_hot_targets(weight: Tensor, n: int = N) -> Tensor:
    """timm's targets of a batch that is mixed with itself in reverse: (N, N)."""
    return weight * torch.eye(n) + (1 - weight) * torch.eye(n).flip(0)


def every_crop(method: Method, views: list[Tensor], which: Any = None, seed: int = 3) -> Any:
    mixture = Mixture(UnMix(), which or RULES["esvit"])
    return objective(method, views, torch.arange(N), torch.Generator().manual_seed(seed), mixture)


def drawn_again(views: list[Tensor], seed: int = 3) -> list[Any]:
    """The draws of the views, one after the other."""
    generator = torch.Generator().manual_seed(seed)
    return [UnMix().draw(view.shape, generator) for view in views]


def test_dino_is_the_released_cross_entropy_with_n_by_n_soft_targets() -> None:
    """Loss and gradients by EsViT's own arithmetic, crop by crop."""
    method, other = settled("dino").train(), settled("dino").train()
    views = views_of(method)
    found = every_crop(method, views)
    found.loss.backward()

    draws = drawn_again(views)
    with torch.no_grad():
        both = torch.cat(views[:2])
        teacher = (logits(other.f_t, both) - other.c) / other.tau_t
        teacher = teacher.softmax(dim=1).chunk(2)
    mixed = [draw.apply(view) for draw, view in zip(draws, views, strict=True)]
    # As MultiCropWrapper: one forward of the backbone a size, one of the head.
    features = [other.f.backbone(torch.cat(mixed[:2])), other.f.backbone(torch.cat(mixed[2:]))]
    student = (other.f.head(torch.cat(features)) / other.T).chunk(len(views))
    losses = []
    for number, q in enumerate(teacher):
        for v, s in enumerate(student):
            if v == number:
                continue
            targets = one_hot_targets(draws[v].weight[0])
            losses.append(-(targets * (q @ F.log_softmax(s, dim=1).T).T).sum(dim=1).mean())
    expected = torch.stack(losses).mean()
    expected.backward()
    torch.testing.assert_close(found.loss, expected, rtol=1e-5, atol=1e-6)
    reference = gradients(other)
    for name, gradient in gradients(method).items():
        torch.testing.assert_close(gradient, reference[name], rtol=1e-4, atol=1e-6)
    assert found.clean is None


def logits(encoder: Any, images: Tensor) -> Tensor:
    return encoder.head(encoder.backbone(images))


def test_swav_predicts_clean_codes_from_every_mixed_crop() -> None:
    """Codes are of clean large views, and of no mixture; prototypes learn from predictions."""
    method, other = settled("swav").train(), settled("swav").train()
    views = views_of(method)
    found = every_crop(method, views)
    found.loss.backward()

    draws = drawn_again(views)
    with torch.no_grad():
        clean = F.normalize(logits(other.f, torch.cat(views[:2])).float(), dim=1).chunk(2)
        codes = [
            sinkhorn(other.C(torch.cat([queue.keys, z])), other.epsilon, other.iterations)[-N:]
            for queue, z in zip(other.queues, clean, strict=True)
        ]
    mixed = [draw.apply(view) for draw, view in zip(draws, views, strict=True)]
    features = [other.f.backbone(torch.cat(mixed[:2])), other.f.backbone(torch.cat(mixed[2:]))]
    z = F.normalize(other.f.head(torch.cat(features)), dim=1).chunk(len(views))
    losses = []
    for number, code in enumerate(codes):
        for v, embedding in enumerate(z):
            if v == number:
                continue
            p = F.log_softmax(other.C(embedding) / other.T, dim=1)
            targets = one_hot_targets(draws[v].weight[0])
            losses.append(-(targets * (code @ p.T).T).sum(dim=1).mean())
    expected = torch.stack(losses).mean()
    expected.backward()
    torch.testing.assert_close(found.loss, expected, rtol=1e-5, atol=1e-6)
    reference = gradients(other)
    for name, gradient in gradients(method).items():
        torch.testing.assert_close(gradient, reference[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["byol", "moco", "deepclusterv2", "lejepa", "simsiam"])
def test_other_methods_compare_each_mixed_view_as_its_clean_one(name: str) -> None:
    """By shares of the clean loss: w of the image, 1 - w of the partner; in evaluation mode."""
    method = settled(name)
    views = views_of(method)
    found = every_crop(method, views)
    draws = drawn_again(views)
    index, generator = torch.arange(N), torch.Generator().manual_seed(0)
    targets = method.targets(views, method.queries(views), index, generator)
    expected = torch.zeros(())
    for a, b, share in method.pairs_of(len(views)):
        q = method.query(draws[a].apply(views[a]), a)
        w, t = draws[a].weight[0], targets[b]
        expected = expected + share * w * method.compare(q, t).mean()
        expected = expected + share * (1 - w) * method.compare(q, t.flip(0)).mean()
    torch.testing.assert_close(found.mixed, expected.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("seed", [0, 8])
@pytest.mark.parametrize("kind", ["ibot", "ibot-dinov2"])
def test_ibot_compares_each_pixel_of_every_mixed_crop_with_its_image(kind: str, seed: int) -> None:
    """Owners counted in mixtures of one-hot images: all pixels for a crop, a patch's for a patch.

    Large and small crops for class tokens, the large ones' masked patches with the teacher's of the
    same place; KoLeo and centers are of clean views.
    """
    method: Any = settled(kind)
    views = views_of(method)
    found = every_crop(method, views, seed=seed)
    draws = drawn_again(views, seed)
    targets = method.targets(
        views, method.queries(views), torch.arange(N), torch.Generator().manual_seed(0)
    )

    def of_image(target: Any, k: int) -> Any:
        return type(target)(*(x[k].expand_as(x) for x in target))

    expected = torch.zeros(())
    for a, view in enumerate(views):
        owners = torch.eye(N)[:, :, None, None].expand(-1, -1, *view.shape[2:])
        shares = draws[a].apply(owners.contiguous())
        query = method.query(draws[a].apply(view), a)
        for b, share in ((b, s) for v, b, s in method.pairs_of(len(views)) if v == a):
            for k in range(N):
                loss = method.compare(query, of_image(targets[b], k))
                expected = expected + share * (shares[:, k].mean(dim=(1, 2)) * loss).mean()
        if a < 2:
            of_patches = F.avg_pool2d(shares, method.cell)
            assert ((of_patches > 0.01) & (of_patches < 0.99)).any()  # some have two owners
            for k in range(N):
                losses = method.compare_positions(query, of_image(targets[a], k))
                per_image = (of_patches[:, k] * losses).sum(dim=(1, 2))
                expected = expected + 0.5 * per_image.mean()
    torch.testing.assert_close(found.mixed, expected.detach(), rtol=1e-4, atol=1e-5)
    found.loss.backward()
    assert all(p.grad is None for p in method.f_t.parameters())


def test_un_mix_of_every_crop_is_beside_the_clean_loss_and_replace_is_es_vit() -> None:
    method = settled("dino")
    views = views_of(method)
    esvit, clean = every_crop(method, views), step(method, views)
    beside = every_crop(method, views, rule("unmix", every_crop=True))
    instead = every_crop(method, views, rule("replace", every_crop=True, share=0.5))
    torch.testing.assert_close(beside.loss, clean.loss + esvit.loss)
    torch.testing.assert_close(instead.loss, 0.5 * esvit.loss)


@pytest.mark.parametrize("name", ["dino", "swav"])
def test_crops_of_one_size_are_encoded_in_one_forward(name: str) -> None:
    method = settled(name).train()
    sizes: list[tuple[int, int]] = []
    backbone: Any = method.backbone

    def note(_: Any, given: Any, __: Any) -> None:
        if torch.is_grad_enabled():
            sizes.append((len(given[0]), given[0].shape[2]))

    backbone.register_forward_hook(note)
    every_crop(method, views_of(method))
    assert sizes == [(2 * N, 16), (2 * N, 8)]


def test_the_global_mixture_may_have_a_distribution_of_its_own() -> None:
    """EsViT: Beta(0.8, 0.8) for mixup and Beta(1, 1) for CutMix."""
    operator = UnMix(1.0, alpha=1.0, global_alpha=0.02, per="sample")
    ratio = operator.draw((400, 3, 4, 4), generator_for(0)).weight
    assert ((ratio < 0.05) | (ratio > 0.95)).float().mean() > 0.9
    assert "Beta(0.02, 0.02)" in UnMix(global_alpha=0.02).describe()
    published = RULES["esvit"].mixture
    assert published == UnMix(0.5, alpha=1.0, global_alpha=0.8)
    given = MixtureSettings(unmix=True, unmix_rule="esvit", beta=0.3).label_space(published)
    assert isinstance(given, UnMix)
    assert (given.global_alpha, given.distribution.alpha) == (None, 0.3)


def test_methods_with_one_query_refuse_it_and_say_what_would_work() -> None:
    asymmetric = build("moco-asymmetric")
    why = str(RULES["esvit"].why_not(asymmetric))
    assert why == (
        "its first view alone is a query, which unmix and replace mix; with symmetric it has two"
    )
    assert RULES["esvit"].why_not(build("moco")) is None
    assert "first view alone" in str(RULES["esvit"].why_not(build("simclr")))
    assert UnMixRule().why_not(asymmetric) is None


@pytest.mark.parametrize(
    ("operator", "joint", "message"),
    [
        (ManifoldMixture("conv"), False, "mixes features of the first view, and every crop is"),
        (ScaleMix(), False, "needs further crops of the first view, and every crop is mixed; use"),
        (MixUp(pairing="second_view"), False, "needs further crops of the first view"),
        (UnMix(), True, "does not apply where every crop is mixed; leave it out."),
    ],
    ids=["manifold", "scalemix", "second_view", "joint"],
)  # fmt: skip
def test_mixtures_of_the_first_view_alone_are_refused(
    operator: Any, joint: bool, message: str
) -> None:
    method, esvit = build("dino"), RULES["esvit"]
    with pytest.raises(UserError, match=message):
        check_together(operator, esvit, method, Names.of(method, "esvit", operator), joint=joint)


def test_flags_reach_the_step() -> None:
    words: dict[str, Any] = {
        "data": "photos", "limit": 32, "size": 16, "batch_size": 8, "backbone": "resnet10",
        "width": 0.25, "device": "cpu", "precision": "32", "method": "dino", "dim": 16,
        "hidden": 16, "bottleneck": 8, "local_crops": 2, "local_size": 8, "unmix": True,
    }  # fmt: skip
    losses = []
    for more in ({"unmix_rule": "esvit"}, {"unmix_rule": "replace", "unmix_every_crop": True}):
        parts = build_parts(Settings.of({**words, **more}))
        found = parts.module.compute(Batch(torch.arange(8)), generator_for(0))
        found.loss.backward()
        assert found.clean is None
        assert found.loss.isfinite()
        losses.append(found.loss)
    with pytest.raises(UserError, match="is not for") as caught:
        Settings.of({**words, "unmix_rule": "imix", "unmix_every_crop": True})
    assert "unmix or replace" in str(caught.value)
