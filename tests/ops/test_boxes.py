import pytest
import torch
import torchvision
from monai.data import box_utils as monai_boxes

from pixvox.ops import boxes as B


def random_boxes(n: int, dims: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(n, dims, generator=generator) * 20
    return torch.cat([low, low + 1 + torch.rand(n, dims, generator=generator) * 15], dim=1)


NAMES = ["box_iou", "generalized_box_iou", "distance_box_iou", "complete_box_iou"]


@pytest.mark.parametrize("name", NAMES)
def test_overlap_equals_torchvision_in_2d_with_gradients(name):
    ours, theirs = random_boxes(7, 2).requires_grad_(), random_boxes(7, 2).requires_grad_()
    other = random_boxes(5, 2, seed=1)
    value = getattr(B, name)(ours, other)
    expected = getattr(torchvision.ops, name)(theirs, other)
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    weight = torch.rand_like(value)
    value.backward(weight)
    expected.backward(weight)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["box_iou", "generalized_box_iou"])
def test_overlap_equals_monai_in_3d(name):
    first, second = random_boxes(6, 3), random_boxes(4, 3, seed=1)
    theirs = {"box_iou": monai_boxes.box_iou, "generalized_box_iou": monai_boxes.box_giou}[name]
    torch.testing.assert_close(getattr(B, name)(first, second), theirs(first, second), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["box_iou", "generalized_box_iou"])
def test_overlap_of_one_slice_equals_2d(name):
    first, second = random_boxes(6, 2), random_boxes(4, 2, seed=1)
    ends = torch.tensor([0.0, 1.0])
    slices = [
        torch.cat([b[:, :2], ends[:1].expand(len(b), 1), b[:, 2:], ends[1:].expand(len(b), 1)], dim=1)
        for b in (first, second)
    ]
    torch.testing.assert_close(getattr(B, name)(*slices), getattr(B, name)(first, second))


@pytest.mark.parametrize("name", NAMES)
def test_overlap_does_not_depend_on_the_order_of_axes(name):
    first, second = random_boxes(6, 3), random_boxes(4, 3, seed=1)
    order = [2, 0, 1, 5, 3, 4]
    torch.testing.assert_close(
        getattr(B, name)(first[:, order], second[:, order]), getattr(B, name)(first, second)
    )


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_overlap_passes_gradcheck(name, dims):
    first, second = random_boxes(3, dims).double().requires_grad_(), random_boxes(2, dims, seed=1).double()
    if name == "complete_box_iou":  # its trade-off factor is a constant of the gradient, by its definition
        pytest.skip("the trade-off factor is not differentiated, by definition")
    assert torch.autograd.gradcheck(lambda b: getattr(B, name)(b, second), first)


@pytest.mark.parametrize("name", NAMES)
def test_paired_overlap_is_the_diagonal(name):
    first, second = random_boxes(5, 3), random_boxes(5, 3, seed=1)
    function = getattr(B, name)
    torch.testing.assert_close(function(first, second, paired=True), function(first, second).diagonal())


def test_boxes_without_volume_have_iou_0_and_finite_gradients():
    boxes = torch.tensor([[1.0, 1, 1, 1]], requires_grad=True)
    value = B.generalized_box_iou(boxes, torch.tensor([[1.0, 1, 1, 1]]))
    value.sum().backward()
    assert value.item() == 0
    assert boxes.grad.isfinite().all()


@pytest.mark.parametrize("source", ["xyxy", "cxcywh", "xywh"])
@pytest.mark.parametrize("target", ["xyxy", "cxcywh", "xywh"])
def test_convert_equals_torchvision_and_returns(source, target):
    boxes = random_boxes(4, 2)
    converted = B.box_convert(boxes, source, target)
    torch.testing.assert_close(converted, torchvision.ops.box_convert(boxes, source, target))
    volumes = random_boxes(4, 3)
    there = B.box_convert(volumes, source, target)
    torch.testing.assert_close(B.box_convert(there, target, source), volumes)


def test_convert_names_the_formats_it_knows():
    with pytest.raises(ValueError, match="cxcywh"):
        B.box_convert(torch.zeros(1, 4), "xyxy", "yxyx")


def test_clip_takes_lengths_in_array_order():
    boxes = torch.tensor([[-1.0, -1, -1, 50, 50, 50]])
    assert B.clip_boxes(boxes, (2, 3, 4)).tolist() == [[0, 0, 0, 4, 3, 2]]
    planar = random_boxes(9, 2) - 5
    torch.testing.assert_close(
        B.clip_boxes(planar, (11, 17)), torchvision.ops.clip_boxes_to_image(planar, (11, 17))
    )
    with pytest.raises(ValueError, match="6 coordinates"):
        B.clip_boxes(boxes, (2, 3))


def test_remove_small_equals_torchvision():
    boxes = random_boxes(20, 2)
    assert torch.equal(B.remove_small_boxes(boxes, 6.0), torchvision.ops.remove_small_boxes(boxes, 6.0))


def test_boxes_of_masks_are_half_open_and_zero_when_empty():
    masks = torch.zeros(3, 4, 5, 6, dtype=torch.bool)
    masks[0, 1:3, 2:5, 3:4] = True
    masks[2, 3, 0, 5] = True
    assert B.masks_to_boxes(masks).tolist() == [[3, 2, 1, 4, 5, 3], [0] * 6, [5, 0, 3, 6, 1, 4]]
    planar = torch.rand(4, 7, 9) > 0.8
    expected = torchvision.ops.masks_to_boxes(planar) + torch.tensor([0.0, 0, 1, 1])
    assert torch.equal(B.masks_to_boxes(planar), expected)


def test_half_precision_areas_do_not_overflow():
    assert B.box_volume(torch.tensor([[0.0, 0, 600, 600]], dtype=torch.float16)).item() == 360_000


def test_boxes_of_different_dimensions_do_not_compare():
    with pytest.raises(ValueError, match="do not compare"):
        B.box_iou(torch.zeros(1, 4), torch.zeros(1, 6))
