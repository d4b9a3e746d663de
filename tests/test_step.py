"""One step of every method with a mixture: the share, what is encoded, what is kept and when."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from unmix import methods
from unmix.credit import RULES, MixCo, Mixed, UnMixRule, of_partner
from unmix.methods import Method, MoCo, Progress, method_class
from unmix.mixtures import PairDraw, UnMix
from unmix.mixtures.draws import whole_image
from unmix.step import Mixture, Objective, objective

N, SIZE, N_DATA = 8, 16, 24
QUEUE: dict[str, Any] = {"queue_size": 32, "bn_splits": 2, "dim": 16}
BANK: dict[str, Any] = {"negatives": 12, "dim": 16}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "moco": ("moco", QUEUE),
    "moco-nce": ("moco", QUEUE | {"contrast": "nce"}),
    "moco-v2": ("moco", QUEUE | {"head": "mlp", "bn_splits": 1, "shuffle_bn": False}),
    "moco-symmetric": ("moco", QUEUE | {"symmetric": True}),
    "insdis": ("insdis", BANK | {"contrast": "softmax"}),
    "insdis-nce": ("insdis", BANK | {"contrast": "nce"}),
    "cmc": ("cmc", BANK | {"contrast": "softmax"}),
    "cmc-nce": ("cmc", BANK | {"contrast": "nce"}),
}
every_kind = pytest.mark.parametrize("kind", KINDS)
one_sided = pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "moco-symmetric"])


@pytest.fixture(autouse=True)
def _one_thread_and_the_global_generator_left_as_it_was() -> Iterator[None]:
    """Weights start from PyTorch's global generator."""
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        yield


def build(kind: str, seed: int = 0) -> Method:
    torch.manual_seed(seed)
    name, options = KINDS[kind]
    backbone = method_class(name).build_backbone("resnet10", width=0.125, size=SIZE)
    return methods.build(name, backbone, N_DATA, **options)


def views_of(method: Method, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(N, 3, SIZE, SIZE, generator=generator) for _ in range(method.views)]


def global_draw(weight: float) -> PairDraw:
    partner = torch.arange(N - 1, -1, -1)
    ratio = torch.full((N,), weight)
    return PairDraw(partner, whole_image(N, SIZE, SIZE), ratio, (SIZE, SIZE), False)


def region_draw(side: int) -> PairDraw:
    partner = torch.arange(N - 1, -1, -1)
    box = torch.tensor([2, 2, 2 + side, 2 + side]).expand(N, 4)
    return PairDraw(partner, box, torch.zeros(N), (SIZE, SIZE), False)


def step(
    method: Method, views: list[Tensor], draw: PairDraw | None, start: int = 0, seed: int = 0
) -> Objective:
    index = torch.arange(start, start + N)
    mixture = None if draw is None else Mixture(draw)
    return objective(method, views, index, torch.Generator().manual_seed(seed), mixture)


def after_a_first_step(kind: str) -> Method:
    """A method in evaluation mode whose constants Z, which the first loss estimates, are set."""
    method = build(kind).eval()
    step(method, views_of(method, 9), None, start=N).update_memory()
    return method


def memories(method: Method) -> dict[str, Tensor]:
    """Copies of the queue or of the banks' rows."""
    state = method.state_dict().items()
    return {key: x.clone() for key, x in state if key.endswith(("queue.keys", "rows"))}


def encoders(method: Method) -> dict[str, nn.Module]:
    if isinstance(method, MoCo):
        return {"query": method.f_q, "key": method.f_k}
    return {"query": method.f}  # type: ignore[dict-item]


def seen_by(module: nn.Module) -> list[Tensor]:
    """The list that the module's inputs will be put into."""
    inputs: list[Tensor] = []
    module.register_forward_hook(lambda m, args, out: inputs.append(args[0].clone()))
    return inputs


def same_images(a: Tensor, b: Tensor) -> bool:
    """Whether two batches hold the same images: split batch norm orders them its own way."""
    return torch.equal(*(x[x[:, 0, 0, 0].argsort()] for x in (a, b)))


