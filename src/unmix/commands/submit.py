"""Pretraining in a job of SLURM, or of this machine, through submitit."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typing_extensions import Unpack

from unmix.commands.job_request import DAY, Asked, Plain, minutes
from unmix.config import Settings
from unmix.config.keywords import PretrainSettings
from unmix.config.nested import flattened
from unmix.errors import UserError, check_choice, check_number
from unmix.names import shown
from unmix.training.console import is_leader, quiet_libraries, silent
from unmix.training.console import say as print_line
from unmix.training.run import extending
from unmix.training.run.data_record import absolute, check_there, located
from unmix.training.run.folder import RunFolder, begun_before
from unmix.training.run.jobs import Job
from unmix.training.run.lock import run_lock
from unmix.training.run.parts import build_parts
from unmix.training.run.pretrain import command_line, complete, settings_for

__all__ = ["Submitted", "submit"]

EXECUTORS = ("auto", "slurm", "local", "debug")
_WARNED_BEFORE = 120  # seconds from the signal to the end of a job
_OF_PROCESSES = ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "NODE_RANK")


@dataclass(frozen=True)
class Submitted:
    """A job that was submitted.

    Attributes:
        job: Its number, as SLURM or submitit gives it; None of a run that is complete, or if
            nothing was submitted.
        run: The run folder.
        log: The file of its output.
        script: The text that sbatch was given; None of other executors.
    """

    job: str | None
    run: Path
    log: Path | None = None
    script: str | None = None


def submit(
    config: str | Sequence[str] | None = None,
    *,
    gpus: int | None = None,
    cpus: int | None = None,
    mem: float | None = None,
    time: str | None = None,
    partition: str | None = None,
    account: str | None = None,
    name: str | None = None,
    slurm: Sequence[str] = (),
    setup: Sequence[str] = (),
    requeues: int | None = None,
    executor: str = "auto",
    dry_run: bool = False,
    extend: bool = False,
    say: Callable[[str], None] = print_line,
    **words: Unpack[PretrainSettings],
) -> Submitted:
    """Pretrain in a job of SLURM, which is queued again until the run is complete.

    All settings and the data are checked before anything is submitted. When SLURM warns of the end
    of the job's time, or preempts it, the step is saved and the job queued again with the same run
    folder.

    Args:
        config: A recipe's name or a YAML file, or several, as for `pretrain`.
        gpus: GPUs on each machine, and so the run's devices; by default as many as devices, and
            none if device is cpu.
        cpus: CPUs for each device; data workers need them.
        mem: Memory of each machine in GB; by default the partition's.
        time: Time limit of a job, in SLURM's forms, such as 90 (minutes), 12:00:00 or 2-00:00:00;
            by default a day. A run that needs more takes several jobs.
        partition: Partition.
        account: Account.
        name: Name of the job; by default that of the run folder.
        slurm: Any other options of sbatch, as KEY=VALUE or KEY, such as constraint=a100 exclusive.
        setup: Shell commands of the job before the training, each in quotes.
        requeues: Time limits after which the job is queued again; by default 100.
        executor: slurm; local: a background process of this machine; debug: in this process; auto:
            slurm if it is there, else local.
        dry_run: Print what would be submitted, and submit nothing; SLURM need not be there.
        extend: As for `pretrain`.
        say: Prints a line.
        words: Settings of `pretrain`.

    Raises:
        UserError: if a setting is invalid, the data cannot be read, the run folder holds another
            run or is in use, or the job cannot be submitted; nothing is submitted then.
    """
    quiet_libraries()
    check_choice("executor", executor, EXECUTORS)
    chosen = _chosen(executor, dry_run)
    asked = Asked(cpus, mem, time, partition, account, name, tuple(slurm), tuple(setup), requeues)
    asked.check(chosen)
    settings, recipes, command, plain = _checked(config, flattened(words), gpus, extend, say)
    folder = RunFolder(settings.folder)
    if plain.nodes > 1 and chosen != "slurm":
        raise UserError(
            f"{plain.nodes} machines need SLURM; with `executor={chosen}` there is one.",
            parameter="nodes",
        )
    if not extend and complete(folder, settings) is not None:
        return Submitted(None, folder.path)
    job = Job(settings.flat(), recipes, command, here=chosen == "debug", extend=extend)
    made = _executor(chosen, folder, asked, plain, dry_run)
    say(asked.line(chosen, plain))
    say(f"run folder: {shown(folder.path)}")
    script = None
    if chosen == "slurm":
        script = made._make_submission_file_text(made._submitit_command_str, "dry_run")
    if dry_run:
        if script is not None:
            say("\n" + script)
        say("nothing was submitted")
        return Submitted(None, folder.path, None, script)
    return _submitted(made, job, chosen, folder, script, say)


def _chosen(executor: str, dry_run: bool) -> str:
    """The executor, of those that are there.

    Raises:
        UserError: if submitit is missing, or SLURM where it is asked for.
    """
    try:
        import submitit  # noqa: F401
    except ImportError:
        raise UserError("unmix submit needs submitit: pip install 'unmix[submit]'") from None
    there = all(shutil.which(name) for name in ("sbatch", "srun"))
    if executor == "auto":
        return "slurm" if there or dry_run else "local"
    if executor == "slurm" and not (there or dry_run):
        raise UserError(
            "sbatch is not on the PATH, so this is no machine of SLURM; submit from a login node, "
            "see the job's text with `dry_run`, or use `executor=local`.",
            parameter="executor",
        )
    return executor


def _checked(
    config: str | Sequence[str] | None,
    words: dict[str, Any],
    gpus: int | None,
    extend: bool,
    say: Callable[[str], None],
) -> tuple[Settings, list[str], str, Plain]:
    """The settings of the run, checked as far as this machine can; nothing is written.

    Raises:
        UserError: if they do not go together, the data cannot be read, or the folder holds another
            run or is in use.
    """
    if words.get("data") is not None and not isinstance(words["data"], (str, os.PathLike)):
        raise UserError("a job reads its data itself; give a path or a name.", parameter="data")
    if gpus is not None:
        check_number("gpus", gpus, at_least=0)
        devices = words.get("devices")
        if gpus and devices is not None and int(devices) != gpus:
            raise UserError(
                f"{gpus} on each machine are as many devices, but `devices={devices}` is given; "
                "leave one out.",
                parameter="gpus",
            )
        words = {**words, **({"devices": gpus} if gpus else {})}
    settings, recipes = settings_for(words, config)
    device = settings.machine.device
    if settings.machine.engine != "lightning":
        raise UserError(
            f"{settings.machine.engine} has its own processes, and no job of SLURM.",
            parameter="engine",
        )
    if gpus and device not in ("auto", "cuda"):
        raise UserError(f"{gpus} contradicts `device={device}`.", parameter="gpus")
    if gpus == 0 and device == "cuda":
        raise UserError("0 contradicts `device=cuda`.", parameter="gpus")
    command = command_line(config, words)
    settings = begun_before(located(settings))
    settings = settings.with_changes(run=absolute(str(settings.folder)))
    if "%" in str(settings.run.run):
        raise UserError(f"{settings.run.run} has a %, which SLURM replaces.", parameter="run")
    if extend:
        settings, command = extending.extended(settings, "epochs" in words), f"{command} --extend"
    folder = RunFolder(settings.folder)
    if folder.has_run():
        check_there(settings.run.data)
        if not extend:
            folder.check_same(settings.flat())
    # Of what the job's machine has and this one may not, nothing is asked here.
    build_parts(
        settings.with_changes(device="cpu", precision="32", resident="no", logger="none"),
        init=not folder.has_checkpoint,
    )
    if is_leader():
        with run_lock(folder.path, silent):
            pass
    if gpus is None:
        gpus = settings.machine.devices if device in ("auto", "cuda") else 0
    return settings, recipes, command, Plain(settings.machine.nodes, settings.machine.devices, gpus)


def _executor(executor: str, folder: RunFolder, asked: Asked, plain: Plain, dry_run: bool) -> Any:
    """Submitit's executor with what is asked of the job."""
    import submitit

    if executor == "debug":
        return submitit.DebugExecutor(folder.jobs)
    requeues = 100 if asked.requeues is None else asked.requeues
    common: dict[str, Any] = {"setup": list(asked.setup) or None, "stderr_to_stdout": True}
    limit = minutes(asked.time or DAY)
    if executor == "local":
        local = submitit.LocalExecutor(folder.jobs, max_num_timeout=requeues)
        local.update_parameters(
            timeout_min=limit, gpus_per_node=plain.gpus, tasks_per_node=plain.devices,
            signal_delay_s=min(_WARNED_BEFORE, 30 * limit), stderr_to_stdout=True,
            **({"setup": list(asked.setup)} if asked.setup else {}),
        )  # fmt: skip
        return local
    # Only submitting needs SLURM; its text does not.
    kind = type("SlurmExecutor", (submitit.SlurmExecutor,), {"affinity": staticmethod(lambda: 2)})
    slurm = (kind if dry_run else submitit.SlurmExecutor)(folder.jobs, max_num_timeout=requeues)
    srun = ["--kill-on-bad-exit=1", "--wait=0"]
    if asked.cpus is not None:  # srun does not take it from the job since SLURM 22.05
        srun.append(f"--cpus-per-task={asked.cpus}")
    wanted = {
        "job_name": asked.name or folder.path.name, "time": limit, "nodes": plain.nodes,
        "ntasks_per_node": plain.devices, "gpus_per_node": plain.gpus or None,
        "cpus_per_task": asked.cpus,
        "mem": None if asked.mem is None else f"{round(1024 * asked.mem)}M",
        "partition": asked.partition, "account": asked.account,
        "signal_delay_s": min(_WARNED_BEFORE, 30 * limit), "srun_args": srun,
        "additional_parameters": _requeued(asked.options()), **common,
    }  # fmt: skip
    slurm.update_parameters(**{word: value for word, value in wanted.items() if value is not None})
    return slurm


