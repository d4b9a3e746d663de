"""Checks of combinations of settings that do not need PyTorch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unmix.config.catalog import catalog
from unmix.config.groups import field_names
from unmix.config.settings import Settings
from unmix.errors import UserError, check_choice
from unmix.names import HUGGING_FACE, NO_DATA, is_python, is_stream

__all__ = [
    "check_clipping",
    "check_data",
    "check_local",
    "check_mixture",
    "check_optimizer",
    "check_rule",
    "check_teacher",
]


def check_data(name: str) -> None:
    """Check that `data` is a data set or a path; whether a path holds images is checked later.

    Raises:
        UserError: if it is neither, with the nearest match.
    """
    if name == NO_DATA:
        raise UserError(
            "the run was imported and not trained here, so there is nothing to resume; to train "
            "from its weights give `init` with its folder, and another `run`.",
            parameter="run",
        )
    known = catalog().choices["data"]
    is_path = name.startswith(("~", ".")) or os.sep in name or Path(name).exists()
    if (
        name in known
        or is_path
        or is_python(name)
        or is_stream(name)
        or name.startswith(HUGGING_FACE)
    ):
        return
    try:
        check_choice("data", name, known)
    except UserError as error:
        raise error.with_more("Or give the path of a folder of images.") from None


def check_rule(settings: Settings) -> None:
    """Check that the rule of the label-space mixtures exists and supports the method.

    Raises:
        UserError: otherwise, with the reason.
    """
    name, method = settings.mixture.unmix_rule, settings.run.method
    check_choice("unmix_rule", name, catalog().rules)
    why = catalog().methods[method].facts["why_not"][name]
    if settings.mixture.unmix and why is not None:
        raise UserError(
            f"{name} does not apply to `method={method}`: {why}. Run `unmix methods {method}` for "
            "the rules that do.",
            parameter="unmix_rule",
        )


def check_local(given: Mapping[str, Any], settings: Settings) -> None:
    """Check that there are local crops if a setting of local crops is given.

    Args:
        given: What the user gave, flat. A recipe may have settings for possible local crops.
        settings: Of the run.

    Raises:
        UserError: for the first such setting.
    """
    said = [name for name, value in given.items() if value is not None and _of_local(name)]
    if said and not settings.views.local_crops:
        raise UserError("applies to local crops; give `local_crops` too.", parameter=said[0])


def check_clipping(given: Mapping[str, Any], settings: Settings) -> None:
    """Check that gradients are clipped if it is said by what.

    Args:
        given: What the user gave, flat. A recipe that clips may be told not to.
        settings: Of the run.

    Raises:
        UserError: otherwise.
    """
    if given.get("clip_grad_by") is not None and not settings.optimizer.clip_grad:
        raise UserError(
            "does nothing without a limit; give `clip_grad` too, such as 3.",
            parameter="clip_grad_by",
        )


# Settings of the optimizer, with the one that they need and its values.
_ONLY_WITH = {
    "milestones": ("schedule", ("step",)),
    "gamma": ("schedule", ("step",)),
    "trust": ("optimizer", ("lars", "larc")),
    "momentum": ("optimizer", ("sgd", "lars", "larc")),
}


def check_optimizer(given: Mapping[str, Any], settings: Settings) -> None:
    """Check that nothing is said of a schedule or an optimizer that is not used.

    Args:
        given: What the user gave, flat. A recipe's may stay where another schedule is given.
        settings: Of the run.

    Raises:
        UserError: for the first such setting, with what it applies to.
    """
    for name, (other, values) in _ONLY_WITH.items():
        found = getattr(settings.optimizer, other)
        said = given.get(name) is not None and getattr(settings.optimizer, name) != ()
        if said and found not in values:
            *more, last = (f"`{other}={value}`" for value in values)
            needed = f"{', '.join(more)} or {last}" if more else last
            raise UserError(
                f"does nothing with `{other}={found}`; give {needed} too, or leave it out.",
                parameter=name,
            )


def check_mixture(given: Mapping[str, Any], settings: Settings) -> None:
    """Check that nothing is said of a mixture that is not used.

    Args:
        given: What the user gave, flat, with the recipes. With `unmix: false`, or `IM: false`, the
            rest may stay. Settings of every `IM_type` may be given, as in the released code.
        settings: Of the run.

    Raises:
        UserError: for the first such setting, with what to add.
    """
    mixture, found = settings.mixture, catalog()
    said = {name for name, value in given.items() if value is not None}
    of_image_space = {"IM_type", *(f for facts in found.image_space.values() for f in facts)}
    of_label_space = {f for f in field_names("mixture") if f.startswith("unmix_")} | {"beta"}
    for name in ("mix_from_epoch", "mix_ramp_epochs"):
        if name in said and not (mixture.IM or mixture.unmix or said & {"IM", "unmix"}):
            raise UserError(
                "does nothing without a mixture; add `IM=True` or `unmix=True`, or leave it out.",
                parameter=name,
            )
    for switch, names in (("IM", of_image_space), ("unmix", of_label_space)):
        if getattr(mixture, switch) or switch in said:
            continue
        if others := sorted(said & names):
            raise UserError(
                f"does nothing without `{switch}`; add `{switch}=True`, or leave it out.",
                parameter=others[0],
            )


def check_teacher(settings: Settings) -> None:
    """Check that a method that learns from a teacher has one.

    Raises:
        UserError: if it has none, with what may be given.
    """
    if settings.teacher.get("teacher", "") is None:
        raise UserError(
            f"required by `method={settings.run.method}`: the trained network that it learns from, "
            "such as the folder of a run, a checkpoint of another project, "
            "timm:vit_small_patch14_dinov2.lvd142m or torchvision:resnet50.",
            parameter="teacher",
        )


def _of_local(name: str) -> bool:
    return name.startswith("local_") and name != "local_crops"
