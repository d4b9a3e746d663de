"""Evaluation mode for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

__all__ = ["in_evaluation_mode"]


@contextmanager
def in_evaluation_mode(*modules: nn.Module) -> Iterator[None]:
    """Set modules to evaluation mode within the block, and restore the mode of every submodule.

    By `eval` and `train`, not by the attribute: timm's LeViT, TinyViT and others keep what follows
    from their weights from their first batch in evaluation mode until `train` is called.
    """
    modes = [(part, part.training) for module in modules for part in module.modules()]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for part, mode in modes:  # each before its own parts, whose modes may differ
            part.train(mode)
