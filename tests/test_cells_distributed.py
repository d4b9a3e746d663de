"""Every cell on two processes: the loss and the gradient are those of one with all the images.

One pair of processes walks all cells, for starting them takes longer than the steps.
"""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing import start_processes

from harness import YES, N, global_draw, gradients, settled, step, views_of
from unmix.credit import RULES
from unmix.methods import Method
from unmix.mixtures import PairDraw

# A process draws its own negatives, tiles and sub-batches, so there the numbers must differ; their
# losses are checked to be finite and their memories to be the same on both.
DRAWN = {"insdis", "cmc", "pirl", "wmse", "mae", "ibot", "ijepa", "simmim"}
OPTIONS: dict[str, dict[str, Any]] = {"swav": {"queue_size": 0}}


def two_halves(weight: float) -> PairDraw:
    """The draw of one process that has both processes' images: each half mixed with itself."""
    half = global_draw(weight)
    partner = torch.cat([half.partner, half.partner + N])
    return PairDraw(partner, half.box.repeat(2, 1), half.ratio.repeat(2), half.size, False)


def one_process(cell: tuple[str, str]) -> tuple[Tensor, dict[str, Tensor]]:
    name, rule = cell
    method = settled(name, **OPTIONS.get(name, {}))
    views = views_of(method, n=2 * N)
    result = step(method, views, RULES[rule], two_halves(0.3))
    result.loss.backward()
    return result.loss.detach(), gradients(method)


def walk(rank: int, port_file: str, out: str) -> None:
    """One of two processes: its half of every cell's batch."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{port_file}", rank=rank, world_size=2)
    found = {}
    for name, rule in YES:
        method = methods_before_the_group[name, rule]
        half = [view[rank * N : (rank + 1) * N] for view in views_of(method, n=2 * N)]
        result = step(method, half, RULES[rule], global_draw(0.3), start=rank * N, seed=rank)
        result.loss.backward()
        result.update_memory()
        found[name, rule] = (
            result.loss.detach(), gradients(method), dict(method.state_dict())
        )  # fmt: skip
    Path(f"{out}.{rank}").write_bytes(pickle.dumps(found))
    dist.destroy_process_group()


methods_before_the_group: dict[tuple[str, str], Method] = {}


def start(rank: int, port_file: str, out: str) -> None:
    """Settle the methods before there is a group, so that both processes have the same."""
    torch.set_num_threads(1)
    for name, rule in YES:
        methods_before_the_group[name, rule] = settled(name, **OPTIONS.get(name, {}))
    walk(rank, port_file, out)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[tuple[str, str], Any]]:
    """What each process found, by cell."""
    folder = tmp_path_factory.mktemp("cells")
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    start_processes(start, (str(folder / "meeting"), str(folder / "found")), 2, start_method="fork")
    return [pickle.loads((folder / f"found.{rank}").read_bytes()) for rank in (0, 1)]


@pytest.mark.parametrize("cell", YES, ids=["-".join(cell) for cell in YES])
def test_two_devices_compute_what_one_does(
    cell: tuple[str, str], both: list[dict[tuple[str, str], Any]]
) -> None:
    (loss_0, gradients_0, state_0), (loss_1, gradients_1, state_1) = (f[cell] for f in both)
    for key, value in state_0.items():
        if "queue" in key and cell[0] == "swav":
            continue  # a queue for each process, as published
        torch.testing.assert_close(value, state_1[key], msg=key)
    assert loss_0.isfinite()
    assert loss_1.isfinite()
    if cell[0] in DRAWN:
        return
    loss, whole = one_process(cell)
    torch.testing.assert_close((loss_0 + loss_1) / 2, loss, rtol=1e-4, atol=1e-5)
    # A gradient that is nothing but rounding is small beside the others.
    least = 1e-5 * max(float(gradient.abs().max()) for gradient in whole.values())
    for key, gradient in whole.items():
        mean = (gradients_0[key] + gradients_1[key]) / 2
        torch.testing.assert_close(mean, gradient, rtol=1e-3, atol=max(1e-5, least), msg=key)
