import pytest
import torch
import torch.nn.functional as F
import torchvision

from pixvox.ops import masks as mask_ops
from pixvox.ops.masks import crop_boxes, crop_dense_masks, crop_label_map, paste_crops
from pixvox.structures import Masks


def random_dense(n: int, size: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros(n, *size, dtype=torch.bool)
    for mask in masks:
        low = [int(torch.randint(0, length - 2, (), generator=generator)) for length in size]
        region = tuple(slice(a, a + 2 + int(torch.randint(0, 6, (), generator=generator))) for a in low)
        mask[region] = torch.rand(mask[region].shape, generator=generator) > 0.3
    return masks


@pytest.mark.parametrize("size", [(9, 14), (6, 9, 7)])
def test_dense_masks_survive_cropping(size):
    dense = random_dense(5, size)
    dense[2] = False
    crops, origins = crop_dense_masks(dense)
    assert torch.equal(Masks.from_crops(crops, origins, size).dense(), dense)
    assert crops[2].numel() == 0


@pytest.mark.parametrize("size", [(9, 14), (6, 9, 7)])
def test_label_map_splits_into_its_ids(size):
    label_map = torch.randint(0, 4, size, generator=torch.Generator().manual_seed(0)) * (2**25 + 1)
    crops, origins = crop_label_map(label_map)
    dense = Masks.from_crops(crops, origins, size).dense()
    assert torch.equal(dense, torch.stack([label_map == k * (2**25 + 1) for k in (1, 2, 3)]))
    asked, first = crop_label_map(label_map, [3 * (2**25 + 1), 7, 2**25 + 1])
    dense = Masks.from_crops(asked, first, size).dense()
    assert torch.equal(dense[0], label_map == 3 * (2**25 + 1))
    assert asked[1].numel() == 0
    assert torch.equal(dense[2], label_map == 2**25 + 1)


def test_empty_label_map_has_no_masks_and_ids_asked_of_it_are_empty():
    crops, origins = crop_label_map(torch.zeros(4, 5, dtype=torch.int32))
    assert crops == []
    assert origins.shape == (0, 2)
    crops, origins = crop_label_map(torch.zeros(4, 5, dtype=torch.int32), [1, 2])
    assert [crop.numel() for crop in crops] == [0, 0]


def test_boxes_of_loose_crops_are_tight():
    crop = torch.zeros(4, 5)
    crop[1:3, 2] = 1
    assert crop_boxes([crop, torch.zeros(2, 2)], [[10, 20], [3, 4]]).tolist() == [
        [22, 11, 23, 13],
        [4, 3, 4, 3],
    ]
    assert crop_boxes([], torch.zeros(0, 3, dtype=torch.int64)).shape == (0, 6)


@pytest.mark.parametrize("threshold", [0.5, 0.2])
@pytest.mark.parametrize(("grid", "size"), [((7, 5), (30, 41)), ((3, 4, 5), (12, 20, 17))])
def test_pasting_samples_the_mask_at_pixel_centres(grid, size, threshold):
    dims = len(size)
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.rand(6, *grid, generator=generator)
    low = torch.rand(6, dims, generator=generator) * 12 - 4
    boxes = torch.cat([low, low + 3 + torch.rand(6, dims, generator=generator) * 20], dim=1)
    crops, origins = paste_crops(probabilities, boxes, size, threshold)
    axes = [torch.arange(length) + 0.5 for length in size]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], dim=-1)
    for i in range(6):
        place = 2 * (points - boxes[i, :dims]) / (boxes[i, dims:] - boxes[i, :dims]) - 1
        expected = F.grid_sample(probabilities[i][None, None], place[None], align_corners=False)[0, 0]
        pasted = Masks.from_crops([crops[i]], origins[i : i + 1], size).dense()[0]
        unclear = (expected - threshold).abs() < 1e-5
        assert torch.equal(pasted | unclear, (expected > threshold) | unclear)


def test_pasted_crops_stay_within_box_and_canvas():
    boxes = torch.tensor([[-5.0, -5, 3.2, 4.7], [8, 8, 30, 30], [40, 40, 50, 50], [5, 5, 5, 5]])
    crops, origins = paste_crops(torch.ones(4, 3, 3), boxes, (10, 12))
    assert [tuple(crop.shape) for crop in crops] == [(5, 3), (2, 4), (0, 0), (0, 0)]
    assert origins[1].tolist() == [8, 8]
    assert crops[0].sum() == 14  # all but the outer corner, where the mask fades along both axes
    assert paste_crops(torch.ones(0, 3, 3), torch.zeros(0, 4), (10, 12))[0] == []


