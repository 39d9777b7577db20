"""Colours that tell objects and classes apart, the same in every run."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from jaxtyping import Float, Int, UInt8

from pixvox.data.label_space import label_space_of

IGNORE_COLOR = (150, 150, 150)
"""Grey that the palette never holds, for what is not scored."""

# Strong colours first; the weaker ones follow when there are many classes.
_TONES = ((0.85, 1.00), (0.60, 1.00), (0.95, 0.72))
_GOLDEN_ANGLE = 0.61803398875
NUM_INSTANCE_COLORS = 24


def palette(count: int) -> UInt8[np.ndarray, "count 3"]:
    """Return distinct saturated RGB colours; the first ones stay the same whatever the count.

    Example:
        >>> len({tuple(color) for color in palette(100).tolist()})
        100
    """
    colors = []
    for i in range(count):
        saturation, value = _TONES[(i // 8) % len(_TONES)]
        hue = (0.58 + i * _GOLDEN_ANGLE) % 1.0
        colors.append(colorsys.hsv_to_rgb(hue, saturation, value))
    return (np.array(colors).reshape(count, 3) * 255).round().astype(np.uint8)


def instance_colors(boxes: Float[np.ndarray, "n sides"], margin: float = 3.0) -> UInt8[np.ndarray, "n 3"]:
    """Return a colour per object such that objects whose boxes come near each other differ.

    Args:
        boxes: Absolute boxes ``[x0, y0, (z0,) x1, y1, (z1)]``.
        margin: Distance in pixels or voxels up to which boxes count as near.
    """
    chosen = np.zeros(len(boxes), dtype=np.int64)
    dims = boxes.shape[1] // 2
    low, high = boxes[:, :dims] - margin, boxes[:, dims:] + margin
    for i in range(len(boxes)):
        near = ((low[:i] <= high[i]) & (high[:i] >= low[i])).all(axis=1)
        taken = set(chosen[:i][near].tolist())
        wish = [(i + step) % NUM_INSTANCE_COLORS for step in range(NUM_INSTANCE_COLORS)]
        chosen[i] = next((color for color in wish if color not in taken), wish[0])
    return palette(NUM_INSTANCE_COLORS)[chosen]


def class_colors(
    class_names: Sequence[str], count: int
) -> tuple[UInt8[np.ndarray, "classes 3"], npt.NDArray[np.bool_]]:
    """Return a colour per class, and which classes are drawn: a background class stays see-through.

    The classes of a public dataset, all of them, have the colours that are usual for it.

    Example:
        >>> cityscapes = ["flat", "construction", "object", "nature", "sky", "human", "vehicle"]
        >>> class_colors(cityscapes, 7)[0][0].tolist()
        [128, 64, 128]
    """
    names = list(class_names) + [""] * (count - len(class_names))
    drawn = np.array(
        [name.lower().strip("_") not in ("background", "bg") for name in names[:count]], dtype=bool
    )
    colors, known = palette(count), label_space_of(tuple(class_names))
    if known is not None:
        colors[: known.num_classes] = np.array(known.colors[:count], dtype=np.uint8)
    return colors, drawn


def color_table(colors: UInt8[np.ndarray, "n 3"], largest: int) -> Int[np.ndarray, "entries 3"]:
    """Return a look-up table from label-map ids 0..largest to colours; id i has colour i - 1, in turn."""
    table = np.zeros((largest + 1, 3), dtype=np.int64)
    if len(colors):
        table[1:] = colors[np.arange(largest) % len(colors)]
    return table
