"""Processes that stay: each takes one task after another, so that imports are paid for once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["Worker", "serve"]

INTERRUPTED = 130


class Worker:
    """A process that runs `serve`.

    Args:
        program: Its command line.
        environment: Variables to set, unless they are set already.
    """

    def __init__(self, program: Sequence[str], environment: Mapping[str, str]) -> None:
        self.process = subprocess.Popen(
            program,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env={**environment, **os.environ},
        )  # fmt: skip
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)

    def give(self, task: Mapping[str, Any], log: Path) -> None:
        """Start a task; what it prints is added to the log.

        Args:
            task: Of values that JSON has, or that are told by their text, such as paths.
            log: Its folder is made.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        log.touch()
        line = json.dumps({"log": str(log.absolute()), "task": dict(task)}, default=str)
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def status(self) -> int | None:
        """The exit status of the task, or of the whole process if it died; None while it runs."""
        assert self.process.stdout is not None
        # Ask first: an answer that was written just before the end is still read.
        ended = self.process.poll()
        answer = self.process.stdout.read()
        return int(answer) if answer else ended

    def ask_to_end(self) -> None:
        """Terminate the process, with what it runs; `wait` follows."""
        # Not SIGINT, which programs that were started in the background ignore.
        self.process.terminate()

    def wait(self, seconds: float = 60) -> None:
        """Wait for the process to end, and kill it if it does not."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


def serve(run: Callable[[dict[str, Any]], None]) -> None:
    """Run the tasks that a `Worker` gives, until it gives no more or one is interrupted.

    Args:
        run: Does a task. Status 0 if it returns, that of a SystemExit, or 1 after an exception.
    """
    tasks, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    for line in tasks:
        content = json.loads(line)
        with open(content["log"], "ab") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        status = _status(run, content["task"])
        sys.stdout.flush()
        sys.stderr.flush()
        print(status, file=answers, flush=True)
        if status == INTERRUPTED:
            return


def _status(run: Callable[[dict[str, Any]], None], task: dict[str, Any]) -> int:
    try:
        run(task)
    except KeyboardInterrupt:
        return INTERRUPTED
    except SystemExit as error:
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0
