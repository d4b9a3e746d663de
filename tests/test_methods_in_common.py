"""What holds of every method without a queue of keys: gradients, precision, state, mixtures."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from unmix import backbones, methods
from unmix.credit import SDMP, UnMixRule, of_partner, per_tensor
from unmix.errors import UserError
from unmix.methods import NNCLR, Method, Progress, method_class
from unmix.mixtures import PairDraw
from unmix.mixtures.draws import whole_image
from unmix.step import Mixture, Objective, objective

N, SIZE = 12, 8
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "barlow": ("barlow", {"dim": 8, "hidden": 16}),
    "byol": ("byol", {"dim": 8, "hidden": 16}),
    "mocov3": ("mocov3", {"dim": 8, "hidden": 16}),
    "nnclr": ("nnclr", {"dim": 8, "hidden": 16, "predictor_hidden": 16, "queue_size": 30}),
    "simclr": ("simclr", {"dim": 8}),
    "simclr-bn": ("simclr", {"dim": 8, "hidden": 16, "layers": 3, "head_bn": True}),
    "simsiam": ("simsiam", {"dim": 16, "hidden": 16, "predictor_hidden": 8}),
    "vicreg": ("vicreg", {"dim": 8, "hidden": 16}),
    "wmse": ("wmse", {"dim": 4, "hidden": 16, "sub_batch": 6}),
    "wmse-4": ("wmse", {"dim": 4, "hidden": 16, "sub_batch": 6, "views": 4, "iterations": 2}),
}
every_kind = pytest.mark.parametrize("kind", KINDS)
# The views that are encoded for a clean step, by the trained branch and by its momentum copy.
ENCODED = {"byol": (2, 2), "mocov3": (2, 2), "wmse-4": (4, 0)}


@pytest.fixture(autouse=True)
def _one_thread_and_the_global_generator_left_as_it_was() -> Iterator[None]:
    """Weights start from PyTorch's global generator."""
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        yield