@one_sided
@pytest.mark.parametrize("draw", [global_draw(1.0), region_draw(0)], ids=["global", "region"])
def test_a_mixture_that_is_all_its_own_costs_what_the_clean_view_costs(
    kind: str, draw: PairDraw
) -> None:
    method = after_a_first_step(kind)
    result = step(method, views_of(method), draw)
    assert result.mixed is not None
    torch.testing.assert_close(result.mixed, result.clean)
    torch.testing.assert_close(result.loss, 2 * result.clean, check_stride=False)


@one_sided
def test_a_mixture_that_is_all_its_partners_costs_the_same(kind: str) -> None:
    """The partner is a target: with the image goes its target."""
    method = after_a_first_step(kind)
    result = step(method, views_of(method), global_draw(0.0))
    torch.testing.assert_close(result.mixed, result.clean)


def test_symmetric_mixture_is_compared_with_the_keys_of_both_views() -> None:
    """At weight 1: l(q1, k2) + l(q1, k1), from the same mixture of view 1, as published."""
    method = after_a_first_step("moco-symmetric")
    views = views_of(method)
    result = step(method, views, global_draw(1.0))
    generator = torch.Generator().manual_seed(0)
    keys = method.targets(views, {}, torch.arange(N), generator)
    q = method.query(views[0])
    expected = method.compare(q, keys[1]).mean() + method.compare(q, keys[0]).mean()
    torch.testing.assert_close(result.mixed, expected.detach())


@every_kind
@pytest.mark.parametrize("draw", [global_draw(0.3), region_draw(9)], ids=["global", "region"])
def test_the_loss_is_the_clean_part_and_the_two_images_shares(kind: str, draw: PairDraw) -> None:
    """Written out with the method's own parts: l(q, t) + w l(q_mix, t) + (1 - w) l(q_mix, t[p])."""
    method = after_a_first_step(kind)
    views = views_of(method)
    result = step(method, views, draw)
    targets = method.targets(views, {}, torch.arange(N), torch.Generator().manual_seed(0))
    q_mix, w = method.query(draw.apply(views[0])), draw.weight[0]
    clean = mixed = torch.zeros(())
    for a, b, _ in method.pairs:
        clean = clean + method.compare(method.query(views[a]), targets[b]).mean()
        mixed = mixed + w * method.compare(q_mix, targets[b]).mean()
        mixed = mixed + (1 - w) * method.compare(q_mix, targets[b].flip(0)).mean()
    torch.testing.assert_close(result.clean, clean.detach())
    torch.testing.assert_close(result.mixed, mixed.detach())
    torch.testing.assert_close(result.loss, clean + mixed)


@every_kind
def test_both_shares_reach_the_gradient(kind: str) -> None:
    """Other weights of the same mixture give other gradients: the weight does not cancel."""
    gradients = []
    for weight in (0.2, 0.8):
        method = after_a_first_step(kind)
        views = views_of(method)
        mixed_view = region_draw(9).apply(views[0])

        class Fixed(PairDraw):
            def apply(self, images: Tensor, others: Any = (), view: Tensor = mixed_view) -> Tensor:
                return view

        draw = global_draw(weight)
        fixed = Fixed(draw.partner, draw.box, draw.ratio, draw.size, draw.per_sample)
        result = step(method, views, fixed)
        result.loss.backward()
        gradients.append(
            torch.cat([p.grad.flatten() for p in method.parameters() if p.grad is not None])
        )
    assert (gradients[0] - gradients[1]).norm() > 1e-2 * gradients[0].norm()


@every_kind
def test_without_a_draw_there_is_the_clean_part_alone(kind: str) -> None:
    method = after_a_first_step(kind)
    result = step(method, views_of(method), None)
    assert result.mixed is None
    assert torch.equal(result.loss.detach(), result.clean)


