"""A run: its components, its folder, and pretraining, from the start or from a checkpoint."""
