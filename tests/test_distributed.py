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

from unmix import methods
from unmix.credit import IMix, Rule, UnMixRule
from unmix.distributed import all_reduce_sum, gather, gather_with_gradient, rank, world_size
from unmix.losses import partition_constant
from unmix.methods import Method, Progress, method_class
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
        "constant": partition_constant(torch.full((2, 3), float(number)), 0.5, 10),
    }
    torch.save((cases, primitives), folder / f"{number}.pt")
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
    for cases, _ in processes:
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
    for number, (_, found) in enumerate(processes):
        assert (found["rank"], found["world"]) == (number, 2)
        assert torch.equal(found["gather"], rows)
        assert not found["gather"].requires_grad
        assert torch.equal(found["every"], rows)
        assert found["sum"] == 3
        # One constant of NCE for all: 10 times the mean of e^0 and e^2.
        assert float(found["constant"]) == pytest.approx(5 * (1 + math.e**2))
        # Both processes' losses, one of them twice: 3 times the weight of the row.
        weights = torch.arange(4.0)[2 * number : 2 * number + 2, None]
        assert torch.equal(found["gradient"], 3 * weights)


def test_of_one_process_everything_is_what_it_was() -> None:
    x = torch.randn(3, 2, requires_grad=True)
    assert (rank(), world_size()) == (0, 1)
    assert gather_with_gradient(x) is x
    for result in (gather(x), all_reduce_sum(x)):
        assert torch.equal(result, x)
        assert not result.requires_grad
