"""Settings, the Lightning module, the run folder, and pretraining itself."""

from unmix.recipes import recipe_names
from unmix.training.pretrain import pretrain
from unmix.training.run_folder import RunFolder
from unmix.training.settings import Settings

__all__ = ["RunFolder", "Settings", "pretrain", "recipe_names"]
