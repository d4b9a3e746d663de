"""Detection of collapse, divergence and runs that do not learn, with advice."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unmix.config import Settings
from unmix.distributed import all_reduce_sum, local
from unmix.evaluation import spread

__all__ = [
    "EXPLODED_LOSS",
    "EXPLODED_WEIGHTS",
    "Advice",
    "Health",
    "advice_for",
    "all_finite",
    "useless",
    "weight_norm",
]


@dataclass(frozen=True)
class Advice:
    """What may help, the likeliest first.

    Attributes:
        diverged: If the loss is not finite or exploded.
        collapsed: If all images get nearly the same features.
        not_learning: If the loss stays at chance level.
    """

    diverged: tuple[str, ...] = ("a smaller --lr", "a longer --warmup_epochs")
    collapsed: tuple[str, ...] = ("a smaller --lr", "stronger views")
    not_learning: tuple[str, ...] = ("another --lr",)

    @property
    def if_diverged(self) -> str:
        """Advice for a loss that diverged."""
        return f"try {_any_of(self.diverged)}"

    @property
    def if_collapsed(self) -> str:
        """Advice for features that collapsed."""
        return f"try {_any_of(self.collapsed)}"

    @property
    def if_not_learning(self) -> str:
        """Advice for a loss at chance level."""
        return f"try {_any_of((*self.not_learning, 'more --epochs'))}"


# Tried before a smaller learning rate, by method.
_COLLAPSED = {
    "all4one": ("a larger --redundancy",),
    "byol": ("an --encoder_momentum closer to 1",),
    "dino": ("a lower --teacher_temperature", "an --encoder_momentum closer to 1"),
    "ibot": ("a lower --teacher_temperature", "an --encoder_momentum closer to 1"),
    "ijepa": ("an --encoder_momentum closer to 1",),
    "lejepa": ("a larger --sigreg",),
    "mocov3": ("an --encoder_momentum closer to 1",),
    "nnbyol": ("an --encoder_momentum closer to 1",),
    "simdino": ("a larger --coding_rate", "a smaller --epsilon"),
    "swav": ("a smaller --epsilon",),
    "tico": ("a larger --covariance",),
    "vicreg": ("a larger --variance",),
}
# Tried after another learning rate, by method.
_NOT_LEARNING = {
    "cmc": ("fewer --negatives",),
    "deepclusterv2": ("fewer --prototypes",),
    "densecl": ("a smaller --queue_size",),
    "dino": ("a lower --teacher_temperature",),
    "distill": ("a lower --teacher_temperature", "--match features"),
    "insdis": ("fewer --negatives",),
    "moco": ("a smaller --queue_size",),
    "mocov3": ("a lower --temperature",),
    "nnbyol": ("a smaller --queue_size",),
    "nnclr": ("a lower --temperature",),
    "pirl": ("fewer --negatives",),
    "ressl": ("a lower --teacher_temperature", "a smaller --queue_size"),
    "simclr": ("a lower --temperature",),
    "swav": ("a smaller --epsilon", "fewer --prototypes"),
}


def advice_for(settings: Settings) -> Advice:
    """Advice for the method and the settings of a run."""
    method = settings.run.method
    diverged = Advice.diverged
    if settings.method.get("contrast") == "nce":
        # Its constant is estimated at the first step, and with few images it is soon far off.
        diverged = ("--contrast softmax", *diverged)
    if str(settings.machine.precision) != "32":
        diverged = (*diverged, "--precision 32")
    return Advice(
        diverged=diverged,
        collapsed=(*_COLLAPSED.get(method, ()), *Advice.collapsed),
        not_learning=(*Advice.not_learning, *_NOT_LEARNING.get(method, ())),
    )


def _any_of(things: tuple[str, ...]) -> str:
    return things[0] if len(things) == 1 else f"{', '.join(things[:-1])}, or {things[-1]}"


# In multiples of the loss at the first step.
RISING_LOSS, EXPLODED_LOSS = 10.0, 100.0
# Spread of constant features; float32 rounding leaves about 1e-7.
CONSTANT = 1e-6
# With batch norm the outputs do not depend on the scale of the weights, so this may be the only
# sign.
EXPLODED_WEIGHTS = 1e4


def all_finite(tensors: Iterable[Tensor]) -> Tensor:
    """Whether all values of all tensors are finite: a bool tensor on their device.

    Of sharded tensors this process's parts count.
    """
    finite = []
    for tensor in map(local, tensors):
        if tensor.is_floating_point() and tensor.numel():
            # Not isfinite, which would allocate a byte per element of a memory bank.
            low, high = torch.aminmax(tensor.detach())
            finite.append(low.isfinite() & high.isfinite())
    return torch.stack(finite).all() if finite else torch.tensor(True)


@torch.no_grad()
def weight_norm(module: nn.Module) -> Tensor:
    """L2 norm of all weights of a module: a scalar tensor on their device.

    If they are sharded, all processes have to call it.
    """
    parts = [local(p) for p in module.parameters()]
    norm = torch.stack([part.float().norm() for part in parts]).norm()
    sharded = any(part is not p for part, p in zip(parts, module.parameters(), strict=True))
    return all_reduce_sum(norm.square()).sqrt() if sharded else norm


def useless(features: Tensor) -> str | None:
    """Why an encoder is useless, in a clause: constant features. None if it is not.

    Args:
        features: Features (N, D) of different images.
    """
    if len(features) > 1 and spread(features) < CONSTANT:
        return "it gives all images the same features"
    return None


class Health:
    """Warns when training has collapsed, diverges, or does not learn.

    Args:
        chance_loss: The loss of a model that has learned nothing (chance level), or None.
        advice: Advice for the method.
    """

    def __init__(self, chance_loss: float | None, advice: Advice | None = None) -> None:
        self.chance_loss, self.advice = chance_loss, advice or Advice()
        self.first_loss: float | None = None
        self.stuck_epochs = 0

    def state_dict(self) -> dict[str, Any]:
        """State for the checkpoint."""
        return {"stuck_epochs": self.stuck_epochs, "first_loss": self.first_loss}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of a checkpoint."""
        self.first_loss = state["first_loss"]
        self.stuck_epochs = state["stuck_epochs"]

    def warnings(self, measured: dict[str, float], progress: float) -> list[str]:
        """Warnings from the metrics of an epoch.

        Args:
            measured: `loss_clean`, `spread`, `effective_rank` and metrics of the method.
            progress: Fraction of the epochs that are done, in (0, 1].
        """
        lines = []
        rank, width = measured.get("effective_rank", math.inf), measured.get("spread", 1.0)
        if width < 0.05 or rank < 2:
            lines.append(
                f"collapsed: all images get nearly the same features (spread {width:.2f}, rank "
                f"{rank:.1f}); {self.advice.if_collapsed}."
            )
        total = measured.get("loss")
        if total is not None and self.times_first(total) > RISING_LOSS:
            lines.append(f"diverging: {self.growth(total)}; {self.advice.if_diverged}.")
        loss = measured.get("loss_clean", total)
        if "loss_mixed" in measured and "loss_clean" not in measured:
            loss = None  # chance level is known for clean views only
        full = measured.get("queue_fill", 1.0) >= 1
        stuck = self.chance_loss is not None and loss is not None and loss > 0.98 * self.chance_loss
        # The first epoch with a full queue is the hardest; one more has to confirm it.
        self.stuck_epochs = self.stuck_epochs + 1 if stuck and full else 0
        if self.stuck_epochs >= 2 and progress >= 0.2:
            lines.append(
                f"not learning yet: the loss {loss:.2f} is at chance level "
                f"({self.chance_loss:.2f}, the log of the number of candidates); "
                f"{self.advice.if_not_learning}."
            )
        return lines

    def times_first(self, loss: float) -> float:
        """Ratio of a loss to the largest of 1, the first step's loss, and chance level.

        0 if neither is known.
        """
        if self.first_loss is None and self.chance_loss is None:
            return 0.0
        return loss / max(1.0, abs(self.first_loss or 0.0), self.chance_loss or 0.0)

    def growth(self, loss: float) -> str:
        """A clause for a loss that has grown, beside that of the first step and chance level."""
        beside = [] if self.first_loss is None else [f"{self.first_loss:.3g} at the first step"]
        if self.chance_loss is not None:
            beside.append(f"{self.chance_loss:.3g} at chance level")
        return f"the loss has grown to {loss:.3g} ({', '.join(beside)})"
