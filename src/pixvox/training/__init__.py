"""Runs: how one begins, ends, is resumed, repeated over a grid and compared; what it leaves in its folder."""
