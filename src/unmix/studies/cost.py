"""Cost of a condition: forward-equivalents of a step, and measured time."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from unmix.backbones import is_vit
from unmix.busy import machine_of
from unmix.config import MixtureSettings, Settings
from unmix.data import TensorImages
from unmix.errors import UserError
from unmix.hardware.devices import hardware
from unmix.methods import Method, Progress
from unmix.randomness import generator_for
from unmix.studies.plan import Study
from unmix.studies.planning import Footprint
from unmix.training.loading.batch import Batch
from unmix.training.loop.clipping import parts_of
from unmix.training.loop.sharding import largest_group
from unmix.training.profiling import count_flops, measure_stages, whole_steps
from unmix.training.run.parts import LARGE, Parts, build_parts
from unmix.training.run.sharded import pretraining_class

__all__ = ["Cost", "Step", "epochs_for", "forward_equivalents", "measure_cost", "measured_step"]

# How much the cost of conditions of equal cost may differ, which have whole epochs.
_UNEQUAL = 0.1

_STEPS = 3
_QUICK = 2e10  # floating-point operations of encoding a batch once, which take about a second
_MOST = 100_000


@dataclass(frozen=True)
class Cost:
    """Cost of training.

    Attributes:
        forward_equivalents: Floating-point operations of a step, forward and backward, over those
            of encoding the batch once with the backbone. About 4 for MoCo, and 7 with Un-Mix.
        step_seconds: Median of some steps, measured when the study began.
        steps_per_epoch: Optimizer steps of an epoch.
        epochs: The condition's own.
        batch_size: Images of a step.
        clean: Forward-equivalents and seconds of a step without mixtures, if not all are mixed.
        schedule: Of the mixed steps: `mix_from_epoch` and `mix_ramp_epochs`.
        machine: What it was measured on; "" if that is not known.
    """

    forward_equivalents: float
    step_seconds: float
    steps_per_epoch: int
    epochs: int
    batch_size: int
    clean: tuple[float, float] | None = None
    schedule: tuple[int, int] = (0, 0)
    machine: str = ""

    def seconds(self, epochs: int | None = None) -> float:
        """Seconds of training, without evaluations."""
        epochs = epochs or self.epochs
        return self._mean(self.step_seconds, 1, epochs) * self.steps_per_epoch * epochs

    def forwards(self, epochs: int | None = None) -> float:
        """Forward-equivalents of a whole run, in encoded images."""
        epochs = epochs or self.epochs
        images = self.steps_per_epoch * self.batch_size * epochs
        return self._mean(self.forward_equivalents, 0, epochs) * images

    def per_epoch(self, epochs: int | None = None) -> dict[str, float]:
        """The numbers that a cell's JSON file records, of a run of so many epochs."""
        images = self.steps_per_epoch * self.batch_size
        mean = self._mean(self.forward_equivalents, 0, epochs or self.epochs)
        return {"forward_equivalents": mean, "images_per_epoch": images}

    def _mean(self, mixed: float, which: int, epochs: int) -> float:
        """Over the steps of a run, of a cost of mixed steps and of others."""
        if self.clean is None:
            return mixed
        start, ramp = self.schedule
        schedule = MixtureSettings(mix_from_epoch=start, mix_ramp_epochs=ramp).schedule()
        share = schedule.share(epochs)
        return share * mixed + (1 - share) * self.clean[which]

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return asdict(self)


def measure_cost(settings: Settings) -> Cost:
    """Time a few steps of a run and count their operations; nothing is written.

    Raises:
        UserError: if the settings do not go together or the data cannot be read.
    """
    if (both := unscheduled(settings)) is not None:
        mixed, clean = (measure_cost(each) for each in both)
        chosen = settings.mixture
        return replace(
            mixed,
            clean=(clean.forward_equivalents, clean.step_seconds),
            schedule=(chosen.mix_from_epoch, chosen.mix_ramp_epochs),
        )
    parts = build_parts(settings)
    found = measure_stages(parts, steps=_STEPS, warmup=1)
    batch = parts.settings.run.batch_size
    return Cost(
        found["flops_per_image"] / _encoding_flops(parts),
        found["times"].per_image("step") * batch,
        len(parts.module.order),
        parts.settings.run.epochs,
        batch,
        machine=machine_of(hardware(parts.machine.device)),
    )


def unscheduled(settings: Settings) -> tuple[Settings, Settings] | None:
    """The settings of a run's mixed steps, and of its others; None if all steps are alike."""
    mixture, none = settings.mixture, {"mix_from_epoch": 0, "mix_ramp_epochs": 0}
    scheduled = mixture.mix_from_epoch or mixture.mix_ramp_epochs
    if not scheduled or not (mixture.IM or mixture.unmix):
        return None
    return settings.with_changes(**none), settings.with_changes(**none, IM=False, unmix=False)


