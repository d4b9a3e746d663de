"""Figures, tables and the HTML report, from results."""

from __future__ import annotations

from unmix.figures.accuracy import accuracy_against_epochs, accuracy_against_time
from unmix.figures.confusion import confusion_matrix
from unmix.figures.embedding import embedding
from unmix.figures.pictures import Picture, PictureRow, picture_grid
from unmix.figures.predictions import prediction_curves
from unmix.figures.preview import mixtures
from unmix.figures.progress import curves, read_metrics
from unmix.figures.report import page, write_page
from unmix.figures.saving import save
from unmix.figures.series import Condition, conditions_of
from unmix.figures.softmax import SoftmaxInput, SoftmaxModel, instance_softmax
from unmix.figures.table import results_table
from unmix.figures.weights import weight_histograms

__all__ = [
    "Condition",
    "Picture",
    "PictureRow",
    "SoftmaxInput",
    "SoftmaxModel",
    "accuracy_against_epochs",
    "accuracy_against_time",
    "conditions_of",
    "confusion_matrix",
    "curves",
    "embedding",
    "instance_softmax",
    "mixtures",
    "page",
    "picture_grid",
    "prediction_curves",
    "read_metrics",
    "results_table",
    "save",
    "weight_histograms",
    "write_page",
]