@pytest.mark.parametrize("sampling_ratio", [-1, 2])
def test_crops_sampled_in_boxes_equal_roi_align_of_the_canvases(sampling_ratio):
    size = (19, 26)
    dense = random_dense(12, size)
    dense[3] = False
    masks = Masks.from_dense(dense)
    boxes = masks.boxes() + torch.randn(12, 4, generator=torch.Generator().manual_seed(1)) * 3
    boxes[0] = torch.tensor([-6.0, -6, 40, 40])
    rois = torch.cat([torch.arange(12.0)[:, None], boxes], dim=1)
    expected = torchvision.ops.roi_align(dense[:, None].float(), rois, (5, 7), 1.0, sampling_ratio)[:, 0]
    torch.testing.assert_close(
        masks.crop_and_resize(boxes, (5, 7), sampling_ratio), expected, atol=1e-5, rtol=0
    )


def test_crops_of_volumes_sampled_in_boxes_equal_the_own_roi_align():
    from pixvox.ops import roi_align

    dense = random_dense(4, (8, 11, 9))
    masks = Masks.from_dense(dense)
    boxes = masks.boxes() + torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    rois = torch.cat([torch.arange(4.0)[:, None], boxes], dim=1)
    expected = roi_align(dense[:, None].float(), rois, (3, 5, 4), 1.0, 2)[:, 0]
    torch.testing.assert_close(masks.crop_and_resize(boxes, (3, 5, 4), 2), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(9, 13), (4, 9, 13)], ids=["2-D", "3-D"])
def test_masks_at_places_equal_grid_sample_on_full_canvases(monkeypatch, size):
    monkeypatch.setattr(mask_ops, "_PAIRS", 130)  # two masks at a time
    generator = torch.Generator().manual_seed(0)
    dense = torch.rand((4, *size), generator=generator) > 0.5
    dense[1] = False
    dense[2, ..., : size[-1] // 2] = False  # a crop that is smaller than the canvas
    places = torch.rand((60, len(size)), generator=generator) * torch.tensor(size)
    places[0], places[1] = 0.0, torch.tensor(size)  # both ends of the canvas
    scaled = (places.flip(1) / torch.tensor(size[::-1]) * 2 - 1).view(
        1, *[1] * (len(size) - 1), -1, len(size)
    )
    expected = torch.nn.functional.grid_sample(dense[None].float(), scaled, align_corners=False).reshape(
        4, -1
    )
    found = Masks.from_dense(dense).at(places)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert Masks.empty(size).at(places).shape == (0, 60)


@pytest.mark.parametrize("size", [(10, 12), (6, 10, 12)], ids=["2-D", "3-D"])
def test_pooled_masks_are_the_shares_of_cells(size):
    dense = torch.rand((3, *size), generator=torch.Generator().manual_seed(0)) > 0.4
    dense[1] = False
    dense[2, ..., :5] = False
    pool = torch.nn.functional.avg_pool2d if len(size) == 2 else torch.nn.functional.avg_pool3d
    found, valid = Masks.from_dense(dense).pool([n // 2 for n in size], size)
    torch.testing.assert_close(found, pool(dense.float(), 2))
    assert torch.equal(valid, torch.ones(valid.shape))


def test_pooling_counts_the_valid_part_of_a_cell_alone():
    masks = Masks.from_dense(torch.ones((1, 3, 5), dtype=torch.bool))
    found, valid = masks.pool((2, 4), (4, 8), (3, 5))
    assert found.tolist() == [[[1, 1, 1, 0], [1, 1, 1, 0]]]
    assert valid.tolist() == [[1, 1, 0.5, 0], [0.5, 0.5, 0.25, 0]]
    third, valid = Masks.from_dense(torch.eye(3, dtype=torch.bool)[None]).pool((2, 2), (3, 3))
    assert torch.allclose(third, torch.tensor([[[5 / 9, 1 / 9], [1 / 9, 5 / 9]]]))
    assert torch.equal(valid, torch.ones(2, 2))


def test_masks_beyond_the_valid_part_are_cut_off():
    masks = Masks.from_dense(torch.ones((1, 4, 4), dtype=torch.bool))
    found, valid = masks.pool((2, 2), (4, 4), (2, 3))
    assert found.tolist() == [[[1, 1], [0, 0]]]
    assert valid.tolist() == [[1, 0.5], [0, 0]]
