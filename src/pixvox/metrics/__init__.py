"""Scores of predictions: they know only ``Segmentation``, whatever head or dataset made it."""
