"""SwAV, DINO and DeepCluster-v2: formulas written out, what is kept and when, what is frozen."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from unmix import backbones, methods
from unmix.clustering import spherical_kmeans
from unmix.config.groups import OptimizerSettings
from unmix.credit import RULES
from unmix.errors import UserError
from unmix.losses import sinkhorn
from unmix.methods import DeepClusterV2, Method, Progress, SwAV
from unmix.methods.multicrop import encode_together
from unmix.mixtures import UnMix
from unmix.step import Mixture, objective
from unmix.training.loop.optimizers import build_optimizer

N, SIZE, N_DATA = 8, 16, 24
OPTIONS: dict[str, dict[str, Any]] = {
    "swav": {"dim": 16, "hidden": 24, "prototypes": 10},
    "dino": {"dim": 20, "hidden": 24, "bottleneck": 16},
    "deepclusterv2": {"dim": 16, "hidden": 24, "prototypes": (5, 4, 3)},
}
every_kind = pytest.mark.parametrize("kind", OPTIONS)


@pytest.fixture(autouse=True)
def _the_global_generator_left_as_it_was() -> Iterator[None]:
    """Weights start from PyTorch's global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def build(kind: str, **options: Any) -> Any:
    backbone = backbones.build("resnet10", width=0.125, size=SIZE)
    return methods.build(kind, backbone, N_DATA, **{**OPTIONS[kind], **options})


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def views_of(small: int = 0, seed: int = 0, n: int = N) -> list[Tensor]:
    generator = seeded(seed)
    sizes = [SIZE, SIZE] + [SIZE // 2] * small
    return [torch.randn(n, 3, s, s, generator=generator) for s in sizes]


def step(method: Method, views: list[Tensor], start: int = 0, mixture: Any = None) -> Any:
    index = (torch.arange(len(views[0])) + start) % N_DATA
    return objective(method, views, index, seeded(), mixture)


def told(make: Callable[..., Any], *args: Any, **options: Any) -> str:
    """The message of the UserError that a call raises."""
    with pytest.raises(UserError) as caught:
        make(*args, **options)
    message = caught.value.on_command_line()
    assert "\n" not in message
    return message


# --- views of several sizes -------------------------------------------------------------------


def test_views_of_one_size_share_a_forward_and_all_share_one_of_the_head() -> None:
    """So batch norm's statistics are over all of them, as in the released code."""
    method = build("swav")
    seen: dict[str, list[int]] = {"backbone": [], "head": []}
    for name in seen:
        module = getattr(method.f, name)
        module.register_forward_hook(lambda m, args, out, n=name: seen[n].append(len(args[0])))
    queries = method.queries(views_of(small=3))
    assert seen == {"backbone": [2 * N, 3 * N], "head": [5 * N]}
    assert list(queries) == [0, 1, 2, 3, 4]


def test_views_come_back_in_their_order() -> None:
    backbone = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    views = views_of(small=2)
    for view, output in zip(views, encode_together(backbone, nn.Identity(), views), strict=True):
        torch.testing.assert_close(output, view.mean(dim=(2, 3)))


@every_kind
@pytest.mark.parametrize("small", [0, 1, 6])
def test_the_shares_of_a_step_sum_to_one(kind: str, small: int) -> None:
    """So a loss and its chance level do not depend on the number of crops; mixtures' neither."""
    pairs = build(kind).pairs_of(2 + small)
    assert sum(share for _, _, share in pairs) == pytest.approx(1)
    assert len({(a, b) for a, b, _ in pairs}) == len(pairs)
    assert {a for a, _, _ in pairs} >= set(range(2, 2 + small))


# --- Sinkhorn ---------------------------------------------------------------------------------


def test_sinkhorn_is_the_golden_assignment(golden: Callable[[str], Any]) -> None:
    values = golden("sinkhorn")
    found = sinkhorn(values["scores"], float(values["epsilon"]), int(values["iterations"]))
    torch.testing.assert_close(found, values["assignment"], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("epsilon", [1e-6, 1e-3, 0.05, 10.0, 1e6])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_sinkhorn_stays_finite_in_float32(epsilon: float, scale: float) -> None:
    """exp(1 / 0.001) is infinite, and exp(-1 / 0.001) is 0, by which the released code divides."""
    scores = scale * (2 * torch.rand(12, 5, generator=seeded()) - 1)
    codes = sinkhorn(scores, epsilon, 3)
    assert codes.isfinite().all()
    torch.testing.assert_close(codes.sum(dim=1), torch.ones(12))


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 30), st.integers(2, 12), st.floats(0.1, 2), st.integers(0, 99))
def test_sinkhorn_with_many_rounds_gives_every_prototype_as_much(
    n: int, k: int, epsilon: float, seed: int
) -> None:
    scores = 2 * torch.rand(n, k, generator=seeded(seed)) - 1
    codes = sinkhorn(scores, epsilon, 300)
    torch.testing.assert_close(codes.sum(dim=1), torch.ones(n))
    torch.testing.assert_close(codes.sum(dim=0), torch.full((k,), n / k), rtol=1e-3, atol=1e-4)
    # Of all such tables it is the one that is exp(scores / epsilon) with rows and columns scaled.
    residue = (codes.log() - scores / epsilon).double()
    residue = residue - residue.mean(0) - residue.mean(1, keepdim=True) + residue.mean()
    assert residue.abs().max() < 1e-3


