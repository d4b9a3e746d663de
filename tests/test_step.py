"""Properties of one step of every method: shares, encoders, memory, precision, state."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness import (
    KINDS,
    N_DATA,
    OF_PATCHES,
    N,
    Reading,
    backbone_of,
    build,
    encoder_of,
    fixed,
    global_draw,
    options_of,
    region_draw,
    settled,
    step,
    views_of,
)  # fmt: skip
from unmix.credit import RULES, MixCo, Mixed, UnMixRule, of_partner, per_tensor
from unmix.errors import UserError
from unmix.methods import IJEPA, METHODS, Method, Pair, Progress, method_class
from unmix.mixtures import UnMix

every_kind = pytest.mark.parametrize("kind", KINDS)
UNMIX = RULES["unmix"]
# What `update_memory` may change; the other methods have no memory.
MEMORY = {
    "distill": ("Q.",), "distill-features": (),
    "ibot": ("c", "c_patch"), "ibot-dinov2": (),
    "cmc": ("memory_l.bank", "memory_ab.bank"), "deepclusterv2": ("memory",), "dino": ("c",),
    "insdis": ("contrast.bank",), "moco": ("queue.",), "nnclr": ("Q.",),
    "pirl": ("contrast.bank",), "ressl": ("Q.",), "swav": ("queues.",),
    "tico": ("C",), "nnbyol": ("Q.",), "all4one": ("Q.",), "densecl": ("queue.", "dense_queue."),
}  # fmt: skip
# Forwards of momentum encoders, in views.
KEYS = {"ibot": 2, "ibot-dinov2": 2, "ijepa": 1,
        "moco": 2, "moco-asymmetric": 1, "moco-nce": 1, "moco-v2": 1, "byol": 2, "mocov3": 2,
        "dino": 2, "ressl": 1, "tico": 1, "nnbyol": 2, "simdino": 2, "simdino-v2": 2,
        "all4one": 2, "densecl": 1}  # fmt: skip
# The methods that draw something in a step: negatives, shuffled batches or sub-batches.
RANDOM = {"cmc", "densecl", "insdis", "moco", "pirl", "wmse"}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def pairs_of(method: Method) -> list[Pair]:
    """All comparisons; of a loss by position `compare` is the sum."""
    count = method.views + 2 * method.multi_crop
    return [*method.pairs_of(count), *method.position_pairs_of(count)]


def parts_of(method: Method, views: list[Tensor], seed: int = 0) -> tuple[Any, Any]:
    """The clean queries and targets of a step."""
    queries = method.queries(views)
    generator = torch.Generator().manual_seed(seed)
    return queries, method.targets(views, queries, torch.arange(N), generator)


def gradient(method: Method) -> Tensor:
    """Of all parameters that have one, side by side."""
    return torch.cat([p.grad.flatten() for p in method.parameters() if p.grad is not None])


def changed(method: Method, before: dict[str, Any]) -> set[str]:
    """The names of buffers and parameters that are not what they were."""
    state = method.state_dict().items()
    return {key for key, x in state if isinstance(x, Tensor) and not torch.equal(x, before[key])}


def train(method: Method, numbers: range) -> list[Tensor]:
    """Some steps of Un-Mix with SGD, three an epoch; their losses."""
    # I-JEPA's predictor begins with small weights, behind which gradients are small.
    lr = 10.0 if isinstance(method, IJEPA) else 0.01
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=lr)
    losses = []
    for number in numbers:
        method.begin_step(Progress(number, 12, 3))
        views, generator = views_of(method, number), torch.Generator().manual_seed(number)
        draw = UnMix().draw(views[0].shape, generator)
        result = step(method, views, UNMIX, draw, start=number * N)  # type: ignore[arg-type]
        optimizer.zero_grad()
        result.loss.backward()
        result.update_memory()
        optimizer.step()
        losses.append(result.loss.detach())
    return losses


# --- the loss ---------------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize(
    "draw", [global_draw(1.0), global_draw(0.0), region_draw(0)], ids=["own", "partner", "region"]
)
def test_a_mixture_that_is_one_image_costs_what_the_image_costs(kind: str, draw: Any) -> None:
    """The image's own target or its partner's; each view that is a target counts as it does clean.

    Where symmetric, the same mixture of view 1 meets the targets of both views, as published.
    """
    method = settled(kind)
    views = views_of(method)
    result = step(method, views, UNMIX, draw)
    queries, targets = parts_of(method, views)
    shares: dict[int, float] = {}
    for _, b, share in method.pairs_of(len(views)):
        shares[b] = shares.get(b, 0.0) + share
    if {kind, KINDS[kind][0]} & OF_PATCHES:  # masks go with the place in the batch
        owner = torch.arange(N) if draw.weight[0] else draw.partner
        queries = {0: method.query(draw.apply(views[0]))}
        targets = of_partner(targets, owner)
    expected = sum(s * method.compare(queries[0], targets[b]).mean() for b, s in shares.items())
    places = method.position_pairs_of(len(views))
    own = [pair for pair in places if pair.query == 0]  # a mixture has the first view's places
    for _, b, share in own:
        at = method.compare_positions(queries[0], targets[b])
        scale = sum(s for *_, s in places) / sum(s for *_, s in own)
        expected = expected + scale * share * at.sum(dim=(1, 2)).mean()
    torch.testing.assert_close(result.mixed, expected.detach(), rtol=1e-4, atol=1e-5)  # type: ignore[union-attr]


@every_kind
@pytest.mark.parametrize("draw", [global_draw(0.3), region_draw(9)], ids=["global", "region"])
def test_the_loss_is_the_clean_part_and_the_two_images_shares(kind: str, draw: Any) -> None:
    """Written out with the method's parts: l(q, t) + w l(q_mix, t) + (1 - w) l(q_mix, t[p]).

    In float32, one number per sample or a scalar per batch, as the method says.
    """
    method = settled(kind)
    views = views_of(method)
    result = step(method, views, UNMIX, draw)
    queries, targets = parts_of(method, views)
    q_mix, w = method.query(draw.apply(views[0])), draw.weight[0]
    clean = mixed = torch.zeros(())
    for a, b, share in method.position_pairs_of(len(views)):
        clean = clean + share * method.compare_positions(queries[a], targets[b]).sum() / N
        partner = of_partner(targets[b], draw.partner)
        own, other = (method.compare_positions(q_mix, t) for t in (targets[b], partner))
        assert own.dtype == torch.float32
        at = draw.shares_at(*own.shape[1:])
        if a == 0:  # the mixture has the places of the first view, whose comparisons count for all
            places = method.position_pairs_of(len(views))
            scale = sum(s for *_, s in places) / sum(s for q, _, s in places if q == 0)
            mixed = mixed + scale * share * (at[:, 0] * own + at[:, 1] * other).sum() / N
    for a, b, share in method.pairs_of(len(views)):
        own = method.compare(queries[a], targets[b])
        assert own.shape == (() if method.coupled else (N,))
        assert own.dtype == torch.float32
        clean = clean + share * own.mean()
        partner = of_partner(targets[b], draw.partner)
        mixed = mixed + share * w * method.compare(q_mix, targets[b]).mean()
        mixed = mixed + share * (1 - w) * method.compare(q_mix, partner).mean()
    if regularized := method.regularized_views(len(views)):
        clean = clean + method.regularizer([queries[v] for v in regularized], targets)
    torch.testing.assert_close(result.clean, clean.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(result.mixed, mixed.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(result.loss, clean + mixed, rtol=1e-4, atol=1e-5)
    alone = step(method, views)
    assert alone.mixed is None
    assert torch.equal(alone.loss.detach(), alone.clean)
    torch.testing.assert_close(alone.clean, result.clean)


@every_kind
def test_both_images_get_their_share_of_the_gradient(kind: str) -> None:
    """Of the same mixture the gradient is linear in the weight, and both images pull."""
    found = {}
    color = 3 * torch.randn(N, 3, 1, 1, generator=torch.Generator().manual_seed(7))
    for weight in (0.0, 0.3, 1.0):
        method: Any = settled(kind)
        if kind == "deepclusterv2":
            method.assignments[:, :N] = torch.arange(N) % 5
        views = [view + color for view in views_of(method)]
        step(method, views, UNMIX, fixed(weight)).loss.backward()
        found[weight] = gradient(method)
    expected = 0.3 * found[1.0] + 0.7 * found[0.0]
    torch.testing.assert_close(found[0.3], expected, rtol=1e-3, atol=1e-5 * float(expected.norm()))
    least = 1e-2 if KINDS[kind][0] in {"moco", "insdis", "cmc"} else 1e-4
    assert (found[1.0] - found[0.0]).norm() > least * found[1.0].norm()


def test_another_rule_of_credit_can_be_given() -> None:
    """It is asked once a step, with the mixtures' query, the targets and the draw."""
    method, draw = settled("moco"), global_draw(0.4)
    asked: list[Mixed] = []

    class Seven(UnMixRule):
        def __call__(self, mixed: Mixed) -> Tensor:
            asked.append(mixed)
            return mixed.over_targets(lambda b: 7 + 0 * mixed.query.sum())

    result = step(method, views_of(method), Seven(), draw)
    assert result.mixed is not None
    assert result.mixed.item() == 14
    assert [item.draw for item in asked] == [draw]
    assert set(asked[0].targets) == {0, 1}