def _encoding_flops(parts: Parts) -> float:
    """Floating-point operations of encoding one image with the backbone."""
    method, size, device = parts.module.method, parts.module.views.size, parts.machine.device
    training = method.training
    method.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        method.features(torch.zeros(2, 3, size, size, device=device))
    method.train(training)
    return counter.get_total_flops() / 2


def epochs_for(study: Study, costs: Mapping[str, Cost]) -> dict[str, int]:
    """The epochs of each condition: its own, or those that cost as much as another's run.

    Args:
        study: Of the conditions.
        costs: Of every condition.

    Raises:
        UserError: if a condition would be left without an epoch, or no whole number of epochs
            comes within a tenth of the cost.
    """
    found = {}
    for condition in study.conditions.values():
        cost = costs[condition.name]
        if condition.like is None:
            found[condition.name] = cost.epochs
            continue
        like = costs[condition.like]
        spent = like.seconds() if condition.by == "time" else like.forwards()
        cost_of = cost.seconds if condition.by == "time" else cost.forwards
        epochs = _nearest(cost_of, spent)
        if epochs < 1:
            raise UserError(
                f"condition {condition.name!r}: the {condition.by} of {condition.like!r} is less "
                "than one epoch of it; give that one more epochs."
            )
        if abs(cost_of(epochs) / spent - 1) > _UNEQUAL:
            raise UserError(
                f"condition {condition.name!r}: no whole number of epochs is the {condition.by} of "
                f"{condition.like!r}; {epochs} are {cost_of(epochs) / spent:.0%} of it. Give that "
                "one more epochs."
            )
        found[condition.name] = epochs
    return found


def _nearest(cost_of: Callable[[int], float], spent: float) -> int:
    """The number of epochs whose cost, which grows with them, is nearest."""
    most = 1
    while cost_of(most) < spent:
        most *= 2
    above = bisect_left(range(1, most + 1), spent, key=cost_of) + 1
    below = cost_of(above - 1) if above > 1 else 0.0
    return above - 1 if spent - below <= cost_of(above) - spent else above


def forward_equivalents(settings: Settings, n_data: int) -> float:
    """Forward-equivalents of a step, as in `Cost`, without the data and without timing.

    They are counted on noise, on the CPU. A batch whose step would take long is halved: all
    but the products of in-batch similarities, which are small, grows linearly with it.

    Args:
        settings: Of a run.
        n_data: Number of training images; memories of more than 100,000 are built smaller.

    Raises:
        UserError: if the settings do not go together.
    """
    if (both := unscheduled(settings)) is not None:
        mixed, clean = (forward_equivalents(each, n_data) for each in both)
        share = settings.mixture.schedule().share(settings.run.epochs)
        return share * mixed + (1 - share) * clean
    batch = settings.run.batch_size // settings.machine.processes
    parts, smaller = _quick_parts(settings, batch, n_data, _QUICK, **_ON_CPU)
    return _count(parts, smaller) / smaller / _encoding_flops(parts)


_ON_CPU = {"device": "cpu", "precision": "32"}


