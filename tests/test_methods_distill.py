"""Distillation: both losses written out, what a teacher sees, exact targets, what is not saved."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import unmix
from harness import Foreign, Tiny, fixed, given_to, teacher, views_of
from unmix.credit import RULES
from unmix.errors import UserError
from unmix.methods import Distill, Teacher
from unmix.mixtures import CropMix, CutMix, DirichletMixture, ManifoldMixture, MixUp
from unmix.step import Mixture, objective


def distill(match: Any = "features", **options: Any) -> Distill:
    torch.manual_seed(3)
    return Distill(Tiny(), **{"teacher": teacher(), "match": match, "queue_size": 12} | options)


def unit(n: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(n, 20, generator=torch.Generator().manual_seed(seed)), dim=1)


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 9), st.floats(0.05, 1), st.floats(0.02, 1), st.integers(0, 2**31))
def test_similarities_are_compared_by_the_formula_of_seed(
    n: int, student: float, of_teacher: float, seed: int
) -> None:
    """Eqs. 2 to 5: the teacher's own feature, then the queue; by PyTorch's distributions."""
    method = distill("similarities", temperature=student, teacher_temperature=of_teacher)
    assert method.Q is not None
    q, t = unit(n, seed).requires_grad_(), unit(n, seed + 1)
    logits = [
        torch.stack([torch.cat([t[i : i + 1], method.Q.keys]) @ one[i] for i in range(n)])
        for one in (q, t)
    ]
    p_s = torch.distributions.Categorical(logits=logits[0] / student)
    p_t = torch.distributions.Categorical(logits=logits[1] / of_teacher)
    expected = torch.distributions.kl_divergence(p_t, p_s) + p_t.entropy()
    found = method.compare(q, t)
    assert found.shape == (n,)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    ours, theirs = (torch.autograd.grad(x.sum(), q)[0] for x in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 9), st.integers(0, 2**31))
def test_features_are_compared_by_the_squared_distance_of_simreg(n: int, seed: int) -> None:
    q, t = unit(n, seed).requires_grad_(), unit(n, seed + 1)
    found = distill().compare(q, t)
    torch.testing.assert_close(found, (q - t).square().sum(1), rtol=1e-5, atol=1e-5)
    (ours,) = torch.autograd.grad(found.sum(), q)
    torch.testing.assert_close(ours, -2 * t)


def test_the_head_is_simregs() -> None:
    """n to 2n, n, 2n, out, with batch norm and ReLU after the first and the third."""
    linear = [m for m in distill().g if isinstance(m, nn.Linear)]  # type: ignore[union-attr]
    assert [(m.in_features, m.out_features) for m in linear] == [
        (24, 48), (48, 24), (24, 48), (48, 20),
    ]  # fmt: skip
    kinds = [type(m).__name__[:4] for m in distill().g]  # type: ignore[union-attr]
    assert kinds == ["Line", "Batc", "ReLU", "Line", "Line", "Batc", "ReLU", "Line"]


@pytest.mark.parametrize("match", ["features", "similarities"])
@pytest.mark.parametrize(
    "mixture", [MixUp(), CutMix(), DirichletMixture(), CropMix()], ids=lambda m: type(m).__name__
)
def test_the_exact_target_of_a_mixture_is_what_the_teacher_says_of_its_pixels(
    match: str, mixture: Any
) -> None:
    """Of those that the student sees, whoever owns them, also where they are of further views."""
    method = distill(match).eval()
    view, *others = views_of(method), *views_of(method, 1), *views_of(method, 2)
    others = others[: len(mixture.extra)]
    draw = mixture.draw(view[0].shape, torch.Generator().manual_seed(0))
    asked = Mixture(draw, RULES["exact"], others)
    result = objective(method, view, torch.arange(8), torch.Generator(), asked)
    pixels = draw.apply(view[0], others)
    assert not torch.equal(pixels, view[0][: len(pixels)])
    with torch.no_grad():
        target = F.normalize(method.teacher(pixels), dim=1)
        expected = method.compare(method.query(pixels), target).mean()
    torch.testing.assert_close(result.mixed, expected)
    plain = objective(method, view, torch.arange(8), torch.Generator())
    torch.testing.assert_close(result.clean, plain.clean)


def test_the_exact_target_and_un_mixs_agree_where_the_teacher_is_linear_and_features_are_matched():
    """Then features of a mixture are mixed features; a real teacher is not, and they differ."""

    class Linear(nn.Module):
        feature_dim = 20

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 20, bias=False)

        def forward(self, images: Tensor) -> Tensor:
            return self.layer(images.mean(dim=(2, 3)))

    losses = {}
    for name, network in (("linear", Linear()), ("real", teacher())):
        method = distill(teacher=network).eval()
        # Without the normalization, which is not linear: |q - t|^2 of raw features.
        method.targets = (  # type: ignore[method-assign]
            lambda views, *rest, m=method: {0: m.teacher(views[0]).detach()}
        )
        draw = MixUp().draw((8, 3, 16, 16), torch.Generator().manual_seed(1))
        views = views_of(method)
        q = method.query(draw.apply(views[0])).detach().requires_grad_()
        t, mix = method.teacher(views[0]), method.teacher(draw.apply(views[0]))
        shared = unmix.shared_loss(method.compare, q, t, draw)
        gradients = [
            torch.autograd.grad(loss, q, retain_graph=True)[0]
            for loss in (shared, method.compare(q, mix).mean())
        ]
        losses[name] = (gradients[0] - gradients[1]).norm() / gradients[1].norm()
    assert losses["linear"] < 1e-5
    assert losses["real"] > 1e-4


def test_un_mixs_targets_are_the_clean_images() -> None:
    method, draw = distill().eval(), fixed(0.3)
    views = views_of(method)
    seen: list[Tensor] = []
    method.teacher.register_forward_pre_hook(lambda m, x: seen.append(x[0]))
    for rule, count in (("unmix", 1), ("exact", 2)):
        seen.clear()
        objective(method, views, torch.arange(8), torch.Generator(), Mixture(draw, RULES[rule]))
        assert len(seen) == count
        assert torch.equal(seen[0], views[0])


def test_in_image_space_teacher_and_student_see_the_same_mixture() -> None:
    method = distill()
    seen: list[Tensor] = []
    method.teacher.register_forward_pre_hook(lambda m, x: seen.append(x[0]))
    method.f.register_forward_pre_hook(lambda m, x: seen.append(x[0]))
    space = unmix.ImageMixture(g_prob=1.0)
    step, views = unmix.Stepper(method, steps_per_epoch=2, epochs=1, image_space=space), None
    views = views_of(method)
    step(views).backward()
    assert len(seen) == 2
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], views[0])


def test_a_mixture_of_features_has_no_exact_target() -> None:
    with pytest.raises(UserError, match="is asked about pixels"):
        unmix.Stepper(
            distill(), steps_per_epoch=1, epochs=1, mixture=ManifoldMixture("conv"), rule="exact"
        )


def test_no_other_method_has_an_exact_target() -> None:
    method = unmix.MoCo(Tiny(), 24, queue_size=8)
    with pytest.raises(UserError, match=r"exact does not apply to .*no frozen teacher"):
        unmix.Stepper(method, steps_per_epoch=1, epochs=1, rule="exact")


def test_the_teacher_is_neither_trained_nor_saved_nor_put_into_training_mode() -> None:
    network = nn.Sequential(Foreign(), nn.BatchNorm1d(20))
    network.feature_dim = 20  # type: ignore[assignment]
    network.train()
    method = distill("similarities", teacher=network)
    before = copy.deepcopy(network.state_dict())
    assert not network.training
    optimizer = torch.optim.SGD(method.parameters(), lr=0.5, weight_decay=0.1)
    step = unmix.Stepper(method, steps_per_epoch=3, epochs=1, mixture=MixUp(), rule="exact")
    step.train()
    for _ in range(3):
        optimizer.zero_grad()
        step(views_of(method)).backward()
        optimizer.step()
    assert not network.training
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key]), key
    ours = {id(x) for x in (*network.parameters(), *network.buffers())}
    assert not ours & {id(x) for x in (*method.parameters(), *method.buffers())}
    assert not any(key.startswith("teacher") for key in method.state_dict())
    assert not any(module is network for module in method.modules())


def test_the_teacher_moves_with_the_method() -> None:
    method = distill(teacher=Teacher(Foreign(), **NORMALIZED))
    assert method.to(torch.float64) is method
    assert {p.dtype for p in method.teacher.parameters()} == {torch.float64}
    views = [view.double() for view in views_of(method)]
    objective(method, views, torch.arange(8), torch.Generator()).loss.backward()
    assert {p.device.type for p in method.to("meta").teacher.parameters()} == {"meta"}
    twin = copy.deepcopy(distill())
    assert isinstance(twin.teacher, nn.Module)


def test_the_queue_takes_the_teachers_features_of_clean_images() -> None:
    method = distill("similarities").eval()
    assert method.Q is not None
    views = views_of(method)
    result = objective(
        method, views, torch.arange(8), torch.Generator(), Mixture(fixed(0.4), RULES["exact"])
    )
    result.update_memory()
    torch.testing.assert_close(method.Q.keys[:8], F.normalize(method.teacher(views[0]), dim=1))
    assert method.state() == {"queue_fill": 8 / 12}
    assert method.chance_loss == pytest.approx(math.log(13))
    assert distill().state() == {}
    assert distill().chance_loss is None


@pytest.mark.parametrize("match", ["features", "similarities"])
@pytest.mark.parametrize("rule", ["unmix", "exact"])
def test_a_student_comes_to_see_what_its_teacher_sees(match: str, rule: str) -> None:
    """Similarities of new images, by its backbone, are more like the teacher's than before."""
    method = distill(match, queue_size=64)
    images = torch.randn(96, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    images = images + 2 * torch.randn(96, 3, 1, 1, generator=torch.Generator().manual_seed(1))

    def likeness() -> float:
        with torch.no_grad():
            new = images[64:]
            each = [F.normalize(f - f.mean(0), dim=1) for f in (
                method.eval().features(new), method.teacher(new)
            )]  # fmt: skip
            a, b = ((f @ f.T)[torch.triu(torch.ones(32, 32), 1) > 0] for f in each)
            return float(torch.corrcoef(torch.stack([a, b]))[0, 1])

    before = likeness()
    step = unmix.Stepper(
        method, steps_per_epoch=80, epochs=1, mixture=MixUp(), rule=rule
    )  # fmt: skip
    optimizer = torch.optim.Adam(method.parameters(), lr=3e-3)
    losses = []
    step.train()
    for number in range(80):
        loss = step([images[16 * (number % 4) :][:16]])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert step.clean is not None
        losses.append(step.clean.item())
    assert sum(losses[-8:]) < 0.9 * sum(losses[:8])
    assert likeness() > before + 0.05


# --- what the teacher sees ---------------------------------------------------------------------

NORMALIZED: dict[str, Any] = {
    "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225),
    "view_mean": (0.5, 0.4, 0.3), "view_std": (0.2, 0.25, 0.3),
}  # fmt: skip


class Shown(nn.Module):
    """Keeps what it is given."""

    feature_dim = 3

    def forward(self, images: Tensor) -> Tensor:
        self.images = images
        return images.mean(dim=(2, 3))


def normalized(pixels: Tensor, mean: Any, std: Any) -> Tensor:
    return (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def test_views_of_another_normalization_and_size_are_what_the_teacher_was_trained_on() -> None:
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    shown = Shown()
    views = normalized(pixels, NORMALIZED["view_mean"], NORMALIZED["view_std"])
    Teacher(shown, **NORMALIZED)(views)
    theirs = normalized(pixels, NORMALIZED["mean"], NORMALIZED["std"])
    torch.testing.assert_close(shown.images, theirs)
    for size in (40, 8):
        Teacher(shown, size=size, **NORMALIZED)(views)
        resized = F.interpolate(pixels, (size, size), mode="bicubic", antialias=True)
        expected = normalized(resized, NORMALIZED["mean"], NORMALIZED["std"])
        torch.testing.assert_close(shown.images, expected, rtol=1e-4, atol=1e-4)
    Teacher(shown)(views)
    assert torch.equal(shown.images, views)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"size": 0}, "size"),
        ({"mean": (0.5, 0.5, 0.5)}, "std: is missing; give mean, std, view_mean and view_std"),
        ({**NORMALIZED, "std": (0.0, 1.0, 1.0)}, "std"),
    ],
)
def test_numbers_that_no_image_has_are_told(words: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        Teacher(Shown(), **words)
    assert message in str(caught.value).replace("Teacher", "").strip()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"teacher": "timm:vit_tiny"}, "a name or a path goes to unmix.pretrain"),
        ({"temperature": 0.0}, "greater than 0"),
        ({"teacher_temperature": -1.0}, "greater than 0"),
        ({"queue_size": 0}, "at least 1"),
        ({"match": "feature"}, "Did you mean 'features'?"),
    ],
)
def test_values_that_cannot_be_are_told(words: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        distill(**words)
    assert message in str(caught.value)


def test_a_teacher_that_is_the_student_is_refused_and_a_missing_one_is_asked_for() -> None:
    backbone = Tiny()
    with pytest.raises(UserError, match="shares parameters with the backbone"):
        Distill(backbone, teacher=backbone)
    assert all(p.requires_grad for p in backbone.parameters())
    with pytest.raises(UserError, match="teacher: is required by 'distill'"):
        unmix.methods.build("distill", Tiny(), 24)
    assert isinstance(unmix.methods.build("distill", Tiny(), 24, **given_to("distill")), Distill)
