"""Datasets on disk, and how to find out which kind a folder holds."""