def test_another_rule_of_credit_can_be_given() -> None:
    """It is asked once a step, with the mixtures' query, the targets and the draw."""
    method = after_a_first_step("moco-symmetric")
    draw = global_draw(0.4)
    asked: list[Mixed] = []

    class Seven(UnMixRule):
        def __call__(self, mixed: Mixed) -> Tensor:
            asked.append(mixed)
            return mixed.over_targets(lambda b: 7 + 0 * mixed.query.sum())

    views = views_of(method)
    generator = torch.Generator().manual_seed(0)
    result = objective(method, views, torch.arange(N), generator, Mixture(draw, Seven()))
    assert result.mixed is not None
    assert result.mixed.item() == 14
    assert [item.draw for item in asked] == [draw]
    assert set(asked[0].targets) == {0, 1}


@pytest.mark.parametrize(
    ("kind", "queries", "keys"),
    [("moco", 1, 1), ("moco-symmetric", 2, 2), ("insdis", 1, 0), ("cmc", 1, 0)],
)
def test_a_mixture_is_encoded_once_and_never_by_the_key_encoder(
    kind: str, queries: int, keys: int
) -> None:
    """Also where symmetric: the released code encodes the same mixture twice there."""
    method = build(kind)
    views, draw = views_of(method), global_draw(0.4)
    seen = {name: seen_by(module) for name, module in encoders(method).items()}
    step(method, views, draw)
    assert len(seen["query"]) == queries + 1
    assert len(seen.get("key", [])) == keys
    mixture = draw.apply(views[0])
    assert [same_images(x, mixture) for x in seen["query"]] == [False] * queries + [True]
    for b, x in zip([0, 1][-keys:], seen.get("key", []), strict=False):
        assert same_images(x, views[b])


@every_kind
def test_memories_receive_what_a_step_without_mixture_gives_them(kind: str) -> None:
    """Batch norm does not move, so that the mixture can come in only through what is kept."""
    clean, mixed = after_a_first_step(kind), after_a_first_step(kind)
    before = memories(clean)
    step(clean, views_of(clean), None).update_memory()
    step(mixed, views_of(mixed), global_draw(0.4)).update_memory()
    for name, memory in memories(mixed).items():
        assert torch.equal(memory, memories(clean)[name])
        assert not torch.equal(memory, before[name])


@every_kind
def test_nothing_is_kept_before_keep(kind: str) -> None:
    """The whole state stays, whatever else is computed."""
    method = after_a_first_step(kind)
    before = copy.deepcopy(method.state_dict())
    result = step(method, views_of(method), global_draw(0.4))
    result.loss.backward()
    assert all(torch.equal(x, before[name]) for name, x in method.state_dict().items())
    result.update_memory()
    changed = {name for name, x in method.state_dict().items() if not torch.equal(x, before[name])}
    assert set(memories(method)) <= changed
    assert all(name.startswith(("queue.", "contrast.bank", "memory_")) for name in changed)


@every_kind
def test_training_steps_that_keep_after_the_backward_pass(kind: str) -> None:
    """No version error of autograd, a gradient for all that is trained, and finite numbers."""
    method = build(kind)
    trained = [parameter for parameter in method.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.01)
    generator = torch.Generator().manual_seed(0)
    start = [parameter.detach().clone() for parameter in trained]
    for number in range(3):
        method.begin_step(Progress(number, 3, 3))
        views = views_of(method, number)
        draw = UnMix().draw(views[0].shape, generator)
        result = step(method, views, draw, start=number * N)
        optimizer.zero_grad()
        result.loss.backward()
        result.update_memory()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in trained)
        optimizer.step()
    assert all(not torch.equal(p, old) for p, old in zip(trained, start, strict=True))
    assert all(x.isfinite().all() for x in method.state_dict().values())
    assert not any(memory.requires_grad for memory in memories(method).values())


