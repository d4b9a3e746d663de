"""Settings, the Lightning module, the run folder, and pretraining itself."""

from unmix.config import Settings
from unmix.recipes import recipe_names
from unmix.training.pretrain import pretrain
from unmix.training.run_folder import RunFolder

__all__ = ["RunFolder", "Settings", "pretrain", "recipe_names"]
