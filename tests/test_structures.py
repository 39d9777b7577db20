import numpy as np
import pytest
import torch

from pixvox.structures import Batch, Features, Geometry, Instances, Masks, Segmentation

SIZES = [(9, 14), (4, 7, 5)]


def random_masks(size, count=5, seed=0):
    """Blobs that overlap; the last mask is empty."""
    generator = torch.Generator().manual_seed(seed)
    dense = torch.zeros(count, *size, dtype=torch.bool)
    for i in range(count - 1):
        region = tuple(
            slice(
                start := int(torch.randint(0, length - 1, (), generator=generator)), start + 1 + length // 2
            )
            for length in size
        )
        dense[(i, *region)] = torch.rand(dense[(i, *region)].shape, generator=generator) > 0.3
    return dense


def equal(first: Masks, second: Masks) -> bool:
    return first.size == second.size and torch.equal(first.dense(), second.dense())


# Masks


@pytest.mark.parametrize("size", SIZES)
def test_dense_masks_come_back(size):
    dense = random_masks(size)
    masks = Masks.from_dense(dense)
    assert torch.equal(masks.dense(), dense)
    assert masks.areas().tolist() == dense.flatten(1).sum(1).tolist()
    assert masks.data.numel() < dense.numel()


@pytest.mark.parametrize("size", SIZES)
def test_boxes_are_tight_and_in_xy_order(size):
    masks = Masks.from_dense(random_masks(size))
    for mask, box in zip(masks.dense()[:-1], masks.boxes()[:-1], strict=True):
        where = mask.nonzero()
        expected = [*where.min(0).values.flip(0).tolist(), *(where.max(0).values + 1).flip(0).tolist()]
        assert box.tolist() == expected
    low, high = masks.boxes()[-1].chunk(2)
    assert torch.equal(low, high)  # an empty mask


@pytest.mark.parametrize("size", SIZES)
def test_label_map_comes_back(size):
    generator = torch.Generator().manual_seed(3)
    label_map = torch.randint(0, 4, size, generator=generator)
    masks = Masks.from_label_map(label_map)
    assert torch.equal(masks.label_map(), label_map.int())
    large = label_map * 70_000
    assert torch.equal(Masks.from_label_map(large).label_map(), label_map.int())
    picked = Masks.from_label_map(label_map, ids=[3, 1])
    assert torch.equal(picked.dense(), torch.stack([label_map == 3, label_map == 1]))


@pytest.mark.parametrize("size", SIZES)
def test_rle_comes_back(size):
    masks = Masks.from_dense(random_masks(size))
    assert equal(Masks.from_rle(masks.rle()), masks)


def test_rle_equals_pycocotools():
    from pycocotools import mask as mask_tools

    dense = random_masks((9, 14))
    for rle, mask in zip(Masks.from_dense(dense).rle(), dense, strict=True):
        expected = mask_tools.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))
        assert rle["counts"] == expected["counts"].decode()
        assert rle["size"] == expected["size"]


def test_polygons_are_rasterised_as_in_coco():
    from pycocotools import mask as mask_tools

    parts = [[1.2, 1.0, 9.6, 2.2, 5.1, 7.9], [10.0, 3.0, 13.0, 3.0, 13.0, 6.5]]
    masks = Masks.from_polygons([parts], (9, 14))
    expected = mask_tools.decode(mask_tools.merge(mask_tools.frPyObjects(parts, 9, 14)))
    assert np.array_equal(masks.dense()[0].numpy(), expected.astype(bool))


def test_polygons_of_masks_cover_them():
    label_map = torch.zeros(12, 17, dtype=torch.int64)
    label_map[2:8, 3:12] = 1
    label_map[9:11, 1:5] = 2
    masks = Masks.from_label_map(label_map)
    back = Masks.from_polygons(masks.polygons(), masks.size)
    common = (back.dense() & masks.dense()).flatten(1).sum(1)
    union = (back.dense() | masks.dense()).flatten(1).sum(1)
    assert (common / union).min() > 0.6


