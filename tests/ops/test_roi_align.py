from collections import OrderedDict

import pytest
import torch
import torchvision
from torchvision.ops import MultiScaleRoIAlign

from pixvox.ops import multi_scale_roi_align, roi_align
from pixvox.ops import roi_align as roi_align_function
from pixvox.ops.roi_align import assign_levels


def random_rois(n: int, dims: int, images: int = 2, span: float = 60.0) -> torch.Tensor:
    """Boxes of all sizes: partly outside, tiny, and a few turned inside out."""
    generator = torch.Generator().manual_seed(n)
    low = torch.rand(n, dims, generator=generator) * span - 10
    high = low + torch.rand(n, dims, generator=generator) * 40 - 1
    image = torch.randint(0, images, (n, 1), generator=generator).float()
    return torch.cat([image, low, high], dim=1)


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("sampling_ratio", [-1, 0, 1, 2, 3])
def test_roi_align_equals_torchvision_in_value_and_gradient(sampling_ratio, aligned):
    features = torch.randn(2, 5, 13, 17, generator=torch.Generator().manual_seed(0))
    ours, theirs = features.clone().requires_grad_(), features.clone().requires_grad_()
    rois = random_rois(40, 2)
    value = roi_align(ours, rois, (3, 2), 0.25, sampling_ratio, aligned)
    expected = torchvision.ops.roi_align(theirs, rois, (3, 2), 0.25, sampling_ratio, aligned)
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)
    given = torch.randn(value.shape, generator=torch.Generator().manual_seed(1))
    value.backward(given)
    expected.backward(given)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4)


def test_list_of_boxes_channels_last_and_float64_give_the_same():
    features = torch.randn(2, 5, 13, 17, generator=torch.Generator().manual_seed(0))
    rois = random_rois(10, 2)
    rois = rois[rois[:, 0].argsort(stable=True)]
    boxes = [rois[rois[:, 0] == i, 1:] for i in range(2)]
    plain = roi_align(features, rois, 3, 0.25, 2)
    torch.testing.assert_close(roi_align(features, boxes, 3, 0.25, 2), plain)
    torch.testing.assert_close(
        roi_align(features.to(memory_format=torch.channels_last), rois, 3, 0.25, 2), plain
    )
    torch.testing.assert_close(roi_align(features.double(), rois.double(), 3, 0.25, 2).float(), plain)


@pytest.mark.parametrize("sampling_ratio", [-1, 2])
@pytest.mark.parametrize("aligned", [False, True])
def test_one_slice_equals_2d(sampling_ratio, aligned):
    features = torch.randn(2, 3, 9, 11, generator=torch.Generator().manual_seed(0))
    rois = random_rois(12, 2)
    # One slice from 0 to 1: with one sample at its centre when aligned, clamped to it when not.
    deep = torch.cat([rois[:, :3], torch.zeros(12, 1), rois[:, 3:], torch.ones(12, 1)], dim=1)
    sliced = roi_align(features[:, :, None], deep, (1, 3, 4), (1.0, 0.25, 0.25), sampling_ratio, aligned)
    plain = roi_align(features, rois, (3, 4), 0.25, sampling_ratio, aligned)
    torch.testing.assert_close(sliced[:, :, 0], plain)


@pytest.mark.parametrize("sampling_ratio", [-1, 2])
def test_permuted_axes_permute_the_output(sampling_ratio):
    features = torch.randn(2, 3, 6, 9, 11, generator=torch.Generator().manual_seed(0))
    rois = random_rois(12, 3)
    plain = roi_align(features, rois, (2, 3, 4), (0.5, 0.25, 0.125), sampling_ratio)
    # New order of axes (x, z, y) in array order, hence (y, z, x) for coordinates.
    turned = features.permute(0, 1, 4, 2, 3)
    order = [0, 2, 3, 1, 5, 6, 4]
    permuted = roi_align(turned, rois[:, order], (4, 2, 3), (0.125, 0.5, 0.25), sampling_ratio)
    torch.testing.assert_close(permuted, plain.permute(0, 1, 4, 2, 3))


@pytest.mark.parametrize("dims", [2, 3])
def test_roi_align_passes_gradcheck(dims):
    features = torch.randn(1, 2, *(3, 5, 4)[:dims], dtype=torch.float64, requires_grad=True)
    rois = random_rois(3, dims, images=1, span=6).double()
    assert torch.autograd.gradcheck(lambda f: roi_align(f, rois, 2, 0.5, 2), features)


def test_portions_of_bounded_memory_change_nothing(monkeypatch):
    import importlib

    features = torch.randn(2, 3, 6, 9, 11, generator=torch.Generator().manual_seed(0))
    rois = random_rois(12, 3)
    results = []
    for most in (2**23, 5000):
        monkeypatch.setattr(importlib.import_module("pixvox.ops.roi_align"), "_MOST_TAPS", most)
        leaf = features.clone().requires_grad_()
        value = roi_align(leaf, rois, 2, 0.25, 2)
        results.append((value.detach(), torch.autograd.grad(value.square().sum(), leaf)[0]))
    torch.testing.assert_close(results[0], results[1])