# --- SwAV -------------------------------------------------------------------------------------


def swav_written_out(method: SwAV, views: list[Tensor]) -> Tensor:
    """Codes of the two large views, each predicted from all other crops; loops over everything."""
    z = [F.normalize(x, dim=1) for x in method.f.head(features(method, views)).split(N)]
    c = method.C.weight
    total = torch.zeros(())
    for code_view in (0, 1):
        q = torch.exp((z[code_view] @ c.T).detach().double() / method.epsilon)
        for _ in range(3):
            q = q / q.sum(dim=0, keepdim=True) / q.shape[1]
            q = q / q.sum(dim=1, keepdim=True) / len(q)
        q = (q * len(q)).float()
        others = [v for v in range(len(views)) if v != code_view]
        for v in others:
            log_p = F.log_softmax(z[v] @ c.T / method.T, dim=1)
            total = total - (q * log_p).sum(dim=1).mean() / len(others)
    return total / 2


def features(method: Any, views: list[Tensor]) -> Tensor:
    """The features of large views together and of small crops together, one below the other."""
    parts = [torch.cat(views[:2])] + ([torch.cat(views[2:])] if len(views) > 2 else [])
    return torch.cat([method.backbone(part) for part in parts])


@pytest.mark.parametrize("small", [0, 3])
def test_swav_is_the_mean_over_codes_and_the_crops_that_predict_them(small: int) -> None:
    """Value and gradients, of two crops and of multi-crop."""
    method, views = build("swav"), views_of(small)
    method.begin_step(Progress(0, 4, 2))
    reference = copy.deepcopy(method)
    step(method, views).loss.backward()
    expected = swav_written_out(reference, views)
    expected.backward()
    torch.testing.assert_close(step(method, views).loss, expected)
    for p, q in zip(method.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-6)


