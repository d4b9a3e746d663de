"""Sharded weights (`--strategy fsdp`): two processes train what they train with whole ones."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from timm.models import VisionTransformer
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.multiprocessing import start_processes

from harness import N_DATA, SIZE, global_draw, in_float64, options_of
from unmix import methods
from unmix.backbones import checkpoint_activations
from unmix.config import OptimizerSettings
from unmix.credit import UnMixRule
from unmix.distributed import local
from unmix.errors import UserError
from unmix.methods import METHODS, Method, Progress
from unmix.mixtures import ManifoldMixture
from unmix.step import Mixture, objective
from unmix.training.loop.clipping import clip_gradients, clipped_together
from unmix.training.loop.health import all_finite, weight_norm
from unmix.training.loop.optimizers import build_optimizer
from unmix.training.loop.sharding import (
    average_whole,
    check_shardable,
    load_model,
    load_optimizer,
    model_state,
    optimizer_state,
    shard,
)

PROCESSES = 2


def tiny_vit(blocks: int = 2) -> nn.Module:
    torch.manual_seed(0)
    vit = VisionTransformer(
        img_size=SIZE, patch_size=8, embed_dim=12, depth=blocks, num_heads=2, num_classes=0,
        dynamic_img_size=True, class_token=True,
    )  # fmt: skip
    vit.feature_dim = 12
    return vit


def build(name: str) -> Method:
    vit = tiny_vit()
    torch.manual_seed(1)
    return methods.build(name, vit, N_DATA, **options_of(name))


def shardable(name: str) -> bool:
    """Whether a method can be trained with fsdp; those with another backbone cannot."""
    if name in ("cmc", "pirl"):  # their encoders are no transformers
        return False
    try:
        check_shardable(build(name))
    except UserError:
        return False
    return True


NAMES = [name for name in METHODS if shardable(name)]
# SGD where nothing else is named: Adam divides a gradient that is 0 but for rounding, as of a bias
# before batch norm, by its own size.
KINDS: dict[str, dict[str, Any]] = {
    **{name: {"name": name} for name in NAMES},
    **{f"{name}, unmix": {"name": name, "mixture": True} for name in ("byol", "dino", "mocov3")},
    "byol, resumed": {"name": "byol", "resumed": True},
    "dino, adam, resumed": {"name": "dino", "optimizer": "adam", "resumed": True},
    "dino, adamw, resumed": {
        "name": "dino", "optimizer": "adamw", "lr_decay": 0.5, "resumed": True,
    },
    "dino, checkpointed": {"name": "dino", "checkpointed": True},
    "dino, in two parts": {"name": "dino", "parts": 2},
    "byol, clipped": {"name": "byol", "clip": ("all", 0.05)},
    "dino, clipped": {"name": "dino", "clip": ("parameter", 0.01)},
    "mae, clipped": {"name": "mae", "clip": ("network", 0.05)},  # its mask token is whole
    "byol, a layer is mixed": {"name": "byol", "mixture": ManifoldMixture("blocks.0")},
}  # fmt: skip


class Trained:
    """A method and its optimizer, sharded or with whole weights whose gradients are averaged."""

    def __init__(self, kind: dict[str, Any], mesh: DeviceMesh | None) -> None:
        self.kind, self.mesh, self.done = kind, mesh, 0
        self.method = build(kind["name"])
        if kind.get("checkpointed"):
            checkpoint_activations(self.method.backbone)
        if mesh is not None:
            shard(self.method, mesh)
        settings = OptimizerSettings(
            optimizer=kind.get("optimizer", "sgd"), lr=0.001, lr_decay=kind.get("lr_decay", 1.0)
        )
        self.optimizer = build_optimizer(
            settings, self.method.parameters(), torch.device("cpu"),
            self.method.constant_lr_modules(), self.method.backbone,
        )  # fmt: skip

    def steps(self, count: int) -> list[float]:
        return [self.step() for _ in range(count)]

    def step(self) -> float:
        method, kind, place = self.method, self.kind, self.done * PROCESSES + dist.get_rank()
        generator = torch.Generator().manual_seed(place)
        views = [torch.randn(8, 3, SIZE, SIZE, generator=generator) for _ in range(method.views)]
        index = 8 * dist.get_rank() + torch.arange(8)
        parts, losses = kind.get("parts", 1), []
        method.begin_step(Progress(self.done, 6, 2))
        self.optimizer.zero_grad()
        for number in range(parts):
            rows = slice(8 * number // parts, 8 * (number + 1) // parts)
            some, mixture = [view[rows] for view in views], None
            if kind.get("mixture") is True:
                mixture = Mixture(global_draw(0.3, len(some[0])), UnMixRule())
            elif "mixture" in kind:
                mixture = Mixture(kind["mixture"], UnMixRule())
            if number:
                method.begin_part(number)
            found = objective(method, some, index[rows], generator, mixture)
            (found.loss / parts).backward()
            losses.append(found.loss.item())
        if self.mesh is None:
            for p in method.parameters():
                if p.grad is not None:
                    dist.all_reduce(p.grad)
                    p.grad /= PROCESSES
        else:
            average_whole(method)
        found.update_memory()
        if "clip" in kind:
            by, limit = kind["clip"]
            clip_gradients(clipped_together(method, by), limit)
        self.optimizer.step()
        self.done += 1
        return sum(losses)

    def state(self) -> dict[str, Any]:
        """Whole weights and the optimizer's state, in the first process alone."""
        return {
            "model": copy.deepcopy(model_state(self.method)),
            "optimizer": copy.deepcopy(optimizer_state(self.optimizer)),
        }


