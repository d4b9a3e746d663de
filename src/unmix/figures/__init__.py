"""Figures, tables and the HTML report, from results."""

from __future__ import annotations

from unmix.figures.accuracy import accuracy_against_epochs
from unmix.figures.predictions import prediction_curves
from unmix.figures.preview import mixtures
from unmix.figures.progress import curves, read_metrics
from unmix.figures.report import write_report
from unmix.figures.saving import save
from unmix.figures.table import results_table

__all__ = [
    "accuracy_against_epochs",
    "curves",
    "mixtures",
    "prediction_curves",
    "read_metrics",
    "results_table",
    "save",
    "write_report",
]
