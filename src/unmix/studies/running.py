"""Train the cells of a study that are missing, several at a time, in processes that stay."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from unmix.busy import machine_of
from unmix.config import Settings
from unmix.display import duration
from unmix.errors import UserError
from unmix.files import atomic_write, read_json
from unmix.hardware.devices import choose_machine, hardware
from unmix.hardware.threads import usable_cores, using_threads
from unmix.names import in_words
from unmix.plugins import check_known_to_processes
from unmix.schema import checked
from unmix.studies.baselines import measure_baselines
from unmix.studies.cells import (
    Cell,
    read_cell,
    result_settings,
)
from unmix.studies.cost import Cost, epochs_for, measure_cost
from unmix.studies.elsewhere import Elsewhere
from unmix.studies.images import Digests, ImagesNow, unlike
from unmix.studies.plan import Study, slug
from unmix.studies.stale import missing_cells
from unmix.training.run.lock import run_lock
from unmix.workers import Worker

__all__ = ["run_study"]

Say = Callable[[str], None]

PROGRAM = (sys.executable, "-m", "unmix.studies.worker")
_POLL = 0.2


@dataclass
class _Running:
    """A cell, and the process that trains it."""

    cell: Cell
    worker: Worker
    epochs: int
    started: float = field(default_factory=time.monotonic)

    def done(self) -> int:
        """Epochs that its metrics have so far."""
        try:
            with (self.cell.run / "metrics.csv").open("rb") as file:
                return min(self.epochs, max(0, sum(1 for _ in file) - 1))
        except OSError:
            return 0


def run_study(
    study: Study,
    folder: Path,
    *,
    jobs: int = 1,
    stale: str = "refuse",
    only: Sequence[str] = (),
    seeds: Sequence[int] = (),
    here: Mapping[str, Any] | None = None,
    flag: str = "--out",
    say: Say = print,
) -> list[str]:
    """Train and measure every cell that is missing.

    A cell is a condition with a seed. The same seed gives all conditions the same initial weights,
    order of images and, where their view settings agree, the same views.

    Args:
        study: What to run.
        folder: For `study.yaml`, `cells/` (a JSON each) and `runs/` (run folders and logs).
        jobs: Cells at a time.
        stale: For cells that were measured with other settings, data or code: "refuse", "keep" them
            (tables mark them), or "rerun".
        only: Conditions to train now; the others stay in the study. By default all.
        seeds: Likewise.
        here: Settings of this machine, such as `data_dir`; they are not part of the study.
        flag: What messages call the folder.
        say: Prints a line.

    Returns:
        The names of the cells that failed, each said with its reason.

    Raises:
        UserError: if a cell's file is damaged or stale, another process works on the study, or the
            folder cannot be written.
        KeyboardInterrupt: when it is interrupted; the same call goes on.
    """
    for name in study.conditions:
        words = study.settings(name, study.seeds[0])
        mixtures = str(words.get("unmix_mixture")).split("+")
        check_known_to_processes([str(words.get("method")), *mixtures])
    with run_lock(folder, say, flag):
        local = replace(study, base={**study.base, **(here or {})})
        return _run_locked(study, local, folder, jobs, stale, only, seeds, say)


def _run_locked(
    study: Study,
    local: Study,
    folder: Path,
    jobs: int,
    stale: str,
    only: Sequence[str],
    seeds: Sequence[int],
    say: Say,
) -> list[str]:
    images = ImagesNow()
    chosen = set(only or study.conditions)
    # The cost of a condition decides how long another one is trained.
    needed = chosen | {c.like for c in study.conditions.values() if c.name in chosen and c.like}
    part = replace(local, conditions={k: c for k, c in study.conditions.items() if k in needed})
    with using_threads(_threads(jobs)):
        costs = _costs(part, folder, images, say)
    cells = [
        cell
        for cell in _cells(part, folder, epochs_for(part, costs))
        if cell.condition in chosen and (not seeds or cell.seed in seeds)
    ]
    missing = missing_cells(cells, stale, images, say)
    _write_study(study, folder)
    missing = _not_elsewhere(missing, study, Elsewhere(folder, images), costs, say)
    if stale == "refuse":
        _check_precision(part, missing, cells)
    # What stands beside cells that are kept, is kept too.
    measure_baselines(local, folder, None if stale == "keep" else images, say)
    for line in study.left_out:
        say(f"left out: {line}")
    if len(cells) < len(study.cells):
        say(f"part of the study: {len(cells)} of its {len(study.cells)} cells")
    say(_estimate(study, cells, missing, costs, jobs))
    if not missing:
        return []
    return _run_cells(missing, costs, jobs, say)


def _write_study(study: Study, folder: Path) -> None:
    import yaml

    text = yaml.safe_dump(study.content(), sort_keys=False, allow_unicode=True)
    atomic_write(folder / "study.yaml", text.encode())


def _costs(study: Study, folder: Path, images: ImagesNow, say: Say) -> dict[str, Cost]:
    """Measured costs of the conditions; kept, since conditions of equal cost depend on them."""
    timed = _timed(study, folder)
    file = folder / "costs.json"
    known: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        known = _known_costs(file)
    found: dict[str, Cost] = {}
    for name in study.conditions:
        settings = study.resolved(name, study.seeds[0])
        # The cost of a step depends neither on the seed nor on the number of epochs.
        words = {**result_settings(settings), "seed": 0, "epochs": 0}
        key = json.dumps(words, sort_keys=True)
        entry, now = known.get(name, {}), images.of(settings.run)
        same = entry.get("settings") == key and not unlike(entry.get("data"), now)
        if same and (name not in timed or entry["cost"]["machine"] == _machine(settings)):
            found[name] = replace(Cost(**entry["cost"]), epochs=settings.run.epochs)
            continue
        say(f"measuring a few steps of {name!r}")
        try:
            found[name] = measure_cost(settings)
        except UserError as error:
            raise UserError(f"condition {name!r}: {error.on_command_line()}") from None
        known[name] = {"settings": key, "data": now, "cost": found[name].as_dict()}
        atomic_write(file, (json.dumps(known, indent=1) + "\n").encode())
    return found


def _timed(study: Study, folder: Path) -> set[str]:
    """The conditions of equal time that have cells to train, and those that they are compared to.

    Seconds of two machines say nothing of each other, so all of them are measured on this one.
    """
    found: set[str] = set()
    for each in study.conditions.values():
        files = [
            folder / "cells" / f"{slug(each.name)}-{s}.json" for s in study.seeds_of(each.name)
        ]
        if each.like is not None and each.by == "time" and not all(file.exists() for file in files):
            found |= {each.name, each.like}
    return found


def _check_precision(study: Study, missing: Sequence[Cell], cells: Sequence[Cell]) -> None:
    """Check that cells with `precision: auto` are computed in the precision of those there are.

    Raises:
        UserError: if not, as they would be no pairs.
    """
    if not any(cell.settings.get("precision") == "auto" for cell in missing):
        return
    settings = study.resolved(missing[0].condition, missing[0].seed)
    now = choose_machine(replace(settings.machine, precision="auto")).precision
    for cell in cells:
        if not cell.file.exists() or cell.settings.get("precision") != "auto":
            continue
        then = (read_cell(cell.file).get("hardware") or {}).get("precision")
        if then is not None and then != now:
            raise UserError(
                f"{cell.file}: was computed in {then}, and this machine computes in {now} "
                "(--precision auto), so that cells of both would be no pairs. Go on where the "
                "others were computed, give --stale keep, or another study folder with "
                "`precision` in its base."
            )


def _machine(settings: Settings) -> str:
    return machine_of(hardware(choose_machine(settings.machine).device))


@dataclass(frozen=True)
class _Measured:
    """The cost of a condition, with the settings and the data that it was measured with."""

    settings: str
    cost: Cost
    data: Digests | None = None


def _known_costs(file: Path) -> dict[str, Any]:
    """What `costs.json` holds.

    Raises:
        OSError, ValueError: if it cannot be read.
    """
    found = checked(Mapping[str, _Measured], read_json(file), file)  # type: ignore[type-abstract]
    return {name: asdict(each) for name, each in found.items()}


def _cells(study: Study, folder: Path, epochs: Mapping[str, int]) -> list[Cell]:
    """All cells, ordered by seed."""
    found = []
    for name, seed in study.cells:
        own = epochs[name] if study.conditions[name].like is not None else None
        words = study.settings(name, seed, own)
        settings = result_settings(study.resolved(name, seed, own))
        found.append(Cell(name, seed, words, settings, study.config, folder))
    return found


def _not_elsewhere(
    cells: Iterable[Cell], study: Study, elsewhere: Elsewhere, costs: Mapping[str, Cost], say: Say
) -> list[Cell]:
    """The cells that no study beside this one has measured; the others' results are copied."""
    left = []
    for cell in cells:
        source = elsewhere.take_over(cell, study.protocols, costs[cell.condition])
        if source is None:
            left.append(cell)
        else:
            say(f"{cell.name}: taken from study {source} (same settings, seed and code)")
    return left


