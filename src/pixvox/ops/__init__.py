"""Operators for 2-D and 3-D: boxes, suppression, multilinear sampling, masks, contours, matching."""
