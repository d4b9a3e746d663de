"""Backbones by name."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, cast

from torch import nn

from unmix.backbones.alexnet import AlexNet
from unmix.backbones.base import Backbone
from unmix.backbones.resnet import RESNETS, ResNet
from unmix.backbones.sizes import takes_size
from unmix.backbones.stochastic import drop_alike
from unmix.errors import UserError, check_choice, check_number
from unmix.synonyms import nearest, timm_models

__all__ = ["BACKBONES", "POOLINGS", "VIT_SHAPE", "build", "is_vit", "patch_side"]

BACKBONES = ("alexnet", *RESNETS)
"""The backbones of this package by name; those of timm are `timm:NAME`."""

VIT_SHAPE = ("patch", "heads", "depth", "registers", "class_token", "pooling")
"""The options of `build` that change the weights or the features of a vision transformer."""

POOLINGS = ("class", "average")
"""What the features of a vision transformer are: the class token, or the mean of the patches'."""

_TIMM = "timm:"

# Options of vision transformers: timm's argument, and what it sets.
_VIT = {
    "patch": ("patch_size", "patches"),
    "heads": ("num_heads", "attention heads"),
    "depth": ("depth", "transformer blocks"),
    "registers": ("reg_tokens", "register tokens"),
    "class_token": ("class_token", "class token"),
    "pooling": ("global_pool", "pooling of tokens"),
    "drop_path": ("drop_path_rate", "stochastic depth"),
}


def build(
    name: str,
    *,
    in_channels: int = 3,
    width: float = 1.0,
    stem: str = "auto",
    size: int = 224,
    patch: int | None = None,
    heads: int | None = None,
    depth: int | None = None,
    registers: int | None = None,
    class_token: bool | None = None,
    pooling: str | None = None,
    drop_path: float | None = None,
    drop_path_uniform: bool = False,
    zero_init_residual: bool = False,
) -> Backbone:
    """Build an untrained backbone.

    Args:
        name: One of `BACKBONES`, or `timm:NAME` for a model of the timm package.
        in_channels: Channels of the images.
        width: Factor on the channels of every layer; 1 for timm's models.
        stem: "auto", "small", "medium", "large" or, of ResNets, "padded"; see `check_stem`. "auto"
            for timm's models.
        size: Side of the images in pixels.
        patch: Side of a vision transformer's patches in pixels; by default the model's own.
        heads: Attention heads of a vision transformer; by default the model's own.
        depth: Blocks of a vision transformer; by default the model's own.
        registers: Register tokens of a vision transformer (Darcet et al. 2023), which take part in
            attention and are no part of the features; by default the model's own.
        class_token: Whether a vision transformer has a class token; by default the model's own.
            Without one its patch tokens are averaged.
        pooling: Features of a vision transformer: its "class" token, or the "average" of its patch
            tokens after the last norm; by default the model's own.
        drop_path: Probability with which the last residual branch of a vision transformer is left
            out for an image in training (stochastic depth, Huang et al. 2016), in [0, 1); it rises
            linearly from 0 in the first block. By default 0.
        drop_path_uniform: Whether every block has that probability.
        zero_init_residual: Start a ResNet's blocks as the identity; see `ResNet`.

    Returns:
        A module that maps `(N, in_channels, size, size)` to `(N, feature_dim)`. Convolutional
        networks and timm's vision transformers take other sizes too, the latter multiples of their
        patches' side.

    Raises:
        UserError: if the name is unknown, timm is wanted but not installed, a number is out of
            range, or the patches do not fit.
    """
    check_number("in_channels", in_channels, at_least=1)
    if zero_init_residual and name not in RESNETS:
        raise UserError(
            f"does not apply to {name}, only to {', '.join(RESNETS)}; leave it out.",
            parameter="zero_init_residual",
        )
    given = {
        "patch": patch, "heads": heads, "depth": depth, "registers": registers,
        "class_token": class_token, "pooling": pooling, "drop_path": drop_path,
    }  # fmt: skip
    of_vit = {key: value for key, value in given.items() if value is not None}
    _check_vit(of_vit)
    if drop_path_uniform and drop_path is None:
        raise UserError("applies to `drop_path`; give it too.", parameter="drop_path_uniform")
    if name.startswith(_TIMM):
        found = _build_timm(
            name, in_channels=in_channels, width=width, stem=stem, size=size, of_vit=of_vit
        )
        if drop_path and drop_path_uniform and not drop_alike(found, drop_path):
            raise UserError(
                f"does not apply to {name}, whose stochastic depth is set otherwise; leave it out.",
                parameter="drop_path_uniform",
            )
        return found
    check_choice("backbone", name, BACKBONES)
    if of_vit:
        raise _no_vit(name, next(iter(of_vit)), of_vit)
    if name == "alexnet":
        return AlexNet(in_channels=in_channels, width=width, stem=stem, size=size)
    return ResNet(
        name, in_channels=in_channels, width=width, stem=stem, size=size,
        zero_init_residual=zero_init_residual,
    )  # fmt: skip


