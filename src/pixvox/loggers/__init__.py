"""Trackers of experiments; ``metrics.csv`` and TensorBoard need none of this."""