@pytest.mark.parametrize("size", SIZES)
def test_no_masks_are_safe_everywhere(size):
    empty = Masks.empty(size)
    assert len(empty) == 0
    assert empty.dense().shape == (0, *size)
    assert empty.boxes().shape == (0, 2 * len(size))
    assert empty.areas().shape == (0,)
    assert not empty.label_map().any()
    assert empty.rle() == []
    assert len(empty[[]]) == len(empty[torch.zeros(0, dtype=torch.bool)]) == 0
    assert len(Masks.cat([empty, empty])) == 0
    assert len(Masks.from_dense(torch.zeros(0, *size, dtype=torch.bool))) == 0
    assert len(Masks.from_label_map(torch.zeros(size, dtype=torch.int64))) == 0
    if len(size) == 2:
        assert empty.polygons() == []
        assert len(Masks.from_polygons([], size)) == 0


@pytest.mark.parametrize("size", SIZES)
def test_indexing_equals_dense_indexing(size):
    dense = random_masks(size)
    masks = Masks.from_dense(dense)
    keep = torch.tensor([True, False, True, True, False])
    for index in ([3, 0, 3], keep, slice(1, 4), torch.tensor([4])):
        assert torch.equal(masks[index].dense(), dense[index])
    assert torch.equal(Masks.cat([masks[:2], masks[2:]]).dense(), dense)
    assert [crop.sum().item() for crop in masks] == masks.areas().tolist()


def test_overlaps_are_painted_in_order():
    masks = Masks.from_dense(torch.tensor([[[1, 1, 0]], [[0, 1, 1]]], dtype=torch.bool))
    assert masks.label_map().tolist() == [[1, 1, 2]]
    assert masks.label_map(order=[1, 0]).tolist() == [[2, 1, 1]]


def test_masks_refuse_what_does_not_fit():
    with pytest.raises(ValueError, match="need 4 elements, but data has 3"):
        Masks(torch.ones(3, dtype=torch.bool), torch.tensor([[0, 0]]), torch.tensor([[2, 2]]), (4, 4))
    with pytest.raises(ValueError, match="cannot be joined"):
        Masks.cat([Masks.empty((2, 3)), Masks.empty((3, 2))])
    with pytest.raises(ValueError, match=r"Masks\.empty"):
        Masks.from_rle([])


# Instances


@pytest.mark.parametrize("size", SIZES)
def test_every_form_of_masks_gives_the_same_instances(size):
    label_map = torch.zeros(size, dtype=torch.int64)
    label_map[..., 1:3, 2:4] = 1
    label_map[..., 4:6, 1:5] = 2
    expected = Instances(masks=label_map)
    forms = [torch.stack([label_map == 1, label_map == 2]), expected.masks, expected.masks.rle()]
    for form in forms:
        instances = Instances(masks=form)
        assert equal(instances.masks, expected.masks)
        assert torch.equal(instances.boxes, expected.boxes)
        assert instances.size == size
    assert expected.labels.tolist() == [0, 0]
    assert expected.ignore.tolist() == [False, False]


def test_polygons_need_the_canvas():
    outline = [[[1.0, 1.0, 5.0, 1.0, 5.0, 4.0, 1.0, 4.0]]]
    assert Instances(masks=outline, size=(6, 8)).boxes.shape == (1, 4)
    with pytest.raises(ValueError, match=r"size=\(h, w\)"):
        Instances(masks=outline)
    with pytest.raises(ValueError, match=r"size=\(h, w\)"):
        Instances(masks=[])
    assert len(Instances(masks=[], size=(6, 8))) == 0


def test_instances_refuse_fields_of_different_length():
    with pytest.raises(ValueError, match=r"'boxes': 2.*'labels': 1"):
        Instances(masks=torch.tensor([[1, 2]]), labels=torch.tensor([0]))
    with pytest.raises(ValueError, match=r"Instances\.empty"):
        Instances(labels=torch.tensor([0]))


@pytest.mark.parametrize("size", SIZES)
def test_empty_instances_are_typed(size):
    empty = Instances.empty(size, scores=True)
    assert empty.boxes.shape == (0, 2 * len(size))
    assert (empty.boxes.dtype, empty.labels.dtype) == (torch.float32, torch.int64)
    assert (empty.ignore.dtype, empty.scores.dtype) == (torch.bool, torch.float32)
    assert len(empty[[]]) == len(empty.to("cpu")) == 0
    assert Instances.empty(size).scores is None


