"""The processes that train together: when one is lost, all end, with a line that names it.

Without this a process would wait for a lost one until the time-out of an operation, hours, and end
with a traceback of gloo or NCCL. Each process says once a second that it lives and how far it is,
in a store of rank 0, which finds out who is lost and why, and tells the others.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import timedelta
from typing import Any

import lightning as L
import torch.distributed as dist
from lightning.fabric.utilities.distributed import _set_num_threads_if_needed
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

from unmix.distributed import pace
from unmix.errors import MachineError, UserError
from unmix.training.run.same_data import Listing, check_same

__all__ = ["Ranks", "ended_how"]

_BEAT = 0.5
_GRACE = 10.0
# Errors of operations between processes, as gloo, NCCL and the store word them.
_OF_OTHERS = re.compile(
    r"gloo|NCCL|c10d|TCPStore|connection|peer|broken pipe|socket|ProcessGroup|rendezvous", re.I
)


def patience(default: float) -> float:
    """Seconds until a process counts as lost; `UNMIX_TIMEOUT` overrides it."""
    try:
        return float(os.environ["UNMIX_TIMEOUT"])
    except (KeyError, ValueError):
        return default


def ended_how(status: int) -> str:
    """How a process ended, from its exit status as `subprocess` has it."""
    if status >= 0:
        return f"ended with status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    if name == "SIGKILL":
        return "was killed (SIGKILL), as happens when memory runs out"
    return f"was ended by {name}"


class Ranks(Callback):
    """Watches the processes of a run, from the start of the trainer to its end.

    Args:
        count: Number of processes.
        how: Says in a sentence how to go on with the run.
        silent: Seconds without a sign of life until a process is lost; a minute by default.
        stuck: Seconds that others may wait for a process within a step; ten minutes by default.
        listing: The training images that this process has listed, to compare with the others'.
    """

    def __init__(
        self,
        count: int,
        how: Callable[[], str],
        silent: float | None = None,
        stuck: float | None = None,
        listing: Listing | None = None,
    ) -> None:
        self.count, self.how, self.listing = count, how, listing
        self.silent = patience(60.0) if silent is None else silent
        self.stuck = patience(600.0) if stuck is None else stuck
        self.rank = int(os.environ.get("RANK") or os.environ.get("LOCAL_RANK") or 0)
        self.children: Sequence[subprocess.Popen[Any]] = ()
        self.lost: UserError | None = None
        self._store: Any = None
        self._who: dict[int, dict[str, Any]] = {}
        self._seen: dict[int, tuple[str, float, int, float]] = {}
        self._told = self._abandoned = False
        self._found, self._stop, self._handled = (threading.Event() for _ in range(3))
        self._parent = os.getppid()
        self._thread: threading.Thread | None = None

    # --- the life of a run ------------------------------------------------------------------------

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch; an error that another process caused becomes a line that names it.

        Raises:
            MachineError: if a process was lost.
            SystemExit: in other processes than rank 0, which says why all end.
        """
        self._start()
        try:
            yield
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            self._handled.set()
            if self._abandoned:
                time.sleep(2 * _GRACE)  # the line is said, and the process about to end
            self._end_by(error)
            raise
        finally:
            self._stop.set()

    def take_over(self, strategy: Strategy) -> None:
        """Watch the processes that Lightning starts, in place of its own observer.

        Theirs kills all without a word.
        """
        # A lost store is told in our line, not in a trace of C++ functions.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        launcher = strategy.launcher
        if type(launcher) is _SubprocessScriptLauncher:
            ours = _Launcher(
                launcher.cluster_environment, launcher.num_processes, launcher.num_nodes
            )
            ours.ranks = self
            strategy._launcher = ours

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Connect the processes, which have just met, and compare what they have listed."""
        self.rank = dist.get_rank()
        host, port = os.environ.get("MASTER_ADDR", "127.0.0.1"), [0]
        wait = timedelta(seconds=max(self.silent, 30))
        store = None
        if self.rank == 0:
            store = dist.TCPStore("0.0.0.0", 0, None, True, wait, wait_for_workers=False)
            port = [store.port]
        group: Any = dist.new_group(backend="gloo")
        dist.broadcast_object_list(port, 0, group)
        if store is None:
            store = dist.TCPStore(host, port[0], None, False, wait, wait_for_workers=False)
        note: dict[str, Any] = {"host": socket.gethostname(), "process": os.getpid()}
        note["listing"] = self.listing and asdict(self.listing)
        store.set(f"who{self.rank}", json.dumps(note))
        self._who = {r: json.loads(store.get(f"who{r}")) for r in range(self.count)}
        self._store = store
        check_same(self._who)

    def on_train_batch_start(self, *_: Any) -> None:
        """A step forward."""
        pace.tick()

    def on_before_backward(self, *_: Any) -> None:
        """In the backward pass a process waits for the others, a tick ahead of a late one."""
        pace.tick()

    def on_train_batch_end(self, *_: Any) -> None:
        """The end of a step."""
        pace.tick()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """A signal ends all processes; nobody is missed then."""
        if isinstance(exception, KeyboardInterrupt):
            self._stop.set()

    # --- the end by an error ----------------------------------------------------------------------

    def _end_by(self, error: BaseException) -> None:
        of_others = isinstance(error, RuntimeError) and _OF_OTHERS.search(str(error)) is not None
        if of_others:
            until = time.monotonic() + self.silent + _GRACE
            while not self._found.wait(_BEAT) and time.monotonic() < until:
                # The thread may still wait for an answer of a store that is gone.
                if self.rank != 0 and (os.getppid() != self._parent or self._gone(0)):
                    self.lost = self._error(0, "is gone")
                    break
            if self.lost is None:
                return
            if self.rank == 1 and not self._told:
                raise self.lost from None
            if self.rank == 0:
                self._tell(self.lost)
                self._kill_children()
                raise self.lost from None
            self._leave()
            raise SystemExit(self._status()) from None
        if self.rank == 0:
            self._tell(error)
            self._kill_children()
            return
        text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        status = error.status if isinstance(error, UserError) else 1
        with suppress(Exception):
            self._store.set(f"words{self.rank}", json.dumps({"text": text, "status": status}))
            if self._found.wait(_GRACE) and isinstance(error, UserError):
                self._leave()
                raise SystemExit(status)

    def _status(self) -> int:
        return self.lost.status if self.lost is not None else 1

    def _tell(self, error: BaseException) -> None:
        """Tell the other processes that all end, and wait until they have."""
        if self._store is None:
            return
        self._announce(error)
        with suppress(Exception):
            until = time.monotonic() + 4 * _BEAT
            others = [r for r in range(1, self.count) if self._gone(r) is None]
            while time.monotonic() < until and not self._store.check([f"bye{r}" for r in others]):
                time.sleep(0.1)

    def _announce(self, error: BaseException) -> None:
        status = error.status if isinstance(error, UserError) else 1
        with suppress(Exception):
            self._store.set("end", json.dumps({"text": str(error), "status": status}))

    def _leave(self) -> None:
        with suppress(Exception):
            self._store.set(f"bye{self.rank}", "1")

    # --- the thread -------------------------------------------------------------------------------

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="ranks", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        number, last = 0, time.monotonic()
        while not self._stop.wait(_BEAT):
            now = time.monotonic()
            if now - last > 20 * _BEAT:
                self._seen.clear()  # we were suspended ourselves
            last, number = now, number + 1
            found = self._look(number)
            if found is not None and not self._stop.is_set():
                self.lost = found
                self._found.set()
                if self.rank == 0:
                    self._announce(found)
                # The thread that trains may wait for the lost one, for hours.
                if not self._handled.wait(_GRACE) and not self._stop.is_set():
                    self._abandoned = True
                    self._abandon()
                return

    def _look(self, number: int) -> UserError | None:
        try:
            if self.rank == 0:
                return self._look_at_others(number)
            return self._look_at_first(number)
        except Exception:
            if self._stop.is_set() or self.rank == 0:
                return None
            return self._error(0, "is gone")

    def _look_at_first(self, number: int) -> UserError | None:
        if os.getppid() != self._parent:
            return self._error(0, "is gone")
        if self._store is None:
            return None
        self._store.set(f"beat{self.rank}", json.dumps([number, pace.ticks]))
        if not self._store.check(["end"]):
            return None
        end = json.loads(self._store.get("end"))
        self._leave()
        told = MachineError(end["text"]) if end["status"] == 1 else UserError(end["text"])
        self._told = True
        return told

    def _look_at_others(self, number: int) -> UserError | None:
        for local, child in enumerate(self.children, start=1):
            if (status := child.poll()) is not None and status != 0:
                time.sleep(_BEAT)
                words = self._words(local)
                return words or self._error(local, ended_how(status), child.pid)
        if self._store is None:
            return None
        now = time.monotonic()
        self._note(0, json.dumps([number, pace.ticks]), now)
        for r in range(1, self.count):
            if self._store.check([f"bye{r}"]):
                continue
            if (words := self._words(r)) is not None:
                return words
            if (how := self._gone(r)) is not None:
                return self._error(r, how)
            if not self._store.check([f"beat{r}"]):
                self._seen.setdefault(r, ("", now, 0, now))
            else:
                self._note(r, self._store.get(f"beat{r}").decode(), now)
        return self._judged(now)

    def _note(self, r: int, beat: str, now: float) -> None:
        before, at, tick, since = self._seen.get(r, ("", now, -1, now))
        current = json.loads(beat)[1]
        self._seen[r] = (
            beat,
            at if beat == before else now,
            current,
            since if current == tick else now,
        )

    def _judged(self, now: float) -> UserError | None:
        """Who has been silent, or is the only one that has not done its step."""
        ahead = max(tick for _, _, tick, _ in self._seen.values())
        for r, (_, at, tick, since) in self._seen.items():
            if now - at > self.silent:
                return self._error(r, f"has not answered for {now - at:.0f} s")
            busy = r == 0 and pace.alone
            if tick < ahead and not busy and now - since > self.stuck:
                what = f"is stuck: the others have waited for it for {now - since:.0f} s"
                return self._error(r, what)
        return None

    def _words(self, r: int) -> UserError | None:
        """The last words of a process that ended by an error."""
        if self._store is None or not self._store.check([f"words{r}"]):
            return None
        words = json.loads(self._store.get(f"words{r}"))
        if words["status"] == 1:
            return self._error(r, f"ended with an error: {words['text']}")
        return UserError(words["text"])

    def _gone(self, r: int) -> str | None:
        """Whether a process of this machine has ended."""
        who = self._who.get(r)
        if who is None or who["host"] != socket.gethostname() or r == self.rank:
            return None
        child = next((each for each in self.children if each.pid == who["process"]), None)
        if child is not None:
            status = child.poll()
            return None if not status else ended_how(status)
        try:
            os.kill(who["process"], 0)
            with open(f"/proc/{who['process']}/stat", encoding="utf-8") as file:
                return "is gone" if file.read().rpartition(")")[2].split()[0] == "Z" else None
        except ProcessLookupError:
            return "is gone"
        except OSError:
            return None

    def _error(self, r: int, what: str, process: int | None = None) -> MachineError:
        who = self._who.get(r, {"host": socket.gethostname(), "process": process})
        number = f"process {who['process']} on " if who["process"] is not None else "on "
        return MachineError(f"rank {r} of {self.count} ({number}{who['host']}) {what}.")

    def _abandon(self) -> None:
        """End this process, whatever its main thread does."""
        assert self.lost is not None
        if self.rank == 0:
            self._tell(self.lost)
        if self.rank == 0 or (self.rank == 1 and not self._told):
            sys.stdout.flush()
            os.write(2, f"unmix: error: {self.lost.with_more(self.how())}\n".encode())
        for child in multiprocessing.active_children():
            child.kill()
        self._kill_children()
        os._exit(self._status())

    def _kill_children(self) -> None:
        for process in self.children:
            with suppress(OSError, subprocess.TimeoutExpired):
                process.kill()
                process.wait(5)


class _Launcher(_SubprocessScriptLauncher):
    """Lightning's launcher without its observer, which kills all processes without a word."""

    ranks: Ranks | None = None

    def launch(
        self, function: Callable[..., Any], *args: Any, trainer: Any = None, **kwargs: Any
    ) -> Any:
        """Start the other processes of this machine, then call the function."""
        self.cluster_environment.validate_settings(
            num_devices=self.num_processes, num_nodes=self.num_nodes
        )
        if not self.cluster_environment.creates_processes_externally:
            self._call_children_scripts()
            if self.ranks is not None:
                self.ranks.children = self.procs
        _set_num_threads_if_needed(num_processes=self.num_processes)
        return function(*args, **kwargs)
