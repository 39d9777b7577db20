from itertools import pairwise, product

import numpy as np
import pytest

from pixvox.data.volumes.crop_grid import CropGrid
from pixvox.errors import ConfigError

SIZES = [((11, 23, 17), (4, 8, 5)), ((16, 16, 16), (8, 4, 16)), ((23, 17), (8, 5))]


def starts(grid):
    return [tuple(part.start for part in region) for region in grid]


@pytest.mark.parametrize(("size", "crop"), SIZES)
def test_crops_lie_around_the_middle_of_the_plane_and_begin_with_the_first_slice(size, crop):
    offsets = [0, *((length % side) // 2 for length, side in zip(size[-2:], crop[-2:], strict=True))][
        -len(size) :
    ]
    expected = product(
        *(
            [offset + place * side for place in range(length // side)]
            for offset, length, side in zip(offsets, size, crop, strict=True)
        )
    )
    assert starts(CropGrid(size, crop)) == list(expected)


@pytest.mark.parametrize(("size", "crop"), SIZES)
@pytest.mark.parametrize("overlap", [0.25, 0.5, 0.8])
def test_neighbours_share_the_overlap(size, crop, overlap):
    grid = CropGrid(size, crop, overlap)
    for along, side, length in zip(grid.starts, grid.crop_size, size, strict=True):
        assert {b - a for a, b in pairwise(along)} <= {side - round(side * overlap)}
        assert along[0] >= 0 and along[-1] + side <= length


@pytest.mark.parametrize(("size", "crop"), SIZES)
@pytest.mark.parametrize("overlap", [0.0, 0.4])
def test_with_cover_every_voxel_is_in_a_crop_of_full_size(size, crop, overlap):
    grid, seen = CropGrid(size, crop, overlap, cover=True), np.zeros(size, dtype=int)
    for region in grid:
        assert seen[region].shape == crop
        seen[region] += 1
    assert seen.all()
    bare = CropGrid(size, crop, overlap)
    assert all(0 <= more - count <= 1 for more, count in zip(grid.counts, bare.counts, strict=True))


def test_an_axis_that_is_shorter_than_a_crop_is_taken_whole():
    grid = CropGrid((3, 20, 20), (8, 10, 10))
    assert [region[0] for region in grid] == [slice(0, 3)] * 4


@pytest.mark.parametrize(("size", "crop"), SIZES)
@pytest.mark.parametrize("most", [1, 300, 2000, 10**6])
def test_blocks_hold_every_crop_once_and_no_more_than_they_may(size, crop, most):
    grid, found = CropGrid(size, crop, overlap=0.5), {}
    for block in grid.blocks(most):
        region, crops = grid.region_of(block), list(grid.crops_of(block))
        assert len(crops) == 1 or np.prod([part.stop - part.start for part in region]) <= most
        for number, place in crops:
            assert number not in found
            assert all(a.start <= b.start and b.stop <= a.stop for a, b in zip(region, place, strict=True))
            found[number] = place
    assert [found[number] for number in range(len(grid))] == list(grid)
    assert most < 10**6 or len(grid.blocks(most)) == 1


@pytest.mark.parametrize(
    ("crop", "overlap", "message"),
    [
        ((4, 4), 0.0, "each of its 3 axes"),
        ((4, 0, 4), 0.0, "above 0"),
        ((4, 4, 4), 1.0, r"in \[0, 1\); got 1.0"),
    ],
)
def test_crops_that_do_not_fit_are_refused(crop, overlap, message):
    with pytest.raises(ConfigError, match=message):
        CropGrid((8, 8, 8), crop, overlap)