def test_swav_mixtures_have_the_authors_formula() -> None:
    """w [l(z_m, q_s) + l(z_s, q_m)] + (1 - w) [the same with the partner's], halved as the clean.

    The released code exchanges the mixtures' own codes only; that is the rule swav_released.
    """
    method, views = build("swav").eval(), views_of()
    method.begin_step(Progress(0, 4, 2))
    draw = UnMix().draw(views[0].shape, seeded(3))
    found = step(method, views, mixture=Mixture(draw)).mixed
    m, s = method.query(draw.apply(views[0]), 0), method.query(views[1], 1)
    w, p = draw.shares[0, 0], draw.owners[:, 1]

    def ell(scores: Tensor, q: Tensor) -> Tensor:
        return -(q * F.log_softmax(scores / method.T, dim=1)).sum(1).mean()

    own = ell(m.scores, s.codes) + ell(s.scores, m.codes)
    partner = ell(m.scores, s.codes[p]) + ell(s.scores[p], m.codes)
    torch.testing.assert_close(found, (w * own + (1 - w) * partner) / 2)
    released = step(method, views, mixture=Mixture(draw, RULES["swav_released"])).mixed
    exchanged = ell(m.scores, s.codes) + ell(s.scores, m.codes[p])
    torch.testing.assert_close(released, (w * own + (1 - w) * exchanged) / 2)


def test_swav_codes_take_no_gradient_but_both_views_predict() -> None:
    method, views = build("swav"), views_of()
    queries = method.queries(views)
    assert all(not queries[v].codes.requires_grad for v in (0, 1))
    assert all(queries[v].scores.requires_grad for v in (0, 1))
    assert method.query(views_of(1)[2], 2).codes is None


def test_swav_prototypes_are_unit_vectors_at_every_step_and_frozen_at_first() -> None:
    method = build("swav", freeze_prototypes_steps=2)
    optimizer = torch.optim.SGD(method.parameters(), lr=0.5)
    for number, frozen in enumerate([True, True, False, False]):
        method.begin_step(Progress(number, 4, 2))
        torch.testing.assert_close(method.C.weight.norm(dim=1), torch.ones(10))
        before = method.C.weight.detach().clone()
        result = step(method, views_of(seed=number))
        optimizer.zero_grad()
        result.loss.backward()
        result.update_memory()
        optimizer.step()
        assert torch.equal(method.C.weight, before) == frozen
        assert method.f.head[0].weight.grad is not None


def test_swav_queue_is_pushed_once_a_step_with_clean_embeddings() -> None:
    """The released code pushes three times a step where images are mixed."""
    method, views = build("swav", queue_size=20).eval(), views_of(small=1)
    draw = UnMix().draw(views[0].shape, seeded(3))
    before = [queue.keys.clone() for queue in method.queues]
    result = step(method, views, mixture=Mixture(draw))
    result.loss.backward()
    assert all(torch.equal(q.keys, b) for q, b in zip(method.queues, before, strict=True))
    result.update_memory()
    clean = method.queries(views)
    for v, queue in enumerate(method.queues):
        torch.testing.assert_close(queue.keys[:N], clean[v].embedding)
        assert int(queue.seen) == N
        assert not queue.keys.requires_grad


def test_swav_queue_is_used_from_its_epoch_on_once_it_is_full() -> None:
    """Then the codes are those of the queue and the batch together."""
    used = []
    method = build("swav", queue_size=3 * N, queue_from_epoch=2).eval()
    for number in range(8):
        method.begin_step(Progress(number, 8, 2))
        used.append(method.uses_queue)
        views = views_of(seed=number)
        z = F.normalize(method.projections(views[1]), dim=1).detach()
        rows = torch.cat([method.queues[1].keys, z]) if method.uses_queue else z
        expected = sinkhorn(rows @ method.C.weight.T, 0.05, 3)[-N:]
        torch.testing.assert_close(method.query(views[1], 1).codes, expected)
        step(method, views).update_memory()
    assert used == [False] * 7 + [True]  # filled from epoch 2 on, as released, and used when full
    early = build("swav", queue_size=3 * N, queue_from_epoch=0)
    used = []
    for number in range(5):
        early.begin_step(Progress(number, 8, 2))
        used.append(early.uses_queue)
        step(early, views_of(seed=number)).update_memory()
    assert used == [False, False, False, True, True]
    assert early.state() == {"queue_fill": 1.0}
    assert build("swav").state() == {}


# --- DINO -------------------------------------------------------------------------------------


