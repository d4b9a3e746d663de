"""How the processes of a run are started: from where it is called, or by a launcher."""

from __future__ import annotations

import ast
import atexit
import multiprocessing
import os
import sys
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist
from lightning.fabric.plugins.environments import (
    ClusterEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)

from unmix.display import counted
from unmix.errors import UserError
from unmix.training.run.lock import WORKER

__all__ = ["check_launch", "check_workers", "cluster_plugins", "in_worker", "join_again"]


def check_launch(devices: int, nodes: int = 1) -> None:
    """Check that processes for several devices can be started here, or were.

    Args:
        devices: Of each machine.
        nodes: Machines.

    Raises:
        UserError: in a notebook, at a prompt, or in code without a file, which cannot be run again
            for each device; in a worker process that imports the script; or if a launcher has
            started another number of processes than there are devices.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise UserError(_UNGUARDED.format(script="the script"))
    _check_started(devices, nodes)
    if devices == 1 or "LOCAL_RANK" in os.environ:
        return
    if hasattr(sys, "ps1"):
        where = "a notebook or a prompt"
    elif sys.argv[0] in ("-c", "-", "") and not SLURMEnvironment.detect():
        where = "`python -c` or standard input, where no file can be run again"
    else:
        return
    raise UserError(
        f"--devices: {devices} processes cannot be started from {where}; use devices=1, or run "
        f"`unmix pretrain --devices {devices} ...` in a terminal."
    )


def _check_started(devices: int, nodes: int) -> None:
    env = os.environ
    if in_worker():
        return
    if TorchElasticEnvironment.detect():
        launcher, count, machines = "torchrun", env.get("WORLD_SIZE"), env.get("GROUP_WORLD_SIZE")
    elif SLURMEnvironment.detect():
        launcher, count = "srun", env.get("SLURM_STEP_NUM_TASKS")
        machines = env.get("SLURM_STEP_NUM_NODES")
    else:
        return
    if count is None or int(count) == devices * nodes:
        return
    on = int(machines or 1)
    right = f"`devices={int(count) // on}`" + (f" and `nodes={on}`" if on > 1 else "")
    raise UserError(
        f"{launcher} has started {counted(int(count), 'process', 'processes')}, and the run has "
        f"{counted(devices * nodes, 'device')}; give {right}.",
        parameter="devices",
    )


def check_workers(workers: int | None) -> None:
    """Check that data workers can be started here.

    Where processes are not forked (macOS, Windows, Python 3.14 and later), a worker imports the
    script first, and would train as well without a guard.

    Args:
        workers: Number of workers; 0 needs no process.

    Raises:
        UserError: if a script has no `if __name__ == "__main__":`.
    """
    if workers == 0 or start_method() == "fork":
        return
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    by_name = getattr(sys.modules.get("__main__"), "__spec__", None) is not None  # python -m
    if script is None or by_name or not Path(script).is_file() or is_guarded(Path(script)):
        return
    raise UserError(_UNGUARDED.format(script=script))


def in_worker() -> bool:
    """Whether this process is a worker that Ray has started for a run."""
    return WORKER in os.environ


def cluster_plugins() -> list[ClusterEnvironment]:
    """Lightning's plugin for the launcher, where it should not be the one that it finds itself.

    In a job of SLURM it would requeue the job on SIGUSR1 with a checkpoint of its own; `Stopping`
    saves the step instead, and what submitted the job decides whether it is queued again.
    """
    if in_worker():
        from ray.train.lightning import RayLightningEnvironment

        return [RayLightningEnvironment()]
    if TorchElasticEnvironment.detect() or not SLURMEnvironment.detect():
        return []
    return [SLURMEnvironment(auto_requeue=False)]


def join_again(on_gpu: bool, timeout: timedelta) -> None:
    """Connect processes that torchrun has started again, before Lightning does.

    torchrun keeps one store over its restarts, and PyTorch reads the addresses of the processes
    that have ended from it (PyTorch issue 135712). So each restart gets its own part of the store.
    On several machines restarts are not counted together, and PyTorch's
    TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 is needed.

    Args:
        on_gpu: Whether the processes train on GPUs.
        timeout: How long an operation may wait for the other processes.
    """
    env = os.environ
    restarts = env.get("TORCHELASTIC_RESTART_COUNT", "0")
    shared = env.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if restarts == "0" or not shared or env.get("GROUP_WORLD_SIZE") != "1" or dist.is_initialized():
        return
    count = int(env["WORLD_SIZE"])
    store = dist.TCPStore(
        env["MASTER_ADDR"], int(env["MASTER_PORT"]), count, is_master=False, timeout=timeout
    )
    dist.init_process_group(
        "nccl" if on_gpu else "gloo", store=dist.PrefixStore(f"restart{restarts}", store),
        rank=int(env["RANK"]), world_size=count, timeout=timeout,
    )  # fmt: skip
    atexit.register(_leave)


def _leave() -> None:
    with suppress(Exception):  # others may be gone already
        dist.destroy_process_group()


def start_method() -> str:
    """The start method of processes here, without fixing it."""
    chosen = multiprocessing.get_start_method(allow_none=True)
    return chosen or multiprocessing.get_all_start_methods()[0]


def is_guarded(script: Path) -> bool:
    """Whether a script checks its `__name__` at the top level; True if unknown."""
    try:
        tree = ast.parse(script.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return True
    tests = [node.test for node in tree.body if isinstance(node, ast.If)]
    return any(
        isinstance(node, ast.Name) and node.id == "__name__"
        for test in tests
        for node in ast.walk(test)
    )


_UNGUARDED = (
    '{script}: put the call under `if __name__ == "__main__":`, since here every data worker '
    "imports the script; or use workers=0."
)
