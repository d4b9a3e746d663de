"""`--compile`: torch.compile for encoders and views, where it works and is faster."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from unmix.data import StreamedImages
from unmix.hardware.devices import timed
from unmix.training.loop.module import Pretraining

__all__ = ["Compiling", "compile_encoders", "compile_error", "compile_views", "speedup"]

_RUNS = 5


class Compiling(Callback):
    """Compiles encoders and views before training starts.

    Args:
        wanted: "yes" for encoders and views; "auto" for the views alone, on a CUDA device; "no".
            Views are compiled only if that is measured to be faster.
        say: Prints a line.
    """

    def __init__(self, wanted: str, say: Callable[[str], None]) -> None:
        self.wanted, self.say = wanted, say

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compile, or print one line that says why not."""
        assert isinstance(pl_module, Pretraining)
        device = pl_module.device
        unwanted = self.wanted == "no" or (self.wanted == "auto" and device.type != "cuda")
        if unwanted or pl_module.compiled:
            return
        if (error := compile_error(device)) is not None:
            self.say(f"not compiled: {error}")
            return
        self.say(compile_views(pl_module))
        if self.wanted == "yes":
            compile_encoders(pl_module.method)
            pl_module.compiled = True
            self.say("encoders: compiled in the first steps, which takes a minute or two")


def compile_error(device: torch.device) -> str | None:
    """The error of compiling for this device, in one line; None if it works.

    Compiles and runs a small function: a missing C++ compiler or Triton shows only then.
    """
    try:
        torch.compile(lambda x: (x * 2).relu().sum())(torch.ones(64, device=device))
    except Exception as error:  # compilers raise exceptions of many kinds
        return _in_a_line(error)
    return None


def _in_a_line(error: Exception) -> str:
    reason = " ".join(str(error).split()) or type(error).__name__
    return reason.split(". ")[0][:160]


def compile_encoders(method: nn.Module) -> list[nn.Module]:
    """Compile every encoder of a method in place; parameter names and state stay the same.

    Returns:
        The encoders: the outermost modules with a `feature_dim`.
    """
    encoders: list[nn.Module] = []

    def visit(module: nn.Module) -> None:
        for child in module.children():
            if hasattr(child, "feature_dim"):
                encoders.append(child)
            else:
                visit(child)

    visit(method)
    for encoder in encoders:
        encoder.compile(dynamic=False)
    return encoders


def compile_views(module: Pretraining) -> str:
    """Compile the views if that is faster here, for full batches.

    Returns:
        A line for the user, with the speedup, or why they cannot be compiled.
    """
    views = module.views
    streamed = isinstance(module.images, StreamedImages)
    name, apply = ("make_of_crops", views.apply_crops) if streamed else ("make", views.apply)
    plain = getattr(views, name)
    images = example_images(module)
    n, _, height, width = images[0].shape
    draws = views.draw_all(n, height, width, torch.Generator().manual_seed(0))

    def all_views(make: Callable[..., Tensor]) -> Callable[[], list[Tensor]]:
        # Through `apply`, so that what is compiled is what a step calls.
        def run() -> list[Tensor]:
            setattr(views, name, make)
            given = zip(images, draws, strict=True)
            return [apply(image, draw, view) for view, (image, draw) in enumerate(given)]

        return run

    compiled = torch.compile(plain, dynamic=False)
    try:
        ratio = speedup(all_views(plain), all_views(compiled), module.device, timed)
    except Exception as error:  # compilers raise exceptions of many kinds
        setattr(views, name, plain)
        return f"views: not compiled: {_in_a_line(error)}"
    setattr(views, name, plain if ratio <= 1 else compiled)
    if ratio <= 1:
        return f"views: not compiled, which would be {ratio:.2f} times as fast"
    module.compiled = True
    return f"views: compiled, {ratio:.2f} times as fast"


def example_images(module: Pretraining) -> list[Tensor]:
    """For each view this process's part of a full batch of its input: uint8 `(N, 3, H, W)`."""
    sides = [(size, size) for size in module.views.sizes]
    layout = torch.channels_last  # as decoders write
    if not isinstance(module.images, StreamedImages):
        sides = [tuple(module.images.images.shape[2:])] * len(sides)  # type: ignore[attr-defined]
        layout = torch.contiguous_format
    generator = torch.Generator().manual_seed(0)
    made: dict[tuple[int, int], Tensor] = {}
    for side in set(sides):
        shape = (module.order.share, 3, *side)
        pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        made[side] = pixels.to(module.device, memory_format=layout)
    return [made[side] for side in sides]


def speedup(
    plain: Callable[[], Any],
    compiled: Callable[[], Any],
    device: torch.device,
    clock: Callable[[Callable[[], Any], torch.device], float],
) -> float:
    """Speedup of the compiled form: ratio of the median times of alternating runs."""
    for form in (compiled, plain):  # compilation and first allocations
        form()
    pairs = [(clock(plain, device), clock(compiled, device)) for _ in range(_RUNS)]
    one, other = (sorted(times)[_RUNS // 2] for times in zip(*pairs, strict=True))
    return one / other
