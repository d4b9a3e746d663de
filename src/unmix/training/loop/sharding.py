"""`--strategy fsdp`: each process holds a part of every weight, its gradient and optimizer state.

PyTorch's FSDP2 (`torch.distributed.fsdp.fully_shard`) gathers the weights of a block just before it
is computed, and of its gradient each process keeps the part of its own weights.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map

from unmix.backbones import is_vit
from unmix.distributed import all_reduce_sum, pace, world_size
from unmix.errors import UserError
from unmix.methods import Method
from unmix.training.console import is_leader
from unmix.training.loop.clipping import parts_of
from unmix.training.loop.module import Pretraining

__all__ = [
    "ShardedPretraining",
    "average_whole",
    "check_shardable",
    "largest_group",
    "load_model",
    "load_optimizer",
    "model_state",
    "optimizer_state",
    "shard",
    "whole_weights",
]


class ShardedPretraining(Pretraining):
    """`Pretraining` whose method is sharded over the processes of a run.

    The first process also keeps a whole copy of the method in the host's memory, into which the
    weights are gathered to evaluate and export them.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._copy: list[Method] = []  # not a submodule, whose weights would be trained and saved
        self._sharded = False

    def configure_model(self) -> None:
        """Shard the method; Lightning calls it when the processes are connected."""
        if self._sharded:
            return
        mesh, self._sharded = self.device_mesh, True
        assert mesh is not None
        if is_leader():
            self._copy = [copy.deepcopy(self.method)]
        if mesh.device_type == "cuda" and self.method.sync_batch_norm:
            nn.SyncBatchNorm.convert_sync_batchnorm(self.method)
        shard(self.method, mesh)

    def on_after_backward(self) -> None:
        """Exchange the gradients that are not sharded, once a step."""
        average_whole(self.method)
        super().on_after_backward()

    def gather(self) -> Method:
        """The method with whole weights, in the first process; all processes have to call it."""
        state = model_state(self.method)
        if not self._copy:
            return self.method
        self._copy[0].load_state_dict(state)
        return self._copy[0].to(self.device)

    def make_whole(self) -> None:
        """Replace the sharded method, which is not trained any more; all processes call it."""
        if self._sharded:
            self.method, self._copy, self._sharded = self.gather(), [], False


@contextmanager
def whole_weights(module: Pretraining) -> Iterator[None]:
    """Within this context the first process has the whole weights of a method that is sharded.

    All processes have to enter it together; the others keep their parts.
    """
    if not isinstance(module, ShardedPretraining) or not module._sharded:
        yield
        return
    sharded = module.method
    module.method = module.gather()
    try:
        yield
    finally:
        if module.method is not sharded:
            module.method.cpu()
        module.method = sharded


def blocks_of(part: nn.Module) -> list[nn.Module]:
    """The blocks of a transformer, if a part is or has one."""
    vits: list[Any] = [module for module in part.modules() if is_vit(module)]
    return [block for vit in vits for block in vit.blocks]


def check_shardable(method: Method) -> None:
    """Check that a method can be trained with sharded weights.

    Raises:
        UserError: if it needs whole weights at each step, or its backbone has no blocks that can be
            gathered one at a time.
    """
    if (why := method.needs_whole_weights) is not None:
        raise UserError(
            f"fsdp does not apply to {type(method).__name__}: {why}, and with fsdp each device "
            "holds a part of them; use `strategy=ddp`.",
            parameter="strategy",
        )
    if not is_vit(method.backbone):
        raise UserError(
            f"fsdp gathers the weights of a transformer's blocks one by one, and "
            f"{type(method.backbone).__name__} is no vision transformer; use one, such as "
            "`backbone=timm:vit_small_patch16_224`, or `strategy=ddp`.",
            parameter="strategy",
        )


def shard(method: Method, mesh: DeviceMesh) -> None:
    """Shard a method in place: each block of a transformer by itself, then all that is called.

    Weights are gathered for a forward pass and again for the backward pass, and freed in between,
    in backbones as a whole too: momentum encoders have no backward pass that would free them, and
    both are updated part by part. A weight that belongs to no such module, such as a mask token,
    stays whole; see `average_whole`.

    Args:
        method: Its parameters become `DTensor`s, under the same names.
        mesh: One dimension: the processes.
    """
    for part in parts_of(method):
        for group in (*blocks_of(part), part):
            fully_shard(group, mesh=mesh, reshard_after_forward=True)
            group.register_forward_pre_hook(pace.tick, prepend=True)  # before weights are gathered


def average_whole(method: Method) -> None:
    """Average the gradients of the weights that are not sharded, over all processes."""
    for parameter in method.parameters():
        if parameter.grad is not None and not isinstance(parameter, DTensor):
            parameter.grad.copy_(all_reduce_sum(parameter.grad) / world_size())


def largest_group(method: Method) -> int:
    """Bytes of the weights that are gathered together, where they are most."""
    sizes = []
    for part in parts_of(method):
        within = [sum(p.nbytes for p in block.parameters()) for block in blocks_of(part)]
        sizes += [*within, sum(p.nbytes for p in part.parameters()) - sum(within)]
    return max(sizes)


def model_state(module: nn.Module) -> dict[str, Any]:
    """The whole state dict, on the CPU, in the first process, and nothing in the others.

    All processes have to call it.
    """
    return _gathered(module.state_dict())


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The whole state of an optimizer, as that of one that is not sharded; see `model_state`."""
    state = optimizer.state_dict()
    for group in state["param_groups"]:
        group["fused"] = True  # as without sharding, where there is a kernel for it
    return _gathered(state)


def load_model(module: nn.Module, state: Mapping[str, Any]) -> None:
    """Load this process's part of a whole state dict."""
    own = module.state_dict()
    module.load_state_dict({name: _part(value, own.get(name)) for name, value in state.items()})


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load this process's part of the whole state of an optimizer, sharded or not when saved."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    numbers = [n for group in state["param_groups"] for n in group["params"]]
    like = dict(zip(numbers, parameters, strict=True))
    parts = {
        number: {name: _part(value, like[number]) for name, value in of_one.items()}
        for number, of_one in state["state"].items()
    }
    groups = [
        {**theirs, "fused": ours["fused"]}
        for theirs, ours in zip(state["param_groups"], optimizer.param_groups, strict=True)
    ]
    optimizer.load_state_dict({"state": parts, "param_groups": groups})


def _gathered(state: dict[str, Any]) -> dict[str, Any]:
    keep = is_leader()
    pace.tick()

    def whole(value: Any) -> Any:
        if isinstance(value, DTensor):
            value = value.full_tensor()
        if not isinstance(value, Tensor):
            return value
        return value.detach().cpu() if keep else None

    found = tree_map(whole, state)
    return found if keep else {}


def _part(value: Any, like: Any) -> Any:
    """The part of a whole tensor that this process holds of one like it."""
    if not isinstance(like, DTensor) or not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    value = value.to(like.device)
    # A copy, or it would keep the whole tensor in memory.
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None).clone()
