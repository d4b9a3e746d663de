"""Weights of other projects, and of earlier runs: found, converted, loaded into a backbone."""

from unmix.weights.facts import settings_of
from unmix.weights.files import Checkpoint, read_checkpoint
from unmix.weights.layouts import LAYOUTS, Found, Layout, find
from unmix.weights.matching import Loaded, load_found
from unmix.weights.names import is_name
from unmix.weights.namings import NAMINGS, Naming
from unmix.weights.networks import Network, network_in, network_of
from unmix.weights.sources import Preparation, Weights, open_weights, usual_preparation
from unmix.weights.trained import Trained, trained_network

__all__ = [
    "LAYOUTS",
    "NAMINGS",
    "Checkpoint",
    "Found",
    "Layout",
    "Loaded",
    "Naming",
    "Network",
    "Preparation",
    "Trained",
    "Weights",
    "find",
    "is_name",
    "load_found",
    "network_in",
    "network_of",
    "open_weights",
    "read_checkpoint",
    "settings_of",
    "trained_network",
    "usual_preparation",
]
