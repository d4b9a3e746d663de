"""Which device and number format are chosen, on machines of every kind."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from unmix.config import MachineSettings
from unmix.errors import UserError
from unmix.hardware import devices
from unmix.hardware.devices import choose_machine, hardware, peak_memory, versions

Computer = Callable[..., None]
PLAIN = "flags\t\t: fpu sse2 avx2 avx512f"


@pytest.fixture
def computer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Computer:
    """Make this machine look like another one."""

    def make(
        cuda: tuple[int, int] | None = None, mps: bool = False, cpuinfo: str | None = PLAIN
    ) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda is not None)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        file = tmp_path / "cpuinfo"
        file.unlink(missing_ok=True)
        if cpuinfo is not None:
            file.write_text(f"processor\t: 0\nmodel name\t: A CPU\n{cpuinfo}\n")
        monkeypatch.setattr(devices, "Path", lambda name: file)

    return make


@pytest.mark.parametrize(
    ("cuda", "mps", "cpuinfo", "device", "precision"),
    [
        ((9, 0), False, PLAIN, "cuda", "bf16-mixed"),
        ((8, 0), False, PLAIN, "cuda", "bf16-mixed"),
        ((8, 0), True, PLAIN, "cuda", "bf16-mixed"),
        ((7, 5), False, PLAIN + " avx512_bf16", "cuda", "16-mixed"),
        (None, True, PLAIN + " avx512_bf16", "mps", "32-true"),
        (None, False, PLAIN + " avx512_bf16", "cpu", "bf16-mixed"),
        (None, False, PLAIN + " amx_bf16 amx_tile", "cpu", "bf16-mixed"),
        (None, False, PLAIN, "cpu", "32-true"),
        (None, False, "Features\t: fp asimd bf16", "cpu", "32-true"),
        (None, False, None, "cpu", "32-true"),
    ],
)
def test_auto_takes_the_fastest_device_and_the_format_that_it_is_fast_at(
    computer: Computer, cuda: Any, mps: bool, cpuinfo: str | None, device: str, precision: str
) -> None:
    computer(cuda, mps, cpuinfo)
    found = choose_machine(MachineSettings())
    assert (found.device.type, found.precision) == (device, precision)
    assert found.channels_last == (device != "mps")


def test_a_flag_is_a_whole_word(computer: Computer) -> None:
    """avx512_bf16_something would be another instruction set."""
    computer(cpuinfo=PLAIN + " avx512_bf16x")
    assert choose_machine(MachineSettings()).precision == "32-true"


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
def test_a_device_that_is_asked_for_is_taken_before_a_faster_one(
    computer: Computer, device: str
) -> None:
    computer(cuda=(9, 0), mps=True)
    assert choose_machine(MachineSettings(device=device)).device.type == device


@pytest.mark.parametrize(
    ("device", "precision", "name", "dtype"),
    [
        ("cpu", "32", "32-true", None),
        ("cpu", "bf16", "bf16-mixed", torch.bfloat16),
        ("cuda", "32", "32-true", None),
        ("cuda", "bf16", "bf16-mixed", torch.bfloat16),
        ("cuda", "16", "16-mixed", torch.float16),
    ],
)
def test_a_precision_that_is_asked_for_is_taken(
    computer: Computer, device: str, precision: str, name: str, dtype: torch.dtype | None
) -> None:
    computer(cuda=(9, 0), cpuinfo=PLAIN + " avx512_bf16")
    found = choose_machine(MachineSettings(device=device, precision=precision))
    assert (found.precision, found.autocast) == (name, dtype)
    assert found.accelerator == {"cuda": "gpu", "cpu": "cpu"}[device]


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_device_that_is_not_there_is_named_with_what_would_do(
    computer: Computer, device: str
) -> None:
    computer()
    with pytest.raises(UserError, match=rf"^--device: {device} .*cpu.*auto"):
        choose_machine(MachineSettings(device=device))


@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_float16_is_refused_on_a_cpu(computer: Computer, device: str) -> None:
    computer()
    with pytest.raises(UserError, match=r"^--precision: 16 .*bf16 or 32"):
        choose_machine(MachineSettings(device=device, precision="16"))


@pytest.mark.parametrize(("flag", "value"), [("device", "gpu"), ("precision", "64")])
def test_words_that_mean_no_machine_are_refused_with_those_that_do(flag: str, value: str) -> None:
    with pytest.raises(UserError, match=rf"^{flag}: '{value}'.*auto"):
        MachineSettings(**{flag: value})  # type: ignore[arg-type]


def test_the_hardware_is_named_for_the_results(computer: Computer) -> None:
    computer()
    facts = hardware(torch.device("cpu"))
    assert facts["device"] == "cpu"
    assert facts["cpu"] == "A CPU"
    assert facts["cores"] == os.cpu_count()
    assert "gpu" not in facts


def test_versions_are_those_that_run() -> None:
    import torchvision

    found = versions()
    assert torch.__version__.startswith(found["torch"].split("+")[0])
    assert found["torchvision"].split("+")[0] == torchvision.__version__.split("+")[0]


def test_peak_memory_is_in_bytes() -> None:
    """A process that holds 100 MB has used so much, and no machine has a petabyte."""
    held = torch.ones(100_000_000, dtype=torch.uint8)
    assert held.numel() <= peak_memory(torch.device("cpu")) < 10**15