@pytest.mark.parametrize("small", [0, 3])
def test_dino_is_the_mean_cross_entropy_of_crops_with_the_teachers_other_views(small: int) -> None:
    """Value and gradients; no crop is compared with itself, and the teacher sees no small one."""
    method, views = build("dino"), views_of(small)
    method.c.copy_(torch.randn(20, generator=seeded(5)))
    for p in method.f_t.parameters():
        p.add_(0.1 * torch.randn(p.shape, generator=seeded(6)))
    reference = copy.deepcopy(method)
    result = step(method, views)
    result.loss.backward()
    students = reference.f.head(features(reference, views)).split(N)
    teachers = reference.f_t.head(reference.f_t.backbone(torch.cat(views[:2]))).split(N)
    terms = []
    for b, t in enumerate(teachers):
        p_t = torch.exp((t - reference.c) / 0.04)
        p_t = p_t / p_t.sum(dim=1, keepdim=True)
        for v, s in enumerate(students):
            if v != b:
                terms.append(-(p_t * F.log_softmax(s / 0.1, dim=1)).sum(dim=1).mean())
    expected = torch.stack(terms).mean()
    expected.backward()
    torch.testing.assert_close(result.loss, expected)
    for p, q in zip(method.parameters(), reference.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None)
        if p.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-6)


def test_dino_centre_follows_the_teachers_mean_after_the_step() -> None:
    method, views = build("dino", center_momentum=0.8).eval(), views_of(small=2)
    before = torch.randn(20, generator=seeded(5))
    method.c.copy_(before)
    result = step(method, views)
    assert torch.equal(method.c, before)
    result.update_memory()
    mean = torch.cat([method.f_t.head(method.f_t.backbone(v)) for v in views[:2]]).mean(dim=0)
    torch.testing.assert_close(method.c, 0.8 * before + 0.2 * mean)


def test_dino_schedules_and_their_ends() -> None:
    """The teacher's temperature rises linearly, its momentum by half a cosine to 1.

    An epoch has one temperature: evenly spaced from the first of the warm-up to its last.
    """
    method = build(
        "dino", encoder_momentum=0.9, teacher_temperature=0.07, warmup_teacher_epochs=3
    )  # fmt: skip
    found = []
    for number in range(13):
        for p, q in zip(method.f_t.parameters(), method.f.parameters(), strict=True):
            p.fill_(0.0)
            q.detach().fill_(1.0)
        method.begin_step(Progress(number, 12, 2))
        (moved,) = {round(p.mean().item(), 6) for p in method.f_t.parameters()}
        found.append((1 - moved, method.tau_t))
    momenta, temperatures = zip(*found, strict=True)
    cosine = [1 - 0.1 * (1 + math.cos(math.pi * i / 12)) / 2 for i in range(13)]
    assert momenta == pytest.approx(cosine, abs=1e-5)
    assert temperatures == pytest.approx([0.04, 0.04, 0.055, 0.055, *[0.07] * 9])
    constant = build("dino")
    constant.begin_step(Progress(0, 12, 2))
    assert constant.tau_t == 0.04


@pytest.mark.parametrize("normalize_last", [True, False])
def test_dino_last_layer_is_weight_normalised_and_frozen_at_first(normalize_last: bool) -> None:
    method = build("dino", freeze_last_epochs=1, normalize_last=normalize_last)
    head = method.f.head
    z = torch.randn(4, 64, generator=seeded())
    before = head(z)
    with torch.no_grad():
        head.last.weight.mul_(7.0)
    torch.testing.assert_close(head(z), before)
    assert head.gain.requires_grad != normalize_last
    assert before.abs().max() <= 1
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1)
    for number, frozen in enumerate([True, True, False]):
        method.begin_step(Progress(number, 4, 2))
        old = head.last.weight.detach().clone(), head.gain.detach().clone()
        result = step(method, views_of(seed=number))
        optimizer.zero_grad()
        result.loss.backward()
        result.update_memory()
        optimizer.step()
        assert torch.equal(head.last.weight, old[0]) == frozen
        assert torch.equal(head.gain, old[1]) == (frozen or normalize_last)


