"""When the steps of a run are mixed: from an epoch on, with a rising probability."""

from __future__ import annotations

from dataclasses import dataclass

from unmix.mixtures.fields import check_parameters, parameter
from unmix.randomness import generator_for, uniform

__all__ = ["MixtureSchedule"]


@dataclass(frozen=True)
class MixtureSchedule:
    """The probability that a step of a run is mixed; any other step is a plain clean one.

    It is 0 in the first `from_epoch` epochs, rises linearly over the next `ramp_epochs`, by step,
    and then is 1. One coin is tossed for a whole step, for all its images, its accumulated parts
    and all devices alike, so a step without mixtures costs what a clean one costs. In expectation
    the loss is (1 - P) clean + P mixed step's loss: with Un-Mix the mixtures' share rises with P,
    and a rule that replaces the clean loss (i-Mix) takes over from it.

    Args:
        from_epoch: Epochs before the first mixtures; at least 0.
        ramp_epochs: Epochs over which the probability rises to 1; at least 0.

    Raises:
        UserError: if a number is out of range.
    """

    from_epoch: int = parameter(0, at_least=0)
    ramp_epochs: int = parameter(0, at_least=0)

    def __post_init__(self) -> None:
        check_parameters(self)

    def probability(self, step: int, steps_per_epoch: int) -> float:
        """P of a step, in [0, 1].

        Args:
            step: Number of optimizer steps done.
            steps_per_epoch: Optimizer steps of an epoch.
        """
        begun = step - self.from_epoch * steps_per_epoch + 1
        return min(1.0, max(0.0, begun / max(1, self.ramp_epochs * steps_per_epoch)))

    def share(self, epochs: float) -> float:
        """The expected share of the mixed steps of a run, in [0, 1].

        Args:
            epochs: Of the run; above 0.
        """
        begun = max(0.0, epochs - self.from_epoch)
        ramp = min(begun, float(self.ramp_epochs))
        rising = ramp**2 / (2 * self.ramp_epochs) if self.ramp_epochs else 0.0
        return (rising + begun - ramp) / epochs

    def mixes(self, step: int, steps_per_epoch: int, seed: int) -> bool:
        """Whether a step is mixed; the same on all devices and in a resumed run.

        Args:
            step: Number of optimizer steps done.
            steps_per_epoch: Optimizer steps of an epoch.
            seed: Of the run.
        """
        p = self.probability(step, steps_per_epoch)
        if p in (0.0, 1.0):
            return p == 1.0
        return uniform((1,), generator_for(seed, "mixed step", step)).item() < p

    def describe(self, epochs: int) -> str:
        """What happens in a run of so many epochs, in a clause; empty if all steps are mixed."""
        if not self.from_epoch and not self.ramp_epochs:
            return ""
        first = f"from epoch {self.from_epoch + 1} on" if self.from_epoch else "from the start"
        if not self.ramp_epochs:
            return first
        end = self.from_epoch + self.ramp_epochs
        reached = min(1.0, (epochs - self.from_epoch) / self.ramp_epochs)
        last = f"at the end of epoch {min(end, epochs)}"
        return f"{first}, with a probability that rises to {reached:.2g} {last}"
