"""Losses that are more than one call of torch."""
