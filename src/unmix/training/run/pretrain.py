"""Pretraining: from settings to a run folder."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from typing_extensions import Unpack

from unmix.config import Settings
from unmix.config.augmentation import layered
from unmix.config.compatibility import (
    check_clipping,
    check_local,
    check_mixture,
    check_optimizer,
)
from unmix.config.earlier import current
from unmix.config.groups import field_names
from unmix.config.keywords import PretrainSettings
from unmix.config.nested import flattened
from unmix.config.recipes import resolve
from unmix.config.saved import check_method
from unmix.data import StreamedImages
from unmix.data.fingerprint import Fingerprint
from unmix.errors import Interrupted, MachineError, UserError, lost_worker
from unmix.evaluation import Measurement
from unmix.hardware.threads import CoreMeter, choose_threads, threads_in_words, using_threads
from unmix.names import PYTHON, shown
from unmix.per_image import keep_per_image
from unmix.results import RunResults, load_results, write_results
from unmix.training.console import is_leader, quiet_libraries, say
from unmix.training.loop.callbacks import Reporter
from unmix.training.loop.evaluator import Evaluator, spread_and_rank
from unmix.training.loop.health import EXPLODED_LOSS, Health, useless
from unmix.training.loop.stopping import Stopping
from unmix.training.run import extending
from unmix.training.run.command import command_line
from unmix.training.run.data_record import DataRecord, check_there, located
from unmix.training.run.engines import run_on_ray
from unmix.training.run.folder import RunFolder, begun_before
from unmix.training.run.given import Given
from unmix.training.run.launching import check_launch, check_workers, in_worker
from unmix.training.run.lock import results_lock, run_lock
from unmix.training.run.loggers import end_failed
from unmix.training.run.notes import note_on_width
from unmix.training.run.parts import Parts, build_parts, encoder_facts, headline
from unmix.training.run.results import (
    kept_detection,
    results_of,
    say_accuracies,
    say_quality,
    why_not_evaluated,
    with_earlier,
)
from unmix.training.run.resuming import check_complete, check_data, check_devices, check_machine
from unmix.training.run.trainer import fit
from unmix.transfer import usual_defaults

__all__ = ["command_line", "complete", "pretrain", "run", "settings_for"]


@usual_defaults()
def pretrain(
    config: str | Sequence[str] | None = None,
    *,
    test_data: Any = None,
    extend: bool = False,
    **words: Unpack[PretrainSettings],
) -> RunResults:
    """Pretrain an encoder and evaluate it; the Python form of `unmix pretrain`.

    `data` may also be a Python object: a PyTorch or Hugging Face data set, pixels uint8
    (N, C, H, W), a pair (pixels, labels), or a list of paths; see `from_python`. It should return
    images without augmentation, since the views are made here. Its labels, if any, are used for the
    evaluation alone. To resume such a run, or to see its results, give the same object again.

    Args:
        config: Name of a recipe or a YAML file with defaults; of several, later ones override
            earlier ones.
        test_data: If `data` is a Python object, the images to evaluate on, likewise; without it
            there is no evaluation.
        extend: Go on with a run that has ended, to the `epochs` that are given: its schedules start
            again at the epoch where it ended.
        words: Settings by name, such as `method="moco", data="photos", IM=True`; their types are in
            `unmix.config.keywords`, and `unmix pretrain --help` says what they are.

    Returns:
        The content of the run folder's `results.json`.

    Raises:
        UserError: if the settings are invalid, before anything is written.
    """
    given, flat = None, flattened(words)
    data = flat.get("data")
    in_python = data is not None and not isinstance(data, (str, os.PathLike))
    if test_data is not None and not in_python:
        raise UserError(
            "test_data: goes with data that is given in Python; of a folder, test_folder says "
            "where the images to evaluate on are."
        )
    if in_python:
        flat["data"] = PYTHON  # named when it is read, which the settings say how to
    settings, used = settings_for(flat, config)
    if in_python:
        given = Given.of(data, test_data, settings.run)
        flat["data"] = given.train.name
        settings = settings.with_changes(data=given.train.name)
    command = command_line(config, flat)
    if extend:
        settings = extending.extended(settings, "epochs" in flat)
        command += " --extend"
    return run(settings, used, command=command, given=given, extend=extend)


def settings_for(
    words: dict[str, Any], config: str | Sequence[str] | None = None
) -> tuple[Settings, list[str]]:
    """The settings of a run: from the folder that is resumed, or from recipes and keywords.

    Returns:
        The settings, and the names of the recipes that they are based on.

    Raises:
        UserError: if a setting is unknown or invalid, or the folder holds a run of another method,
            or none although nothing says what to train.
    """
    words = flattened(words)
    folder = RunFolder(str(words["run"])) if words.get("run") else None
    if folder is not None and folder.config.exists() and config is None:
        theirs = folder.words()
        # Checked first: another method has other options, and these would be called the mistake.
        if "method" in words:
            check_method(folder.path, words["method"])
        folder.settings()  # a wrong one is the file's, not the command's
        used: list[str] = []
        given = current(words)
        settings = Settings.of(layered([theirs, given]))
    else:
        if folder is not None and config is None and {*words} <= {"run", *field_names("machine")}:
            raise UserError(
                f"there is no run in {shown(folder.path)} to resume. A new one there needs "
                "`method` or `data` too.",
                parameter="run",
            )
        given, used = resolve(words, config)
        settings = Settings.of(given)
    typed = current(words, quiet=True)
    check_local(typed, settings)
    check_clipping(typed, settings)
    check_optimizer(typed, settings)
    check_mixture(given, settings)
    return settings, used


def run(
    settings: Settings,
    recipes: list[str],
    command: str,
    given: Given | None = None,
    watch: Callable[[Stopping], None] | None = None,
    extend: bool = False,
) -> RunResults:
    """Pretrain with these settings, or resume the run in the folder.

    Args:
        settings: Of the run.
        recipes: Names of the recipes that they are based on.
        command: The command line, for the results.
        given: Images given as Python objects.
        watch: Called with what receives signals, to ask it to stop the run otherwise.
        extend: Whether the run in the folder may have ended before; the settings are then those of
            `extending.extended`.

    Raises:
        UserError: if the settings are invalid, or the folder holds another run or is in use.
    """
    quiet_libraries()
    typed, settings = settings.run.data, begun_before(located(settings))
    folder = RunFolder(settings.folder, extend)
    if (results := complete(folder, settings, given)) is not None:
        return results
    if settings.machine.engine == "ray" and not in_worker():
        return run_on_ray(settings, recipes, command, given is not None, extend)
    # Of several processes that train together the first locks the folder for all.
    lock = run_lock(folder.path, say) if is_leader() else nullcontext()
    with lock, Stopping() as stopping:
        if watch is not None:
            watch(stopping)
        # It may have been completed while another process had the lock.
        try:
            return complete(folder, settings, given) or _train(
                folder, settings, recipes, command, typed, stopping, given
            )
        except KeyboardInterrupt as error:
            number = error.signum if isinstance(error, Interrupted) else signal.SIGINT
            if not is_leader():
                raise SystemExit(128 + number) from None  # the first process says how to go on
            raise Interrupted(number, folder.way_on(stopping.saved, given is not None)) from None
        except (MachineError, RuntimeError) as error:
            if stopping.received is not None and not is_leader():
                raise SystemExit(128 + stopping.received) from None  # as the first process has
            lost = error if isinstance(error, MachineError) else lost_worker(error)
            if lost is None:
                raise
            how = folder.way_on(stopping.saved, given is not None, sentence=True)
            raise lost.with_more(how) from None


def complete(
    folder: RunFolder, settings: Settings, given: Given | None = None
) -> RunResults | None:
    """Print and return the results of a run that is complete; None if it is not."""
    if not folder.has_run():
        return None
    folder.check_same(settings.flat())
    if not (folder.results.exists() and folder.encoder.exists()):
        return None
    results = load_results(folder.path)
    if extending.is_extending(settings, results):
        return None
    check_complete(folder, settings, given, say)
    say(f"{shown(folder.path)} is complete; nothing to do. Its results:")
    say_accuracies(results)
    say_quality(results)
    return results


def _train(
    folder: RunFolder,
    settings: Settings,
    recipes: list[str],
    command: str,
    typed: str,
    stopping: Stopping,
    given: Given | None = None,
) -> RunResults:
    """Train, from the start or from the last checkpoint; then evaluate and write the results.

    Args:
        folder: The run folder, locked by this process.
        settings: Settings with absolute paths to the data.
        recipes: Names of the recipes that the settings are based on.
        command: The command line, for the results.
        typed: `--data` as given, for display.
        stopping: Receives the signals that end the run.
        given: Images given as Python objects.
    """
    check_launch(settings.machine.devices, settings.machine.nodes)
    cores = CoreMeter()
    resume = folder.has_run()
    if resume:
        check_there(settings.run.data)
    seen: dict[str, Fingerprint] = {}
    if (note := note_on_width(settings)) is not None:
        say(note)
    # The first process compares the data for all.
    train, test = (given.train, given.test) if given is not None else (None, None)
    parts = build_parts(
        settings, train, seen if is_leader() else None, test, init=not folder.has_checkpoint
    )
    if any(isinstance(images, StreamedImages) for images in (parts.train, parts.test)):
        check_workers(settings.machine.workers)
    fix_threads(parts, cores)
    settings = parts.settings
    record = DataRecord.of(typed, seen)
    if resume:
        folder.check_same(settings.flat())
        if is_leader():
            check_devices(folder, parts)
            if teacher := settings.teacher.get("teacher"):
                folder.move_teacher(teacher)
            record, same = check_data(folder, parts, record, say)
            check_machine(folder, parts, same, say)
        if folder.settings().run.epochs != settings.run.epochs:
            say(f"{shown(folder.path)}: {extending.how_it_goes_on(settings)}")
    with using_threads(settings.machine.threads or torch.get_num_threads()):
        return _to_the_end(parts, folder, recipes, record, command, resume, stopping)


def fix_threads(parts: Parts, cores: CoreMeter) -> None:
    """Choose the number of threads of a run, and store it in the settings."""
    machine = parts.settings.machine
    if parts.machine.device.type != "cpu":
        return
    free = cores.free() if machine.threads is None and machine.processes == 1 else None
    count = choose_threads(machine.threads, free, machine.processes)
    parts.threads = threads_in_words(count, free)
    if machine.processes == 1:
        parts.settings = parts.settings.with_changes(threads=count)


def _to_the_end(
    parts: Parts,
    folder: RunFolder,
    recipes: list[str],
    record: DataRecord,
    command: str,
    resume: bool,
    stopping: Stopping,
) -> RunResults:
    """Train, evaluate and write the results."""
    settings = parts.settings
    evaluator = Evaluator(
        parts.module, parts.labeled, parts.test, settings.evaluation, parts.machine
    )
    health = Health(None, parts.module.advice)
    reporter = Reporter(evaluator, health, settings.evaluation, say)
    cores = CoreMeter()
    start = time.perf_counter()
    try:
        if not resume and is_leader():
            folder.write_settings(settings, recipes)
            record.write(folder.path)
        say(headline(parts, recipes))
        for each in parts.skipped:
            each.record(folder.skipped)
        fit(parts, folder, reporter, resume, stopping)
        taken = cores.taken()
    except Exception:
        # A run without a checkpoint is removed, so that the next try, as with smaller batches after
        # memory ran out, can use the folder.
        if not resume and is_leader() and not folder.has_checkpoint:
            end_failed(settings.machine.logger)
            folder.discard()
        raise
    if not is_leader():
        # The first process evaluates and writes for all.
        raise SystemExit(0)
    measured, quality = finish(parts, folder, evaluator, reporter)
    rows = [*reporter.rows, *(each.row for each in measured)]
    for line in filter(None, dict.fromkeys(each.line() for each in parts.skipped)):
        say(line)
    seconds = time.perf_counter() - start
    content = results_of(parts, record, folder, reporter, rows, command, seconds, taken)
    with results_lock(folder.path):
        # Before the results: a run that has them is complete.
        keep_per_image(folder.path, [evaluator.per_image(each) for each in measured])
        write_results(
            folder.results,
            {
                **content,
                **kept_detection(folder),
                "evaluations": with_earlier(folder, rows),
                "quality": quality,
            },
        )
    folder.previous.unlink(missing_ok=True)  # not needed any more
    results = load_results(folder.path)
    say_accuracies(results)
    say_quality(results)
    if not evaluator.labeled:
        why = why_not_evaluated(parts.labeled)
        say(f"{shown(settings.run.data)} {why}, so kNN and linear probes are off.")
    say(f"encoder: {shown(folder.encoder)}   results: {shown(folder.results)}")
    return results


def finish(
    parts: Parts, folder: RunFolder, evaluator: Evaluator, reporter: Reporter
) -> tuple[list[Measurement], dict[str, Any]]:
    """Export the encoder of the last epoch, and evaluate it, with labels and without."""
    settings, module = parts.settings, parts.module
    folder.check_ours()
    module.to(parts.machine.device)
    refuse_failure(folder, evaluator, reporter)
    folder.write_encoder(module.method.backbone, encoder_facts(parts))
    if not settings.evaluation.evaluate:
        return [], {}
    epochs = settings.run.epochs
    if not evaluator.labeled:
        return [], evaluator.quality(epochs)
    measured, train = evaluator(("knn", "linear"), epochs)
    for line in reporter.health.warnings(spread_and_rank(train.features), 1.0):
        say(f"warning: {line}")
    return measured, evaluator.quality(epochs, train.features)


def refuse_failure(folder: RunFolder, evaluator: Evaluator, reporter: Reporter) -> None:
    """Refuse to export a useless encoder.

    Raises:
        UserError: if the loss has exploded, or the features are not finite or constant.
    """
    health = reporter.health
    if health.chance_loss is None:  # no step was left to train
        health.chance_loss = evaluator.module.method.chance_loss
    why = useless(evaluator.sample())
    if reporter.loss is not None and health.times_first(reporter.loss) > EXPLODED_LOSS:
        why = health.growth(reporter.loss)
    if why is not None:
        raise UserError(
            f"{folder.path}: the run has failed, and its encoder is not exported: {why}; "
            f"{health.advice.if_diverged}, in another --run."
        )
