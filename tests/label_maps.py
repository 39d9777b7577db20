"""Label maps for tests: connected objects in images and volumes."""

import numpy as np
from scipy import ndimage


def random_objects(size, count, seed=0, radius=(2, 7)):
    """Return a label map of connected parts of balls that hide each other; ids 1..n."""
    random = np.random.default_rng(seed)
    labels = np.zeros(size, dtype=np.int32)
    for number in range(1, count + 1):
        centre, reach = random.uniform(0, size), random.uniform(*radius)
        grid = np.ogrid[tuple(slice(0, length) for length in size)]
        ball = sum((axis - place) ** 2 for axis, place in zip(grid, centre, strict=True)) <= reach**2
        labels[ball & (labels == 0)] = number
    connected = np.zeros_like(labels)
    for number in range(1, count + 1):
        parts, _ = ndimage.label(labels == number)
        connected += np.where(parts > 0, parts + connected.max(), 0).astype(np.int32)
    return connected


def one_to_one(first, second):
    """Tell whether two label maps cut the same voxels into the same objects."""
    pairs = np.unique(np.stack([first.ravel(), second.ravel()]), axis=1)
    background = ((pairs == 0).sum(axis=0) == 1).any()
    return not background and pairs.shape[1] == len(np.unique(first)) == len(np.unique(second))
