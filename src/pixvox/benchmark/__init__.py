"""Measure models, and every pair of backbone and head."""
