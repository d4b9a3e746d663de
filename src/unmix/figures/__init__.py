"""Figures, tables and the HTML report, from results."""

from __future__ import annotations

from unmix.figures.accuracy import accuracy_against_epochs, accuracy_against_time
from unmix.figures.predictions import prediction_curves
from unmix.figures.preview import mixtures
from unmix.figures.progress import curves, read_metrics
from unmix.figures.report import page, write_page
from unmix.figures.saving import save
from unmix.figures.series import Condition, conditions_of
from unmix.figures.table import results_table

__all__ = [
    "Condition",
    "accuracy_against_epochs",
    "accuracy_against_time",
    "conditions_of",
    "curves",
    "mixtures",
    "page",
    "prediction_curves",
    "read_metrics",
    "results_table",
    "save",
    "write_page",
]