@pytest.mark.parametrize("kind", ["moco-nce", "insdis-nce", "cmc-nce"])
def test_the_constant_of_nce_is_estimated_from_clean_images(kind: str) -> None:
    """It keeps its first value, so the clean views have to be compared before the mixtures."""
    method, plain = build(kind), build(kind)
    step(method, views_of(method), UNMIX, global_draw(0.4))
    step(plain, views_of(plain))
    constants = [name for name in plain.state_dict() if name.endswith("Z")]
    assert constants
    for name in constants:
        assert method.state_dict()[name] > 0
        torch.testing.assert_close(method.state_dict()[name], plain.state_dict()[name])


def test_a_replacing_rule_leaves_the_head_of_another_view_trained() -> None:
    """PIRL's jigsaw has a head of its own, which the picture's mixture does not train."""
    method = settled("pirl")
    result = step(method, views_of(method), RULES["replace"], global_draw(1.0))
    result.loss.backward()
    assert method.tile_head.weight.grad is not None  # type: ignore[union-attr]
    torch.testing.assert_close(result.loss, step(method, views_of(method)).loss)


# --- encoders ---------------------------------------------------------------------------------


def images_seen_by(module: nn.Module) -> list[Tensor]:
    """The list of the module's inputs to come."""
    inputs: list[Tensor] = []
    module.register_forward_hook(lambda m, args, out: inputs.append(args[0].clone()))
    return inputs


