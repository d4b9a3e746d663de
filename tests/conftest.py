"""Fixtures: golden values (committed) and the real images beside the checkout (never committed).

With `UNMIX_GOLDEN=FOLDER pytest -m golden` the same tests take the golden files of another folder,
of any sizes and seeds.
"""

from __future__ import annotations

import logging
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import numpy as np
import pytest
import torch

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# Tests run side by side on few cores, so how long an example takes says nothing.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")

# A shell that starts the tests in the background ignores SIGINT, and so would the programs that
# tests start and interrupt.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Since 9.1 pytest listens to loggers that do not propagate, and PyTorch's compiler describes every
# step of its work to this one once anything listens, which takes longer than to compile.
logging.getLogger("torch.__trace").propagate = True

# Some tests train in a process that they fork. If the first backward pass comes after Inductor,
# autograd starts threads, and refuses to work in a process that is forked then. Here it does not.
torch.ones(1, requires_grad=True).sum().backward()

# Tests run side by side on few cores; more threads each would only wait for each other.
torch.set_num_threads(1)

GOLDEN = Path(os.environ.get("UNMIX_GOLDEN") or Path(__file__).parent / "golden")
SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes golden values carries the marker `golden`."""
    for item in items:
        if "golden" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.golden)


@pytest.fixture
def golden() -> Callable[[str], dict[str, torch.Tensor]]:
    """Load a golden file by name; arrays become tensors, texts stay NumPy arrays."""

    def load(name: str) -> dict:
        with np.load(GOLDEN / f"{name}.npz") as file:
            arrays = {key: file[key] for key in file.files}
        return {
            key: torch.as_tensor(value) if value.dtype.kind in "fiu" else value
            for key, value in arrays.items()
        }

    return load


@pytest.fixture(autouse=True)
def seed() -> None:
    """Every test draws the same numbers, alone or after any other tests of its process."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The real images beside the checkout; without them the test is skipped, but not on CI."""
    if not (SHARED / "data").is_dir():
        if os.environ.get("CI"):
            pytest.fail("../shared/data is missing, and on CI no test may be skipped for that")
        pytest.skip("../shared/data is not here")
    return SHARED


@pytest.fixture
def refuse(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command line that must fail with status 2; give its one line."""
    from unmix.cli import main

    def run(*words: str | Path) -> str:
        capsys.readouterr()
        assert main([str(word) for word in words]) == 2
        line = capsys.readouterr().err
        assert line.startswith("unmix: error: ")
        assert line.count("\n") == 1
        return line.removeprefix("unmix: error: ").rstrip("\n")

    return run


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Debian's Chromium without a window; without it the test is skipped, but not on CI."""
    program = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if program is None:
        if os.environ.get("CI"):
            pytest.fail("chromium is missing, and on CI no test may be skipped for that")
        pytest.skip("chromium is not installed")
    from playwright.sync_api import sync_playwright

    flags = ("no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-sync",
             "disable-background-networking", "disable-component-update")  # fmt: skip
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(
            executable_path=program, args=[f"--{flag}" for flag in flags]
        )
        yield opened
        opened.close()
