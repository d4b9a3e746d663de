"""MoCo, InsDis and CMC: what they hold, what they compare, what they keep, what they refuse."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmix import backbones
from unmix.backbones import SplitBatchNorm2d
from unmix.credit import shared_loss
from unmix.errors import UserError
from unmix.methods import CMC, METHODS, InsDis, Method, MoCo, Progress, method_class
from unmix.mixtures import PairDraw
from unmix.mixtures.draws import whole_image
from unmix.step import objective

SIZE = 16


@pytest.fixture(autouse=True)
def _one_thread_and_the_global_generator_left_as_it_was() -> Iterator[None]:
    """Weights start from PyTorch's global generator."""
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def moco(**options: Any) -> MoCo:
    backbone = backbones.build("resnet10", width=0.125, size=SIZE)
    return MoCo(backbone, 100, **({"dim": 16, "queue_size": 20, "bn_splits": 2} | options))


def insdis(n_data: int = 30, **options: Any) -> InsDis:
    backbone = backbones.build("resnet10", width=0.125, size=SIZE)
    return InsDis(backbone, n_data, **({"dim": 16, "negatives": 10} | options))


def cmc(n_data: int = 30, **options: Any) -> CMC:
    backbone: Any = CMC.build_backbone("resnet10", width=0.125, size=SIZE)
    return CMC(backbone, n_data, **({"dim": 16, "negatives": 10} | options))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, 3, SIZE, SIZE, generator=seeded(seed))


def unit_vectors(n: int, dim: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(n, dim, generator=seeded(seed)), dim=1)


def told(make: Any, *args: Any, **options: Any) -> str:
    """The message of the UserError that a call raises."""
    with pytest.raises(UserError) as caught:
        make(*args, **options)
    message = caught.value.on_command_line()
    assert "\n" not in message
    return message


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_moco_key_encoder_starts_as_a_full_copy(head: str) -> None:
    """Backbone, head and batch norm's buffers; a released library starts the key head at random."""
    method = moco(head=head)
    q, k = method.f_q.state_dict(), method.f_k.state_dict()
    assert q.keys() == k.keys()
    assert any(name.startswith("head.") for name in k)
    for name, tensor in q.items():
        assert torch.equal(k[name], tensor), name
        assert k[name].data_ptr() != tensor.data_ptr(), name