def test_autocast_keeps_box_coordinates_exact():
    features = torch.randn(1, 4, 40, 50, generator=torch.Generator().manual_seed(0))
    rois = torch.tensor([[0, 30.3, 21.7, 44.1, 37.9]])
    plain = roi_align(features, rois, 3, 1.0, 2)
    with torch.autocast("cpu", torch.bfloat16):
        value = roi_align(features.bfloat16(), rois, 3, 1.0, 2)
    assert value.dtype == torch.bfloat16
    torch.testing.assert_close(value.float(), plain, rtol=0.05, atol=0.05)


def test_export_gives_the_same_values():
    class Pool(torch.nn.Module):
        def forward(self, features, rois):
            return roi_align_function(features, rois, 3, 0.25, 2)

    features, rois = torch.randn(2, 3, 9, 11), random_rois(6, 2)
    program = torch.export.export(Pool(), (features, rois))
    assert not any("embedding_bag" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(features, rois), Pool()(features, rois))


@pytest.mark.parametrize("sampling_ratio", [-1, 2])
def test_no_boxes_give_an_empty_result_with_a_gradient(sampling_ratio):
    features = torch.randn(2, 3, 5, 6, 7, requires_grad=True)
    value = roi_align(features, [torch.zeros(0, 6)] * 2, (2, 3, 4), 1.0, sampling_ratio)
    assert value.shape == (0, 3, 2, 3, 4)
    value.sum().backward()
    assert torch.equal(features.grad, torch.zeros_like(features))


def test_boxes_that_do_not_fit_are_refused():
    features = torch.zeros(2, 3, 5, 6)
    with pytest.raises(ValueError, match="4 coordinates"):
        roi_align(features, torch.zeros(1, 4), 2)
    with pytest.raises(ValueError, match="2 images"):
        roi_align(features, [torch.zeros(1, 4)], 2)
    with pytest.raises(ValueError, match="one per axis"):
        roi_align(features, torch.zeros(1, 5), (2, 2, 2))


def pyramid(dims: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, *[64 // stride * 4] * dims, generator=generator) for stride in (4, 8, 16, 32)]


def test_pooling_from_a_pyramid_equals_torchvision():
    levels = pyramid(2)
    generator = torch.Generator().manual_seed(1)
    low = [torch.rand(n, 2, generator=generator) * 100 for n in (30, 20)]
    boxes = [torch.cat([c, c + 2 ** (torch.rand(c.shape, generator=generator) * 9)], dim=1) for c in low]
    pooler = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2)
    expected = pooler(OrderedDict((str(i), level) for i, level in enumerate(levels)), boxes, [(256, 256)] * 2)
    value = multi_scale_roi_align(levels, [4, 8, 16, 32], boxes, 7, 2)
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)
    used = assign_levels(torch.cat(boxes), [(s, s) for s in (4, 8, 16, 32)])
    assert used.unique().tolist() == [0, 1, 2, 3]


def test_levels_change_at_powers_of_two_of_the_canonical_size():
    sides = torch.tensor([111.9, 112, 223.9, 224, 447.9, 448, 4000, 1, 0, -3])
    boxes = torch.cat([torch.zeros(10, 2), sides[:, None].expand(10, 2)], dim=1)
    strides = [(s, s) for s in (4, 8, 16, 32)]
    assert assign_levels(boxes, strides).tolist()[:9] == [0, 1, 1, 2, 2, 3, 3, 0, 0]
    volumes = torch.cat([torch.zeros(10, 3), sides[:, None].expand(10, 3)], dim=1)
    levels = assign_levels(volumes, [(s, s, s) for s in (4, 8, 16, 32)])
    assert levels.tolist() == [0, 1, 1, 2, 2, 3, 3, 0, 0, 0]


def test_a_box_counts_by_the_feature_pixels_it_covers():
    isotropic = torch.tensor([[0.0, 0, 0, 224, 224, 224]])
    flat = torch.tensor([[0.0, 0, 0, 224, 224, 56]])  # four times as many slices per feature pixel of z
    equal = assign_levels(isotropic, [(s, s, s) for s in (4, 8, 16, 32)])
    anisotropic = assign_levels(flat, [(s // 4, s, s) for s in (4, 8, 16, 32)])
    assert equal.tolist() == anisotropic.tolist() == [2]


def test_levels_without_boxes_get_a_gradient():
    levels = [level.requires_grad_() for level in pyramid(2)]
    multi_scale_roi_align(levels, [4, 8, 16, 32], [torch.zeros(0, 4)] * 2, 3).sum().backward()
    assert all(torch.equal(level.grad, torch.zeros_like(level)) for level in levels)