def is_vit(backbone: nn.Module) -> bool:
    """Whether a backbone is a vision transformer: patches that are embedded, and blocks."""
    return hasattr(backbone, "patch_embed") and hasattr(backbone, "blocks")


def patch_side(backbone: nn.Module) -> int:
    """Give the side of a vision transformer's patches in pixels; the longer one of two."""
    sides: Any = backbone.patch_embed.patch_size  # type: ignore[union-attr]
    return max(sides) if isinstance(sides, (tuple, list)) else int(sides)


def _build_timm(
    name: str, *, in_channels: int, width: float, stem: str, size: int, of_vit: dict[str, Any]
) -> Backbone:
    try:
        import timm
    except ImportError:
        raise UserError(
            f"{name!r} needs the timm package: pip install 'unmix[timm]'", parameter="backbone"
        ) from None
    if width != 1:
        raise UserError(
            f"{width:g} does not apply to {name!r}; timm's models need 1", parameter="width"
        )
    if stem != "auto":
        raise UserError(
            f"{stem!r} does not apply to {name!r}; timm's models need 'auto'", parameter="stem"
        )
    model_name = name.removeprefix(_TIMM)
    if not timm.is_model(model_name):
        near = nearest(model_name, timm_models(), cutoff=0.6)
        hint = f" Did you mean {_TIMM + near!r}?" if near else ""
        raise UserError(
            f"timm has no model {model_name!r}; timm.list_models() lists those that exist.{hint}",
            parameter="backbone",
        )
    known, _, tag = model_name.partition(".")
    if tag:
        _check_tag(known, tag, timm.list_models(f"{known}.*", pretrained=True))
    plain: dict[str, Any] = {"pretrained": False, "num_classes": 0, "in_chans": in_channels}
    chosen = {_VIT[key][0]: value for key, value in of_vit.items() if key != "pooling"}
    if of_vit.get("class_token") is False:
        chosen |= {"global_pool": "avg", "fc_norm": False}
    model: Any
    try:
        try:
            # Positions are then interpolated where small crops have fewer patches.
            model = _create(model_name, **plain, **chosen, img_size=size, dynamic_img_size=True)
        except TypeError:  # no vision transformer of this kind
            model = _of_size(model_name, size, {**plain, **chosen})
    except (AssertionError, ValueError):  # the dimensions are not a multiple of the heads
        if "heads" not in of_vit:
            raise
        raise UserError(
            f"{of_vit['heads']} does not divide the dimensions of {name}; use a divisor of them, "
            "such as the model's own.",
            parameter="heads",
        ) from None
    except TypeError as error:
        untaken = [key for key in of_vit if f"'{_VIT[key][0]}'" in str(error)]
        if not untaken:
            raise
        raise _no_vit(name, untaken[0], of_vit) from None
    if is_vit(model):
        _check_patches(model, size)
        if "pooling" in of_vit:
            _set_pooling(model, name, of_vit["pooling"])
    elif shape := [key for key in of_vit if key in VIT_SHAPE]:
        raise _no_vit(name, shape[0], of_vit)
    # The attribute is added rather than the model wrapped, so that the parameters keep timm's
    # names.
    model.feature_dim = getattr(model, "head_hidden_size", model.num_features)
    return cast(Backbone, model)


