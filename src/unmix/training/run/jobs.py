"""What a job of a scheduler does: train, and be queued again when its time is over."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from unmix.config import Settings
from unmix.errors import Interrupted, UserError
from unmix.training.console import is_leader, say, set_rank
from unmix.training.loop.stopping import is_warning

__all__ = ["Job", "preempted"]


@dataclass
class Job:
    """One process of a run in a job of submitit, which pickles it and calls it.

    The settings are those of the time of submission, with the run folder, so every call, also that
    of a job that was queued again, goes on with the same run.

    Args:
        words: Flat settings of the run.
        recipes: Names of the recipes that they are based on.
        command: The command line, for the results.
        here: Whether it is called in the process that submits it, so that errors are its own.
        extend: Whether the run may have ended before; see `unmix.training.run.extending`.
    """

    words: dict[str, Any]
    recipes: list[str]
    command: str
    here: bool = False
    extend: bool = False

    def __call__(self) -> UserError | None:
        """Train to the end, or until a signal stops it."""
        from unmix.training.run.pretrain import run

        _set_environment()
        try:
            run(Settings.of(self.words), self.recipes, self.command, extend=self.extend)
        except UserError as error:
            if self.here:
                return error
            print(f"unmix: error: {error.on_command_line()}", file=sys.stderr, flush=True)
            raise SystemExit(2) from None  # not an error with a traceback
        except Interrupted as error:
            if self.here:
                raise
            say(f"unmix: {error.verb}; {error.how}.")
            if not (is_warning(error.signum) or preempted()):
                raise SystemExit(128 + error.signum) from None
            self._queue_again()
        except SystemExit:
            # The first process evaluates, says how to go on and queues the job again. Where srun
            # ends a step with its first process that fails, this one must not.
            if self.here or is_leader():
                raise
        return None

    def checkpoint(self) -> Any:
        """What submitit submits when it queues the job again: the same."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def _queue_again(self) -> None:
        """Let submitit queue the job again, as it would on the signal if we had not handled it."""
        from submitit import JobEnvironment

        say("the job is queued again, and goes on from there")
        name = f"SIG{JobEnvironment.USR_SIG}"
        try:
            signal.raise_signal(getattr(signal, name))
        except Exception as error:
            # It was queued too often, or the scheduler refuses it.
            reason = str(error).strip().splitlines()
            say(f"unmix: the job is not queued again: {reason[0] if reason else error!r}")
            raise SystemExit(128 + getattr(signal, name)) from None


def preempted() -> bool:
    """Whether SLURM has sent SIGTERM to make room for another job.

    It queues such a job again itself, but not one that ends before it is killed. The job is still
    running then; one that was canceled is not.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if os.environ.get("SUBMITIT_EXECUTOR") != "slurm" or job is None:
        return False
    try:
        shown = subprocess.run(
            ["scontrol", "show", "job", job], capture_output=True, text=True, timeout=60, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return False
    return "JobState=RUNNING" in shown.split()


def _set_environment() -> None:
    """Tell Lightning which process this is, where submitit alone knows."""
    if os.environ.get("SUBMITIT_EXECUTOR") != "local":
        return  # SLURM tells it itself; in this process there is no other
    from submitit.helpers import TorchDistributedEnvironment

    os.environ.pop("MASTER_PORT", None)
    found = TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    set_rank(found.rank)
