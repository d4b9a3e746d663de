"""Other engines that start and restart the processes of a run: Ray Train."""

from __future__ import annotations

import io
import os
import shlex
import shutil
import signal
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from dataclasses import dataclass
from typing import Any

from unmix.config import Settings
from unmix.errors import Interrupted, MachineError, UserError
from unmix.names import shown
from unmix.results import RunResults, load_results
from unmix.training.console import say, set_rank
from unmix.training.loop.stopping import Stopping
from unmix.training.run.data_record import absolute, check_there
from unmix.training.run.folder import RunFolder
from unmix.training.run.lock import WORKER

__all__ = ["check_engine", "note_on_workers", "run_on_ray"]

_POLL = 0.2  # seconds between looks at what the workers say
_START = 120  # seconds that Ray may take to start the workers
_FAILURES = 3  # workers that may die before the run fails; each time it goes on from the last save
_STORAGE = ".ray"  # what Ray Train itself writes into the run folder, while it trains


def check_engine(settings: Settings, given: bool) -> None:
    """Check that Ray can train this run, before anything is started.

    Args:
        settings: Of the run.
        given: Whether its images are Python objects.

    Raises:
        UserError: if Ray is missing, or the data is not a path or a name.
    """
    try:
        import ray.train.torch  # noqa: F401
    except ImportError:
        raise UserError(
            "ray needs the package: pip install 'unmix[ray]'", parameter="engine"
        ) from None
    if given:
        raise UserError(
            "ray starts processes that read the data themselves; give a path or a name as `data`.",
            parameter="engine",
        )
    if settings.machine.device == "mps":
        raise UserError("ray has no `device=mps`; use cpu or cuda.", parameter="engine")


def note_on_workers(settings: Settings) -> str | None:
    """A note where the number of data workers may have been meant as that of Ray's workers."""
    machine = settings.machine
    if machine.workers is None or machine.processes > 1:
        return None
    return (
        f"note: --workers {machine.workers} are processes that decode files; --devices says how "
        "many workers of Ray train, and is 1"
    )


def run_on_ray(
    settings: Settings,
    recipes: list[str],
    command: str,
    given: bool = False,
    extend: bool = False,
) -> RunResults:
    """Train on a Ray cluster: that of RAY_ADDRESS or of this machine, or one that is started here.

    A worker that dies ends the others, and all start again from the run's last checkpoint. A signal
    to this process lets them save the step and stop.

    Args:
        settings: With a run folder and data that all workers see under the same path.
        recipes: Names of the recipes that the settings are based on.
        command: The command line, for the results.
        given: Whether the images are Python objects, which Ray's workers could not read.
        extend: Whether the run may have ended before; see `unmix.training.run.extending`.

    Raises:
        UserError: if Ray is missing, the cluster is too small, the run fails by a mistake, or
            workers die too often.
    """
    check_engine(settings, given)
    import ray

    from unmix.training.run.parts import build_parts

    if (note := note_on_workers(settings)) is not None:
        say(note)
    settings = settings.with_changes(run=absolute(str(settings.folder)))
    folder = RunFolder(settings.folder, extend)
    if folder.has_run():
        check_there(settings.run.data)
        folder.check_same(settings.flat())
    # Mistakes are told before a cluster is started, and not by one of its workers.
    build_parts(
        settings.with_changes(device="cpu", precision="32", resident="no", logger="none"),
        init=not folder.has_checkpoint,
    )
    ours = not ray.is_initialized()
    # The workers are one owner of the run folder, on whichever machine the first of them is.
    environment = {
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), WORKER: f"ray-{uuid.uuid4().hex}"
    }  # fmt: skip
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(_START))
    try:
        if ours:
            _start(ray)
        gpus = _needs(ray, settings)
        return _fit(ray, settings, recipes, command, gpus, environment, extend)
    finally:
        if ours:
            ray.shutdown()
        shutil.rmtree(folder.path / _STORAGE, ignore_errors=True)
        with suppress(OSError):
            folder.path.rmdir()