def _requeued(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of sbatch, with `--requeue` unless they say otherwise."""
    return dict(options) if "no-requeue" in options else {"requeue": True, **options}


def _submitted(
    made: Any,
    job: Job,
    executor: str,
    folder: RunFolder,
    script: str | None,
    say: Callable[[str], None],
) -> Submitted:
    """Submit the job, and say where to look."""
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    if executor == "debug":
        failed = made.submit(job).result()
        if failed is not None:
            raise failed
        return Submitted(None, folder.path)
    before = set(folder.jobs.glob("*"))
    try:
        with _outside_of_jobs():
            sent = made.submit(job)
    except (FailedJobError, FailedSubmissionError, OSError) as error:
        for path in set(folder.jobs.glob("*")) - before:
            path.unlink()
        for empty in (folder.jobs, folder.path):
            with suppress(OSError):
                empty.rmdir()
        reason = " ".join(str(error).split())
        raise UserError(f"the job was not submitted: {shown(reason[-300:])}") from None
    log = sent.paths.stdout
    say(f"job: {sent.job_id}   output: {shown(log)}")
    stop = f"scancel {sent.job_id}" if executor == "slurm" else f"kill {sent.job_id}"
    say(f"to stop it, saved: {stop}")
    return Submitted(sent.job_id, folder.path, log, script)


@contextmanager
def _outside_of_jobs() -> Iterator[None]:
    """Hide the job within which this command is called, if any, from the one that it submits."""
    inside = "SLURM_JOB_ID" in os.environ or "SUBMITIT_EXECUTOR" in os.environ
    names = [
        name
        for name in os.environ
        if inside
        and (name.startswith(("SLURM_", "SLURMD_", "SRUN_", "SUBMITIT_")) or name in _OF_PROCESSES)
        and name not in ("SLURM_CONF", "SUBMITIT_PREEMPT_SIGNAL")
    ]
    hidden = {name: os.environ.pop(name) for name in names}
    try:
        yield
    finally:
        os.environ.update(hidden)