def test_moco_key_encoder_takes_no_gradient_and_moves_by_momentum_alone() -> None:
    method = moco(encoder_momentum=0.9)
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1)
    step = objective(method, [images(8), images(8, 1)], torch.arange(8), seeded(0))
    step.loss.backward()
    assert all(p.grad is None and not p.requires_grad for p in method.f_k.parameters())
    key = [p.clone() for p in method.f_k.parameters()]
    optimizer.step()
    assert all(torch.equal(p, old) for p, old in zip(method.f_k.parameters(), key, strict=True))
    method.begin_step(Progress(1, 2, 2))
    for p, old, q in zip(method.f_k.parameters(), key, method.f_q.parameters(), strict=True):
        torch.testing.assert_close(p, 0.9 * old + 0.1 * q.detach(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("symmetric", [False, True])
def test_moco_positives_are_not_among_the_negatives_of_their_step(symmetric: bool) -> None:
    """Cross-entropy with the queue of before; a released library pushes the keys first."""
    method = moco(symmetric=symmetric, temperature=0.2).eval()
    views, before = [images(6), images(6, 1)], method.queue.keys.clone()
    step = objective(method, views, torch.arange(6), seeded(0))
    q, k = [method.f_q(view) for view in views], [method.f_k(view) for view in views]
    expected = torch.zeros(())
    for a, b in [(0, 1), (1, 0)] if symmetric else [(0, 1)]:
        logits = torch.cat([(q[a] * k[b]).sum(1, keepdim=True), q[a] @ before.T], dim=1) / 0.2
        expected = expected + F.cross_entropy(logits, torch.zeros(6, dtype=torch.long))
    torch.testing.assert_close(step.loss, expected)
    assert torch.equal(method.queue.keys, before)
    step.update_memory()
    torch.testing.assert_close(method.queue.keys[6 * symmetric : 6 + 6 * symmetric], k[1])


def test_moco_symmetric_pushes_the_keys_of_view_1_then_of_view_2() -> None:
    method = moco(symmetric=True).eval()
    views = [images(6), images(6, 1)]
    objective(method, views, torch.arange(6), seeded(0)).update_memory()
    expected = torch.cat([method.f_k(view) for view in views])
    torch.testing.assert_close(method.queue.keys[:12], expected)
    assert method.state() == {"queue_fill": 12 / 20}


@pytest.mark.parametrize("symmetric", [False, True])
def test_moco_takes_any_batch_size(symmetric: bool) -> None:
    """A last short batch, odd ones and one larger than the queue; the queue stays the last K keys.

    Three images on four sub-batches leave one in each.
    """
    method = moco(symmetric=symmetric, bn_splits=4)
    model = deque(method.queue.keys.tolist(), maxlen=20)
    for number, n in enumerate([8, 3, 7, 2, 23]):
        views = [images(n, number), images(n, number + 50)]
        step = objective(method, views, torch.arange(n), seeded(number))
        step.loss.backward()
        assert step.loss.isfinite()
        model.extend(_keys_of(method, views, seeded(number)).tolist())
        step.update_memory()
        rows = method.queue.keys.roll(-int(method.queue.position), dims=0)
        torch.testing.assert_close(rows, torch.tensor(list(model)))


def _keys_of(method: MoCo, views: list[Tensor], generator: torch.Generator) -> Tensor:
    """The step's keys once more: batch norm in training does not read its running statistics."""
    targets = method.targets(views, {}, torch.arange(len(views[0])), generator)
    return torch.cat([targets[b] for b in sorted(targets)])


def test_moco_shuffled_keys_are_back_in_order() -> None:
    """Where batch norm does not look at the batch, shuffling changes nothing."""
    method = moco().eval()
    view = images(11)
    torch.testing.assert_close(method.key(view, seeded(3)), method.f_k(view))


def test_moco_shuffling_changes_the_sub_batches_of_split_batch_norm() -> None:
    """In training, keys depend on their sub-batch, which follows from the generator."""
    method, view = moco(bn_splits=4), images(12)
    shuffled = method.key(view, seeded(3))
    assert torch.equal(shuffled, method.key(view, seeded(3)))
    assert not torch.allclose(shuffled, method.key(view, seeded(4)), atol=1e-3)
    method.shuffle_bn = False
    plain = method.key(view, seeded(3))
    assert torch.equal(plain, method.key(view, seeded(4)))
    assert not torch.allclose(shuffled, plain, atol=1e-3)


@pytest.mark.parametrize("splits", [1, 4])
def test_moco_splits_batch_norm_in_both_encoders_or_in_none(splits: int) -> None:
    method = moco(bn_splits=splits)
    for encoder in (method.f_q, method.f_k):
        norms = [m for m in encoder.modules() if isinstance(m, nn.BatchNorm2d)]
        kinds = {(type(m), getattr(m, "splits", 1)) for m in norms}
        assert len(norms) == 12
        assert kinds == {(SplitBatchNorm2d if splits > 1 else nn.BatchNorm2d, splits)}


def test_a_query_of_alexnet_depends_on_its_own_sub_batch_alone() -> None:
    """Its fully connected layers have batch norm too, through which keys would leak."""
    method = MoCo(
        backbones.build("alexnet", width=0.05, size=SIZE), 100, queue_size=20, bn_splits=4
    )
    view = images(16)
    other = torch.cat([view[:1], images(1, 7), view[2:]])
    changed = (method.query(view) - method.query(other)).abs().amax(dim=1) > 1e-5
    assert changed.nonzero().flatten().tolist() == [1, 5, 9, 13]


def test_moco_of_batch_norm_that_cannot_be_split_is_refused_also_by_default() -> None:
    """timm's EfficientNets, RegNets and others: sub-batches would be those of config.yaml alone."""
    network = backbones.build("timm:mobilenetv3_small_050", size=32)
    assert told(MoCo, network, 100) == (
        "--bn_splits: the network has 34 layers of BatchNormAct2d, whose batch cannot be split; "
        "use --bn_splits 1."
    )
    MoCo(network, 100, bn_splits=1)


def test_moco_heads_are_v1s_and_v2s() -> None:
    assert [type(m) for m in moco(head="linear").f_q.head.modules()] == [nn.Linear]
    layers = list(moco(head="mlp").f_q.head.children())
    assert [type(m) for m in layers] == [nn.Linear, nn.ReLU, nn.Linear]


def chance_cases() -> list[Any]:
    return [
        pytest.param(lambda t: moco(queue_size=500, dim=128, temperature=t), id="moco"),
        pytest.param(
            lambda t: moco(queue_size=500, dim=128, temperature=t, symmetric=True), id="symmetric"
        ),
        pytest.param(
            lambda t: insdis(700, negatives=500, dim=128, temperature=t, contrast="softmax"),
            id="insdis",
        ),
        pytest.param(
            lambda t: cmc(700, negatives=500, dim=128, temperature=t, contrast="softmax"), id="cmc"
        ),
    ]


def loss_of(method: Method, query: Tensor) -> float:
    """The clean loss if every query were this, and every key or row what it is."""
    n = len(query)
    if isinstance(method, MoCo):
        key = method.queue.keys[:1].expand(n, -1) if query.std(0).max() < 1e-6 else query.roll(1, 0)
        return sum(method.compare(query, key).mean().item() for _ in method.pairs)
    targets = method.targets([], {}, torch.arange(n), seeded(0))[0]
    full: Any = (query, query) if isinstance(method, CMC) else query
    return method.compare(full, targets).mean().item()


@pytest.mark.parametrize("make", chance_cases())
def test_chance_loss_is_that_of_features_which_are_all_the_same(make: Any) -> None:
    """A collapsed encoder cannot tell anything apart: exactly ln(K + 1) for each comparison."""
    method = make(0.07)
    same = unit_vectors(1, 128)
    for name, buffer in method.named_buffers():
        if name.endswith(("queue.keys", "rows")):
            buffer.copy_(same.expand_as(buffer))
    assert loss_of(method, same.expand(64, -1)) == pytest.approx(method.chance_loss, rel=1e-5)


@pytest.mark.parametrize("make", chance_cases())
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_chance_loss_is_near_that_of_random_unit_vectors(make: Any, temperature: float) -> None:
    """Above it by half the variance of their logits, 1 / (2 dim T^2): 0.39 at T 0.1."""
    method = make(temperature)
    comparisons = round(method.chance_loss / math.log(501))
    excess = comparisons / (2 * 128 * temperature**2)
    measured = loss_of(method, unit_vectors(600, 128, 5))
    noise = 5 * comparisons / (temperature * 128**0.5 * 600**0.5)
    assert measured == pytest.approx(method.chance_loss + excess, abs=noise)


def test_nce_has_no_chance_loss() -> None:
    assert moco(contrast="nce").chance_loss is None
    assert insdis(contrast="nce").chance_loss is None
    assert cmc(contrast="nce").chance_loss is None


def test_chance_level_is_unknown_where_synthetic_negatives_are_candidates_too() -> None:
    """They are not there from the start, and are made to be harder than chance."""
    assert moco(synthetic_negatives="mochi", hard_negatives=8).chance_loss is None


def test_moco_batch_larger_than_the_queue_is_told() -> None:
    method = moco(queue_size=20)
    method.check_batch(20)
    assert told(method.check_batch, 21) == (
        "--queue_size: 20 keys are fewer than --batch_size 21; use a queue of at least 21."
    )


@pytest.mark.parametrize(("batch_size", "most"), [(15, 7), (9, 4), (2, 1)])
def test_moco_too_many_sub_batches_are_told(batch_size: int, most: int) -> None:
    """What the message recommends is then accepted."""
    message = told(moco(bn_splits=8).check_batch, batch_size)
    assert message == (
        f"--bn_splits: 8 sub-batches of a batch of {batch_size} are too small; use at most {most}."
    )
    moco(bn_splits=most).check_batch(batch_size)


@pytest.mark.parametrize(
    ("splits", "processes", "each"), [(8, 2, 4), (8, 8, 1), (8, 16, 1), (1, 2, 1), (8, 3, 3)]
)
def test_moco_sub_batches_are_those_of_all_processes(
    splits: int, processes: int, each: int
) -> None:
    """As few more as give each process equally many, at least one."""
    method = moco(bn_splits=splits)
    method.share_among(processes)
    norms = [m for m in method.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {getattr(m, "splits", 1) for m in norms} == {each}
    assert method.splits == each
    method.check_batch(2 * each)
    if each > 1:
        share, most = 2 * each - 1, (2 * each - 1) // 2 * processes
        assert told(method.check_batch, share) == (
            f"--bn_splits: {splits} sub-batches of a batch of {share * processes} are too small; "
            f"use at most {most}."
        )


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (moco, {"head": "lnear"}, "--head: 'lnear' is unknown. Did you mean 'linear'?"),
        (moco, {"contrast": "softmx"}, "--contrast: 'softmx' is unknown. Did you mean 'softmax'?"),
        (moco, {"temperature": 0}, "--temperature: 0 is out of range; it must be greater than 0."),
        (moco, {"encoder_momentum": 1.1}, "--encoder_momentum: 1.1 is out of range"),
        (moco, {"bn_splits": 0}, "--bn_splits: 0 is out of range; it must be at least 1."),
        (insdis, {"contrast": "nse"}, "--contrast: 'nse' is unknown. Did you mean 'nce'?"),
        (insdis, {"temperature": -1}, "--temperature: -1 is out of range"),
        (cmc, {"contrast": "info"}, "--contrast: 'info' is unknown."),
        (cmc, {"view": "lab"}, "--view: 'lab' is unknown. Did you mean 'Lab'?"),
        (cmc, {"view": "YCrCb"}, "--view: 'YCrCb' is unknown. Did you mean 'YCbCr'?"),
    ],
)
def test_a_wrong_option_is_told_with_its_flag(make: Any, options: Any, message: str) -> None:
    assert told(make, **options).startswith(message)


@pytest.mark.parametrize("make", [insdis, cmc])
@pytest.mark.parametrize("negatives", [30, 4096])
def test_as_many_negatives_as_samples_are_told(make: Any, negatives: int) -> None:
    make(30, negatives=29)
    message = told(make, 30, negatives=negatives)
    assert message.startswith(f"--negatives: {negatives} ")
    assert message.endswith("at most 29.")
    assert told(make, 30, negatives=0).startswith("--negatives: 0 is out of range")


@pytest.mark.parametrize("make", [insdis, cmc])
@pytest.mark.parametrize(("n_data", "negatives"), [(30, 29), (4097, 4096), (5000, 4096)])
def test_there_are_4096_negatives_by_default_or_all_the_others(
    make: Any, n_data: int, negatives: int
) -> None:
    method = make(n_data, negatives=None)
    assert negatives == method.K
    target = method.targets([], {}, torch.arange(2), seeded(0))[0]
    assert target.shape == (2, 1 + negatives)


@pytest.mark.parametrize("make", [insdis, cmc])
def test_a_samples_target_is_its_own_row_then_the_negatives(make: Any) -> None:
    method = make(30, negatives=10)
    index = torch.tensor([4, 29, 0])
    targets = method.targets([], {}, index, seeded(0))
    assert set(targets) == {0}
    assert targets[0].shape == (3, 11)
    assert torch.equal(targets[0][:, 0], index)
    assert torch.equal(targets[0], method.targets([], {}, index, seeded(0))[0])
    assert not torch.equal(targets[0], method.targets([], {}, index, seeded(1))[0])


@pytest.mark.parametrize("make", [insdis, cmc])
def test_the_partners_row_of_the_bank_is_the_partners_target(make: Any) -> None:
    """Queries that are their partners' rows are at home where all credit is the partner's."""
    method = make(30, contrast="softmax", dim=64)
    index, partner = torch.tensor([7, 21, 3, 16]), torch.tensor([2, 0, 3, 1])
    targets = torch.cat([index[:, None], torch.arange(22, 30).expand(4, 8)], dim=1)
    one_bank = isinstance(method, InsDis)
    banks = [method.contrast] if one_bank else [method.memory_ab, method.memory_l]
    rows = tuple(contrast.bank.rows[index[partner]] for contrast in banks)
    query: Any = rows[0] if one_bank else rows
    losses = []
    for weight in (0.0, 0.5, 1.0):
        box, ratio = whole_image(4, 2, 2), torch.full((4,), weight)
        draw = PairDraw(partner, box, ratio, (2, 2), per_sample=False)
        losses.append(shared_loss(method.compare, query, targets, draw).item())
    assert losses[0] < 0.02
    assert losses[2] > 1
    assert losses[1] == pytest.approx((losses[0] + losses[2]) / 2, rel=1e-5)


def test_insdis_keeps_its_features_in_its_samples_rows_alone() -> None:
    method, index = insdis(bank_momentum=0.0).eval(), torch.tensor([4, 29, 0, 11])
    view, before = images(4), method.contrast.bank.rows.clone()
    objective(method, [view], index, seeded(0)).update_memory()
    torch.testing.assert_close(method.contrast.bank.rows[index], method.f(view).detach())
    others = [i for i in range(30) if i not in index.tolist()]
    assert torch.equal(method.contrast.bank.rows[others], before[others])


def test_cmc_keeps_each_part_in_its_own_bank() -> None:
    method, index = cmc(bank_momentum=0.0).eval(), torch.tensor([4, 29, 0, 11])
    view = images(4)
    objective(method, [view], index, seeded(0)).update_memory()
    l, ab = method.query(view)
    torch.testing.assert_close(method.memory_l.bank.rows[index], l.detach())
    torch.testing.assert_close(method.memory_ab.bank.rows[index], ab.detach())


@pytest.mark.parametrize("view", ["Lab", "YCbCr"])
def test_cmc_works_in_the_colour_space_that_is_asked_for(view: str) -> None:
    assert cmc(view=view).color_space == view
    assert cmc().color_space == "Lab"
    assert moco().color_space == insdis().color_space == "RGB"


def test_cmc_has_a_query_for_each_part_that_sees_no_other() -> None:
    method, view = cmc().eval(), images(4)
    l, ab = method.query(view)
    other = view.clone()
    other[:, 0] += 1
    new_l, new_ab = method.query(other)
    assert torch.equal(new_ab, ab)
    assert not torch.allclose(new_l, l)


@pytest.mark.parametrize("make", [moco, insdis, cmc])
def test_features_and_projections_are_the_backbones_and_the_heads(make: Any) -> None:
    """Features are what is kept after pretraining; queries are the normalised projections."""
    method, view = make().eval(), images(4)
    features, projections = method.features(view), method.projections(view)
    assert features.shape == (4, method.backbone.feature_dim)
    parts = projections.split(16, dim=1)
    query = method.query(view)
    queries = query if isinstance(query, tuple) else (query,)
    assert len(parts) == len(queries)
    for part, q in zip(parts, queries, strict=True):
        torch.testing.assert_close(F.normalize(part, dim=1), q)
    whole = method.backbone(view)
    expected = torch.cat(whole, dim=1) if isinstance(whole, tuple) else whole
    assert torch.equal(features, expected)


@pytest.mark.parametrize("make", [insdis, cmc])
def test_nces_constant_is_estimated_once_from_the_first_batch(make: Any) -> None:
    """Z = n_data * mean(exp(scores / T)) of the first scores; later batches leave it."""
    method = make(contrast="nce").eval()
    constants = {name: z for name, z in method.named_buffers() if name.endswith("Z")}
    assert all(z == -1 for z in constants.values())
    objective(method, [images(4)], torch.arange(4), seeded(0)).update_memory()
    first = {name: z.item() for name, z in constants.items()}
    assert all(z > 0 for z in first.values())
    objective(method, [images(4, 1)], torch.arange(4, 8), seeded(1))
    assert {name: z.item() for name, z in constants.items()} == first


def test_methods_are_found_by_name() -> None:
    for name, kind in {"moco": MoCo, "insdis": InsDis, "cmc": CMC}.items():
        assert method_class(name) is kind
    assert list(METHODS) == sorted(METHODS)


def test_a_misspelt_method_is_told_with_the_nearest() -> None:
    assert told(method_class, "mocco") == (
        f"--method: 'mocco' is unknown. Did you mean 'moco'? Known: {', '.join(METHODS)}."
    )


@pytest.mark.parametrize(
    ("old", "new"), [("keep", "update_memory"), ("steady", "constant_lr_modules")]
)
def test_a_method_written_for_0_1_is_refused_instead_of_losing_its_memory(
    old: str, new: str
) -> None:
    with pytest.raises(TypeError, match=rf"^Mine\.{old} is called {new} since unmix 0\.2"):
        type("Mine", (MoCo,), {old: lambda self: None})
