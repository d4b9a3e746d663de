"""A run: its parts, its folder, and pretraining from start to finish or from a checkpoint on."""