def trained(kind: dict[str, Any], mesh: DeviceMesh) -> dict[str, Any]:
    """Steps with whole and sharded weights; a last one also after loading the other's state."""
    runs = {"whole": Trained(kind, None), "parts": Trained(kind, mesh)}
    whole, parts = runs.values()
    start = copy.deepcopy(model_state(whole.method))
    losses = {name: run.steps(2) for name, run in runs.items()}
    norms = [weight_norm(run.method.backbone).item() for run in (whole, parts)]
    if kind.get("resumed"):
        states = dist_state(whole.state()), dist_state(parts.state())
        runs["swapped"], runs["back"] = Trained(kind, mesh), Trained(kind, None)
        load_model(runs["swapped"].method, states[0]["model"])
        load_optimizer(runs["swapped"].optimizer, states[0]["optimizer"])
        runs["back"].method.load_state_dict(states[1]["model"])
        runs["back"].optimizer.load_state_dict(states[1]["optimizer"])
        runs["swapped"].done = runs["back"].done = 2
        for name, run in runs.items():
            losses.setdefault(name, []).extend(run.steps(1))
    return {
        "start": start, "losses": losses, "norms": norms,
        "held": [sum(local(p).nbytes for p in each.method.parameters()) for each in (whole, parts)],
        "fused": {n: [g.get("fused") for g in r.optimizer.param_groups] for n, r in runs.items()},
        "finite": bool(all_finite(parts.method.parameters())),
        "states": {name: run.state() for name, run in runs.items()},
    }  # fmt: skip


def dist_state(state: dict[str, Any]) -> dict[str, Any]:
    """The first process's, in all."""
    holder = [state]
    dist.broadcast_object_list(holder)
    return holder[0]


def both(number: int, folder: Path) -> None:
    """What each process does."""
    torch.set_num_threads(1)
    in_float64()
    dist.init_process_group("gloo", f"file://{folder / 'meet'}", rank=number, world_size=PROCESSES)
    os.environ["RANK"] = str(number)
    from unmix.training.console import set_rank

    set_rank(number)
    assert dist.group.WORLD is not None
    mesh = DeviceMesh.from_group(dist.group.WORLD, "cpu", mesh_dim_names=("data_parallel",))
    found = {kind: trained(words, mesh) for kind, words in KINDS.items()}
    broken = Trained({"name": "byol"}, mesh)
    if number == 1:
        local(broken.method.f.blocks[0].mlp.fc1.weight.data).fill_(float("nan"))
    torch.save((found, bool(all_finite(broken.method.parameters()))), folder / f"{number}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder = tmp_path_factory.mktemp("processes")
    start_processes(both, (folder,), PROCESSES, start_method="fork")
    return [torch.load(folder / f"{number}.pt", weights_only=False) for number in range(PROCESSES)]


@pytest.mark.parametrize("kind", KINDS)
def test_sharded_weights_are_trained_as_whole_ones(processes: list[Any], kind: str) -> None:
    """Also after a load of the other's checkpoint, whose optimizer's state has the same order."""
    found = processes[0][0][kind]
    whole = found["states"]["whole"]
    assert any(
        not torch.equal(value, found["start"][name]) for name, value in whole["model"].items()
    )
    for name in found["states"].keys() - {"whole"}:
        assert found["losses"][name][-1] == pytest.approx(found["losses"]["whole"][-1], rel=1e-9)
        other = found["states"][name]
        assert list(other["model"]) == list(whole["model"])
        for key, value in whole["model"].items():
            torch.testing.assert_close(
                other["model"][key], value, rtol=1e-9, atol=1e-9, msg=lambda t, k=key: f"{k}: {t}"
            )
        assert other["optimizer"]["param_groups"] == whole["optimizer"]["param_groups"]
        assert other["optimizer"]["state"].keys() == whole["optimizer"]["state"].keys()
        for number, state in whole["optimizer"]["state"].items():
            for key, value in state.items():
                ours = other["optimizer"]["state"][number][key]
                error = (ours - value).abs().max() / value.abs().max().clamp(min=1e-4)
                assert error < 1e-9, (number, key)
    assert found["fused"].get("back") in (None, found["fused"]["whole"])
    assert found["norms"][0] == pytest.approx(found["norms"][1])
    assert found["finite"]


@pytest.mark.parametrize("name", ["byol", "dino", "mae"])
def test_clipped_gradients_make_other_steps(processes: list[Any], name: str) -> None:
    """So the comparison above is of gradients that were clipped."""
    plain, clipped = (
        processes[0][0][kind]["states"]["whole"]["model"] for kind in (name, f"{name}, clipped")
    )
    assert any(not torch.equal(value, clipped[key]) for key, value in plain.items())


def test_each_process_holds_half_of_the_weights(processes: list[Any]) -> None:
    for found, _ in processes:
        whole, part = found["dino"]["held"]
        assert 0.45 * whole < part < 0.55 * whole


def test_a_part_that_is_not_finite_is_found_where_it_is(processes: list[Any]) -> None:
    assert [finite for _, finite in processes] == [True, False]


def test_only_the_first_process_gets_whole_weights(processes: list[Any]) -> None:
    states = [found["dino"]["states"]["parts"] for found, _ in processes]
    assert states[0]["model"]
    assert states[1] == {"model": {}, "optimizer": {}}