def build(kind: str, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    name, options = KINDS[kind]
    return methods.build(name, backbones.build("resnet10", width=0.125, size=SIZE), 24, **options)


def views_of(method: Method, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(N, 3, SIZE, SIZE, generator=generator) for _ in range(method.views)]


def draw_of(weight: float) -> PairDraw:
    """Global mixtures with the batch reversed."""
    partner, ratio = torch.arange(N - 1, -1, -1), torch.full((N,), weight)
    return PairDraw(partner, whole_image(N, SIZE, SIZE), ratio, (SIZE, SIZE), False)


def step(method: Method, views: list[Tensor], mixture: Mixture | None = None, seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    result: Objective = objective(method, views, torch.arange(N), generator, mixture)
    return result


def gradient(method: Method) -> Tensor:
    return torch.cat([p.grad.flatten() for p in method.parameters() if p.grad is not None])


@every_kind
def test_all_that_is_trained_gets_a_gradient_and_momentum_copies_none(kind: str) -> None:
    method = build(kind)
    method.begin_step(Progress(0, 4, 2))
    step(method, views_of(method)).loss.backward()
    for name, p in method.named_parameters():
        assert p.requires_grad != name.split(".")[0].endswith("_k"), name
        assert (p.grad is not None) == p.requires_grad, name


@every_kind
def test_the_clean_loss_is_the_pairs_losses_by_their_shares(kind: str) -> None:
    """In float32, one number a sample or one a batch, as the method says of itself."""
    method = build(kind).eval()
    views = views_of(method)
    queries = method.queries(views)
    targets = method.targets(views, queries, torch.arange(N), torch.Generator().manual_seed(0))
    losses = [share * method.compare(queries[a], targets[b]) for a, b, share in method.pairs]
    assert all(x.shape == (() if method.coupled else (N,)) for x in losses)
    assert all(x.dtype == torch.float32 for x in losses)
    torch.testing.assert_close(step(method, views).loss, sum(x.mean() for x in losses))


@every_kind
def test_every_view_is_encoded_once(kind: str) -> None:
    """With a mixture once more, whether it comes beside the clean loss or instead of it."""
    method = build(kind)
    views, expected = views_of(method), ENCODED.get(kind, (2, 0))
    seen: dict[str, list[Tensor]] = {"f": [], "f_k": []}
    for name, inputs in seen.items():
        if hasattr(method, name):
            getattr(method, name).register_forward_hook(lambda m, x, y, to=inputs: to.append(x[0]))
    for rule in (None, UnMixRule(), UnMixRule(keeps_clean=False)):
        for inputs in seen.values():
            inputs.clear()
        step(method, views, None if rule is None else Mixture(draw_of(0.3), rule))
        trained, copies = len(seen["f"]), len(seen["f_k"])
        replaced = rule is not None and not rule.keeps_clean
        if not replaced:
            assert (trained, copies) == (expected[0] + (rule is not None), expected[1])
        else:
            assert trained <= expected[0] + 1
            firsts = [x for x in seen["f"] if torch.equal(x, views[1])]
            assert len(firsts) <= 1


@every_kind
@pytest.mark.parametrize("weight", [1.0, 0.0])
def test_a_mixture_that_is_one_image_costs_what_the_image_costs(kind: str, weight: float) -> None:
    """At weight 1 the image's own target, at weight 0 its partner's: the partner is a target."""
    method = build(kind).eval()
    views = views_of(method)
    result = step(method, views, Mixture(draw_of(weight)))
    queries = method.queries(views)
    targets = method.targets(views, queries, torch.arange(N), torch.Generator().manual_seed(0))
    of = {b: sum(p.share for p in method.pairs if p.target == b) for _, b, _ in method.pairs}
    expected = sum(share * method.compare(queries[0], targets[b]).mean() for b, share in of.items())
    torch.testing.assert_close(result.mixed, expected.detach(), rtol=1e-4, atol=1e-5)


@every_kind
def test_both_images_of_a_mixture_get_their_share_of_the_gradient(kind: str) -> None:
    """The mixture's loss written out; its gradient is the shares' sum of the two losses'."""
    method = build(kind).eval()
    views, draw = views_of(method), draw_of(0.3)
    index, generator = torch.arange(N), torch.Generator().manual_seed(0)
    targets = method.targets(views, method.queries(views), index, generator)
    b = 1
    q = method.query(draw.apply(views[0]))
    parts = []
    for share, target in ((0.3, targets[b]), (0.7, of_partner(targets[b], draw.partner))):
        method.zero_grad()
        (share * method.compare(q, target).mean()).backward(retain_graph=True)
        parts.append(gradient(method))
    method.zero_grad()
    mixed = 0.3 * method.compare(q, targets[b]).mean()
    mixed = mixed + 0.7 * method.compare(q, of_partner(targets[b], draw.partner)).mean()
    mixed.backward()
    assert all(part.norm() > 1e-6 for part in parts)
    torch.testing.assert_close(gradient(method), parts[0] + parts[1], rtol=1e-3, atol=1e-5)


@every_kind
def test_bfloat16_autocast_gives_a_float32_loss_that_is_near(kind: str) -> None:
    """Of the same outputs of the network the loss is the same: it is computed in float32."""
    method = build(kind).eval()
    views = views_of(method)
    exact = step(method, views, Mixture(draw_of(0.4))).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = step(method, views, Mixture(draw_of(0.4)))
        queries = method.queries(views)
        index, generator = torch.arange(N), torch.Generator().manual_seed(0)
        targets = method.targets(views, queries, index, generator)
        loss = method.compare(queries[0], targets[1])
    wide = [per_tensor(x, lambda rows: rows.float()) for x in (queries[0], targets[1])]
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, method.compare(*wide), rtol=1e-5, atol=1e-5)
    result.loss.backward()
    assert all(p.grad.isfinite().all() for p in method.parameters() if p.grad is not None)
    # Whitening a few samples magnifies the rounding of their features.
    near = 0.3 if kind.startswith("wmse") else 0.05
    assert result.loss.item() == pytest.approx(exact.item(), rel=near, abs=near)


@every_kind
def test_a_method_from_a_state_dict_goes_on_where_the_saved_one_was(kind: str) -> None:
    method, fresh = build(kind), build(kind, seed=1)
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.01)
    for number in range(2):
        method.begin_step(Progress(number, 4, 2))
        result = step(method, views_of(method, number))
        result.loss.backward()
        result.update_memory()
        optimizer.step()
    before = step(copy.deepcopy(fresh), views_of(method, 5)).loss
    fresh.load_state_dict(copy.deepcopy(method.state_dict()))
    for number in (2, 3):
        losses = []
        for one in (method, fresh):
            one.begin_step(Progress(number, 4, 2))
            result = step(one, views_of(one, number + 3), Mixture(draw_of(0.4)))
            result.update_memory()
            losses.append(result.loss.detach())
        assert torch.equal(*losses)
    assert not torch.equal(before, losses[0])
    ours, theirs = fresh.state_dict(), method.state_dict()
    assert all(torch.equal(ours[name], x) for name, x in theirs.items())


@every_kind
def test_nothing_but_a_queue_is_kept_and_not_before_keep(kind: str) -> None:
    method = build(kind).eval()
    before = copy.deepcopy(method.state_dict())
    result = step(method, views_of(method), Mixture(draw_of(0.4)))
    result.loss.backward()
    assert all(torch.equal(x, before[name]) for name, x in method.state_dict().items())
    result.update_memory()
    changed = {name for name, x in method.state_dict().items() if not torch.equal(x, before[name])}
    assert all(name.startswith("Q.") for name in changed)
    assert bool(changed) == isinstance(method, NNCLR)


