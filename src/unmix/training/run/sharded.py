"""Lightning's strategy for sharded weights, with the checkpoints of runs that are not sharded."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.strategies.strategy import Strategy
from torch.distributed.device_mesh import DeviceMesh
from torch.optim import Optimizer

from unmix.config import Settings
from unmix.credit import RULES
from unmix.errors import UserError
from unmix.hardware.devices import Machine
from unmix.methods import Method
from unmix.training.loop.module import Pretraining
from unmix.training.loop.sharding import (
    ShardedPretraining,
    check_shardable,
    load_model,
    load_optimizer,
    model_state,
    optimizer_state,
)

__all__ = ["Sharded", "pretraining_class"]


def pretraining_class(settings: Settings, method: Method, machine: Machine) -> type[Pretraining]:
    """The Lightning module of a run's strategy.

    Raises:
        UserError: if the run cannot be sharded.
    """
    if settings.machine.strategy != "fsdp":
        return Pretraining
    if (why := _why_not(settings, machine)) is not None:
        raise UserError(f"{why}.", parameter="strategy")
    check_shardable(method)
    return ShardedPretraining


def _why_not(settings: Settings, machine: Machine) -> str | None:
    chosen, optimizer = settings.machine, settings.optimizer.optimizer
    if chosen.processes == 1:
        return (
            "fsdp shares the weights among several devices, and this run has one; give `devices` "
            "too, or `strategy=ddp`"
        )
    if chosen.engine == "ray":
        return "fsdp does not go with `engine=ray`; use torchrun, srun or unmix submit"
    if chosen.compile == "yes":
        return (
            "fsdp does not go with `compile=yes`, since weights are gathered between the blocks of "
            "an encoder; use `compile=auto`"
        )
    if machine.precision.startswith("16"):
        return (
            "fsdp does not go with float16, whose gradients are scaled by what each device finds "
            "in its part; use `precision=bf16` or 32"
        )
    mixture = settings.mixture
    if mixture.unmix and RULES[mixture.unmix_rule].in_parts:
        return (
            f"fsdp does not go with `unmix_rule={mixture.unmix_rule}`, which pools features within "
            "the backbone, whose weights are gone by then; use another rule, or `strategy=ddp`"
        )
    if optimizer in ("lars", "larc"):
        return (
            f"fsdp does not go with `optimizer={optimizer}`, which needs the norm of each whole "
            "weight at each step; use sgd, adam or adamw, or `strategy=ddp`"
        )
    return None


class Sharded(ModelParallelStrategy):
    """FSDP2, with checkpoints that hold whole weights, as those of DDP and of one device.

    Args:
        timeout: How long an operation may wait for the other processes.
    """

    def __init__(self, timeout: timedelta) -> None:
        super().__init__(save_distributed_checkpoint=False, timeout=timeout)

    def setup_environment(self) -> None:
        """Connect the processes.

        All operations use the group of all processes: others would have another time-out, which the
        first process may exceed while it evaluates.
        """
        self._setup_distributed()
        group = dist.group.WORLD
        assert group is not None
        self._device_mesh = DeviceMesh.from_group(
            group, self.root_device.type, mesh_dim_names=("data_parallel",)
        )
        assert self.lightning_module is not None
        self.lightning_module._device_mesh = self._device_mesh

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Whether `load_optimizer_state_dict` is called."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The whole weights, in the first process."""
        assert self.lightning_module is not None
        return model_state(self.lightning_module)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The whole state, in the first process."""
        if isinstance(optimizer, LightningOptimizer):
            optimizer = optimizer._optimizer
        return optimizer_state(optimizer)

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None
    ) -> None:
        """Write it in the first process, by our own files."""
        Strategy.save_checkpoint(self, checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> Any:
        """Read it in every process, by our own files; the parts are loaded later."""
        return Strategy.load_checkpoint(self, checkpoint_path, weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Load this process's part of the weights."""
        assert self.lightning_module is not None
        load_model(self.lightning_module, checkpoint["state_dict"])

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Load this process's part of the optimizers' states."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            load_optimizer(optimizer, state)
