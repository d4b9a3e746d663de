"""A backbone from its name."""

from __future__ import annotations

from typing import cast

from unmix.backbones.alexnet import AlexNet
from unmix.backbones.base import Backbone
from unmix.backbones.resnet import RESNETS, ResNet
from unmix.errors import UserError, check_choice, check_number

__all__ = ["BACKBONES", "build"]

BACKBONES = ("alexnet", *RESNETS)

_TIMM = "timm:"


def build(
    name: str,
    *,
    in_channels: int = 3,
    width: float = 1.0,
    stem: str = "auto",
    size: int = 224,
) -> Backbone:
    """Build an untrained backbone.

    Args:
        name: One of `BACKBONES`, or `timm:NAME` for a model of the timm package.
        in_channels: Channels of the images.
        width: Factor on the channels of every layer; 1 for timm's models.
        stem: "auto", "small", "medium" or "large"; see `check_stem`. "auto" for timm's models.
        size: Side of the images in pixels.

    Returns:
        A module that maps `(N, in_channels, size, size)` to `(N, feature_dim)`.

    Raises:
        UserError: if the name is unknown, timm is wanted but not installed, or a number is out of
            range.
    """
    check_number("--in_channels", in_channels, at_least=1)
    if name.startswith(_TIMM):
        return _build_timm(name, in_channels=in_channels, width=width, stem=stem, size=size)
    check_choice("--backbone", name, BACKBONES)
    if name == "alexnet":
        return AlexNet(in_channels=in_channels, width=width, stem=stem, size=size)
    return ResNet(name, in_channels=in_channels, width=width, stem=stem, size=size)


def _build_timm(name: str, *, in_channels: int, width: float, stem: str, size: int) -> Backbone:
    try:
        import timm
    except ImportError:
        raise UserError(
            f"--backbone: {name!r} needs the timm package: pip install 'unmix[timm]'"
        ) from None
    if width != 1:
        raise UserError(f"--width: {width:g} does not go with {name!r}; timm's models need 1")
    if stem != "auto":
        raise UserError(f"--stem: {stem!r} does not go with {name!r}; timm's models need 'auto'")
    model_name = name.removeprefix(_TIMM)
    if not timm.is_model(model_name):
        raise UserError(
            f"--backbone: timm has no model {model_name!r}; timm.list_models() names what it has"
        )
    model = timm.create_model(model_name, pretrained=False, num_classes=0, in_chans=in_channels)
    # Transformers are built for one image size; convolutional networks have nothing to set.
    if hasattr(model, "set_input_size"):
        model.set_input_size(img_size=size)  # type: ignore[operator]
    # The attribute is added rather than the model wrapped, so that the parameters keep timm's
    # names.
    model.feature_dim = getattr(model, "head_hidden_size", model.num_features)
    return cast(Backbone, model)
