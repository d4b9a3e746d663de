"""Features once; kNN and linear probes on them; the published protocols; measures of features."""

from unmix.evaluation.encoder import LoadedEncoder, load_encoder
from unmix.evaluation.features import extract
from unmix.evaluation.knn import knn_accuracy, knn_predict
from unmix.evaluation.linear import STRENGTHS, linear_probe
from unmix.evaluation.metrics import (
    accuracy,
    effective_rank,
    health,
    softness,
    softness_summary,
    spread,
    uniformity,
)
from unmix.evaluation.protocols import PROTOCOLS, Protocol, find_protocol, run_protocol
from unmix.evaluation.splits import Measured, measure, split_features

__all__ = [
    "PROTOCOLS",
    "STRENGTHS",
    "LoadedEncoder",
    "Measured",
    "Protocol",
    "accuracy",
    "effective_rank",
    "extract",
    "find_protocol",
    "health",
    "knn_accuracy",
    "knn_predict",
    "linear_probe",
    "load_encoder",
    "measure",
    "run_protocol",
    "softness",
    "softness_summary",
    "split_features",
    "spread",
    "uniformity",
]
