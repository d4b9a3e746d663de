"""Programs in processes of their own that need no new Python, whose imports take longer than a run.

They are forked from the tests' process, which has imported all. A run of several devices forks one
more for each of the others before it begins, which waits until Lightning would start it.
"""

from __future__ import annotations

import multiprocessing.util
import os
import pickle
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
from lightning.pytorch.strategies.launchers import subprocess_script
from lightning.pytorch.utilities import rank_zero_only

from unmix.cli import main

__all__ = ["Forked", "program"]


class Forked:
    """A process as `subprocess.Popen` has it, that calls a function.

    What the function returns, or gives to `sys.exit`, is the status of the process.
    """

    def __init__(self, call: Callable[[], Any]) -> None:
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            _end(call)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float = 240) -> int:
        until = time.monotonic() + timeout
        while (status := self.poll()) is None:
            if time.monotonic() > until:
                raise subprocess.TimeoutExpired("a forked process", timeout)
            time.sleep(0.02)
        return status

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def program(
    words: Sequence[str], said: Path, *, devices: int = 1,
    change: Callable[[pytest.MonkeyPatch], Any] | None = None, **env: str,
) -> Forked:  # fmt: skip
    """The command `unmix` in a process group of its own.

    Args:
        words: The command line.
        said: The file of its output and errors.
        devices: Processes that train together.
        change: Called first in each process.
        env: Added to the environment.
    """

    def command() -> int:
        sys.argv = ["unmix", *words]  # that of a worker of pytest-xdist is "-c"
        if change is not None:
            change(pytest.MonkeyPatch())
        return main(list(words))

    def first() -> int:
        os.setsid()
        with said.open("ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.stdout, sys.stderr = (os.fdopen(n, "w", buffering=1, closefd=False) for n in (1, 2))
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ.update({"OMP_NUM_THREADS": "1", **env})
        others = [_Waiting(command) for _ in range(devices - 1)]
        # In that module alone: everything else starts programs as ever.
        subprocess_script.subprocess = SimpleNamespace(  # type: ignore[attr-defined]
            Popen=lambda _command, env, cwd: others.pop(0).go(env)
        )
        return command()

    return Forked(first)


class _Waiting(Forked):
    """A process that waits for the environment in which it calls the function."""

    def __init__(self, call: Callable[[], Any]) -> None:
        reads, self._writes = os.pipe()

        def wait() -> Any:
            os.close(self._writes)
            with os.fdopen(reads, "rb") as file:
                told = file.read()
            if not told:  # the run ended before it would start others
                return 0
            os.environ.clear()
            os.environ.update(pickle.loads(told))
            rank_zero_only.rank = int(os.environ["LOCAL_RANK"])  # which Lightning reads at import
            return call()

        super().__init__(wait)
        os.close(reads)

    def go(self, env: dict[str, str]) -> _Waiting:
        with os.fdopen(self._writes, "wb") as file:
            file.write(pickle.dumps(env))
        return self


def _end(call: Callable[[], Any]) -> NoReturn:
    """End this process as a program does, but for what pytest would do at its end."""
    status = 1
    try:
        status = call() or 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            multiprocessing.util._exit_function()  # type: ignore[attr-defined]
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(status)
