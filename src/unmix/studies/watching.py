"""A study watched from another terminal: how far its cells are, read from its folder alone."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from unmix.config.saved import saved_settings
from unmix.errors import UserError
from unmix.studies.analysis import StudyResults, read_study
from unmix.studies.plan import slug
from unmix.training.run.lock import OWNER

__all__ = ["is_running", "progress", "watch_study"]

_POLL = 2.0


def watch_study(
    folder: Path,
    found: StudyResults,
    say: Callable[[str], None],
    pause: Callable[[float], None] = time.sleep,
) -> StudyResults:
    """Say how a study goes on, until all is measured or no process works on it.

    Args:
        folder: Of the study.
        found: What it has so far.
        say: Prints a line.
        pause: Waits so many seconds.
    """
    before, measured = "", len(found.cells)
    with suppress(KeyboardInterrupt):
        while True:
            running = is_running(folder)
            # A cell's file is replaced in one piece, so that none is read half.
            found = read_study(folder)
            if len(found.cells) != measured:
                measured = len(found.cells)
                say(found.markdown().rstrip())
            if (line := progress(folder, found)) != before:
                say(line)
                before = line
            if not found.missing():
                break
            if not running:
                say(f"no process works on {folder}; unmix study goes on with it")
                break
            pause(_POLL)
    return found


def progress(folder: Path, found: StudyResults) -> str:
    """One line: how many cells are measured, and the epochs of those that are begun."""
    total = len(found.study.cells)
    begun = []
    have = {(cell["condition"], cell["seed"]) for cell in found.cells}
    for name, seed in found.study.cells:
        if (name, seed) in have:
            continue
        runs = (folder / "runs").glob(f"{slug(name)}-{seed}-????????")
        begun += [f"{name}, seed {seed} (epoch {e})" for e in map(_epochs, runs) if e]
    text = f"; begun: {'; '.join(begun)}" if begun else ""
    return f"{total - len(found.missing())} of {total} cells measured{text}"


def _epochs(run: Path) -> str | None:
    """Such as "3/40"; None where no run has begun."""
    try:
        planned = int(saved_settings(run)["epochs"])
        with (run / "metrics.csv").open("rb") as file:
            done = max(0, sum(1 for _ in file) - 1)
    except FileNotFoundError:
        done = 0
    except (UserError, OSError, KeyError, TypeError, ValueError):
        return None
    return f"{min(done, planned)}/{planned}"


def is_running(folder: Path) -> bool:
    """Whether a process works on a study, as far as can be seen from this machine."""
    # The lock itself is not tried: a study that starts just then would be refused.
    try:
        owner = json.loads((folder / OWNER).read_text(encoding="utf-8"))
        if owner["host"] == socket.gethostname():
            os.kill(int(owner["process"]), 0)
    except (FileNotFoundError, ProcessLookupError):
        return False
    except (OSError, ValueError, KeyError, TypeError):
        return True
    return True
