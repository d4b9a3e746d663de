"""Two processes with half a batch each do what one does with the whole batch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.multiprocessing import start_processes

from unmix.clustering import spherical_kmeans
from unmix.distributed import rank, world_size
from unmix.methods import DINO, IBOT, PIRL, DeepClusterV2, Method, Progress, SwAV
from unmix.step import objective

N, SIDE, N_DATA, STEPS = 8, 6, 16, 4


class Flat(nn.Module):
    """A backbone without batch norm, which would see other batches in two processes."""

    feature_dim = 12

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 12)

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(images.mean(dim=(2, 3))).tanh()


class IBOTOfOneMask(IBOT):
    """iBOT with the masks of the whole batch, of which each process has its part."""

    def masked(self, n: int, number: int, grid: tuple[int, int]) -> Tensor:
        first, world = rank() * n, world_size()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("unmix.methods.masks.world_size", lambda: 1)
            return super().masked(n * world, number, grid)[first : first + n]


def vit() -> VisionTransformer:
    return VisionTransformer(
        img_size=SIDE, patch_size=3, embed_dim=12, depth=1, num_heads=2, num_classes=0,
        dynamic_img_size=True,
    )  # fmt: skip


def methods() -> dict[str, Any]:
    torch.manual_seed(0)
    made: dict[str, Any] = {
        "swav": SwAV(
            Flat(), dim=8, hidden=4, prototypes=5, queue_size=12, queue_from_epoch=1,
            freeze_prototypes_steps=0,
        ),
        "dino": DINO(Flat(), dim=10, hidden=8, bottleneck=6, freeze_last_epochs=0),
        "deepclusterv2": DeepClusterV2(Flat(), N_DATA, dim=8, hidden=4, prototypes=(3, 4)),
        "ibot": IBOTOfOneMask(vit(), dim=10, hidden=8, bottleneck=6, freeze_last_epochs=0),
        "ibot-sinkhorn": IBOTOfOneMask(
            vit(), dim=10, hidden=8, bottleneck=6, freeze_last_epochs=0, centering="sinkhorn",
            separate_heads=True,
        ),
        "pirl": PIRL(Flat(), N_DATA, dim=8, negatives=6),
    }  # fmt: skip
    for name in ("swav", "deepclusterv2"):
        made[name].f.head = nn.Linear(12, 8)
    return made


def run(method: Method, rank: int, world: int) -> dict[str, Any]:
    """A few steps of SGD on this process's part of each batch, gradients averaged by hand."""
    trained = [p for p in method.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.2)
    losses = []
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        views = [torch.randn(N, 3, side, side, generator=generator) for side in (SIDE, SIDE, 3)]
        views = views[: 3 if method.multi_crop else 2]
        index = torch.randperm(N_DATA, generator=generator)[:N]
        own = slice(rank * N // world, (rank + 1) * N // world)
        method.begin_step(Progress(step, STEPS, 2))
        result = objective(method, [v[own] for v in views], index[own], torch.Generator())
        optimizer.zero_grad()
        result.loss.backward()
        result.update_memory()
        for p in trained:
            if world > 1 and p.grad is not None:
                dist.all_reduce(p.grad)
                p.grad /= world
        loss = result.loss.detach().clone()
        if world > 1:
            dist.all_reduce(loss)
        losses.append(loss / world)
        optimizer.step()
    return {"losses": losses, "state": {k: v.clone() for k, v in method.state_dict().items()}}


def clustered() -> tuple[Tensor, Tensor]:
    rows = torch.randn(37, 8, generator=torch.Generator().manual_seed(5))
    rows = nn.functional.normalize(rows, dim=1)
    return spherical_kmeans(rows, 6, 5, torch.Generator().manual_seed(6))


def jigsaw() -> Tensor:
    method = methods()["pirl"]
    view = torch.randn(4, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(5))
    return method.query(view, 1).detach()


def process(rank: int, folder: str) -> None:
    """What each of the two does."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    found: dict[str, Any] = {name: run(m, rank, 2) for name, m in methods().items()}
    found["kmeans"], found["jigsaw"] = clustered(), jigsaw()
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found; one start for all tests."""
    folder: Path = tmp_path_factory.mktemp("two")
    start_processes(process, (str(folder),), 2, start_method="fork")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.fixture(scope="module")
def one() -> dict[str, Any]:
    with torch.random.fork_rng(devices=[]):
        return {name: run(method, 0, 1) for name, method in methods().items()}


@pytest.mark.parametrize("name", ["swav", "dino", "deepclusterv2", "ibot", "ibot-sinkhorn"])
def test_losses_and_what_is_learnt_are_those_of_one_process(
    name: str, two: list[dict[str, Any]], one: dict[str, Any]
) -> None:
    """Sinkhorn over both processes and the queue, the center, the clusters of a common memory."""
    torch.testing.assert_close(two[0][name]["losses"], one[name]["losses"])
    assert name != "deepclusterv2" or one[name]["losses"][2] > 0
    for key, value in one[name]["state"].items():
        torch.testing.assert_close(two[0][name]["state"][key], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["swav", "dino", "deepclusterv2", "ibot", "ibot-sinkhorn", "pirl"])
def test_both_processes_keep_the_same(name: str, two: list[dict[str, Any]]) -> None:
    """Queue, centre, memory, assignments and bank to the bit: DDP takes those of process 0."""
    for key, value in two[0][name]["state"].items():
        assert torch.equal(two[1][name]["state"][key], value), key


def test_the_bank_of_pictures_takes_the_features_of_both(two: list[dict[str, Any]]) -> None:
    start = methods()["pirl"].state_dict()["contrast.bank.rows"]
    moved = (two[0]["pirl"]["state"]["contrast.bank.rows"] != start).any(dim=1)
    seen = set()
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        for side in (SIDE, SIDE, 3):
            torch.randn(N, 3, side, side, generator=generator)
        seen |= set(torch.randperm(N_DATA, generator=generator)[:N].tolist())
    assert set(moved.nonzero().flatten().tolist()) == seen


def test_kmeans_shared_out_is_kmeans_of_one_process(two: list[dict[str, Any]]) -> None:
    """37 rows do not halve."""
    for centroids, assigned in (two[0]["kmeans"], two[1]["kmeans"]):
        torch.testing.assert_close(centroids, clustered()[0])
        assert torch.equal(assigned, clustered()[1])


def test_processes_draw_orders_of_their_own_for_the_jigsaw(two: list[dict[str, Any]]) -> None:
    torch.testing.assert_close(two[0]["jigsaw"], jigsaw())
    assert not torch.allclose(two[1]["jigsaw"], two[0]["jigsaw"])
