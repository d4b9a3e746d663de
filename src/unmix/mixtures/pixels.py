"""How a draw is applied to a batch, whatever the type of its pixels."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor

from unmix.errors import UserError

__all__ = ["pixelwise"]

Apply = TypeVar("Apply", bound=Callable[..., Tensor])


def pixelwise(apply: Apply) -> Apply:
    """Let a draw's `apply` take pixels of any type, and give a batch of that type of its own.

    A weight would be 0 among integers, so uint8 images are mixed in float32 and rounded to the
    nearest integer, and a mask is where more than half of the weight is. Where nothing was mixed
    the images are copied: a change of the mixtures in place is none of the images.
    """

    @wraps(apply)
    def applied(self: Any, images: Tensor, *others: Any, **named: Any) -> Tensor:
        if not isinstance(images, Tensor):
            kind = type(images).__name__
            raise UserError(f"images: a draw is applied to a tensor (N, C, H, W), not to {kind}.")
        if any(isinstance(each, Tensor) for each in (*others, *named.values())):
            raise UserError("others: is a list of views, such as draw.apply(images, [view]).")
        for view in (view for each in (*others, *named.values()) for view in each):
            floats = view.is_floating_point() == images.is_floating_point()
            if not floats or view.shape[1:2] != images.shape[1:2]:
                raise UserError(
                    f"others: {view.dtype} {tuple(view.shape)}, and the images are {images.dtype} "
                    f"{tuple(images.shape)}; views are of the same units and channels."
                )
        if images.is_floating_point() or images.is_complex():
            mixed = apply(self, images, *others, **named)
            return mixed.clone() if mixed is images or mixed._is_view() else mixed
        given = [_floats(each) for each in others]
        mixed = apply(
            self, images.float(), *given, **{key: _floats(each) for key, each in named.items()}
        )
        if images.dtype == torch.bool:
            return mixed > 0.5
        limits = torch.iinfo(images.dtype)
        return mixed.round().clamp(limits.min, limits.max).to(images.dtype)

    return applied  # type: ignore[return-value]


def _floats(others: Any) -> Any:
    if isinstance(others, Tensor):
        return others.float()
    return [each.float() for each in others]