def test_a_gain_that_is_trained_has_weight_decay_and_earlier_ones_are_read() -> None:
    """It is (K, 1) in the released code; of earlier checkpoints it is (K,)."""
    method = build("dino", normalize_last=False)
    adamw = OptimizerSettings(optimizer="adamw", weight_decay=0.04)
    optimizer = build_optimizer(adamw, method.parameters(), torch.device("cpu"))
    decays = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    gain = method.f.head.gain
    assert decays[id(gain)] == 0.04
    state = {k: v * 2 if k.endswith("gain") else v for k, v in method.state_dict().items()}
    method.load_state_dict({k: v[:, 0] if k.endswith("gain") else v for k, v in state.items()})
    assert gain.shape == (method.dim, 1)
    assert gain.unique().tolist() == [2]


def test_dino_teacher_starts_as_a_copy_and_takes_no_gradient() -> None:
    method = build("dino", head_bn=True)
    for p, q in zip(method.f_t.parameters(), method.f.parameters(), strict=True):
        assert torch.equal(p, q)
        assert p.data_ptr() != q.data_ptr()
    step(method, views_of()).loss.backward()
    assert all(p.grad is None and not p.requires_grad for p in method.f_t.parameters())
    assert sum(isinstance(m, nn.BatchNorm1d) for m in method.f.head.modules()) == 2
    assert sum(isinstance(m, nn.BatchNorm1d) for m in build("dino").f.head.modules()) == 0


# --- DeepCluster-v2 ---------------------------------------------------------------------------


def run_epoch(method: DeepClusterV2, epoch: int, views: Callable[[int], list[Tensor]]) -> list[Any]:
    """Three steps that see every sample once."""
    results = []
    for i in range(3):
        method.begin_step(Progress(3 * epoch + i, 12, 3))
        result = step(method, views(i), start=N * i)
        method.zero_grad()
        result.loss.backward()
        result.update_memory()
        results.append(result)
    return results


def test_deepcluster_fills_its_memory_in_the_first_epoch_and_trains_nothing() -> None:
    method = build("deepclusterv2").eval()
    results = run_epoch(method, 0, lambda i: views_of(1, seed=i))
    assert all(result.loss == 0 for result in results)
    assert all(p.grad is None for p in method.f.parameters())
    for i in range(3):
        for v, view in enumerate(views_of(1, seed=i)[:2]):
            z = F.normalize(method.projections(view), dim=1)
            torch.testing.assert_close(method.memory[v, N * i : N * (i + 1)], z)


def test_deepcluster_predicts_the_clusters_of_every_head_from_every_crop() -> None:
    """Value written out; prototypes are the centroids, and the assignments their nearest rows."""
    method = build("deepclusterv2").eval()
    run_epoch(method, 0, lambda i: views_of(1, seed=i))
    memory = method.memory.clone()
    method.begin_step(Progress(3, 12, 3))
    for head, layer in enumerate(method.C):
        rows = memory[head % 2]
        torch.testing.assert_close(layer.weight.norm(dim=1), torch.ones(len(layer.weight)))
        assert torch.equal(method.assignments[head], (rows @ layer.weight.T).argmax(dim=1))
    views = views_of(2, seed=7)
    result = step(method, views, start=N)
    terms = []
    for view in views:
        z = F.normalize(method.projections(view), dim=1)
        for head, layer in enumerate(method.C):
            logits = z @ layer.weight.T / 0.1
            terms.append(F.cross_entropy(logits, method.assignments[head, N : 2 * N]))
    torch.testing.assert_close(result.loss, torch.stack(terms).mean())


