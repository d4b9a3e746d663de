"""Hardware detection and precision selection."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from unmix.config import MachineSettings
from unmix.errors import UserError

__all__ = [
    "Machine",
    "choose_machine",
    "free_memory",
    "hardware",
    "peak_memory",
    "timed",
    "versions",
    "wait",
]


@dataclass(frozen=True)
class Machine:
    """Device and precision of a run.

    Attributes:
        device: cpu, cuda or mps.
        precision: Lightning's name: 32-true, bf16-mixed or 16-mixed.
        channels_last: Whether images and weights are channels last.
        workers: Data workers of evaluations; None for the default.
        devices: Devices of the run on this machine, with a process each.
    """

    device: torch.device
    precision: str
    channels_last: bool
    workers: int | None = None
    devices: int = 1

    @property
    def accelerator(self) -> str:
        """Lightning's name for the device."""
        return {"cuda": "gpu"}.get(self.device.type, self.device.type)

    @property
    def autocast(self) -> torch.dtype | None:
        """The dtype of autocast, or None for float32."""
        return {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(self.precision)


def choose_machine(settings: MachineSettings) -> Machine:
    """Choose device and precision.

    "auto" is the precision that the device supports natively: bfloat16 on a GPU of compute
    capability 8 or higher, float16 on an older one, bfloat16 on a CPU with AVX512-BF16 or AMX,
    float32 elsewhere.

    Raises:
        UserError: if the requested device is not available.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    name = settings.device
    if name == "auto":
        name = next((kind for kind in ("cuda", "mps") if available[kind]), "cpu")
    if not available.get(name, True):
        raise UserError(f"--device: {name} is not available here; use cpu, or auto.")
    device = torch.device(name)
    chosen = str(settings.precision)
    if chosen == "auto":
        chosen = _native_precision(device)
    if chosen == "16" and name == "cpu":
        raise UserError("--precision: 16 is not supported on a CPU; use bf16 or 32.")
    precision = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}[chosen]
    return Machine(device, precision, name != "mps", settings.workers, settings.devices)


def _native_precision(device: torch.device) -> str:
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability()[0] >= 8 else "16"
    if device.type == "cpu" and cpu_flags() & {"avx512_bf16", "amx_bf16"}:
        return "bf16"
    return "32"


def cpu_flags() -> set[str]:
    """Instruction sets of the processor, from /proc/cpuinfo; empty on other systems than Linux."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return set()
    lines = (line for line in info.read_text().splitlines() if line.startswith("flags"))
    return set(next(lines, "").split())


def hardware(device: torch.device) -> dict[str, Any]:
    """The hardware of a result, for `results.json`."""
    facts: dict[str, Any] = {
        "device": device.type,
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
    }
    if device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Versions of the packages that a result depends on."""
    names = ("unmix", "torch", "torchvision", "lightning", "numpy")
    numbers = {"python": platform.python_version()}
    for name in names:
        try:
            numbers[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return numbers


def peak_memory(device: torch.device) -> int:
    """Peak memory so far, in bytes: of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():
        # Not getrusage, which includes memory of the parent process at the fork.
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows has no such module
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def wait(device: torch.device) -> None:
    """Synchronize with the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def timed(run: Callable[[], Any], device: torch.device) -> float:
    """Seconds that a call takes, including the device's work."""
    wait(device)
    start = time.perf_counter()
    run()
    wait(device)
    return time.perf_counter() - start


def free_memory(device: torch.device) -> int:
    """Free memory of a device, in bytes."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info()[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return min(_available(), _left_in_group())


def _available() -> int:
    """Memory available to new programs; half of all memory if the system does not say."""
    info = Path("/proc/meminfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, ValueError, OSError):  # Windows
        return 4 * 2**30


def _left_in_group() -> int:
    """Memory left by the limit of a container or batch system (Linux control groups)."""
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            return max(0, int(limit) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):
        pass
    return 2**63 - 1
