import math

import cv2
import numpy as np
import pytest
import torch
from scipy.ndimage import binary_erosion

from class_maps import blobs
from pixvox.errors import ConfigError
from pixvox.metrics.boundary_iou import BoundaryIoU, _in_windows
from pixvox.structures import Geometry, Segmentation

SIZES = [(21, 34), (7, 15, 12)]


def score(predicted, true, num_classes, **options):
    metric = BoundaryIoU(num_classes, **options)
    metric.update([Segmentation(class_map=predicted)], [Segmentation(class_map=true)])
    return metric.compute()


def eroded(mask, dilation):
    return binary_erosion(mask, np.ones((3,) * mask.ndim), iterations=dilation, border_value=0)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dilation", [1, 2])
def test_bands_are_the_masks_without_their_erosion(size, dilation):
    """The definition of the paper, class by class."""
    predicted, true = blobs(0, size, 3), blobs(1, size, 3)
    results = score(predicted, true, 3, dilation=dilation)
    for label in range(3):
        first, second = (
            m & ~eroded(m, dilation) for m in ((true == label).numpy(), (predicted == label).numpy())
        )
        expected = (first & second).sum() / (first | second).sum()
        assert results[f"boundary_IoU/{label}"] == pytest.approx(expected)
    assert results["boundary_mIoU"] == pytest.approx(
        np.mean([results[f"boundary_IoU/{i}"] for i in range(3)])
    )


def test_width_is_a_share_of_the_diagonal_as_in_the_papers_own_code():
    """Padded with zeros, eroded with a 3 x 3 kernel as often as the ratio of the diagonal says."""
    predicted, true = blobs(2, (40, 75), 2), blobs(3, (40, 75), 2)
    dilation = round(0.05 * math.hypot(40, 75))
    assert dilation == 4

    def boundary(mask):
        padded = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
        return mask & ~cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=dilation)[1:-1, 1:-1].astype(
            bool
        )

    first, second = boundary(true.numpy() == 1), boundary(predicted.numpy() == 1)
    found = score(predicted, true, 2, dilation_ratio=0.05)["boundary_IoU/1"]
    assert found == pytest.approx((first & second).sum() / (first | second).sum())


def test_width_is_the_same_in_physical_units_along_every_axis():
    metric = BoundaryIoU(2, dilation_ratio=0.1)
    geometry = Geometry.identity((10, 40, 40), (4.0, 1.0, 1.0))
    assert metric._steps((10, 40, 40), geometry) == (2, 7, 7)  # a tenth of 69.3
    assert metric._steps((10, 40, 40), None) == (6, 6, 6)


def test_ignored_pixels_are_in_no_band_and_make_none():
    true = torch.zeros(9, 30, dtype=torch.int64)
    true[:, 20:] = 1
    true[:, 8:12] = 255
    predicted = true.clone()
    predicted[:, 8:12] = 1  # never looked at
    metric = BoundaryIoU(2, dilation=1)
    metric.update([Segmentation(class_map=predicted)], [Segmentation(class_map=true)])
    assert metric.compute()["boundary_mIoU"] == 1.0
    # Class 0: its rows at the top and the bottom (16 each) and its columns at the left and at class 1 (7 more each).
    assert metric._counts[1].tolist() == [16 * 2 + 7 * 2, 10 * 2 + 7 * 2]


def test_a_wrong_boundary_costs_more_than_in_the_iou():
    true = torch.zeros(60, 60, dtype=torch.int64)
    true[10:50, 10:50] = 1
    predicted = torch.zeros_like(true)
    predicted[12:48, 12:48] = 1
    iou = 36 * 36 / (40 * 40)
    assert score(predicted, true, 2, dilation=3)["boundary_IoU/1"] < iou / 2


def test_absent_classes_abstentions_and_no_image():
    true = torch.zeros(4, 5, dtype=torch.int64)
    results = score(true, true, 3)
    assert results["boundary_mIoU"] == 1.0
    assert math.isnan(results["boundary_IoU/2"])
    assert score(torch.full((4, 5), 255), true, 3)["boundary_IoU/0"] == 0.0
    assert math.isnan(BoundaryIoU(2).compute()["boundary_mIoU"])
    assert set(score(true, true, 3, per_class=False)) == {"boundary_mIoU"}


def test_wrong_widths_are_refused():
    with pytest.raises(ConfigError, match="between 0 and 1, such as 0.02; got 2"):
        BoundaryIoU(2, dilation_ratio=2)
    with pytest.raises(ConfigError, match="from 1 on, got 0"):
        BoundaryIoU(2, dilation=0)


@pytest.mark.parametrize("reach", [1, 3, 6, 40])
def test_windows_of_any_width_are_those_of_scipy(reach):
    from scipy.ndimage import maximum_filter1d

    values = np.random.default_rng(0).integers(0, 100, (7, 23)).astype(np.int16)
    for axis in (0, 1):
        expected = maximum_filter1d(values, 2 * reach + 1, axis=axis, mode="nearest")
        assert (_in_windows(np.maximum, values, reach, axis) == expected).all()