def test_deepcluster_does_not_cluster_what_no_batch_has_had() -> None:
    """As the images of a last batch that is left out: no clusters and no loss, till they come."""
    method = build("deepclusterv2").eval()
    n_data = method.memory.shape[1]
    method.begin_step(Progress(0, 12, 3))
    for i in range(2):
        step(method, views_of(seed=i), start=N * i).update_memory()
    method.begin_step(Progress(3, 12, 3))
    assert (method.assignments[:, : 2 * N] >= 0).all()
    assert (method.assignments[:, 2 * N :] == -1).all()
    assert all(layer.weight.norm(dim=1).min() > 0.99 for layer in method.C)
    assert step(method, views_of(seed=2), start=2 * N).loss == 0
    assert step(method, views_of(seed=2), start=N).loss > 0
    step(method, views_of(seed=2), start=2 * N).update_memory()
    method.begin_step(Progress(6, 12, 3))
    assert (method.assignments[:, : min(3 * N, n_data)] >= 0).all()


def test_deepcluster_needs_as_many_images_as_clusters_in_an_epochs_batches() -> None:
    method = build("deepclusterv2", prototypes=(N + 1, 3))
    method.begin_step(Progress(0, 12, 3))
    step(method, views_of(), start=0).update_memory()
    with pytest.raises(UserError, match=f"^prototypes: {N + 1} clusters are more than the {N} im"):
        method.begin_step(Progress(3, 12, 3))


def test_deepcluster_clusters_at_the_first_step_of_an_epoch_only() -> None:
    method = build("deepclusterv2")
    run_epoch(method, 0, lambda i: views_of(seed=i))
    seen = []
    for number in range(3, 9):
        before = method.C[0].weight.detach().clone()
        method.begin_step(Progress(number, 12, 3))
        seen.append(not torch.equal(method.C[0].weight, before))
        step(method, views_of(seed=number), start=N * number).update_memory()
    assert seen == [True, False, False, True, False, False]


@pytest.mark.parametrize("freeze_steps", [300000, 0])
def test_deepcluster_prototypes_are_trained_only_when_they_are_let_go(freeze_steps: int) -> None:
    method = build("deepclusterv2", freeze_prototypes_steps=freeze_steps)
    run_epoch(method, 0, lambda i: views_of(seed=i))
    run_epoch(method, 1, lambda i: views_of(seed=i))
    assert all(p.grad is not None for p in method.f.parameters())
    assert all((p.grad is None) == (freeze_steps > 0) for p in method.C.parameters())


def test_kmeans_finds_clusters_that_are_there_and_repeats_itself() -> None:
    """Three narrow bundles of directions; the first centroids decide nothing here."""
    centres = torch.eye(3, 6)
    label = torch.arange(60) % 3
    noise = 0.1 * torch.randn(60, 6, generator=seeded())
    rows = F.normalize(centres[label] + noise, dim=1)
    best = -1.0
    for seed in range(6):
        centroids, assigned = spherical_kmeans(rows, 3, 10, seeded(seed))
        again = spherical_kmeans(rows, 3, 10, seeded(seed))
        assert torch.equal(centroids, again[0])
        assert torch.equal(assigned, again[1])
        found = (rows * centroids[assigned]).sum().item()
        if found > best:
            best, right = found, (assigned, centroids)
    for k in range(3):
        (cluster,) = right[0][label == k].unique()
        torch.testing.assert_close(
            right[1][cluster], F.normalize(rows[label == k].mean(dim=0), dim=0)
        )


def test_kmeans_in_chunks_is_kmeans_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = F.normalize(torch.randn(50, 8, generator=seeded()), dim=1)
    whole = spherical_kmeans(rows, 5, 4, seeded(1))
    monkeypatch.setattr("unmix.clustering._NUMBERS_AT_ONCE", 5 * 7)
    chunks = spherical_kmeans(rows, 5, 4, seeded(1))
    torch.testing.assert_close(chunks[0], whole[0])
    assert torch.equal(chunks[1], whole[1])


