"""A run's method, built from its settings."""

from __future__ import annotations

import torch
from torch import nn

from unmix import methods
from unmix.config import Settings
from unmix.errors import renamed
from unmix.methods import Method, method_class
from unmix.training.run.initial import Start

__all__ = ["build_method", "has_narrow_downsampling", "no_teacher"]


def build_method(
    settings: Settings,
    n_data: int,
    size: int,
    start: Start | None = None,
    teacher: nn.Module | None = None,
) -> Method:
    """Build the method with its backbone, initialized by the run's seed.

    Args:
        settings: Settings of the run.
        n_data: Number of training images.
        size: Side of the images in pixels.
        start: Weights that replace the backbone's initial ones before the method copies it; heads
            and memories start as without.
        teacher: What the method learns from, if it learns from a teacher; see `no_teacher`.

    Raises:
        UserError: if a setting does not fit, or the weights are of another network.
    """
    kind = method_class(settings.run.method)
    model = settings.model
    options = {k: v for k, v in settings.method.items() if k not in settings.teacher}
    if settings.teacher:
        options["teacher"] = teacher
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.run.seed)
        backbone = kind.build_backbone(
            model.backbone, width=model.width, stem=model.stem, size=size, patch=model.patch,
            heads=model.heads, depth=model.depth, registers=model.registers,
            class_token=model.class_token, pooling=model.pooling,
            drop_path=model.drop_path, drop_path_uniform=model.drop_path_uniform,
            zero_init_residual=model.zero_init_residual,
        )  # fmt: skip
        if start is not None:
            start.load(backbone)
        with renamed({"n_data": "data"}):
            return methods.build(settings.run.method, backbone, n_data, **options)


def no_teacher(features: int = 1) -> nn.Module:
    """What stands for a teacher where a method only encodes, and asks it nothing."""
    network = nn.Identity()
    network.feature_dim = features  # type: ignore[assignment]
    return network


def has_narrow_downsampling(module: nn.Module) -> bool:
    """Whether a strided 1x1 convolution has fewer than 16 input channels.

    In channels last on a CPU with several threads, oneDNN writes past its workspace in the backward
    pass of such a convolution (oneDNN issue 6035; seen with PyTorch 2.15), which ends the process.
    """
    return any(
        isinstance(layer, nn.Conv2d)
        and layer.kernel_size == (1, 1)
        and max(layer.stride) > 1
        and layer.in_channels < 16
        for layer in module.modules()
    )
