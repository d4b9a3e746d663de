"""Columns of the table that a command reads instead of the run's."""

from __future__ import annotations

from dataclasses import replace

from unmix.config.run import RunSettings
from unmix.data.columns import Columns

__all__ = ["with_columns"]


def with_columns(own: RunSettings, given: Columns, elsewhere: bool) -> tuple[RunSettings, bool]:
    """The settings of the data with the columns that are given, beside the run's own.

    Args:
        own: The run's.
        given: Those that the command was given.
        elsewhere: Whether it is other data than the run's, which may have other columns.

    Returns:
        The settings, and whether a column that they name may be missing.
    """
    if not given.given():
        return own, elsewhere
    usual = (
        Columns() if elsewhere else Columns(own.image_column, own.label_column, own.split_column)
    )
    chosen = replace(
        own,
        image_column=given.image or usual.image,
        label_column=given.label or usual.label,
        split_column=given.split or usual.split,
    )
    return chosen, False