def test_kmeans_with_a_cluster_that_dies_stays_finite() -> None:
    """Many rows alike: most of the first centroids are the same, and one of them gets all."""
    rows = F.normalize(torch.tensor([[1.0, 0.0]] * 9 + [[0.0, 1.0]]), dim=1)
    centroids, assigned = spherical_kmeans(rows, 5, 3, seeded())
    torch.testing.assert_close(centroids.norm(dim=1), torch.ones(5))
    assert len(assigned.unique()) == 2
    assert torch.equal((rows @ centroids.T).argmax(dim=1), assigned)


# --- all three --------------------------------------------------------------------------------


@every_kind
def test_the_chance_loss_is_that_of_predictions_that_are_all_alike(kind: str) -> None:
    method = build(kind)
    expected = {
        "swav": math.log(10), "dino": math.log(20),
        "deepclusterv2": (math.log(5) + math.log(4) + math.log(3)) / 3,
    }[kind]  # fmt: skip
    assert method.chance_loss == pytest.approx(expected)
    flat: Any = {
        "swav": lambda: method.predict(torch.zeros(N, 16), 0),
        "dino": lambda: torch.zeros(N, 20),
        "deepclusterv2": lambda: method.predict(torch.zeros(N, 16), 0),
    }[kind]()
    target = torch.zeros(N, 3, dtype=torch.long) if kind == "deepclusterv2" else flat
    torch.testing.assert_close(
        method.compare(flat, target), torch.full((N,), expected), rtol=1e-5, atol=0
    )


def run_epochs(method: Method, steps: int, small: int = 1, start: int = 0) -> Any:
    """Train some steps of three an epoch; the last one's result."""
    trained = [p for p in method.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.05)
    for number in range(start, start + steps):
        method.begin_step(Progress(number, 12, 3))
        result = step(method, views_of(small, seed=number), start=N * number)
        optimizer.zero_grad()
        result.loss.backward()
        result.update_memory()
        optimizer.step()
    return result


@every_kind
@pytest.mark.parametrize("done", [3, 5])
def test_a_method_that_is_saved_and_loaded_goes_on_as_it_would_have(kind: str, done: int) -> None:
    """Queue, centre, memory and clusters are in the state; the rest follows from the step."""
    options = {"queue_size": 12, "queue_from_epoch": 1} if kind == "swav" else {}
    method = build(kind, **options)
    run_epochs(method, done)
    torch.manual_seed(99)
    other = build(kind, **options)
    other.load_state_dict(method.state_dict())
    a = run_epochs(method, 2, start=done)
    b = run_epochs(other, 2, start=done)
    assert torch.equal(a.loss, b.loss)
    for p, q in zip(method.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("swav", {"prototypes": 1}, "--prototypes: 1 is out of range; it must be at least 2."),
        ("swav", {"epsilon": 0}, "--epsilon: 0 is out of range"),
        ("swav", {"temperature": -1.0}, "--temperature: -1 is out of range"),
        ("swav", {"sinkhorn_iterations": 0}, "--sinkhorn_iterations: 0 is out of range"),
        ("swav", {"queue_size": -1}, "--queue_size: -1 is out of range; it must be at least 0."),
        ("dino", {"dim": 1}, "--dim: 1 is out of range; it must be at least 2."),
        ("dino", {"teacher_temperature": 0}, "--teacher_temperature: 0 is out of range"),
        ("dino", {"center_momentum": 1.5}, "--center_momentum: 1.5 is out of range"),
        ("dino", {"encoder_momentum": 2}, "--encoder_momentum: 2 is out of range"),
        ("deepclusterv2", {"prototypes": (5, 1)}, "--prototypes: 1 is out of range; it must be at"),
        ("deepclusterv2", {"prototypes": ()}, "--prototypes: no number was given; give one per"),
        (
            "deepclusterv2", {"prototypes": (24, 25)},
            "--prototypes: 25 clusters are more than the 24 images of the data; use at most 24.",
        ),
    ],
)  # fmt: skip
def test_bad_options_are_told(kind: str, options: dict[str, Any], message: str) -> None:
    assert told(build, kind, **options).startswith(message)
