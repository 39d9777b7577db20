"""Whole-volume prediction of volumes that are too small, of one value, or hold values that are no numbers."""

import logging

import numpy as np
import pytest
import zarr

from label_maps import one_to_one, random_objects
from pixvox.data.volumes.open import open_volume
from pixvox.inference.predictor import Predictor
from pixvox.inference.volume_prediction import BlockOptions, predict_volume
from pixvox.inference.windows import volume_range, window_of
from pixvox.segmenter import Segmenter
from pointwise import noise, pointwise
from truth_predictor import TruthPredictor

TILE = (16, 24, 24)
OPTIONS = BlockOptions(TILE, page=False)


def written(result):
    return zarr.open(str(result.labels), mode="r")["0"][:]


@pytest.mark.parametrize("size", [(1, 30, 41), (7, 9, 50), (20, 30, 5), (1, 1, 1)])
def test_a_volume_smaller_than_a_window_is_padded_and_the_padding_cut_off(tmp_path, monkeypatch, size):
    truth = random_objects(size, 6)
    volume = open_volume(truth.astype(np.uint16), spatial_dims=3)
    result = predict_volume(TruthPredictor(size_divisor=8), volume, tmp_path, "objects", OPTIONS)
    assert written(result).shape == size
    assert one_to_one(written(result), truth)
    monkeypatch.setattr(Segmenter, "size_divisor", (8, 8, 8))
    predictor, image = Predictor(pointwise(3)), noise(size)
    classes = predict_volume(predictor, open_volume(image[0].numpy(), spatial_dims=3), tmp_path, "c", OPTIONS)
    whole = predictor(image).class_map
    assert written(classes).shape == size
    assert (written(classes) == whole.numpy()).mean() > 0.97  # scores of blocks are rounded


@pytest.mark.parametrize("value", [0.0, 7.5])
def test_a_constant_volume_is_told_and_divides_by_nothing(tmp_path, caplog, value):
    volume = open_volume(np.full((8, 20, 30), value, np.float32), spatial_dims=3)
    with caplog.at_level(logging.WARNING, "pixvox"):
        result = predict_volume(Predictor(pointwise(3)), volume, tmp_path, "c", OPTIONS)
    assert f"has no contrast: it is {value:g} nearly everywhere" in caplog.text
    assert len(np.unique(written(result))) == 1


def test_values_that_are_no_numbers_are_told_and_as_dark_as_the_darkest(tmp_path, caplog):
    values = np.random.default_rng(0).normal(1000, 50, (8, 20, 30)).astype(np.float32)
    clean = open_volume(values.copy(), spatial_dims=3)
    values[2, :2, :6], values[5, 5, 5] = np.nan, np.inf
    volume = open_volume(values, spatial_dims=3)
    window = window_of(volume, (slice(0, 8), slice(0, 20), slice(0, 30)), 1)
    finite = np.isfinite(values)
    assert (window[0][~finite] == values[finite].min()).all()
    (low, high), (_, expected) = volume_range(volume, 1)[0].tolist(), volume_range(clean, 1)[0].tolist()
    assert low >= values[finite].min() and high == pytest.approx(expected, rel=0.02)
    with caplog.at_level(logging.WARNING, "pixvox"):
        found = predict_volume(Predictor(pointwise(3)), volume, tmp_path, "holes", OPTIONS)
    assert "holds values that are no numbers" in caplog.text
    same = predict_volume(Predictor(pointwise(3)), clean, tmp_path, "clean", OPTIONS)
    assert (written(found) == written(same))[finite].mean() > 0.95
    nothing = open_volume(np.full((4, 8, 8), np.nan, np.float32), spatial_dims=3)
    assert (
        len(np.unique(written(predict_volume(Predictor(pointwise(3)), nothing, tmp_path, "nan", OPTIONS))))
        == 1
    )
