"""Optimisers and learning-rate schedules, counted in steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from unmix.training.settings import OptimizerSettings

__all__ = ["Lars", "build_optimizer", "learning_rate_factor"]


class Lars(torch.optim.SGD):
    """SGD that scales each weight matrix's step by its norm over its gradient's (You et al. 2017).

    Parameters of one dimension (biases, batch norm) are stepped as in SGD, without weight decay.

    Args:
        params: The parameters.
        lr: Learning rate.
        momentum: As in SGD.
        weight_decay: L2 penalty on parameters of more than one dimension.
        trust: Trust coefficient, eta in the paper.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 0.001,
    ) -> None:
        # The penalty belongs inside the ratio of norms, so SGD itself must not add it.
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=0.0)
        self.trust, self.decay = trust, weight_decay

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Scale the gradients, then step as SGD does."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.ndim > 1:
                    parameter.grad.copy_(self._scaled(parameter, parameter.grad))
        super().step()
        return loss

    def _scaled(self, parameter: Tensor, gradient: Tensor) -> Tensor:
        gradient = gradient + self.decay * parameter
        size, slope = parameter.norm(), gradient.norm()
        ratio = torch.where((size > 0) & (slope > 0), self.trust * size / slope, 1.0)
        return ratio * gradient


def build_optimizer(
    settings: OptimizerSettings, parameters: Iterable[nn.Parameter], device: torch.device
) -> torch.optim.Optimizer:
    """The optimiser of the settings, for the parameters that take a gradient.

    Args:
        settings: Which, and its numbers.
        parameters: Of the method.
        device: Where they are; on a CPU and on CUDA one fused kernel makes the whole step.
    """
    trained = [p for p in parameters if p.requires_grad]
    fused = device.type in ("cpu", "cuda")
    if settings.optimizer == "adam":
        return torch.optim.Adam(
            trained, settings.lr, weight_decay=settings.weight_decay, fused=fused
        )
    if settings.optimizer == "lars":
        return Lars(
            trained, settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
        )
    return torch.optim.SGD(
        trained, settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay,
        fused=fused,
    )  # fmt: skip


def learning_rate_factor(
    settings: OptimizerSettings, epochs: int, steps_per_epoch: int
) -> Callable[[int], float]:
    """What the learning rate is multiplied by at each step, from 0.

    Cosine runs to 0 at the last step (Loshchilov and Hutter 2017, without restarts); a step
    schedule multiplies by gamma once `milestones` epochs are over; both after a linear warm-up.
    """
    total = epochs * steps_per_epoch
    warmup = round(settings.warmup_epochs * steps_per_epoch)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        if settings.schedule == "cosine":
            done = (step - warmup) / max(1, total - warmup)
            return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        if settings.schedule == "step":
            passed = sum(step >= m * steps_per_epoch for m in settings.milestones)
            return settings.gamma**passed
        return 1.0

    return factor
