"""Collectives that work in one process too."""
