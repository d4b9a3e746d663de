"""Runs and studies watched while they are trained: how far they are, read from their folders alone.

What is trained replaces its files in one piece, so that none is read half; and nothing is locked,
as a study that starts just then would be refused.
"""

from __future__ import annotations

import math
import os
import re
import socket
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from unmix.config.saved import is_run, saved_settings
from unmix.display import counted
from unmix.errors import UserError
from unmix.files import read_json, read_rows
from unmix.schema import checked
from unmix.studies.analysis import StudyResults, read_study
from unmix.studies.plan import slug
from unmix.training.run.lock import OWNER, Owner

__all__ = ["State", "follow", "is_running", "progress", "run_state", "study_state", "watch_study"]

_POLL = 2.0


@dataclass(frozen=True)
class State:
    """How far something is.

    Attributes:
        what: In words, without the time: "running, epoch 3 of 40", "finished".
        done: The part that is complete, from 0 to 1; None if it is not known.
        finished: Whether all is complete.
        running: Whether a process works on it, as far as can be seen from this machine.
        seconds_left: About how long the rest takes, if that is known.
    """

    what: str
    done: float | None
    finished: bool
    running: bool
    seconds_left: float | None = None

    @property
    def text(self) -> str:
        """In words: "running, epoch 3 of 40, about 2 minutes left"."""
        if self.seconds_left is None:
            return self.what
        minutes = round(self.seconds_left / 60)
        if minutes >= 90:
            return f"{self.what}, about {minutes / 60:.1f} hours left"
        about = f"about {counted(minutes, 'minute')}" if minutes else "less than a minute"
        return f"{self.what}, {about} left"


def run_state(folder: Path) -> State:
    """How far a run is; also of a folder that no run is in yet.

    Args:
        folder: The run folder.
    """
    running = is_running(folder)
    planned = _planned(folder)
    rows = _rows(folder)
    done = int(float(rows[-1].get("epoch") or -1)) + 1 if rows else 0
    if not running and (folder / "results.json").exists():
        return State("finished", 1.0, True, False)
    if planned is None:
        text = "begun, without settings yet" if running else "not begun"
        return State(text, None, False, running)
    epochs, batch_size = planned
    where = f"epoch {min(done, epochs)} of {epochs}"
    share = min(done / epochs, 1.0) if epochs else None
    if not running:
        return State(f"stopped at {where}, no process trains it", share, False, False)
    if done >= epochs:
        return State(f"running, {where}, evaluating", share, False, True)
    left = _seconds_left(folder, rows, epochs - done, batch_size)
    return State(f"running, {where}", share, False, True, left)


def study_state(folder: Path, found: StudyResults) -> State:
    """How far a study is.

    Args:
        folder: Of the study.
        found: What it has so far.
    """
    total, missing = len(found.study.cells), len(found.missing())
    text, running = progress(folder, found), is_running(folder)
    share = 1 - missing / total if total else None
    if not missing:
        return State(f"finished, {text}", 1.0, True, running)
    if not running:
        return State(f"stopped, {text}; no process works on it", share, False, False)
    seconds = [float(cell["seconds"]) for cell in found.cells if cell.get("seconds")]
    at_a_time = max(1, len(_begun(folder, found)))
    left = statistics.median(seconds) * missing / at_a_time if seconds else None
    return State(f"running, {text}", share, False, True, left)


def follow(
    look: Callable[[], State],
    say: Callable[[str], None],
    pause: Callable[[float], None] = time.sleep,
    stay: bool = False,
) -> None:
    """Say how something goes on: a line for each change.

    Args:
        look: How far it is now.
        say: Prints a line.
        pause: Waits so many seconds.
        stay: Go on when all is complete, or no process works on it.
    """
    before = ""
    while True:
        state = look()
        if state.what != before:
            say(state.text)
            before = state.what
        if not stay and (state.finished or not state.running):
            return
        pause(_POLL)


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

    def look() -> State:
        nonlocal found
        running = is_running(folder)  # before its cells, of which the last may come meanwhile
        measured = len(found.cells)
        found = read_study(folder)
        if len(found.cells) != measured:
            say(found.markdown().rstrip())
        return State(progress(folder, found), None, not found.missing(), running)

    with suppress(KeyboardInterrupt):
        follow(look, say, pause)
        if found.missing():
            say(f"no process works on {folder}; unmix study goes on with it")
    return found


def progress(folder: Path, found: StudyResults) -> str:
    """One line: how many cells are measured, and the epochs of those that are begun."""
    total = len(found.study.cells)
    begun = _begun(folder, found)
    text = f"; begun: {'; '.join(begun)}" if begun else ""
    return f"{total - len(found.missing())} of {total} cells measured{text}"


def _begun(folder: Path, found: StudyResults) -> list[str]:
    begun = []
    have = {(cell["condition"], cell["seed"]) for cell in found.cells}
    for name, seed in found.study.cells:
        if (name, seed) in have:
            continue
        runs = (folder / "runs").glob(f"{slug(name)}-{seed}-????????")
        begun += [f"{name}, seed {seed} (epoch {e})" for e in map(_epochs, runs) if e]
    return begun


def _epochs(run: Path) -> str | None:
    """Such as "3/40"; None where no run has begun."""
    planned = _planned(run)
    return None if planned is None else f"{min(len(_rows(run)), planned[0])}/{planned[0]}"


def _planned(run: Path) -> tuple[int, int] | None:
    """The epochs and the batch size of a run; None where none has begun."""
    try:
        if not is_run(run):
            return None
        saved = saved_settings(run)
        return int(saved["epochs"]), int(saved.get("batch_size") or 0)
    except (UserError, OSError, KeyError, TypeError, ValueError):
        return None


def _rows(run: Path) -> list[dict[str, str]]:
    """The rows of `metrics.csv`, one per epoch; without those that are damaged."""
    try:
        rows = [row for _, row in read_rows(run / "metrics.csv")]
    except (OSError, UserError):
        return []
    return [row for row in rows if re.fullmatch("[0-9]{1,9}", row.get("epoch", ""))]


def _seconds_left(
    run: Path, rows: list[dict[str, str]], epochs: int, batch_size: int
) -> float | None:
    """Of training, from the pace of the last epochs and the time since the last one ended."""
    try:
        steps = [0.0, *(float(row["step"]) for row in rows)]
        paces = [
            (after - before) * batch_size / float(row["images_per_second"])
            for before, after, row in zip(steps, steps[1:], rows, strict=False)
        ]
        passed = time.time() - (run / "metrics.csv").stat().st_mtime
    except (KeyError, ValueError, ZeroDivisionError, OSError):
        return None
    known = [pace for pace in paces[-3:] if 0 < pace < math.inf]
    if not known:
        return None
    pace = statistics.median(known)
    return max(0.0, pace * epochs - min(passed, pace))


def is_running(folder: Path) -> bool:
    """Whether a process works on a run or a study, as far as can be seen from this machine."""
    # The lock itself is not tried: a study that starts just then would be refused.
    try:
        owner = checked(Owner, read_json(folder / OWNER), folder / OWNER)
        if owner.host == socket.gethostname():
            os.kill(owner.process, 0)
    except (FileNotFoundError, ProcessLookupError):
        return False
    except (OSError, ValueError):
        return True
    return True
