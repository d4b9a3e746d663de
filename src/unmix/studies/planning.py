"""What a large training takes: time, memory and cost from a measured step, and the bottleneck."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from math import ceil
from typing import Any

from unmix.display import counted, duration, memory, number, rate

__all__ = ["Footprint", "Plan", "Speed"]

BANDWIDTH = 10e9
"""Assumed bytes per second that a device sends while gradients are summed."""
_OVERLAP = 2 / 3  # of a step is the backward pass, in which gradients are sent


@dataclass(frozen=True)
class Speed:
    """How fast one device trains.

    Attributes:
        images_per_second: Through the whole step, with loading left out.
        source: How that is known.
        device: Its name.
        memory: Of the device, in bytes; None if unknown.
    """

    images_per_second: float
    source: str
    device: str
    memory: float | None = None


@dataclass(frozen=True)
class Footprint:
    """Memory of one device, in bytes.

    Attributes:
        weights: All parameters and buffers, with momentum encoders, queues and banks.
        gradients: Of what is trained.
        optimizer: Its state.
        activations: Kept for the backward pass, for each image of the batch.
    """

    weights: float
    gradients: float
    optimizer: float
    activations: float

    @property
    def fixed(self) -> float:
        """What does not grow with the batch."""
        return self.weights + self.gradients + self.optimizer

    def total(self, batch: int) -> float:
        """With a batch of this size."""
        return self.fixed + self.activations * batch

    def sharded(self, parameters: float, devices: int, largest: float) -> Footprint:
        """The same, where devices share the weights.

        Args:
            parameters: Bytes of all parameters; buffers are not shared.
            devices: That share them.
            largest: Bytes of those that are gathered together: two such groups, the next one
                too, and the gradient of one are whole at a time.
        """
        return replace(
            self,
            weights=self.weights - parameters + parameters / devices + 2 * largest,
            gradients=self.gradients / devices + largest,
            optimizer=self.optimizer / devices,
        )


@dataclass(frozen=True)
class Plan:
    """A training, predicted.

    Attributes:
        images: Of an epoch.
        epochs: Passes.
        batch: Images of a step, over all devices.
        gpus: Devices.
        machines: That hold them; each loads images for its own.
        speed: Of one device.
        footprint: Of one device.
        loading: Images per second that one machine reads and decodes; None if unknown.
        bandwidth: Bytes per second that a device sends.
        price: Of a device for an hour; None if not given.
        exchanged: Bytes of sharded weights that are gathered in a step, and of their gradients;
            None if weights are not sharded.
        accumulate: Parts in which the images of a step are encoded.
    """

    images: float
    epochs: int
    batch: int
    gpus: int
    machines: int
    speed: Speed
    footprint: Footprint
    loading: float | None = None
    bandwidth: float = BANDWIDTH
    price: float | None = None
    exchanged: float | None = None
    accumulate: int = 1

    @property
    def share(self) -> int:
        """Images of a step on one device."""
        return self.batch // self.gpus

    @property
    def part(self) -> int:
        """Images that one device encodes at a time."""
        return ceil(self.share / self.accumulate)

    @property
    def compute_seconds(self) -> float:
        """Of a step on one device."""
        return self.share / self.speed.images_per_second

    @property
    def communication_seconds(self) -> float:
        """Of a step: the gradients' sum over all devices, in a ring; or sharded weights."""
        ring = (self.gpus - 1) / self.gpus
        if self.exchanged is not None:
            return ring * self.exchanged / self.bandwidth
        return 2 * ring * self.footprint.gradients / self.bandwidth

    @property
    def waiting_seconds(self) -> float:
        """Of the communication, what the backward pass does not hide."""
        return max(0.0, self.communication_seconds - _OVERLAP * self.compute_seconds)

    @property
    def loading_seconds(self) -> float:
        """Of the images of a step, on all machines; 0 if unknown."""
        return 0.0 if self.loading is None else self.batch / (self.loading * self.machines)

    @property
    def step_seconds(self) -> float:
        """Of a step: images are loaded meanwhile."""
        return max(self.compute_seconds + self.waiting_seconds, self.loading_seconds)

    @property
    def efficiency(self) -> float:
        """Speed of all devices over that of as many single ones."""
        return self.compute_seconds / self.step_seconds

    @property
    def bottleneck(self) -> str:
        """loading, communication or compute."""
        if self.loading_seconds > self.compute_seconds + self.waiting_seconds:
            return "loading"
        return "communication" if self.waiting_seconds > 0 else "compute"

    @property
    def seconds(self) -> float:
        """Of the training, without evaluations."""
        return self.images * self.epochs / self.batch * self.step_seconds

    @property
    def gpu_hours(self) -> float:
        """Of all devices."""
        return self.seconds * self.gpus / 3600

    @property
    def cost(self) -> float | None:
        """In the currency of the price."""
        return None if self.price is None else self.gpu_hours * self.price

    @property
    def memory(self) -> float:
        """Of one device, in bytes."""
        return self.footprint.total(self.part)

    @property
    def fitting(self) -> int | None:
        """The most images at a time that fit into a device's memory; None if that is unknown."""
        if self.speed.memory is None:
            return None
        return max(0, int((self.speed.memory - self.footprint.fixed) / self.footprint.activations))

    def lines(self) -> list[str]:
        """The prediction, then what it assumes."""
        per_second = self.batch / self.step_seconds
        days = f" ({self.seconds / 86400:.1f} days)" if self.seconds > 2 * 86400 else ""
        times = {
            "compute": self.compute_seconds, "communication": self.communication_seconds,
            "loading": self.loading_seconds,
        }  # fmt: skip
        each = ", ".join(f"{name} {_short(t)}" for name, t in times.items() if t)
        cost = "" if self.cost is None else f"   cost: {number(round(self.cost, 2))}"
        of = "" if self.speed.memory is None else f" of {memory(self.speed.memory)}"
        parts = self.footprint
        sharded = self.exchanged is not None
        what = "weights are gathered and gradients summed" if sharded else "gradients are summed"
        return [
            f"time: {duration(self.seconds)}{days} for {number(self.images)} images, "
            f"{counted(self.epochs, 'epoch')}, {counted(self.gpus, 'device')}"
            f"   {number(self.gpu_hours, 3)} device hours{cost}",
            f"bottleneck: {self.bottleneck}   a step of {_short(self.step_seconds)}: {each}"
            f"   {rate(per_second)} images/s in all, {self.efficiency:.0%} of {self.gpus} alone",
            f"memory of a device: {memory(self.memory)}{of}: weights {memory(parts.weights)}, "
            f"gradients {memory(parts.gradients)}, optimizer {memory(parts.optimizer)}, activations"
            f" {memory(parts.activations * self.part)} ({counted(self.part, 'image')}"
            f"{' at a time' if self.accumulate > 1 else ''})",
            "assumed:",
            f"  {rate(self.speed.images_per_second)} images/s on one device: {self.speed.source}",
            f"  {counted(self.machines, 'machine')}, each loading "
            + (
                "as fast as its devices train (not measured: --loading IMAGES_PER_SECOND)"
                if self.loading is None
                else f"{rate(self.loading)} images/s"
            ),
            *(
                [
                    f"  {what} at {memory(self.bandwidth)}/s by each device, during "
                    "the backward pass as far as it lasts (--bandwidth BYTES_PER_SECOND)"
                ]
                if self.gpus > 1
                else []
            ),
            "  without evaluations, the start, and what else the machines do",
        ]

    def as_dict(self) -> dict[str, Any]:
        """Every number."""
        names = (
            "compute_seconds", "communication_seconds", "loading_seconds", "step_seconds",
            "efficiency", "bottleneck", "seconds", "gpu_hours", "cost", "memory",
        )  # fmt: skip
        return {"schema": 1, **asdict(self), **{name: getattr(self, name) for name in names}}


def _short(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms" if seconds < 1 else duration(seconds)