def same_images(a: Tensor, b: Tensor) -> bool:
    """Whether two batches hold the same images: split batch norm orders them its own way."""
    if a.shape != b.shape:
        return False
    return torch.equal(*(x[x[:, 0, 0, 0].argsort()] for x in (a, b)))


@every_kind
def test_a_mixture_is_encoded_once_and_never_by_the_momentum_encoder(kind: str) -> None:
    """Also where symmetric: the released code encodes the same mixture twice there."""
    method = settled(kind).train()
    views, draw = views_of(method), global_draw(0.4)
    momentum = [getattr(method, name) for name in ("f_k", "f_t") if hasattr(method, name)]
    trained = images_seen_by(encoder_of(method))
    keys = [images_seen_by(getattr(m, "backbone", m)) for m in momentum]
    step(method, views, UNMIX, draw)
    mixture = draw.apply(views[0])
    assert [same_images(x, mixture) for x in trained] == [False] * (len(trained) - 1) + [True]
    seen = torch.cat([x for inputs in keys for x in inputs]) if keys else torch.empty(0)
    assert len(seen) == N * KEYS.get(kind, 0)
    clean = torch.cat(views[:2])
    assert all((clean == x).flatten(1).all(1).any() for x in seen)


def without_batch_statistics(method: Method) -> Method:
    """The method with batch norms that do not look at the batch."""
    for module in method.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.eval()
    return method


@pytest.mark.parametrize("kind", [k for k in KINDS if build(k).why_not_joint() is None])
def test_one_forward_for_clean_and_mixed_is_two_where_samples_do_not_meet(kind: str) -> None:
    """Without batch norm's statistics `joint` changes nothing: the same loss and gradients."""
    found = []
    for joint in (False, True):
        method = without_batch_statistics(settled(kind).train())
        result = step(method, views_of(method), UNMIX, global_draw(0.3), joint=joint)
        result.loss.backward()
        found.append((result.loss.detach(), result.mixed, gradient(method)))
    for two, one in zip(*found, strict=True):
        torch.testing.assert_close(two, one, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", [k for k in KINDS if KINDS[k][0] in {"moco", "insdis", "cmc"}])
def test_one_forward_shares_batch_norms_statistics(kind: str) -> None:
    """With batch norm it is another loss, and the network has seen one batch of twice the size."""
    method = build(kind).train()
    seen = images_seen_by(method.backbone)
    step(method, views_of(method), UNMIX, global_draw(0.3), joint=True)
    others = len({a for a, _, _ in method.pairs}) - 1
    assert [len(x) for x in seen] == [2 * N] + [N] * others


@pytest.mark.parametrize(("joint", "forwards"), [(None, 1), (True, 1), (False, 2)])
def test_mixco_encodes_clean_and_mixed_in_one_forward_unless_told(
    joint: bool | None, forwards: int
) -> None:
    """As its released code; Un-Mix's encodes them separately."""
    for rule, expected in ((MixCo(), forwards), (UnMixRule(), 1 if joint else 2)):
        method = build("moco-asymmetric").train()
        seen = images_seen_by(method.backbone)
        step(method, views_of(method), rule, global_draw(0.3), joint=joint)
        assert len(seen) == expected
        assert sum(map(len, seen)) == 2 * N


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in METHODS or k == "moco"])
def test_a_compiled_query_gives_the_same_loss_and_gradients(kind: str) -> None:
    """Of the variants; test_cells.py compiles the whole step of every method."""
    results = []
    for compiled in (False, True):
        method: Any = settled(kind).train()
        if compiled:
            method.query = torch.compile(method.query, backend="eager")
        result = step(method, views_of(method), UNMIX, global_draw(0.4))
        result.loss.backward()
        results.append((result.loss.detach(), gradient(method)))
    torch.compiler.reset()
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


