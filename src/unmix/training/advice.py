"""What to try when training goes wrong: one table, of flags that the method in question has."""

from __future__ import annotations

from dataclasses import dataclass

from unmix.config import Settings

__all__ = ["Advice", "advice_for"]


@dataclass(frozen=True)
class Advice:
    """What may help, the likeliest first.

    Attributes:
        diverged: Where the loss is no number any more, or exploded.
        collapsed: Where all images get nearly the same features.
        not_learning: Where the loss stays that of guessing.
    """

    diverged: tuple[str, ...] = ("a smaller --lr", "a longer --warmup_epochs")
    collapsed: tuple[str, ...] = ("a smaller --lr", "stronger views")
    not_learning: tuple[str, ...] = ("another --lr",)

    @property
    def if_diverged(self) -> str:
        """The sentence for a loss that diverged."""
        return f"try {_any_of(self.diverged)}"

    @property
    def if_collapsed(self) -> str:
        """The sentence for features that collapsed."""
        return f"try {_any_of(self.collapsed)}"

    @property
    def if_not_learning(self) -> str:
        """The sentence for a loss of guessing."""
        return f"try {_any_of((*self.not_learning, 'more --epochs'))}"


# What helps before the smaller learning rate that helps all.
_COLLAPSED = {
    "byol": ("an --encoder_momentum nearer to 1",),
    "dino": ("a lower --teacher_temperature", "an --encoder_momentum nearer to 1"),
    "mocov3": ("an --encoder_momentum nearer to 1",),
    "swav": ("a smaller --epsilon",),
    "vicreg": ("a larger --variance",),
}
# What helps beside another learning rate.
_NOT_LEARNING = {
    "cmc": ("fewer --negatives",),
    "deepclusterv2": ("fewer --prototypes",),
    "dino": ("a lower --teacher_temperature",),
    "insdis": ("fewer --negatives",),
    "moco": ("a smaller --queue_size",),
    "mocov3": ("a lower --temperature",),
    "nnclr": ("a lower --temperature",),
    "pirl": ("fewer --negatives",),
    "simclr": ("a lower --temperature",),
    "swav": ("a smaller --epsilon", "fewer --prototypes"),
}


def advice_for(settings: Settings) -> Advice:
    """What may help with the method and the settings of a run."""
    method = settings.run.method
    diverged = Advice.diverged
    if settings.method.get("contrast") == "nce":
        # Its constant is settled in the first step, and with few images it is soon far off.
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
