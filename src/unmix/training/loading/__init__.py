"""Loading: the order of the images, and their way from memory or files to a training step."""
