"""Weights in and out: checkpoints of this project and of others."""

from pixvox.weights.loading import load

__all__ = ["load"]