def _estimate(
    study: Study,
    cells: Sequence[Cell],
    missing: Sequence[Cell],
    costs: Mapping[str, Cost],
    jobs: int,
) -> str:
    """What is to be done, and how long it will take at the least."""
    seconds = sum(costs[c.condition].seconds(c.settings["epochs"]) for c in missing)
    every = {study.seeds_of(name) for name in study.conditions}
    seeds = f" x {len(study.seeds)} seeds" if len(every) == 1 else ""
    head = (
        f"study {study.name}: {len(study.conditions)} conditions{seeds}, "
        f"{len(cells)} cells, {len(missing)} to train"
    )
    if not missing:
        return f"{head}: it is done"
    where = in_words([*dict.fromkeys(costs[c.condition].machine for c in missing)])
    return (
        f"{head}: {duration(seconds / min(jobs, len(missing)))} of training with --jobs {jobs}, "
        f"as measured{f' on {where}' if where else ' before'}, and evaluations"
    )


def _run_cells(
    missing: Sequence[Cell], costs: Mapping[str, Cost], jobs: int, say: Say
) -> list[str]:
    waiting, failed = list(missing), []
    running: list[_Running] = []
    free: list[Worker] = []
    total = sum(cell.settings["epochs"] for cell in missing)
    done = 0
    with _interruptible(), tqdm(total=total, unit="epoch", disable=None) as bar:
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    running.append(_start(waiting.pop(0), free, jobs))
                time.sleep(_POLL)
                for one in list(running):
                    if (status := one.worker.status()) is None:
                        continue
                    running.remove(one)
                    # After a failure a process may be in any state: the next cell gets a new one.
                    if status == 0 and waiting:
                        free.append(one.worker)
                    else:
                        _end([one.worker])
                    done += one.epochs
                    line = _finish(one, status, costs)
                    with tqdm.external_write_mode():
                        say(line)
                    if ": FAILED: " in line:
                        failed.append(one.cell.name)
                bar.n = done + sum(one.done() for one in running)
                bar.set_description("; ".join(one.cell.name for one in running)[:80], refresh=True)
        finally:
            _end([*free, *(one.worker for one in running)])
    return failed