def _start(ray: Any) -> None:
    """Connect to the cluster that there is, or start one.

    Raises:
        UserError: if there is none where RAY_ADDRESS says, or none can be started.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        ray.init(
            include_dashboard=None if "RAY_ADDRESS" in os.environ else False,
            log_to_driver=False, logging_level="ERROR",
        )  # fmt: skip
    except (ConnectionError, ValueError, RuntimeError) as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"ray cannot be started: {shown(line)}", parameter="engine") from None


def _needs(ray: Any, settings: Settings) -> bool:
    """Whether the workers get GPUs; checks that the cluster has room for all of them.

    Raises:
        UserError: if not.
    """
    wanted, device = settings.machine.processes, settings.machine.device
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = device == "cuda" or (device == "auto" and any(node.get("GPU") for node in nodes))
    cpus = _cpus(settings)
    kind = "GPU" if gpus else "CPU"
    room = sum(
        int(min(node.get("CPU", 0) // cpus, node.get("GPU", 0) if gpus else float("inf")))
        for node in nodes
    )
    if room < wanted:
        there = int(sum(node.get(kind, 0) for node in nodes))
        each = f" with {cpus} CPUs for each" if cpus > 1 else ""
        raise UserError(
            f"{wanted} on ray need {wanted} {kind}s{each}, and the cluster has {there} {kind}s; "
            f"there is room for {room}.",
            parameter="devices",
        )
    return gpus


def _cpus(settings: Settings) -> int:
    """The CPUs of a worker of Ray: for its data workers, at least one."""
    return max(1, settings.machine.workers or 1)


@dataclass
class Call:
    """What a worker does; pickled and called in each of them."""

    words: dict[str, Any]
    recipes: list[str]
    command: str
    line: Any
    extend: bool = False

    def __call__(self) -> None:
        """Train; what ends the run for good is reported, everything else makes Ray try again."""
        import ray.train

        from unmix.training.run.pretrain import run

        context = ray.train.get_context()
        rank = context.get_world_rank()
        set_rank(rank)
        if _get(self.line.how.remote()):
            return  # by a mistake that another try does not mend
        try:
            with redirect_stdout(_Lines(self.line)) if rank == 0 else nullcontext():
                settings = Settings.of(self.words)
                run(settings, self.recipes, self.command, watch=self._watch, extend=self.extend)
        except MachineError as error:
            raise RuntimeError(str(error)) from None  # such as a lost process: Ray starts all again
        except UserError as error:
            _get(self.line.end.remote("error", error.on_command_line()))
            if context.get_world_size() > 1:
                raise RuntimeError("the others may wait for this process") from None
        except Interrupted as error:
            _get(self.line.end.remote("stopped", error.how, error.signum))
        except SystemExit as error:  # how a process that is not the first one ends
            if error.code not in (0, None) and int(error.code) <= 128:
                raise RuntimeError(f"exit status {error.code}") from None

    def _watch(self, stopping: Stopping) -> None:
        """Obey the signals that the calling process received."""

        def watch() -> None:
            with suppress(Exception):  # the run has ended, and the cluster with it
                while True:
                    number = _get(self.line.asked.remote())
                    if number:
                        stopping.received = number
                        return
                    time.sleep(_POLL)

        threading.Thread(target=watch, daemon=True).start()


def _get(reference: Any) -> Any:
    import ray

    return ray.get(reference)


class _Lines(io.TextIOBase):
    """A stream whose text goes to the process that has called for the run."""

    def __init__(self, line: Any) -> None:
        self.line = line

    def write(self, text: str) -> int:
        self.line.say.remote(text)
        return len(text)


class Line:
    """An actor between the process that calls for a run and its workers."""

    def __init__(self) -> None:
        self.text = ""
        self.signal = 0
        self.ended: tuple[Any, ...] = ()

    def say(self, text: str) -> None:
        """Pass on what the first worker prints."""
        self.text += text

    def take(self) -> str:
        """What was printed since the last call."""
        text, self.text = self.text, ""
        return text

    def ask(self, number: int) -> None:
        """Ask the workers to stop, as a signal does."""
        self.signal = number

    def asked(self) -> int:
        """The signal that was received, or 0."""
        return self.signal

    def end(self, *how: Any) -> None:
        """Note how the run has ended, if not well."""
        self.ended = self.ended or how

    def how(self) -> tuple[Any, ...]:
        """How the run has ended: nothing, an error, or a signal."""
        return self.ended


def _fit(
    ray: Any,
    settings: Settings,
    recipes: list[str],
    command: str,
    gpus: bool,
    environment: dict[str, str],
    extend: bool,
) -> RunResults:
    """Train on the workers, and print what the first of them prints."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    line = (
        ray.remote(num_cpus=0)(Line)
        .options(runtime_env={"env_vars": {"PYTHONPATH": environment["PYTHONPATH"]}})
        .remote()
    )
    folder = RunFolder(settings.folder)
    call = Call(settings.flat(), recipes, command, line, extend)
    resources = {"CPU": float(_cpus(settings)), **({"GPU": 1.0} if gpus else {})}
    runtime: Any = {"worker_runtime_env": {"env_vars": environment}}
    trainer = TorchTrainer(
        call,
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo", timeout_s=6 * 3600),
        scaling_config=ScalingConfig(
            num_workers=settings.machine.processes, use_gpu=gpus, resources_per_worker=resources
        ),
        run_config=RunConfig(
            name=_STORAGE, storage_path=str(folder.path),
            failure_config=FailureConfig(max_failures=_FAILURES),
            **runtime,
        ),
    )  # fmt: skip
    failed: list[BaseException] = []

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as error:
            failed.append(error)

    # Not in the main thread, where Ray would handle SIGINT without saving.
    thread = threading.Thread(target=fit, daemon=True)
    received: list[int] = []
    with _signals(received):
        thread.start()
        while thread.is_alive():
            thread.join(_POLL)
            if received:
                _get(line.ask.remote(received.pop()))
            _print(line)
    _print(line)
    how = _get(line.how.remote())
    if how and how[0] == "error":
        raise UserError(how[1])
    if how:
        raise Interrupted(how[2], how[1])
    if failed:
        raise UserError(_why(failed[0], folder))
    return load_results(folder.path)


def _print(line: Any) -> None:
    text = _get(line.take.remote())
    if text:
        print(text, end="", flush=True)


def _why(error: BaseException, folder: RunFolder) -> str:
    """Why Ray gave up, in a line."""
    lines = [text.strip() for text in str(error).splitlines() if text.strip()]
    reason = lines[-1] if lines else type(error).__name__
    return (
        f"ray gave up after {_FAILURES} restarts: {shown(reason)}; to go on from the last "
        f"checkpoint: unmix pretrain --run {shlex.quote(str(folder.path))}"
    )


@contextmanager
def _signals(received: list[int]) -> Iterator[None]:
    """Note signals, to pass them on to the workers; a second SIGINT ends this process."""
    before: dict[int, Any] = {}

    def note(number: int, frame: Any) -> None:
        if number == signal.SIGINT and noted:
            raise Interrupted(number)
        noted.append(number)
        received.append(number)

    noted: list[int] = []
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:
            with suppress(ValueError):  # only the main thread handles signals
                before[number] = signal.signal(number, note)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
