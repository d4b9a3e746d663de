"""Locks: one process per run folder, and a short one for `results.json`."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from filelock import FileLock, Timeout

from unmix.errors import UserError
from unmix.files import read_json, remove_left_over
from unmix.schema import Between, checked

__all__ = ["LOCK", "OWNER", "WORKER", "Owner", "check_owner", "results_lock", "run_lock"]

WORKER = "UNMIX_RAY_WORKER"  # names the run whose workers Ray has started
LOCK, OWNER = ".lock", ".owner.json"
_RESULTS_LOCK = ".results.lock"
_PATIENCE = 60


@dataclass(frozen=True)
class Owner:
    """The content of `.owner.json`: the process that has a folder.

    Attributes:
        host: Name of its machine.
        process: Its number there.
        since: When it began, for display.
        job: Its Slurm job, if any.
        lock: Inode of the lock file that it holds.
    """

    host: str
    process: Annotated[int, Between(1, 2**31 - 1)]
    since: str = ""
    job: str | None = None
    lock: int | None = None


@contextmanager
def run_lock(folder: Path, say: Callable[[str], None], flag: str = "--run") -> Iterator[None]:
    """Lock a run folder for this process; the folder is created if it does not exist.

    The operating system releases the lock on `.lock` when the process ends, however that ends. It
    may not work across machines, so `.owner.json` beside it names the owner; it is removed at the
    end. An owner file without a lock is of a process that was killed: one of this machine (or of an
    earlier start of this job of Slurm or Ray) is replaced, one of another machine is not.

    Args:
        folder: The run folder. It is removed at the end if it is empty.
        say: Prints a line.
        flag: The flag that messages name.

    Raises:
        UserError: if another process has or may have the folder, or it cannot be written.
    """
    made = _make(folder, flag)
    lock = FileLock(folder / LOCK)
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise UserError(_in_use(folder, flag)) from None
        except OSError as error:
            raise UserError(f"{folder / LOCK}: cannot be written ({error.strerror}).") from error
        try:
            _own(folder, say, flag)
            for place in (folder, folder / "checkpoints"):
                remove_left_over(place)
            try:
                yield
            finally:
                with suppress(OSError):
                    (folder / OWNER).unlink()
        finally:
            _tidy(folder)
            lock.release()
    finally:
        for path in made:
            with suppress(OSError):
                path.rmdir()


def check_owner(folder: Path) -> None:
    """Check that a folder that this process has locked is not another one's by now.

    A folder that was removed and made anew has another lock.

    Raises:
        UserError: if it is.
    """
    owner = _owner(folder)
    ours = (owner.get("host"), owner.get("process")) == (socket.gethostname(), os.getpid())
    if owner and not ours:
        raise UserError(f"{folder} is in use by {_described(owner)} now, so this run stops.")


@contextmanager
def results_lock(folder: Path) -> Iterator[None]:
    """Lock the `results.json` of a run folder while it is read and rewritten.

    Raises:
        UserError: if the folder cannot be written, or another process keeps the lock.
    """
    path = folder / _RESULTS_LOCK
    try:
        with FileLock(path, timeout=_PATIENCE):
            yield
    except Timeout:
        raise UserError(
            f"{path}: another process has held it for {_PATIENCE} s; if there is none that "
            "evaluates this run, remove the file."
        ) from None
    except OSError as error:
        raise UserError(
            f"{folder / 'results.json'}: cannot be written ({error.strerror})."
        ) from error


def _make(folder: Path, flag: str) -> list[Path]:
    """Create a folder; returns those that did not exist, the innermost first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{flag}: {folder} cannot be created ({error.strerror}).") from error
    return missing


def _tidy(folder: Path) -> None:
    """Remove the lock file, and the folders if they are empty."""
    with suppress(OSError):
        if all(path.name == LOCK for path in folder.iterdir()):
            (folder / LOCK).unlink()


def _own(folder: Path, say: Callable[[str], None], flag: str) -> None:
    """Write the owner file.

    Raises:
        UserError: if there is one of a process on another machine.
    """
    note = folder / OWNER
    content = json.dumps(_ourselves(folder)) + "\n"
    for _ in range(2):
        try:
            # Created exclusively: this works across machines even where the lock does not.
            with note.open("x", encoding="utf-8") as file:
                file.write(content)
            return
        except FileExistsError:
            owner = _owner(folder)
            if not _is_gone(owner, _ourselves(folder)):
                raise UserError(_may_be_in_use(folder, owner, flag)) from None
            say(f"note: {_described(owner)}, is gone; taking the run over")
            with suppress(FileNotFoundError):
                note.unlink()
        except OSError as error:
            raise UserError(f"{note}: cannot be written ({error.strerror}).") from error
    raise UserError(_in_use(folder, flag))


def _ourselves(folder: Path) -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "process": os.getpid(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "job": os.environ.get(WORKER) or os.environ.get("SLURM_JOB_ID"),
        # A copy of the folder has another lock, which the owner does not hold.
        "lock": (folder / LOCK).stat().st_ino,
    }


def _is_gone(owner: dict[str, Any], us: dict[str, Any]) -> bool:
    """Whether the owner has ended for certain, given that its lock is ours."""
    same_job = us["job"] is not None and owner.get("job") == us["job"]
    copied = owner.get("lock") not in (None, us["lock"])
    return owner.get("host") == us["host"] or same_job or copied


def _owner(folder: Path) -> dict[str, Any]:
    """The content of the owner file; empty if it cannot be read."""
    path = folder / OWNER
    try:
        return asdict(checked(Owner, read_json(path), path))
    except (OSError, ValueError):
        return {}


def _described(owner: dict[str, Any]) -> str:
    if not owner:
        return "another process"
    return (
        f"process {owner.get('process')} on {owner.get('host')}, training here since "
        f"{owner.get('since')}"
    )


def _in_use(folder: Path, flag: str) -> str:
    for _ in range(10):  # the owner writes the file right after it has the lock
        if owner := _owner(folder):
            break
        time.sleep(0.1)
    return (
        f"{flag}: {folder} is in use by {_described(owner)}; wait for it, or give another {flag}."
    )


def _may_be_in_use(folder: Path, owner: dict[str, Any], flag: str) -> str:
    return (
        f"{flag}: {folder} may be in use by {_described(owner)}: from {socket.gethostname()} it "
        f"cannot be seen whether it still runs. If not, remove {folder / OWNER} and give the "
        "command again."
    )