def _threads(jobs: int) -> int:
    """Threads of each of the cells that share the cores; what the user set is kept."""
    own = os.environ.get("OMP_NUM_THREADS", "")
    return int(own) if own.isdecimal() and int(own) else max(1, usable_cores() // jobs)


def _start(cell: Cell, free: list[Worker], jobs: int) -> _Running:
    threads = str(_threads(jobs))
    worker = free.pop() if free else Worker(PROGRAM, {"OMP_NUM_THREADS": threads})
    worker.give({"config": cell.config, "settings": {**cell.words, "run": cell.run}}, cell.log)
    return _Running(cell, worker, cell.settings["epochs"])


def _finish(one: _Running, status: int, costs: Mapping[str, Cost]) -> str:
    """Write a cell's result; returns a line for the console."""
    cell = one.cell
    if status != 0:
        text = cell.log.read_text(encoding="utf-8", errors="replace").strip()
        last = text.splitlines()[-1] if text else f"exit status {status}"
        return f"{cell.name}: FAILED: {last} (log: {cell.log})"
    cost = costs[cell.condition]
    try:
        content = cell.write(cost.per_epoch(cell.settings["epochs"]))
    except UserError as error:
        return f"{cell.name}: FAILED: {error.on_command_line()}"
    shown = ", ".join(f"{k} {v:.1f}%" for k, v in content["accuracies"].items())
    return f"{cell.name}: {shown or 'no accuracy'} ({duration(time.monotonic() - one.started)})"


def _end(workers: Sequence[Worker]) -> None:
    """End what still runs, and wait for it."""
    for worker in workers:
        worker.ask_to_end()
    for worker in workers:
        worker.wait()


@contextmanager
def _interruptible() -> Iterator[None]:
    """Treat SIGTERM as an interrupt, so that no cell is left running without its study."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
