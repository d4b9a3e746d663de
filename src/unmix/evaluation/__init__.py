"""Evaluation of encoders: features, kNN, linear probes, the published protocols, and metrics."""

from unmix.evaluation.classifier import LoadedClassifier, load_classifier
from unmix.evaluation.encoder import LoadedEncoder, load_encoder
from unmix.evaluation.features import LabeledFeatures, extract, split_features
from unmix.evaluation.knn import euclidean_knn_predict, knn_accuracy, knn_predict
from unmix.evaluation.layers import LayerFeatures, check_layer, layer_names
from unmix.evaluation.linear import STRENGTHS, linear_probe
from unmix.evaluation.metrics import (
    accuracy,
    effective_rank,
    softness,
    softness_summary,
    spread,
)
from unmix.evaluation.neighbors import Neighbors, nearest_neighbors
from unmix.evaluation.protocol import AugmentedImages, Measurement, Prediction, Protocol, Task
from unmix.evaluation.published import SGDSettings, cmc_settings, moco_settings
from unmix.evaluation.registry import PROBES, PROTOCOLS, evaluate, evaluate_features
from unmix.evaluation.sgd import train_classifier

__all__ = [
    "PROBES",
    "PROTOCOLS",
    "STRENGTHS",
    "AugmentedImages",
    "LabeledFeatures",
    "LayerFeatures",
    "LoadedClassifier",
    "LoadedEncoder",
    "Measurement",
    "Neighbors",
    "Prediction",
    "Protocol",
    "SGDSettings",
    "Task",
    "accuracy",
    "check_layer",
    "cmc_settings",
    "effective_rank",
    "euclidean_knn_predict",
    "evaluate",
    "evaluate_features",
    "extract",
    "knn_accuracy",
    "knn_predict",
    "layer_names",
    "linear_probe",
    "load_classifier",
    "load_encoder",
    "moco_settings",
    "nearest_neighbors",
    "softness",
    "softness_summary",
    "split_features",
    "spread",
    "train_classifier",
]