def test_instances_are_indexed_in_every_field():
    instances = Instances(
        masks=torch.tensor([[1, 2, 2, 3]]),
        labels=torch.tensor([5, 6, 7]),
        scores=torch.tensor([0.1, 0.2, 0.3]),
        polygons=[[[0.0] * 6], [[1.0] * 6], [[2.0] * 6]],
        ignore=torch.tensor([False, True, False]),
    )
    for index in ([2, 1], torch.tensor([2, 1])):
        picked = instances[index]
        assert picked.labels.tolist() == [7, 6]
        assert picked.masks.areas().tolist() == [1, 2]
        assert picked.polygons == [[[2.0] * 6], [[1.0] * 6]]
        assert picked.ignore.tolist() == [False, True]
    assert instances[instances.scores > 0.15].labels.tolist() == [6, 7]
    assert instances[1:].labels.tolist() == [6, 7]


def test_boxes_without_masks_keep_the_given_size():
    instances = Instances(boxes=torch.tensor([[0.0, 0.0, 2.0, 3.0]]), size=(5, 6))
    assert instances.masks is None
    assert Segmentation(instances).size == (5, 6)


# Geometry


@pytest.mark.parametrize(
    ("input_size", "valid", "original"),
    [((64, 96), (50, 90), (100, 45)), ((8, 32, 64), (6, 30, 60), (3, 60, 240))],
)
def test_boxes_go_to_the_original_frame_and_back(input_size, valid, original):
    geometry = Geometry(input_size, valid, original)
    corner = torch.tensor(valid[::-1], dtype=torch.float32)
    box = torch.cat([corner * 0.25, corner * 0.75])[None]
    far = torch.tensor(original[::-1], dtype=torch.float32)
    mapped = geometry.boxes_to_original(box)
    assert torch.allclose(mapped, torch.cat([far * 0.25, far * 0.75])[None])
    assert torch.allclose(geometry.boxes_from_original(mapped), box)
    outside = torch.cat([corner * 0.5, corner * 2])[None]  # beyond the valid part
    assert torch.allclose(geometry.boxes_to_original(outside)[0, len(valid) :], far)


def test_identity_geometry_changes_nothing():
    geometry = Geometry.identity((5, 7), spacing=(2.0, 0.5))
    boxes = torch.tensor([[1.0, 2.0, 6.0, 5.0]])
    assert torch.equal(geometry.boxes_to_original(boxes), boxes)
    assert (geometry.scale, geometry.spatial_dims) == ((1.0, 1.0), 2)


def test_input_frame_leaves_boxes_where_they_are():
    geometry = Geometry((64, 96), (50, 90), (100, 45)).input_frame()
    boxes = torch.tensor([[1.0, 2.0, 60.0, 40.0]])
    assert torch.equal(geometry.boxes_to_original(boxes), boxes)
    assert geometry.input_size == (64, 96)


# Segmentation and batch


def test_segmentation_tells_its_size():
    assert Segmentation(class_map=torch.zeros(3, 4, dtype=torch.int64)).size == (3, 4)
    assert Segmentation(Instances.empty((2, 3, 4))).spatial_dims == 3
    assert Segmentation(geometry=Geometry.identity((5, 6))).size == (5, 6)
    with pytest.raises(ValueError, match="neither"):
        _ = Segmentation().size


def test_label_map_follows_the_scores():
    masks = torch.tensor([[[1, 1, 0]], [[0, 1, 1]]], dtype=torch.bool)
    result = Segmentation(Instances(masks=masks, scores=torch.tensor([0.2, 0.9])))
    assert result.label_map().tolist() == [[2, 1, 1]]
    with pytest.raises(ValueError, match="no masks and no class map"):
        Segmentation().label_map()


def test_batch_knows_its_valid_sizes():
    geometries = [Geometry((8, 8), (6, 7), (12, 14)), Geometry.identity((8, 8))]
    batch = Batch(torch.zeros(2, 3, 8, 8), [Instances.empty((8, 8))] * 2, geometries)
    assert batch.valid_sizes.tolist() == [[6, 7], [8, 8]]
    assert len(batch.to("cpu")) == 2


def test_streams_of_an_image_are_drawn_apart_and_again_alike():
    maps, sizes = (torch.zeros(2, 1, 2, 3),), torch.tensor([[8, 12]] * 2)
    features = Features(maps, ((4, 4),), torch.zeros(2, 1, 8, 12), (8, 12), sizes, seeds=[7, 2**32 - 1])
    first, second, again = (
        [torch.rand(3, generator=g).tolist() for g in features.generators(stream)] for stream in (0, 1, 0)
    )
    assert first == again
    assert all(a != b for a, b in zip(first + second, second + first, strict=True))
