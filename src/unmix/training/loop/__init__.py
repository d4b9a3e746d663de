"""The training loop: the Lightning module, optimizers, and callbacks."""
