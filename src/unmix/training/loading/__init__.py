"""Data loading: the order of the images, and how they get to the training step."""
