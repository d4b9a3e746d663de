"""The figures of `unmix plot`: each module computes one from runs."""
