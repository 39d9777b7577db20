"""Images with known truth, from a seed alone."""
