"""From results to figures, tables and the HTML report."""

from __future__ import annotations

from unmix.figures.accuracy import accuracy_against_epochs
from unmix.figures.predictions import prediction_curves
from unmix.figures.preview import mixtures
from unmix.figures.progress import curves, read_metrics
from unmix.figures.report import write_report
from unmix.figures.saving import save
from unmix.figures.table import ResultsTable, results_table
from unmix.results import Evaluation, RunResults, load_results, write_results

__all__ = [
    "Evaluation",
    "ResultsTable",
    "RunResults",
    "accuracy_against_epochs",
    "curves",
    "load_results",
    "mixtures",
    "prediction_curves",
    "read_metrics",
    "results_table",
    "save",
    "write_report",
    "write_results",
]
