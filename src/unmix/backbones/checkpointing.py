"""Activation checkpointing: activations within a block are computed again, not kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from unmix.backbones.half_encoders import HalfEncoders
from unmix.backbones.split_batch_norm import has_batch_norm
from unmix.errors import UserError

__all__ = ["checkpoint_activations"]

_STAGES = ("layer1", "layer2", "layer3", "layer4", "stages", "blocks")


def checkpoint_activations(backbone: nn.Module) -> None:
    """Keep only the inputs of a network's blocks for the backward pass (Chen et al. 2016).

    What is within a block is computed again there, with the same random numbers: gradients are the
    same, at the cost of another forward pass. Batch norm's statistics are not updated again.
    Parameters keep their names, and a copy of the network is checkpointed like it. Where no
    gradient is needed, as in a momentum encoder, nothing changes.

    Args:
        backbone: A ResNet of this package or torchvision's, a model of timm, or half-encoders of
            these; changed in place.

    Raises:
        UserError: if its blocks are not known.
    """
    if isinstance(backbone, HalfEncoders):
        for half in (backbone.l, backbone.ab):
            checkpoint_activations(half)
        return
    timm = getattr(backbone, "set_grad_checkpointing", None)
    # timm's own would update the statistics of batch norm twice.
    if timm is not None and not has_batch_norm(backbone):
        with suppress(AssertionError):  # of models that do not support it
            timm()
            return
    blocks = _blocks(backbone)
    if not blocks:
        raise UserError(
            f"does not apply to {type(backbone).__name__}, whose blocks are not known; use a "
            "ResNet or one of timm's models, or leave it out.",
            parameter="checkpoint_activations",
        )
    for block in blocks:
        block.forward = MethodType(_checkpointed, block)


def _blocks(backbone: nn.Module) -> list[nn.Module]:
    """The blocks of all stages, in order."""
    found: list[nn.Module] = []
    for name in _STAGES:
        stage = getattr(backbone, name, None)
        if not isinstance(stage, (nn.Sequential, nn.ModuleList)):
            continue
        for part in stage:
            # A stage of timm's, such as ConvNeXt's, has blocks after its downsampling.
            inner = getattr(part, "blocks", None)
            found += inner if isinstance(inner, (nn.Sequential, nn.ModuleList)) else [part]
    return found


def _checkpointed(block: nn.Module, *inputs: Any, **options: Any) -> Any:
    """The forward of a block; its activations are not kept for a backward pass."""

    def forward(*given: Any) -> Any:
        return type(block).forward(block, *given, **options)  # type: ignore[attr-defined]

    if not torch.is_grad_enabled():
        return forward(*inputs)
    if torch.compiler.is_compiling():
        # Compiled code changes buffers once, at its end.
        return checkpoint(forward, *inputs, use_reentrant=False)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _unchanged_buffers(block)

    return checkpoint(forward, *inputs, use_reentrant=False, context_fn=contexts)


@contextmanager
def _unchanged_buffers(block: nn.Module) -> Iterator[None]:
    """Give buffers their values back at the end, as those of batch norm that counts batches."""
    before: list[tuple[Tensor, Tensor]] = []
    if block.training:
        before = [(buffer, buffer.detach().clone()) for buffer in block.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)