# --- memory and state -------------------------------------------------------------------------


@every_kind
def test_only_the_memory_changes_and_only_when_it_is_updated(kind: str) -> None:
    """It receives what a step without mixtures gives it; batch norm does not move here."""
    clean, method = settled(kind), settled(kind)
    before = copy.deepcopy(method.state_dict())
    result = step(method, views_of(method), UNMIX, global_draw(0.4))
    result.loss.backward()
    assert changed(method, before) == set()
    result.update_memory()
    found = changed(method, before)
    memory = MEMORY.get(kind, MEMORY.get(KINDS[kind][0], ()))
    assert all(name.startswith(memory) for name in found)
    assert bool(found) == bool(memory)
    step(clean, views_of(clean)).update_memory()
    assert changed(clean, before) == found
    assert all(torch.equal(clean.state_dict()[name], method.state_dict()[name]) for name in found)


@every_kind
def test_steps_train_all_but_momentum_encoders(kind: str) -> None:
    """No version error of autograd though memories change, gradients and numbers are finite."""
    method = settled(kind).train()
    start = {name: p.detach().clone() for name, p in method.named_parameters()}
    train(method, range(4, 7))
    for name, p in method.named_parameters():
        momentum = name.split(".")[0].endswith(("_k", "_t"))
        assert p.requires_grad != (momentum or name.endswith(".gain")), name
        assert (p.grad is not None) == p.requires_grad, name
        assert p.grad is None or p.grad.isfinite().all(), name
        # What batch norm or a loss centers has a bias that stays as it is.
        if p.requires_grad and not method.coupled and not name.endswith("conv.bias"):
            assert not torch.equal(p, start[name]), name
    state = [x for x in method.state_dict().values() if isinstance(x, Tensor)]
    assert all(x.isfinite().all() and not x.requires_grad for x in state)


@every_kind
def test_a_method_from_a_state_dict_goes_on_where_the_saved_one_was(kind: str) -> None:
    """Queue, banks and the constants Z are in it: a released library loses its queue on resume."""
    method, fresh = settled(kind).train(), settled(kind, seed=1).train()
    train(method, range(3, 5))
    other = copy.deepcopy(fresh)
    fresh.load_state_dict(copy.deepcopy(method.state_dict()))
    ours, theirs, unlike = (train(m, range(5, 8)) for m in (fresh, method, other))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert not torch.equal(ours[-1], unlike[-1])
    assert changed(fresh, method.state_dict()) == set()


@every_kind
def test_a_step_follows_from_its_generator(kind: str) -> None:
    """Other negatives, another shuffle or other sub-batches with another seed."""
    losses = [
        step(settled(kind).train(), views_of(build(kind)), UNMIX, global_draw(0.4), seed=seed).loss
        for seed in (0, 0, 1)
    ]
    assert torch.equal(losses[0], losses[1])
    drawn = KINDS[kind][0] in RANDOM and kind not in {"moco-v2", "wmse"}
    if kind == "wmse":  # one sub-batch of all samples, in another order: sums round differently
        torch.testing.assert_close(losses[0], losses[2])
    else:
        assert torch.equal(losses[0], losses[2]) != drawn


# --- numbers ----------------------------------------------------------------------------------


