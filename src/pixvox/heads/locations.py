"""Which cells of which grid an object teaches: by its size the level, by its centre the cells."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pixvox.layers import PerAxis, per_axis
from pixvox.ranges import check_at_least
from pixvox.structures import Instances

_GRIDS = {2: (40, 36, 24, 16, 12), 3: (16, 12, 8, 6, 4)}
_SIDES = (6.0, 24.0)  # times the stride: least and greatest side of the objects of a level


@dataclass(frozen=True)
class LocationRule:
    """Chooses levels and cells as "SOLO: Segmenting Objects by Locations" (Wang et al., 2020) does.

    https://arxiv.org/abs/1912.04488, section 3.3; levels and rounding as in mmdet.

    Args:
        num_grids: Cells per axis in array order, per level; the cells of a level cover the canvas evenly.
        scale_ranges: Per level the least and the greatest side of its objects in pixels, both included; the side of
            an object is the geometric mean of those of its box. Ranges may overlap: an object may teach two levels.
        centre: ``"mass"`` is the centre of mass of the mask, ``"box"`` the middle of the box.
        centre_region: Length of the region around the centre whose cells are taught, as a share of the box's; at most
            the neighbours of the central cell.

    Example:
        >>> rule = LocationRule([(4, 4)], [(1, 64)])
        >>> square = torch.zeros(1, 16, 16, dtype=torch.bool)
        >>> square[0, 4:8, 8:13] = True
        >>> rule.locate(Instances(masks=square), (16, 16))[0].cells.tolist()
        [6]
    """

    num_grids: Sequence[tuple[int, ...]]
    scale_ranges: Sequence[Sequence[float]]
    centre: Literal["mass", "box"] = "mass"
    centre_region: float = 0.2

    def locate(self, instances: Instances, size: Sequence[int]) -> list[Taught]:
        """Return, per level, the taught cells and the object of each.

        Args:
            instances: Objects of one image, none to be ignored; those with an empty mask teach nothing.
            size: Canvas in pixels, array order.

        Raises:
            ValueError: If they have no masks.
        """
        if instances.masks is None:
            raise ValueError(
                "this head learns from masks, but the targets have boxes only; give Instances(masks=...)"
            )
        dims = len(size)
        sides = (instances.boxes[:, dims:] - instances.boxes[:, :dims]).flip(1)
        scale = sides.clamp(min=0).double().prod(dim=1) ** (1 / dims)
        if self.centre == "mass":
            centres = instances.masks.centroids() - 0.5  # in the reference the first pixel's centre is at 0
        else:
            centres = (instances.boxes[:, dims:] + instances.boxes[:, :dims]).flip(1) / 2
        real = instances.masks.areas() > 0
        canvas = centres.new_tensor(size)
        found = []
        for grid, (least, greatest) in zip(self.num_grids, self.scale_ranges, strict=True):
            objects = (real & (scale >= least) & (scale <= greatest)).nonzero()[:, 0]
            steps = centres.new_tensor(grid) / canvas
            near = self._near(centres[objects], sides[objects] / 2 * self.centre_region, steps, grid)
            found.append(Taught(near[0], objects[near[1]]))
        return found

    def _near(
        self,
        centres: Float[Tensor, "n dims"],
        reach: Float[Tensor, "n dims"],
        steps: Tensor,
        grid: Sequence[int],
    ) -> tuple[Int[Tensor, " taught"], Int[Tensor, " taught"]]:
        """Return the cells, row-major, within reach of each centre, object by object, and the object of each."""
        middle = (centres * steps).long()
        last = middle.new_tensor(grid) - 1
        low = ((centres - reach) * steps).long().clamp(min=0).maximum(middle - 1)
        high = ((centres + reach) * steps).long().minimum(last).minimum(middle + 1)
        around = middle.new_tensor(list(itertools.product((-1, 0, 1), repeat=len(grid))))
        cells = middle[:, None] + around
        inside: Bool[Tensor, "n around"] = ((cells >= low[:, None]) & (cells <= high[:, None])).all(dim=2)
        rows = torch.zeros_like(cells[..., 0])
        for axis, length in enumerate(grid):
            rows = rows * length + cells[..., axis]
        return rows[inside], inside.nonzero()[:, 0]


@dataclass(frozen=True)
class Taught:
    """The cells of one level that objects of one image teach, and the object of each.

    Args:
        cells: Row-major; a cell that two objects teach stands twice.
        objects: Index of the object of each.
    """

    cells: Int[Tensor, " taught"]
    objects: Int[Tensor, " taught"]

    def owners(self, count: int) -> Int[Tensor, " count"]:
        """Return for each of ``count`` cells the place in ``cells`` of its last object, -1 where it has none."""
        owners = torch.full((count,), -1, dtype=torch.int64, device=self.cells.device)
        places = torch.arange(len(self.cells), device=self.cells.device)
        return owners.scatter_reduce(0, self.cells, places, "amax")


def grids_of(
    given: Sequence[PerAxis] | Literal["auto"], count: int, spatial_dims: int
) -> list[tuple[int, ...]]:
    """Return the cells along each axis, per level."""
    if isinstance(given, str):
        known = _GRIDS[spatial_dims]
        given = known[:count] + known[-1:] * (count - len(known))
    _check_levels(given, count, "num_grids")
    grids = [per_axis(cells, spatial_dims, "num_grids") for cells in given]
    check_at_least(1, num_grids=min(min(grid) for grid in grids))
    return grids


def ranges_of(
    given: Sequence[Sequence[float]] | Literal["auto"], strides: Sequence[Sequence[int]]
) -> list[tuple[float, float]]:
    """Return the least and the greatest side of the objects of each level."""
    if not isinstance(given, str):
        _check_levels(given, len(strides), "scale_ranges")
        for pair in given:
            if len(pair) != 2 or not 0 <= pair[0] < pair[1]:
                raise ValueError(
                    f"each of scale_ranges is [least side, greatest side] in pixels, got {list(pair)}"
                )
        return [(float(pair[0]), float(pair[1])) for pair in given]
    steps = [math.prod(stride) ** (1 / len(stride)) for stride in strides]
    ranges = [(_SIDES[0] * step, _SIDES[1] * step) for step in steps]
    ranges[0] = (0.0, ranges[0][1])
    ranges[-1] = (ranges[-1][0], math.inf)
    return ranges


def sizes_of(given: Sequence[int] | Literal["auto"], count: int) -> list[int]:
    """Return for each level the level whose size it is brought to."""
    if isinstance(given, str):
        return list(range(count)) if count < 3 else [1, *range(1, count - 1), count - 2]
    _check_levels(given, count, "level_sizes")
    if not all(0 <= level < count for level in given):
        raise ValueError(f"level_sizes are numbers of levels from 0 to {count - 1}, got {list(given)}")
    return list(given)


def _check_levels(given: Sequence[object], count: int, name: str) -> None:
    if len(given) != count:
        raise ValueError(
            f"{name} has {len(given)} entries for the {count} levels of the neck; give one per level, or 'auto'"
        )