@every_kind
def test_under_bfloat16_autocast_the_loss_is_finite_and_near(kind: str) -> None:
    """bfloat16 has 8 bits; features off by that much move the loss by a few percent."""
    method = after_a_first_step(kind)
    views, draw = views_of(method), global_draw(0.4)
    exact = step(method, views, draw).loss.item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = step(method, views, draw)
    result.loss.backward()
    result.update_memory()
    assert result.loss.item() == pytest.approx(exact, rel=0.05, abs=0.05)
    assert all(p.grad.isfinite().all() for p in method.parameters() if p.grad is not None)
    for memory in memories(method).values():
        assert memory.dtype == torch.float32
        torch.testing.assert_close(memory.norm(dim=1), torch.ones(len(memory)))


@pytest.mark.parametrize("kind", ["moco", "insdis", "cmc"])
def test_a_compiled_query_gives_the_same_loss_and_gradients(kind: str) -> None:
    plain, compiled = build(kind), build(kind)
    compiled.query = torch.compile(compiled.query, backend="eager")  # type: ignore[method-assign]
    results = []
    for method in (plain, compiled):
        result = step(method, views_of(method), global_draw(0.4))
        result.loss.backward()
        gradients = [p.grad for p in method.parameters() if p.grad is not None]
        results.append([result.loss.detach(), *gradients])
    torch.compiler.reset()
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


@every_kind
def test_a_method_from_a_state_dict_goes_on_where_the_saved_one_was(kind: str) -> None:
    """Queue, banks and the constants Z are in it: a released library loses its queue on resume."""
    method, fresh = build(kind), build(kind, seed=1)
    for number in range(2):
        step(method, views_of(method, number), global_draw(0.4), start=number * N).update_memory()
    views = views_of(method, 5)
    with torch.no_grad():
        before = step(copy.deepcopy(fresh), views, global_draw(0.3)).loss
    fresh.load_state_dict(copy.deepcopy(method.state_dict()))
    for number in range(2):
        ours = step(fresh, views, global_draw(0.3), seed=number)
        theirs = step(method, views, global_draw(0.3), seed=number)
        assert torch.equal(ours.loss, theirs.loss)
        ours.update_memory()
        theirs.update_memory()
    assert not torch.equal(before, ours.loss.detach())


@every_kind
def test_a_step_follows_from_its_generator(kind: str) -> None:
    """Other negatives or another shuffle with another seed; the same with the same."""
    losses = [
        step(build(kind), views_of(build(kind)), global_draw(0.4), seed=seed).loss.item()
        for seed in (0, 0, 1)
    ]
    assert losses[0] == losses[1]
    assert (losses[0] != losses[2]) == (kind != "moco-v2")


def without_batch_statistics(method: Method) -> Method:
    """The method with batch norms that do not look at the batch."""
    for module in method.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return method


@every_kind
def test_one_forward_for_clean_and_mixed_is_two_where_samples_do_not_meet(kind: str) -> None:
    """Without batch norm's statistics `joint` changes nothing: the same loss and gradients."""
    found = []
    for joint in (False, True):
        method = without_batch_statistics(build(kind).train())
        views, generator = views_of(method), torch.Generator().manual_seed(1)
        step = objective(
            method, views, torch.arange(N), generator, Mixture(global_draw(0.3), joint=joint)
        )
        step.loss.backward()
        gradients = [p.grad for p in method.parameters() if p.grad is not None]
        found.append((step.loss.detach(), step.mixed, *gradients))
    for apart, together in zip(*found, strict=True):
        torch.testing.assert_close(apart, together, rtol=1e-4, atol=1e-5)


@every_kind
def test_one_forward_shares_batch_norms_statistics(kind: str) -> None:
    """With batch norm it is another loss, and each network has seen one batch of twice the size."""
    method = build(kind).train()
    views, generator = views_of(method), torch.Generator().manual_seed(1)
    sizes: list[int] = []
    method.backbone.register_forward_hook(
        lambda module, inputs, output: sizes.append(len(inputs[0]))
    )
    objective(method, views, torch.arange(N), generator, Mixture(global_draw(0.3), joint=True))
    others = len({a for a, _, _ in method.pairs}) - 1
    assert sizes == [2 * N] + [N] * others