@every_kind
def test_bfloat16_autocast_gives_a_float32_loss_that_is_near(kind: str) -> None:
    """bfloat16 has 8 bits. Of the same outputs of the network the loss is the same."""
    method = settled(kind)
    views = views_of(method)
    a, b, _ = pairs_of(method)[0]
    exact = step(method, views, UNMIX, global_draw(0.4)).loss.item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = step(method, views, UNMIX, global_draw(0.4))
        queries, targets = parts_of(method, views)
        loss = method.compare(queries[a], targets[b])
    wide = [
        per_tensor(x, lambda rows: rows.float() if rows.is_floating_point() else rows)
        for x in (queries[a], targets[b])
    ]
    assert loss.dtype == result.loss.dtype == torch.float32
    torch.testing.assert_close(loss, method.compare(*wide), rtol=1e-5, atol=1e-5)
    result.loss.backward()
    result.update_memory()
    assert gradient(method).isfinite().all()
    # Whitening a few samples magnifies the rounding of their features.
    near = 0.3 if kind.startswith("wmse") else 0.05
    assert result.loss.item() == pytest.approx(exact, rel=near, abs=near)
    for name, memory in method.state_dict().items():
        if name.endswith(("keys", "rows")):
            assert memory.dtype == torch.float32
            torch.testing.assert_close(memory.norm(dim=1), torch.ones(len(memory)))


@every_kind
def test_no_value_is_read_within_a_step(kind: str) -> None:
    """Queries, targets, both losses, backward and memories run ahead of the device."""
    method = settled(kind).train()
    views, index = views_of(method), torch.arange(N)
    mixed, partner = global_draw(0.3).apply(views[0]), torch.arange(N - 1, -1, -1)
    with Reading() as seen:
        method.begin_step(Progress(4, 12, 3))
        queries, targets = parts_of(method, views)
        q_mix, losses = method.query(mixed), []
        for a, b, _ in pairs_of(method):
            other = of_partner(targets[b], partner)
            for q, t in ((queries[a], targets[b]), (q_mix, targets[b]), (q_mix, other)):
                losses.append(method.compare(q, t).mean())
        torch.stack(losses).sum().backward()
        method.update_memory(queries, targets, index)
        result = step(method, views)
        result.loss.backward()
        result.update_memory()
    assert seen.read == []
    assert seen.count > 100


def test_reading_a_value_is_noticed() -> None:
    """The check itself works."""
    with Reading() as seen:
        torch.ones(()).item()
    assert seen.read == ["aten::_local_scalar_dense"]


@every_kind
def test_evaluation_gets_features_and_projections(kind: str) -> None:
    method, name = settled(kind), KINDS[kind][0]
    x = views_of(method)[0]
    features = method.backbone(x)
    both = isinstance(features, tuple)
    assert torch.equal(method.features(x), torch.cat(features, dim=1) if both else features)
    options = options_of(name) | KINDS[kind][1]
    dim = options.get("dim", 20)  # of the teacher, where it has none of its own
    width = {"cmc": 2 * dim, "dino": options.get("bottleneck"), "mae": 24, "ijepa": 24,
             "simmim": 24, "ibot": options.get("bottleneck")}  # fmt: skip
    assert method.projections(x).shape == (N, width.get(name, dim))


@pytest.mark.parametrize("kind", ["mocov3", "nnclr", "simclr"])
def test_similarities_are_cosines_with_every_samples_target(kind: str) -> None:
    method: Any = settled(kind)
    queries, targets = parts_of(method, views_of(method))
    (matrix,) = method.similarities(queries[0], targets[1])
    q = queries[0].p if kind == "nnclr" else queries[0]
    expected = torch.cosine_similarity(q[:, None], targets[1][None], dim=2)
    torch.testing.assert_close(matrix, expected, rtol=0, atol=1e-5)


# --- mistakes ---------------------------------------------------------------------------------


@every_kind
def test_a_batch_of_one_is_refused(kind: str) -> None:
    with pytest.raises(UserError, match=r"^batch_size: 1 is too small"):
        build(kind).check_batch(1)


@every_kind
def test_sizes_below_one_are_refused_by_name(kind: str) -> None:
    cls: Any = method_class(KINDS[kind][0])
    sizes = {"dim", "predictor_hidden", "layers", "iterations"} & set(cls.__init__.__kwdefaults__)
    for name in sizes:
        with pytest.raises(UserError) as caught:
            build(kind, **{name: 0})
        message = caught.value.on_command_line()
        assert message.startswith(f"--{name}: 0 is out of range; it must be at least ")
        assert f"{name} must be at least " in str(caught.value)


def test_every_kind_is_small() -> None:
    """What the harness builds is what the tests above say of it: no method is left out."""
    assert {name for name, _ in KINDS.values()} == set(METHODS)
    assert all(backbone_of(name) is not None for name in METHODS)
    assert N_DATA % N == 0
