"""Operators for 2-D and 3-D: boxes, non-maximum suppression, multilinear sampling, masks, contours, matching."""
