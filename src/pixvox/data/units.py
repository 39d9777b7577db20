"""Units of the size of a pixel or voxel."""

from __future__ import annotations

MICROMETRES = {"um": 1.0, "mm": 1000.0}
"""Length of each unit in micrometres."""
