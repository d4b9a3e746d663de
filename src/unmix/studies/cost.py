"""Cost of a condition: forward-equivalents of a step, and measured time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from unmix.config import Settings
from unmix.errors import UserError
from unmix.studies.plan import Study
from unmix.training.profiling import measure_stages
from unmix.training.run.parts import Parts, build_parts

__all__ = ["Cost", "epochs_for", "measure_cost"]

_STEPS = 3


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
    """

    forward_equivalents: float
    step_seconds: float
    steps_per_epoch: int
    epochs: int
    batch_size: int

    def seconds(self, epochs: int | None = None) -> float:
        """Seconds of training, without evaluations."""
        return self.step_seconds * self.steps_per_epoch * (epochs or self.epochs)

    def forwards(self, epochs: int | None = None) -> float:
        """Forward-equivalents of a whole run, in encoded images."""
        images = self.steps_per_epoch * self.batch_size * (epochs or self.epochs)
        return self.forward_equivalents * images

    def per_epoch(self) -> dict[str, float]:
        """The numbers that a cell's JSON file records."""
        images = self.steps_per_epoch * self.batch_size
        return {"forward_equivalents": self.forward_equivalents, "images_per_epoch": images}

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return asdict(self)


def measure_cost(settings: Settings) -> Cost:
    """Time a few steps of a run and count their operations; nothing is written.

    Raises:
        UserError: if the settings do not go together or the data cannot be read.
    """
    parts = build_parts(settings)
    found = measure_stages(parts, steps=_STEPS, warmup=1)
    batch = parts.settings.run.batch_size
    return Cost(
        found["flops_per_image"] / _encoding_flops(parts),
        found["times"].per_image("step") * batch,
        len(parts.module.order),
        parts.settings.run.epochs,
        batch,
    )


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
        UserError: if a condition would be left without an epoch.
    """
    found = {}
    for condition in study.conditions.values():
        cost = costs[condition.name]
        if condition.like is None:
            found[condition.name] = cost.epochs
            continue
        like = costs[condition.like]
        spent = like.seconds() if condition.by == "time" else like.forwards()
        per_epoch = cost.seconds(1) if condition.by == "time" else cost.forwards(1)
        epochs = round(spent / per_epoch)
        if epochs < 1:
            raise UserError(
                f"condition {condition.name!r}: the {condition.by} of {condition.like!r} is less "
                "than one epoch of it; give that one more epochs."
            )
        found[condition.name] = epochs
    return found
