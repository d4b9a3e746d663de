"""Two processes with half a batch each are one process with the whole of it."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing import start_processes
from torch.utils._pytree import tree_leaves, tree_map

from unmix import backbones, methods
from unmix.backbones import SplitBatchNorm2d
from unmix.credit import IMix, Rule, UnMixRule
from unmix.distributed import (
    all_reduce_sum,
    from_first,
    gather,
    gather_with_gradient,
    rank,
    world_size,
)
from unmix.losses import partition_constant
from unmix.methods import DenseCL, Method, MoCo, Progress, method_class
from unmix.mixtures import PairDraw
from unmix.mixtures.draws import whole_image
from unmix.step import Mixture, objective

N, PROCESSES = 12, 2
SMALL: dict[str, Any] = {"dim": 6, "hidden": 8}
METHODS: dict[str, dict[str, Any]] = {
    "all4one": SMALL | {"queue_size": 40, "transformer_heads": 2, "dropout": 0.0},
    "barlow": SMALL,
    "densecl": {"dim": 6, "queue_size": 40, "bn_splits": 1},
    "distill": {"match": "similarities", "queue_size": 40},
    "insdis": {"dim": 6, "negatives": 5, "contrast": "softmax"},
    "lejepa": SMALL | {"slices": 16},
    "moco": {"dim": 6, "queue_size": 40, "bn_splits": 1, "symmetric": True},
    "mocov3": SMALL,
    "nnbyol": SMALL | {"queue_size": 40},
    "nnclr": SMALL | {"queue_size": 40},
    "ressl": SMALL | {"queue_size": 40},
    "simclr": SMALL,
    "simclr-dclw": SMALL | {"decoupled": "dclw"},
    "simdino": SMALL,
    "tico": SMALL,
    "vicreg": SMALL,
}
RULES: dict[str, Rule | None] = {"clean": None, "unmix": UnMixRule(), "imix": IMix()}
CASES = [
    (name, rule)
    for name in METHODS
    for rule in RULES
    if rule != "imix" or IMix().refusal(method_class(name.split("-")[0])) is None
]


class Flat(nn.Module):
    """A backbone of one linear layer: samples meet in the loss only."""

    feature_dim = 8

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1))


class Map(Flat):
    """Likewise, at each position of a feature map."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.layer = nn.Conv2d(3, 8, 1)  # type: ignore[assignment]

    def forward(self, x: Tensor, pooled: bool = True) -> Tensor:
        features = self.layer(x)
        return features.mean(dim=(2, 3)) if pooled else features


def build(name: str) -> Any:
    """The method without any batch norm, from the same weights each time."""
    torch.manual_seed(0)
    given = {"teacher": Flat()} if name == "distill" else {}
    backbone = Map() if name == "densecl" else Flat()
    method: Any = methods.build(name.split("-")[0], backbone, N, **METHODS[name], **given)
    if hasattr(method, "g"):
        method.g = nn.Linear(8, 8 if name == "distill" else 6)
    if name == "lejepa":
        method.f.head = nn.Linear(8, 6)
    if hasattr(method, "g_k"):
        method.g_k = copy.deepcopy(method.g).requires_grad_(False)
    for predictor in ("h", "h_first", "q"):
        if hasattr(method, predictor):
            setattr(method, predictor, nn.Linear(6, 6))
    return method


def draw_of(samples: int) -> PairDraw:
    """Global mixtures; the partner of each half of the batch is in that half."""
    half = N // PROCESSES
    reverse = torch.arange(half - 1, -1, -1)
    partner = torch.cat([reverse + start for start in range(0, samples, half)])
    ratio = torch.full((samples,), 0.3)
    return PairDraw(partner, whole_image(samples, 2, 2), ratio, (2, 2), False)