@pytest.mark.parametrize(("joint", "forwards"), [(None, 1), (True, 1), (False, 2)])
def test_mixco_encodes_clean_and_mixed_in_one_forward_unless_told(joint, forwards) -> None:
    """As its released code; Un-Mix's encodes them apart."""
    for rule, expected in ((MixCo(), forwards), (UnMixRule(), {True: 1}.get(joint, 2))):
        method = build("moco").train()
        sizes: list[int] = []
        method.backbone.register_forward_hook(
            lambda module, inputs, output, sizes=sizes: sizes.append(len(inputs[0]))
        )
        views, generator = views_of(method), torch.Generator().manual_seed(1)
        mixture = Mixture(global_draw(0.3), rule, joint=joint)
        objective(method, views, torch.arange(N), generator, mixture)
        queries = len({a for a, _, _ in method.pairs})
        assert len(sizes) == queries - 1 + expected
        assert sum(sizes) == (queries + 1) * N


class NoReading(TorchDispatchMode):
    """Fails where a tensor's value is read by the host: a GPU would be waited for."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.name() not in ("aten::_local_scalar_dense", "aten::nonzero"), func.name()
        return func(*args, **(kwargs or {}))


@every_kind
def test_no_value_is_read_within_a_step(kind: str) -> None:
    """Queries, targets, both losses, backward and memories run ahead of the device."""
    method = build(kind).train()
    views, generator = views_of(method), torch.Generator().manual_seed(1)
    mixed = global_draw(0.3).apply(views[0])
    partner = torch.arange(N - 1, -1, -1)
    with NoReading():
        method.begin_step(Progress(1, 2, 2))
        queries = method.queries(views)
        targets = method.targets(views, queries, torch.arange(N), generator)
        q_mix = method.query(mixed)
        loss = torch.stack(
            [
                method.compare(q, t).mean()
                for a, b, _ in method.pairs
                for q, t in (
                    (queries[a], targets[b]),
                    (q_mix, targets[b]),
                    (q_mix, of_partner(targets[b], partner)),
                )
            ]
        ).sum()
        loss.backward()
        method.update_memory(queries, targets, torch.arange(N))


@pytest.mark.parametrize("kind", ["moco-nce", "insdis-nce", "cmc-nce"])
def test_the_constant_of_nce_is_estimated_from_clean_images(kind: str) -> None:
    """It keeps its first value, so the clean views have to be compared before the mixtures."""
    method, plain = build(kind), build(kind)
    views = [torch.randn(N, 3, SIZE, SIZE) for _ in range(method.views)]
    draw = UnMix(1.0).draw(views[0].shape, torch.Generator().manual_seed(0))
    for one, mixture in ((method, Mixture(draw)), (plain, None)):
        objective(one, views, torch.arange(N), torch.Generator().manual_seed(1), mixture)
    constants = [name for name in plain.state_dict() if name.endswith("Z")]
    assert constants
    for name in constants:
        assert method.state_dict()[name] > 0
        torch.testing.assert_close(method.state_dict()[name], plain.state_dict()[name])


def test_reading_a_value_is_noticed() -> None:
    """The check itself works."""
    with NoReading(), pytest.raises(AssertionError, match="_local_scalar_dense"):
        torch.ones(()).item()


def test_a_replacing_rule_leaves_the_head_of_another_view_trained() -> None:
    """PIRL's jigsaw has a head of its own, which the picture's mixture says nothing to."""
    cls: Any = method_class("pirl")
    torch.manual_seed(0)
    backbone = cls.build_backbone("resnet10", width=0.125, size=SIZE)
    method: Method = cls(backbone, N_DATA, negatives=12, dim=16, contrast="softmax").eval()
    generator = torch.Generator().manual_seed(0)
    views, index = views_of(method), torch.arange(N)
    mixture = Mixture(global_draw(1.0), RULES["replace"])
    result = objective(method, views, index, generator, mixture)
    result.loss.backward()
    assert method.tile_head.weight.grad is not None  # type: ignore[union-attr]
    clean = objective(method, views, index, torch.Generator().manual_seed(0))
    torch.testing.assert_close(result.loss, clean.loss)
