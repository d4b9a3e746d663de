"""Freezing the backbone for the first epochs, for training that starts from given weights."""

from __future__ import annotations

from torch import nn

from unmix.distributed import world_size
from unmix.methods import Method

__all__ = ["Freezing"]


class Freezing:
    """Freezes a method's backbone for the first epochs: its weights, and batch norm's statistics.

    A frozen backbone is in evaluation mode, and so are its momentum copies, so that queries and
    keys come from the same function; an EMA of weights that do not change stays equal to them.
    Parameters that take no gradient by themselves are left so.

    Args:
        method: The method that is trained.
        epochs: Number of epochs at the start of the run.
    """

    def __init__(self, method: Method, epochs: int) -> None:
        self.method, self.epochs = method, epochs
        self.frozen = False
        self.held: list[nn.Parameter] = []

    def begin_step(self, epoch: int) -> None:
        """Freeze or unfreeze, if this epoch needs it.

        Args:
            epoch: The epoch of the step, from 0.
        """
        frozen = epoch < self.epochs
        # The mode is looked at too, because whoever evaluates may have changed it.
        if frozen and (not self.frozen or self.method.backbone.training):
            self._freeze()
        elif self.frozen and not frozen:
            self._unfreeze()
        self.frozen = frozen

    def end_backward(self) -> None:
        """Drop the gradients of a frozen backbone, which several processes compute together."""
        if self.frozen:
            for parameter in self.method.backbone.parameters():
                parameter.grad = None

    def _freeze(self) -> None:
        self._set_mode(training=False)
        # With several processes every parameter has to take part in the exchange of gradients.
        if world_size() == 1 and not self.held:
            self.held = [p for p in self.method.backbone.parameters() if p.requires_grad]
            for parameter in self.held:
                parameter.requires_grad_(False)

    def _unfreeze(self) -> None:
        self._set_mode(training=True)
        for parameter in self.held:
            parameter.requires_grad_(True)
        self.held = []

    def _set_mode(self, training: bool) -> None:
        for module in (self.method.backbone, *self.method.momentum_backbones):
            module.train(training)
