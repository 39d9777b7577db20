import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from class_maps import blobs
from pixvox.errors import ConfigError
from pixvox.metrics.surface_distances import SurfaceDistances
from pixvox.structures import Geometry, Segmentation

CASES = [((21, 34), None), ((21, 34), (0.5, 2.0)), ((7, 15, 12), (3.0, 0.7, 1.0))]


def segmentation(labels, spacing=None):
    return Segmentation(class_map=labels, geometry=Geometry.identity(labels.shape, spacing))


def score(pairs, num_classes, spacing=None, **options):
    metric = SurfaceDistances(num_classes, **options)
    for predicted, true in pairs:
        metric.update([segmentation(predicted)], [segmentation(true, spacing)])
    return metric


@pytest.mark.parametrize(("size", "spacing"), CASES)
def test_scores_equal_monai(size, spacing):
    from monai.metrics import (
        compute_average_surface_distance,
        compute_hausdorff_distance,
        compute_surface_dice,
    )

    pairs = [(blobs(seed, size, 3), blobs(seed + 10, size, 3)) for seed in range(2)]
    results = score(pairs, 3, spacing, tolerance=1.5).compute()

    def one_hot(labels):
        return torch.stack([F.one_hot(each, 3).movedim(-1, 0) for each in labels])

    found, true = (one_hot(labels) for labels in zip(*pairs, strict=True))
    options = {"include_background": True, "spacing": spacing}
    for name, reference in {
        "HD95": compute_hausdorff_distance(found, true, percentile=95, **options),
        "ASSD": compute_average_surface_distance(found, true, symmetric=True, **options),
        "NSD": compute_surface_dice(found, true, [1.5] * 3, **options),
    }.items():
        by_class = reference.double().mean(dim=0)
        for label in range(3):
            assert results[f"{name}/{label}"] == pytest.approx(float(by_class[label]), rel=1e-5), name
        assert results[name] == pytest.approx(float(by_class.mean()), rel=1e-5)


def test_a_shifted_plane_is_as_far_as_its_spacing_says():
    true = torch.zeros(8, 5, 6, dtype=torch.int64)
    true[2:4] = 1
    names = ("background", "plate")
    results = score([(true.roll(1, 0), true)], 2, (2.5, 1.0, 1.0), class_names=names, tolerance=2.5).compute()
    assert results["HD95"] == 2.5
    assert results["NSD"] == 1.0  # a distance of the tolerance is still right
    assert "HD95/background" not in results
    closer = score([(true.roll(1, 0), true)], 2, (2.5, 1.0, 1.0), class_names=names, tolerance=2.4).compute()
    assert 0 < closer["NSD"] < 1


def test_a_class_in_one_of_both_has_no_distance_and_a_surface_dice_of_zero():
    true = torch.zeros(6, 7, dtype=torch.int64)
    true[2:4, 2:4] = 1
    metric = score([(torch.zeros_like(true), true), (true, true)], 3, class_names=("bg", "cell", "wall"))
    results = metric.compute()
    assert results["HD95/cell"] == 0.0
    assert results["NSD/cell"] == 0.5
    assert results["surface_found"] == 0.5
    assert math.isnan(results["NSD/wall"])
    assert results["NSD"] == 0.5


def test_ignored_voxels_are_no_surface():
    true = torch.zeros(5, 20, dtype=torch.int64)
    true[:, 14:] = 1
    true[:, 4:9] = 255
    predicted = torch.where(true == 255, 0, true)
    results = score([(predicted, true)], 2).compute()
    assert (results["HD95"], results["ASSD"], results["NSD"]) == (0.0, 0.0, 1.0)


def test_no_image_and_a_wrong_tolerance():
    results = SurfaceDistances(2).compute()
    assert all(math.isnan(value) for value in results.values())
    with pytest.raises(ConfigError, match="from 0 on, in the unit of the spacing; got -1"):
        SurfaceDistances(2, tolerance=-1)


def test_columns_leave_the_background_empty():
    true = blobs(0, (9, 11), 2)
    columns = score([(true, true)], 2, class_names=("background", "cell")).class_columns()
    assert list(columns) == ["HD95", "ASSD", "NSD"]
    assert np.isnan(columns["NSD"][0]) and columns["NSD"][1] == 1.0
