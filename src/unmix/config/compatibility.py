"""What does not go together, as far as it can be said before PyTorch is imported."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unmix.config.catalog import catalog
from unmix.config.settings import Settings
from unmix.errors import UserError, check_choice
from unmix.names import is_python

__all__ = ["check_data", "check_local", "check_rule"]


def check_data(name: str) -> None:
    """Check that `--data` may be a data set or a path; whether a path holds images is seen later.

    Raises:
        UserError: for a word that is neither, with the nearest match.
    """
    known = catalog().words["data"]
    is_path = name.startswith(("~", ".")) or os.sep in name or Path(name).exists()
    if name in known or is_path or is_python(name):
        return
    try:
        check_choice("data", name, known)
    except UserError as error:
        raise error.with_more("Or give the path of a folder of images.") from None


def check_rule(settings: Settings) -> None:
    """Check that the rule of the label-space mixtures exists and goes with the method.

    Raises:
        UserError: otherwise, with the reason.
    """
    name, method = settings.mixture.unmix_rule, settings.run.method
    check_choice("unmix_rule", name, catalog().rules)
    why = catalog().methods[method].facts["why_not"][name]
    if settings.mixture.unmix and why is not None:
        raise UserError(
            f"--unmix_rule: {name} does not go with --method {method}: {why}. What does: unmix "
            f"methods {method}."
        )


def check_local(given: Mapping[str, Any], settings: Settings) -> None:
    """Check that nothing is said of local crops where there are none.

    Args:
        given: What the user gave, flat. A recipe may say what local crops would be.
        settings: Of the run.

    Raises:
        UserError: for the first such setting.
    """
    said = [name for name, value in given.items() if value is not None and _of_local(name)]
    if said and not settings.views.local_crops:
        raise UserError(f"--{said[0]}: there are no local crops; give --local_crops N too.")


def _of_local(name: str) -> bool:
    return name.startswith("local_") and name != "local_crops"
