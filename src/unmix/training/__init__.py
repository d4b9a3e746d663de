"""Settings, the Lightning module, the run folder, and pretraining itself."""

from unmix.config import Settings
from unmix.config.recipes import recipe_names
from unmix.training.run.folder import RunFolder
from unmix.training.run.pretrain import pretrain

__all__ = ["RunFolder", "Settings", "pretrain", "recipe_names"]