def _quick_parts(
    settings: Settings, batch: int, n_data: int, most: float, **changes: Any
) -> tuple[Parts, int]:
    """Components for a batch whose encoding takes at most so many operations, and the batch."""
    parts = _noise_parts(settings, batch, n_data, **changes)
    per_image, method = _encoding_flops(parts), parts.module.method
    smaller = batch
    while per_image * smaller > most and smaller % 2 == 0 and _takes(method, smaller // 2):
        smaller //= 2
    if smaller < batch:
        parts = _noise_parts(settings, smaller, n_data, **changes)
    return parts, smaller


@contextmanager
def _exchanged(method: Method) -> Iterator[list[int]]:
    """Bytes that sharded weights would exchange within this context, of every forward pass.

    They are gathered for it, and where there is a backward pass once more, and their gradients are
    summed.
    """
    sizes: list[int] = []
    hooks = []
    for part in parts_of(method):
        parameters = list(part.parameters())
        size = sum(p.nbytes for p in parameters)
        trained = sum(p.nbytes for p in parameters if p.requires_grad)

        def note(*_: Any, size: int = size, trained: int = trained) -> None:
            backward = trained and torch.is_grad_enabled()
            sizes.append(2 * size + trained if backward else size)

        hooks.append(part.register_forward_hook(note))
    try:
        yield sizes
    finally:
        for hook in hooks:
            hook.remove()


def _count(parts: Parts, batch: int) -> int:
    """Operations of a step, forward and backward."""
    module = parts.module
    module.method.begin_step(Progress(0, module.total_steps, len(module.order)))
    shape = (batch, 3, module.views.size, module.views.size)
    # Not blank, as features without any spread cannot be whitened.
    pixels = torch.randint(256, shape, dtype=torch.uint8, generator=generator_for(0))
    device = module.device
    found = Batch(torch.arange(batch, device=device), images=pixels.to(device))
    return count_flops(module, found, parts.machine.autocast)


@dataclass(frozen=True)
class Step:
    """A step on one device.

    Attributes:
        seconds: Of each that was timed; means over mixed and other steps, if not all are mixed.
        batch: Its images.
        flops_per_image: Operations, forward and backward; likewise.
        footprint: What it needs of memory.
        kind: Of the network: "convnet" or "transformer".
        device: Where it was measured.
        exchanged: Bytes of weights and gradients that devices exchange if they are sharded; None
            if they are not.
    """

    seconds: list[float]
    batch: int
    flops_per_image: float
    footprint: Footprint
    kind: str
    device: torch.device
    exchanged: float | None = None


def measured_step(
    settings: Settings, batch: int, n_data: int, steps: int, devices: int = 1
) -> Step:
    """Measure a step of a run on noise: time, operations and memory. No data are read.

    A batch whose step would take long on a CPU is halved; so time and activations are said for
    each image.

    Args:
        settings: Of the run.
        batch: Images of a step on one device.
        n_data: Number of training images, for memories of a row per image.
        steps: Steps to time; 0 for none, and then on the CPU.
        devices: That share the weights, if the settings say so.

    Raises:
        UserError: if the settings do not go together.
    """
    if (both := unscheduled(settings)) is not None:
        mixed, clean = (measured_step(each, batch, n_data, steps, devices) for each in both)
        share = settings.mixture.schedule().share(settings.run.epochs)
        each = [s / mixed.batch for s in mixed.seconds], [s / clean.batch for s in clean.seconds]
        means = [share * a + (1 - share) * b for a, b in zip(*each, strict=True)]
        flops = share * mixed.flops_per_image + (1 - share) * clean.flops_per_image
        seconds = [mixed.batch * mean for mean in means]
        return replace(mixed, seconds=seconds, flops_per_image=flops)
    changes: dict[str, Any] = dict({} if steps else _ON_CPU)
    if (splits := settings.method.get("bn_splits")) is not None:
        changes["bn_splits"] = -(-splits // devices)  # of the whole batch, which devices share
    parts, smaller = _quick_parts(settings, batch, n_data, _QUICK, **changes)
    module, device = parts.module, parts.machine.device
    module.to(device)
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    weights = {p.untyped_storage().data_ptr() for p in module.parameters()}
    sharded = settings.machine.strategy == "fsdp"
    if sharded:  # refused where a run would be
        planned = settings.with_changes(devices=devices, nodes=1)
        pretraining_class(planned, module.method, parts.machine)
    saved = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with saved, _exchanged(module.method) as exchanged:
        flops = _count(parts, smaller)
    activations = sum(size for place, size in kept.items() if place not in weights)
    method = module.method
    trained = sum(p.nbytes for p in method.parameters() if p.requires_grad)
    held = [(t, t.nbytes) for t in (*method.parameters(), *method.buffers())]
    # Memories of a row per image were built for fewer.
    built = len(parts.train)
    total = sum(
        size * (n_data / built if t.ndim and t.shape[0] == built else 1.0) for t, size in held
    )
    states = 2 if settings.optimizer.optimizer.startswith("adam") else 1
    footprint = Footprint(total, trained, states * trained, activations / smaller)
    if sharded:
        whole = sum(p.nbytes for p in method.parameters())
        footprint = footprint.sharded(whole, devices, largest_group(method))
    seconds = whole_steps(parts, steps, warmup=1) if steps else []
    kind = "transformer" if is_vit(method.backbone) else "convnet"
    sent = float(sum(exchanged)) if sharded else None
    return Step(seconds, smaller, flops / smaller, footprint, kind, device, sent)


def _noise_parts(settings: Settings, batch: int, n_data: int, **changes: Any) -> Parts:
    """The components of a run on noise, for one device."""
    changed = settings.with_changes(
        batch_size=batch, limit=None, devices=1, nodes=1, strategy="ddp", workers=0, resident="no",
        compile="no", logger="none", evaluate=False, init=None, init_sha256=None, accumulate=1,
        **changes,
    )  # fmt: skip
    size, count = settings.run.size or LARGE, max(2, batch, min(n_data, _MOST))
    images = TensorImages(
        name=settings.run.data, split="train", labels=None, classes=None,
        mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25),
        images=torch.randint(
            256, (1, 3, size, size), dtype=torch.uint8, generator=generator_for(0)
        ).expand(count, -1, -1, -1),
    )  # fmt: skip
    return build_parts(changed, images)


def _takes(method: Method, batch: int) -> bool:
    """Whether a method works with batches of this size."""
    try:
        method.check_batch(batch)
    except UserError:
        return False
    return batch >= 2 * method.smallest_batch
