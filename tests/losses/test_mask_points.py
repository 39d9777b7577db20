"""Where masks are compared with the truth, and what is unknown there."""

import pytest
import torch

from pixvox.losses.mask_points import PointDraw
from pixvox.structures import Instances

SIZES = {2: (16, 24), 3: (8, 16, 24)}


def _points(instances, size, num_points):
    draw = PointDraw(num_points, 3.0, 0.75)
    grid = tuple(length // 4 for length in size)
    return draw(instances, torch.tensor(size), grid, size, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("num_points", [None, 40])
@pytest.mark.parametrize("dims", [2, 3])
def test_an_object_is_known_even_where_a_region_is_ignored(dims, num_points):
    size = SIZES[dims]
    masks = torch.zeros(3, *size, dtype=torch.bool)
    masks[0, ..., 4:12] = masks[1, ..., 4:12] = masks[2, ..., 16:] = True
    ignore = torch.tensor([False, True, True])
    points = _points(Instances(masks=masks, ignore=ignore), size, num_points)
    alone = _points(Instances(masks=masks[:1]), size, num_points)
    assert alone.weight is None and alone.ignored is None
    torch.testing.assert_close(points.truth, alone.truth)
    assert points.ignored[alone.truth[0] == 1].max() == 0, "the double of an object"
    assert points.weight[alone.truth[0] == 1].min() == 1
    assert points.ignored.max() == 1 and points.weight.min() == 0, "the region without an object"
