"""`unmix plan`: time, memory and cost of a training, before it is begun."""

from __future__ import annotations

import json as json_
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import ceil
from typing import Any

from typing_extensions import Unpack

from unmix.busy import TAKEN, cores_missed
from unmix.commands.bench import check_output
from unmix.config import Settings
from unmix.config.keywords import PretrainSettings
from unmix.config.nested import flattened
from unmix.display import counted, memory
from unmix.errors import UserError, check_number
from unmix.files import as_path, atomic_write
from unmix.hardware.devices import free_memory, hardware
from unmix.hardware.threads import CoreMeter
from unmix.names import shown
from unmix.studies.cost import measured_step
from unmix.studies.planning import BANDWIDTH, Plan, Speed
from unmix.studies.published import DEVICES
from unmix.training.console import quiet_libraries
from unmix.training.console import say as print_line
from unmix.training.run import extending
from unmix.training.run.checkpoints import latest_intact
from unmix.training.run.data_record import located
from unmix.training.run.folder import RunFolder, begun_before
from unmix.training.run.parts import LARGE, load_split, native_size
from unmix.training.run.pretrain import complete, settings_for

__all__ = ["dry_run", "plan"]

_HERE = "here"
_A_MACHINE = 8  # devices of a machine


def plan(
    config: str | Sequence[str] | None = None,
    *,
    images: float | None = None,
    gpus: int | None = None,
    on: str = _HERE,
    price: float | None = None,
    loading: float | None = None,
    bandwidth: float = BANDWIDTH,
    steps: int = 3,
    json: str | None = None,
    say: Callable[[str], None] = print_line,
    **words: Unpack[PretrainSettings],
) -> dict[str, Any]:
    """Predict time, memory and cost of a training, and say what its bottleneck is.

    A few steps on noise are measured here, or the speed of a device is taken from published
    trainings. Nothing is written, and no image is read if their number is given.

    Args:
        config: A recipe's name or a YAML file, or several, as for `pretrain`.
        images: Number of training images, such as 1.28e6; by default those of the data.
        gpus: Number of devices; by default devices times nodes of the settings.
        on: here, or a device with a published speed: v100 (mixed precision), v100-fp32.
        price: Of a device for an hour, in any currency.
        loading: Images per second that one machine reads and decodes, as unmix bench measures.
        bandwidth: Bytes per second that a device sends while gradients are summed.
        steps: Number of measured steps; the median counts.
        json: Write all numbers to this file.
        say: Prints a line.
        words: Settings of `pretrain`.

    Returns:
        The content of the JSON file.

    Raises:
        UserError: if a number or a setting is invalid, there is no speed of the device, a device
            would have too few images of a batch, or too little memory.
    """
    for name, value in (("images", images), ("gpus", gpus)):
        if value is not None:
            check_number(name, value, at_least=1)
    check_number("bandwidth", bandwidth, above=0)
    check_number("steps", steps, at_least=1)
    if price is not None:
        check_number("price", price, at_least=0)
    if loading is not None:
        check_number("loading", loading, above=0)
    if on != _HERE and on not in DEVICES:
        names = ", ".join(sorted(DEVICES))
        raise UserError(
            f"there is no measurement of {on!r}; there are here (this machine) and {names}. With a "
            "machine that has one, run unmix plan there.",
            parameter="on",
        )
    check_output("json", json)
    settings, _ = settings_for({**words, "run": None}, config)
    found = _plan_of(settings, images, gpus, on, steps, say)
    found = replace(found, price=price, loading=loading, bandwidth=bandwidth)
    _check_memory(found, "gpus")
    for line in found.lines():
        say(line)
    content = found.as_dict()
    if json is not None:
        atomic_write(as_path(json), (json_.dumps(content, indent=1) + "\n").encode())
        say(f"json: {shown(json)}")
    return content


def dry_run(
    config: str | Sequence[str] | None = None,
    say: Callable[[str], None] = print_line,
    *,
    extend: bool = False,
    **words: Unpack[PretrainSettings],
) -> Plan | None:
    """Print the plan of what `pretrain` would do with these settings; it is not begun.

    Of a run that was stopped, or is extended, that is its epochs that are left.

    Returns:
        The plan; None if the run is complete, which is said.

    Raises:
        UserError: as `pretrain` and `plan`.
    """
    flat = flattened(words)
    settings, _ = settings_for(flat, config)
    if extend:
        settings = extending.extended(settings, "epochs" in flat)
    settings = begun_before(located(settings))
    folder, done = RunFolder(settings.folder), 0
    if folder.has_run():
        longer = extend and settings.run.epochs != folder.settings().run.epochs
        if not longer and complete(folder, settings) is not None:
            return None
        done = _epochs_done(folder)
    found = _plan_of(settings, None, None, _HERE, 3, say)
    if done:
        found = replace(found, epochs=found.epochs - done)
        say(f"{done} of {counted(settings.run.epochs, 'epoch')} done before; the rest is planned")
    _check_memory(found, "devices")
    for line in found.lines():
        say(line)
    return found