def _create(name: str, **options: Any) -> Any:
    import timm

    try:
        return timm.create_model(name, **options)
    except TypeError as error:
        if "'fc_norm'" not in str(error):
            raise
    options["use_fc_norm"] = options.pop("fc_norm")  # what EVA calls it
    return timm.create_model(name, **options)


def _of_size(name: str, size: int, options: dict[str, Any]) -> Any:
    """A network of timm's for images of a size, which most transformers are built for.

    Raises:
        UserError: if it cannot be built for that size.
    """
    model = _create(name, **options)
    if hasattr(model, "set_input_size"):
        model.set_input_size(img_size=size)
    channels = options["in_chans"]
    if takes_size(model, size, channels):
        return model
    own = model.pretrained_cfg.get("input_size", (channels, 224))[-1]
    with suppress(TypeError, AssertionError, ValueError, RuntimeError):
        model = _create(name, **options, img_size=size)
        if takes_size(model, size, channels):
            return model
    raise UserError(
        f"{size} is no size of images that {_TIMM}{name} takes; use `size={own}`, for which timm "
        "builds it, or another backbone.",
        parameter="size",
    )


def _set_pooling(model: Any, name: str, pooling: str) -> None:
    """Pool the tokens otherwise. The weights stay: the last norm is of each token, as it was."""
    from timm.models.beit import Beit
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer

    # Other classes, also derived ones, pool in ways of their own.
    what = None
    if type(model) not in (VisionTransformer, Beit, Eva):
        what = f"a {type(model).__name__}, has a pooling of its own"
    elif getattr(model, "attn_pool", None) is not None:
        what = "has a trained pooling of its own"
    elif pooling == "class" and getattr(model, "cls_token", None) is None:
        what = "has no class token"
    if what is not None:
        raise UserError(f"{pooling!r} does not apply: {name} {what}.", parameter="pooling")
    model.global_pool = {"class": "token", "average": "avg"}[pooling]


def _check_tag(model: str, tag: str, known: list[str]) -> None:
    """Check that a tag is that of pretrained weights of the model."""
    tags = [name.partition(".")[2] for name in known]
    if tag not in tags:
        near = nearest(tag, tags)
        hint = f" Did you mean {_TIMM}{model}.{near}?" if near else ""
        raise UserError(
            f"timm's {model} has no pretrained weights {tag!r}.{hint} Without a tag it is the same "
            f"network: {_TIMM}{model}.",
            parameter="backbone",
        )


def _check_patches(vit: Any, size: int) -> None:
    """Check that the side of the images is a multiple of the patches'."""
    sides = getattr(vit.patch_embed, "patch_size", None)
    side = sides[0] if isinstance(sides, (tuple, list)) else sides
    if isinstance(side, int) and size % side:
        fits = max((p for p in range(1, side) if size % p == 0), default=1)
        raise UserError(
            f"patches of {side} pixels do not fill images of `size={size}`; use a divisor of it, "
            f"such as {fits}.",
            parameter="patch",
        )


def _check_vit(given: dict[str, Any]) -> None:
    """Check the ranges of the options of a vision transformer."""
    for name, value in given.items():
        if name == "drop_path":
            check_number(name, value, at_least=0, below=1)
        elif name == "pooling":
            check_choice(name, value, POOLINGS)
        elif name != "class_token":
            check_number(name, value, at_least=0 if name == "registers" else 1)
    if given.get("pooling") == "class" and given.get("class_token") is False:
        raise UserError(
            "'class' needs a class token, and `class_token` leaves it out; use 'average'.",
            parameter="pooling",
        )


def _no_vit(name: str, parameter: str, given: dict[str, Any]) -> UserError:
    what = _VIT[parameter][1]
    return UserError(
        f"{given[parameter]} applies only to vision transformers such as "
        f"timm:vit_small_patch16_224; {name} has no {what} to set.",
        parameter=parameter,
    )
