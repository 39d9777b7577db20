"""Crops of volumes that are not as they should be: too small, of one value, or with values that are no numbers."""

import logging

import numpy as np
import pytest

from pixvox.data.datamodule import DataModule
from pixvox.data.datasets.catalogue_crops import CatalogueCrops
from pixvox.data.volumes.index import build_catalogue
from pixvox.errors import DataError
from pixvox.normalizer import PercentileNormalizer

CROP = (4, 16, 16)


def catalogue(folder, image, labels):
    for name, values in (("images", image), ("labels", labels)):
        (folder / name).mkdir()
        np.save(folder / name / "v.npy", values)
    build_catalogue(folder, folder / "c.sqlite", CROP)
    return CatalogueCrops(folder / "c.sqlite", foreground=None)


def normalized(batch):
    return PercentileNormalizer()(batch.images, batch.intensity_ranges, batch.valid_sizes)


@pytest.mark.parametrize("size", [(1, 20, 40), (3, 9, 33), (5, 40, 7)])
def test_a_volume_smaller_than_a_crop_is_padded_and_the_padding_known(tmp_path, size):
    labels = np.zeros(size, np.uint16)
    labels[:, 2:7, 1:6] = 4
    image = np.random.default_rng(0).integers(1000, 2000, size).astype(np.uint16)
    crops = catalogue(tmp_path, image, labels)
    shown = tuple(min(length, crop) for length, crop in zip(size, CROP, strict=True))
    assert all(sample.size == shown for sample in crops)
    data = DataModule(crops, image_size=CROP, batch_size=1, size_divisor=(4, 8, 8))
    for batch in data.train_dataloader():
        assert batch.images.shape[2:] == CROP
        assert batch.valid_sizes.tolist() == [list(shown)]
        inside = np.zeros(CROP, dtype=bool)
        inside[tuple(slice(0, length) for length in shown)] = True
        assert not normalized(batch)[0, 0].numpy()[~inside].any()
        assert not batch.targets[0].masks.dense().any(dim=0).numpy()[~inside].any()
        assert all(frame.original_size == shown for frame in batch.geometries)


@pytest.mark.parametrize("value", [0.0, 7.5])
def test_a_constant_volume_is_told_and_divides_by_nothing(tmp_path, caplog, value):
    with caplog.at_level(logging.WARNING):
        crops = catalogue(tmp_path, np.full((4, 16, 16), value, np.float32), np.ones((4, 16, 16), np.uint8))
    assert f"images/v.npy has no contrast: it is {value:g} nearly everywhere" in caplog.text
    batch = next(iter(DataModule(crops, batch_size=1, size_divisor=1).train_dataloader()))
    scaled = normalized(batch)
    assert scaled.isfinite().all() and scaled.unique().numel() == 1


def test_values_that_are_no_numbers_are_told_and_ignored(tmp_path, caplog):
    image = np.random.default_rng(0).normal(100, 5, (4, 16, 32)).astype(np.float32)
    image[1, 3:5, 4], image[2, 6, 7] = np.nan, np.inf
    labels = np.ones(image.shape, np.uint8)
    first, second = catalogue(tmp_path, image, labels)
    with caplog.at_level(logging.WARNING):
        assert first.image.isfinite().all()
    assert first.ignore.tolist() == [False, True] and second.ignore.tolist() == [False]
    assert (first.layers[1] == 2).nonzero().tolist() == [[1, 3, 4], [1, 4, 4], [2, 6, 7]]
    low, high = first.intensity_range[0].tolist()
    assert 80 < low < high < 120
    (tmp_path / "all").mkdir()
    with pytest.raises(DataError, match=r"channel 0 has no finite value"):
        catalogue(tmp_path / "all", np.full_like(image, np.nan), labels)