@every_kind
def test_a_step_follows_from_its_generator(kind: str) -> None:
    """Only W-MSE draws anything: which samples are whitened together."""
    losses = [step(build(kind), views_of(build(kind)), seed=seed).loss.item() for seed in (0, 0, 1)]
    assert losses[0] == losses[1]
    assert (losses[0] != losses[2]) == kind.startswith("wmse")


def without_batch_statistics(method: Method) -> Method:
    for module in method.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.eval()
    return method


@every_kind
def test_one_forward_for_clean_and_mixed_is_two_where_samples_do_not_meet(kind: str) -> None:
    found = []
    for joint in (False, True):
        method = without_batch_statistics(build(kind).train())
        result = step(method, views_of(method), Mixture(draw_of(0.3), joint=joint))
        result.loss.backward()
        found.append((result.loss.detach(), result.mixed, gradient(method)))
    for apart, together in zip(*found, strict=True):
        torch.testing.assert_close(apart, together, rtol=1e-3, atol=1e-4)


@every_kind
def test_a_compiled_query_gives_the_same_loss_and_gradients(kind: str) -> None:
    results = []
    for compiled in (False, True):
        method = build(kind)
        if compiled:
            method.query = torch.compile(method.query, backend="eager")
        result = step(method, views_of(method), Mixture(draw_of(0.4)))
        result.loss.backward()
        results.append((result.loss.detach(), gradient(method)))
    torch.compiler.reset()
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


class NoReading(TorchDispatchMode):
    """Fails where a tensor's value is read by the host: a GPU would be waited for."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.name() not in ("aten::_local_scalar_dense", "aten::nonzero"), func.name()
        return func(*args, **(kwargs or {}))


@every_kind
def test_no_value_is_read_within_a_step(kind: str) -> None:
    method = build(kind)
    views, generator = views_of(method), torch.Generator().manual_seed(1)
    partner = torch.arange(N - 1, -1, -1)
    with NoReading():
        method.begin_step(Progress(1, 2, 2))
        queries = method.queries(views)
        targets = method.targets(views, queries, torch.arange(N), generator)
        exchanged = {b: per_tensor(t, lambda rows: rows[partner]) for b, t in targets.items()}
        pairs = method.pairs
        losses = [method.compare(queries[a], targets[b]).mean() for a, b, _ in pairs]
        losses += [method.compare(queries[0], exchanged[b]).mean() for _, b, _ in pairs]
        torch.stack(losses).sum().backward()
        method.update_memory(queries, targets, torch.arange(N))


@every_kind
def test_evaluation_gets_features_and_projections(kind: str) -> None:
    method = build(kind).eval()
    x = views_of(method)[0]
    assert torch.equal(method.features(x), method.backbone(x))
    assert method.features(x).shape == (N, method.backbone.feature_dim)
    assert method.projections(x).shape == (N, KINDS[kind][1]["dim"])


@pytest.mark.parametrize("kind", ["byol", "mocov3", "nnclr", "simclr", "simsiam"])
def test_mixtures_have_targets_of_their_own(kind: str) -> None:
    """SDMP compares mixtures with mixtures of the other view; those of a two-sided method too."""
    method = build(kind)
    result = step(method, views_of(method), Mixture(draw_of(0.4), SDMP()))
    result.loss.backward()
    assert result.mixed.isfinite()


@pytest.mark.parametrize("kind", ["mocov3", "nnclr", "simclr"])
def test_similarities_are_cosines_with_every_samples_target(kind: str) -> None:
    method = build(kind).eval()
    views = views_of(method)
    queries = method.queries(views)
    targets = method.targets(views, queries, torch.arange(N), torch.Generator())
    (matrix,) = method.similarities(queries[0], targets[1])
    q = queries[0].p if kind == "nnclr" else queries[0]
    for i in range(N):
        for j in range(N):
            cosine = torch.cosine_similarity(q[i], targets[1][j], dim=0)
            assert matrix[i, j].item() == pytest.approx(cosine.item(), abs=1e-5)


@every_kind
def test_a_batch_of_one_is_refused(kind: str) -> None:
    with pytest.raises(UserError, match=r"^batch_size: 1 is too small"):
        build(kind).check_batch(1)


@every_kind
def test_sizes_below_one_are_refused_by_their_flag(kind: str) -> None:
    name, options = KINDS[kind]
    cls: Any = method_class(name)
    backbone = backbones.build("resnet10", width=0.125, size=SIZE)
    for flag in {"dim", "predictor_hidden", "layers", "iterations"} & set(
        cls.__init__.__kwdefaults__
    ):
        with pytest.raises(UserError) as caught:
            cls(backbone, **options | {flag: 0})
        message = f"--{flag}: 0 is out of range; it must be at least 1."
        assert caught.value.on_command_line() == message
