"""Which cells an object teaches, worked by hand."""

import math

import pytest
import torch

from pixvox.heads.locations import LocationRule, Taught
from pixvox.structures import Instances


def _mask(size, *corners):
    mask = torch.zeros(size, dtype=torch.bool)
    mask[tuple(slice(a, b) for a, b in corners)] = True
    return mask


def _square(size=(32, 32), low=(8, 16), side=6):
    return _mask(size, *((a, a + side) for a in low))


def test_an_object_teaches_every_level_whose_range_holds_its_side():
    masks = torch.stack(
        [_mask((32, 32), (0, 4), (0, 9)), _mask((32, 32), (4, 20), (4, 20))]
    )  # sides 6 and 16
    rule = LocationRule([(8, 8), (4, 4), (2, 2)], [(0, 6), (6, 16), (16.1, math.inf)])
    objects = [taught.objects.unique().tolist() for taught in rule.locate(Instances(masks=masks), (32, 32))]
    assert objects == [[0], [0, 1], []]


def test_the_side_of_a_volumes_object_is_a_cube_root():
    volume = _mask((16, 32, 32), (0, 2), (0, 4), (0, 8))  # 2 x 4 x 8 = 4^3
    rule = LocationRule([(2, 2, 2)] * 2, [(3.99, 4.01), (4.1, 9.0)])
    counts = [len(taught.cells) for taught in rule.locate(Instances(masks=volume[None]), (16, 32, 32))]
    assert counts == [1, 0]


def test_cells_near_the_centre_are_taught_and_no_others():
    # Centre (row, column) = (16.5, 8.5) of cells of 4 pixels, reach 0.2 * 10 / 2 = 1 pixel: rows 15.5 to 17.5.
    instances = Instances(masks=_mask((32, 32), (12, 22), (4, 14))[None])
    taught = LocationRule([(8, 8)], [(0, 99)]).locate(instances, (32, 32))[0]
    assert taught.cells.tolist() == [3 * 8 + 1, 3 * 8 + 2, 4 * 8 + 1, 4 * 8 + 2]
    assert taught.objects.tolist() == [0] * 4


def test_a_large_object_teaches_no_more_than_the_neighbours_of_its_central_cell():
    instances = Instances(masks=torch.ones(1, 32, 32, dtype=torch.bool))
    taught = LocationRule([(16, 16)], [(0, 99)], centre_region=1.0).locate(instances, (32, 32))[0]
    rows, columns = taught.cells // 16, taught.cells % 16
    assert len(taught.cells) == 9
    assert {rows.min().item(), rows.max().item(), columns.min().item(), columns.max().item()} == {6, 8}


def test_cells_beyond_the_border_are_left_out():
    corner = Instances(masks=_mask((32, 32), (0, 3), (29, 32))[None])
    taught = LocationRule([(32, 32)], [(0, 99)], centre_region=2.0).locate(corner, (32, 32))[0]
    assert taught.cells.min() >= 0 and taught.cells.max() < 32 * 32
    assert (taught.cells % 32 >= 28).all() and (taught.cells // 32 <= 2).all()


def test_the_centre_is_that_of_the_mask_or_of_the_box():
    hook = _mask((32, 32), (0, 32), (0, 2)) | _mask((32, 32), (30, 32), (0, 32))
    instances = Instances(masks=hook[None])
    cells = {
        centre: LocationRule([(4, 4)], [(0, 99)], centre, 0.0).locate(instances, (32, 32))[0].cells.tolist()
        for centre in ("mass", "box")
    }
    assert cells == {"mass": [2 * 4 + 1], "box": [2 * 4 + 2]}


def test_an_empty_mask_teaches_nothing():
    masks = torch.stack([torch.zeros(32, 32, dtype=torch.bool), _square()])
    boxes = torch.tensor([[2.0, 2, 20, 20], [16.0, 8, 22, 14]])
    taught = LocationRule([(4, 4)], [(0, 99)]).locate(Instances(boxes, masks=masks), (32, 32))[0]
    assert set(taught.objects.tolist()) == {1}


def test_boxes_alone_are_refused():
    with pytest.raises(ValueError, match="learns from masks, but the targets have boxes only"):
        LocationRule([(4, 4)], [(0, 99)]).locate(
            Instances(torch.tensor([[2.0, 2, 20, 20]]), size=(32, 32)), (32, 32)
        )


def test_the_last_object_of_a_cell_owns_it():
    taught = Taught(torch.tensor([2, 0, 2, 3]), torch.tensor([5, 5, 6, 6]))
    assert taught.owners(5).tolist() == [1, -1, 2, 3, -1]


@pytest.mark.parametrize("size", [(9, 14), (4, 6, 7)])
def test_centroids_are_the_means_of_the_pixels(size):
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(3, *size, generator=generator) < 0.2
    masks[1] = False
    found = Instances(torch.zeros(3, 2 * len(size)), masks=masks).masks.centroids()
    for i in (0, 2):
        torch.testing.assert_close(found[i], masks[i].nonzero().float().mean(dim=0) + 0.5)
    assert found[1].tolist() == [0.0] * len(size)