def _epochs_done(folder: RunFolder) -> int:
    """Whole epochs in the checkpoint that a run would be resumed from."""
    path, content, damaged = latest_intact(folder.checkpoints)
    if path is None and damaged:
        raise damaged[0]
    if path is None:
        return 0
    return int(content["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])


def _plan_of(
    settings: Settings, images: float | None, gpus: int | None, on: str, steps: int,
    say: Callable[[str], None],
) -> Plan:  # fmt: skip
    quiet_libraries()
    devices = settings.machine.devices * settings.machine.nodes if gpus is None else int(gpus)
    batch = settings.run.batch_size
    if batch < devices or batch % devices:
        near = ceil(batch / devices) * devices
        raise UserError(
            f"a batch of {batch} images cannot be divided among {devices} devices; give a "
            f"--batch_size that is a multiple of {devices}, such as {near}.",
            parameter="devices" if gpus is None else "gpus",
        )
    assumed = images is not None and settings.run.size is None
    size = settings.run.size or LARGE
    if images is None:
        split = load_split(settings.run, "pretrain")
        images, size = float(len(split)), settings.run.size or native_size(split)
    say(
        f"{settings.run.method}, {settings.model.backbone} of width {settings.model.width:g}, "
        f"views of {size} px{' (assumed; give --size)' if assumed else ''}, "
        f"{counted(batch // devices, 'image')} on each of {counted(devices, 'device')}"
    )
    return _planned(settings.with_changes(size=size), images, devices, on, steps)


def _planned(settings: Settings, images: float, devices: int, on: str, steps: int) -> Plan:
    share = settings.run.batch_size // devices
    cores = CoreMeter()
    step = measured_step(
        settings, share, int(min(images, 1e9)), steps if on == _HERE else 0, devices
    )
    if on == _HERE:
        seconds = statistics.median(step.seconds)
        facts = hardware(step.device)
        name = str(facts.get("gpu") or f"{facts['cpu']}, {counted(facts['threads'], 'thread')}")
        source = f"{counted(steps, 'step')} of {step.batch} images measured here, {name}"
        missed = cores_missed({TAKEN: cores.taken()}, facts)
        if missed is not None:
            source += (
                f"; meanwhile other processes took {missed:.1f} of "
                f"{counted(facts['cores'], 'core')}, so it is slower, and less certain, than "
                "on a free machine"
            )
        speed = Speed(step.batch / seconds, source, name, free_memory(step.device))
    else:
        device, kind = DEVICES[on], step.kind
        if kind not in device.flops:
            raise UserError(
                f"there is no measurement of a {kind} on {on!r}, of {', '.join(device.flops)} "
                "alone; v100 has both.",
                parameter="on",
            )
        flops = device.flops[kind]
        source = (
            f"{flops / 1e12:.1f} TFLOP/s ({device.precision}) as in {device.source[kind]}, and "
            f"{step.flops_per_image / 1e9:.3g} GFLOP an image"
        )
        speed = Speed(flops / step.flops_per_image, source, on, device.memory)
    machines = max(settings.machine.nodes, ceil(devices / _A_MACHINE))
    return Plan(
        images, settings.run.epochs, settings.run.batch_size, devices, machines, speed,
        step.footprint, exchanged=step.exchanged, accumulate=settings.machine.accumulate,
    )  # fmt: skip


def _check_memory(found: Plan, devices: str) -> None:
    """Check that a step fits into a device.

    Args:
        found: The plan.
        devices: What the command calls their number.

    Raises:
        UserError: if not, with the batch that does.
    """
    fits = found.fitting
    if fits is None or fits >= found.part:
        return
    at_a_time = " at a time" if found.accumulate > 1 else ""
    need = (
        f"{memory(found.memory)} are needed on each device with {counted(found.part, 'image')}"
        f"{at_a_time}"
    )
    has = f"{found.speed.device} has {memory(found.speed.memory or 0)}"
    if fits < 1:
        raise UserError(
            f"{need}, and {has}; weights, gradients and optimizer alone take "
            f"{memory(found.footprint.fixed)}.",
            parameter="batch_size",
        )
    share = found.share
    parts = next(n for n in range(1, share + 1) if share % n == 0 and share // n <= fits)
    raise UserError(
        f"{need}, and {has}; {fits} fit: --accumulate {parts} ({counted(share // parts, 'image')} "
        f"at a time), --batch_size {fits * found.accumulate * found.gpus}, or "
        f"--{devices} {ceil(found.batch / (fits * found.accumulate))}.",
        parameter="batch_size",
    )
