"""Label maps of true objects and of imperfect predictions, for tests of scores."""

import numpy as np


def noisy_label_maps(seed, size, count):
    """Blocks as truth, and the same blocks shifted, cut and merged as prediction: predicted, true."""
    generator = np.random.default_rng(seed)
    true, predicted = np.zeros(size, np.int64), np.zeros(size, np.int64)
    for number in range(1, count + 1):
        corner = [int(generator.integers(0, length - 1)) for length in size]
        side = [int(generator.integers(1, 6)) for _ in size]
        true[tuple(slice(c, c + s) for c, s in zip(corner, side, strict=True))] = number
        if generator.random() < 0.8:
            shift = [max(0, c + int(generator.integers(-1, 2))) for c in corner]
            predicted[tuple(slice(c, c + s) for c, s in zip(shift, side, strict=True))] = number
    return predicted, true