def steps_of(name: str, rule: Rule | None) -> dict[str, Any]:
    """Two steps with this process's part of the batch: losses, averaged gradients, memories."""
    method: Method = build(name)
    part = slice(rank() * N // world_size(), (rank() + 1) * N // world_size())
    found: dict[str, Any] = {}
    for number in range(2):
        generator = torch.Generator().manual_seed(number)
        views = [torch.randn(N, 3, 2, 2, generator=generator)[part] for _ in range(method.views)]
        method.begin_step(Progress(number, 4, 2))
        mixture = None if rule is None else Mixture(draw_of(len(views[0])), rule)
        result = objective(method, views, torch.arange(N)[part], generator, mixture)
        result.loss.backward()
        result.update_memory()
        found[f"loss {number}"] = all_reduce_sum(result.loss) / world_size()
    for key, p in method.named_parameters():
        if p.grad is not None:
            found[f"gradient of {key}"] = all_reduce_sum(p.grad) / world_size()
    for key, buffer in method.named_buffers():
        found[f"memory {key}"] = buffer.clone()
    return found


def encoders(kind: type[MoCo], **options: Any) -> MoCo:
    """MoCo of a network with batch norm, whose two encoders are the same."""
    torch.manual_seed(0)
    backbone = backbones.build("resnet10", width=0.125, size=8)
    given = (backbone,) if kind is DenseCL else (backbone, N)
    return kind(*given, dim=6, queue_size=40, **options)


def photos() -> Tensor:
    """The images of all processes, in channels last as encoders on a GPU have them."""
    images = torch.randn(N, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return images.contiguous(memory_format=torch.channels_last)


def plain(found: Any) -> Any:
    """Without its gradient, which cannot be sent."""
    return found.detach() if isinstance(found, Tensor) else found


def keys_of() -> dict[str, Any]:
    """Queries and keys of this process's images, by what is tried."""
    view, found = photos()[rank() * N // PROCESSES :][: N // PROCESSES], {}
    for kind in (MoCo, DenseCL):
        method = encoders(kind, bn_splits=1).eval()  # batch norm does not look at the batch
        found[f"{kind.__name__} in order"] = method.key(view, torch.Generator())
        found[f"{kind.__name__} expected"] = method.f_k(view)
        shuffled = method.train().key(view, torch.Generator().manual_seed(5 + rank()))
        found[f"{kind.__name__} shuffled"] = shuffled
    for shuffle in (True, False):
        method = encoders(MoCo, bn_splits=4, shuffle_bn=shuffle)
        method.begin_step(Progress(0, 4, 2))
        found[f"query {shuffle}"] = method.query(view)
        found[f"key {shuffle}"] = method.key(view, torch.Generator().manual_seed(5 + rank()))
        found[f"splits {shuffle}"] = {
            each.splits for each in method.modules() if isinstance(each, SplitBatchNorm2d)
        }
    return tree_map(plain, found)


def run(number: int, folder: Path) -> None:
    """What each process does."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder / 'meet'}", rank=number, world_size=PROCESSES)
    cases = {case: steps_of(case[0], RULES[case[1]]) for case in CASES}
    own = torch.tensor([[float(number)], [10.0 + number]], requires_grad=True)
    every = gather_with_gradient(own)
    (every * torch.arange(4.0)[:, None] * (1 + number)).sum().backward()
    primitives = {
        "rank": rank(),
        "world": world_size(),
        "gather": gather(own),
        "every": every.detach(),
        "gradient": own.grad,
        "sum": all_reduce_sum(torch.tensor(1.0 + number)),
        "first": from_first(torch.tensor(1.0 + number)),
        "constant": partition_constant(torch.full((2, 3), float(number)), 0.5, 10),
    }
    torch.save((cases, primitives, keys_of()), folder / f"{number}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What the two processes found, started once for all tests."""
    folder = tmp_path_factory.mktemp("processes")
    start_processes(run, (folder,), PROCESSES, start_method="fork")
    return [torch.load(folder / f"{number}.pt", weights_only=False) for number in range(PROCESSES)]


@pytest.mark.parametrize(("name", "rule"), CASES)
def test_losses_gradients_and_memories_are_those_of_the_whole_batch(
    processes: list[Any], name: str, rule: str
) -> None:
    """Averaged over the processes, as data-parallel training averages the gradients."""
    with torch.random.fork_rng(devices=[]):
        alone = steps_of(name, RULES[rule])
    for cases, _, _ in processes:
        found = cases[name, rule]
        assert found.keys() == alone.keys()
        for key, expected in alone.items():
            # InsDis draws other negatives in each process: only its bank can be the same.
            if name != "insdis" or key.startswith("memory"):
                torch.testing.assert_close(
                    found[key],
                    expected,
                    rtol=1e-4,
                    atol=1e-5,
                    msg=lambda text, k=key: f"{k}: {text}",
                )


def test_tensors_are_gathered_in_the_processes_order(processes: list[Any]) -> None:
    rows = torch.tensor([[0.0], [10], [1], [11]])
    for number, (_, found, _) in enumerate(processes):
        assert (found["rank"], found["world"]) == (number, 2)
        assert torch.equal(found["gather"], rows)
        assert not found["gather"].requires_grad
        assert torch.equal(found["every"], rows)
        assert found["sum"] == 3
        assert found["first"] == 1
        # One constant of NCE for all: 10 times the mean of e^0 and e^2.
        assert float(found["constant"]) == pytest.approx(5 * (1 + math.e**2))
        # Both processes' losses, one of them twice: 3 times the weight of the row.
        weights = torch.arange(4.0)[2 * number : 2 * number + 2, None]
        assert torch.equal(found["gradient"], 3 * weights)


@pytest.mark.parametrize("kind", [MoCo, DenseCL])
def test_keys_are_shuffled_over_processes_and_come_back_in_order(
    processes: list[Any], kind: type[MoCo]
) -> None:
    """With one sub-batch a process, where a shuffle within it would change nothing."""
    method, images, half = encoders(kind, bn_splits=1), photos(), N // PROCESSES
    order = torch.randperm(N, generator=torch.Generator().manual_seed(5))
    parts = [[*tree_leaves(method.f_k(images[order[at : at + half]]))] for at in (0, half)]
    whole = [torch.cat(leaves)[order.argsort()] for leaves in zip(*parts, strict=True)]
    for number, (_, _, found) in enumerate(processes):
        for name in ("in order", "shuffled"):
            leaves = tree_leaves(found[f"{kind.__name__} {name}"])
            expected = tree_leaves(found[f"{kind.__name__} expected"])
            if name == "shuffled":
                own = slice(number * half, (number + 1) * half)
                alone = tree_leaves(method.f_k(images[own]))
                assert not torch.allclose(leaves[0], alone[0], atol=1e-3)
                expected = [rows[own] for rows in whole]
            torch.testing.assert_close(leaves, expected, rtol=1e-4, atol=1e-5)


def test_processes_divide_the_sub_batches_of_batch_norm(processes: list[Any]) -> None:
    """Four of the whole batch are two in each process: samples 0, 2, 4 and 1, 3, 5."""
    method, half = encoders(MoCo, bn_splits=2), N // PROCESSES
    for number, (_, _, found) in enumerate(processes):
        expected = method.query(photos()[number * half : (number + 1) * half])
        for shuffle in (True, False):
            assert found[f"splits {shuffle}"] == {2}
            torch.testing.assert_close(found[f"query {shuffle}"], expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found["key False"], expected, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(found["key True"], expected, atol=1e-3)


def test_of_one_process_everything_is_what_it_was() -> None:
    x = torch.randn(3, 2, requires_grad=True)
    assert (rank(), world_size()) == (0, 1)
    assert gather_with_gradient(x) is x
    for result in (gather(x), all_reduce_sum(x)):
        assert torch.equal(result, x)
        assert not result.requires_grad
