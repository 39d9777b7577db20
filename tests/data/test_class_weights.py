import inspect
import json
import logging
import os

import numpy as np
import pytest
import torch
from PIL import Image

from pixvox.data import class_weights as module
from pixvox.data.class_weights import WEIGHTINGS, class_weights, count_pixels
from pixvox.data.dataset import Dataset, Subset
from pixvox.data.datasets.label_folder import LabelFolder
from pixvox.data.metadata import Metadata
from pixvox.data.sample import Sample
from pixvox.errors import DataError


class Fields(Dataset):
    """Class maps of three classes in which 255 is unknown; the last image has none, and one may be unreadable."""

    def __init__(self, size=(2, 3), broken=False, task="semantic"):
        self.size, self.broken = size, broken
        self.metadata = Metadata(task, len(size), ("sea", "land", "ice"), 1, name="fields")

    def __len__(self):
        return 4

    def unlabelled_indices(self):
        return [3]

    def __getitem__(self, index):
        if self.broken and index == 1:
            raise DataError("field 1 is cut off")
        class_map = torch.zeros(self.size, dtype=torch.int64)
        class_map[0] = 1
        class_map[..., -1] = 255
        image = torch.zeros(1, *self.size)
        return Sample(image, class_map=class_map if index < 3 else None, source=f"field {index}")


def test_weights_are_those_of_the_formulas():
    pixels = [10_000, 400, 0, 25]  # the median of those present is 400
    assert class_weights(pixels, "inverse") == [0.04, 1.0, 1.0, 16.0]
    assert class_weights(pixels, "sqrt", absent=0) == [0.2, 1.0, 0.0, 4.0]
    logarithms = np.log(400) / np.log([10_000, 400, 25])
    assert class_weights(pixels, "log", absent=0) == pytest.approx([*logarithms[:2], 0.0, logarithms[2]])
    beta = 1 - 1 / 400
    numbers = [(1 - beta**n) / (1 - beta) for n in (10_000, 400, 25)]
    expected = [numbers[1] / n for n in numbers]
    assert class_weights(pixels, "effective", absent=0) == pytest.approx([*expected[:2], 0.0, expected[2]])


def test_a_median_between_two_classes_is_taken_of_what_divides():
    assert class_weights([100, 400], "inverse") == [2.5, 0.625]
    assert class_weights([100, 400], "sqrt") == pytest.approx(np.sqrt([2.5, 0.625]))
    assert np.mean(np.reciprocal(class_weights([100, 400], "effective"))) == pytest.approx(1)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_weights_are_finite_and_fall_with_size(weighting):
    for pixels in ([1], [0, 1, 1], [1, 2, 3], [1, 10**12], [7, 0, 0]):
        for absent in (0, 1):
            weights = np.array(class_weights(pixels, weighting, absent))
            present = np.array(pixels) > 0
            assert np.isfinite(weights).all() and (weights[present] > 0).all()
            assert (weights[~present] == absent).all()
            assert (np.diff(weights[present]) <= 0).all()


def test_unusable_weightings_are_refused():
    with pytest.raises(ValueError, match="did you mean inverse"):
        inspect.unwrap(class_weights)([1, 2], "invers")  # under the tests' type checker
    with pytest.raises(ValueError, match="pixels of one class at least"):
        class_weights([0, 0], "inverse")


@pytest.mark.parametrize("size", [(2, 3), (2, 4, 3)])
def test_ignored_pixels_and_unlabelled_images_are_not_counted(size, tmp_path):
    half = 3 * int(np.prod(size[1:-1])) * 2
    assert count_pixels(Fields(size), folder=tmp_path) == [half, half, 0]
    assert count_pixels(Subset(Fields(size), [2, 3]), folder=tmp_path) == [half // 3, half // 3, 0]


def test_a_dataset_is_counted_once_until_it_changes(tmp_path, monkeypatch):
    folder, reads = tmp_path / "cache", []
    count = module._count
    monkeypatch.setattr(module, "_count", lambda *given: reads.append(given) or count(*given))
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    picture = np.array([[0, 0, 1], [0, 255, 1]], np.uint8)
    for name in ("images", "labels"):
        Image.fromarray(picture).save(tmp_path / name / "a.png")

    def counted():
        dataset = LabelFolder(tmp_path / "images", tmp_path / "labels", "semantic", ("a", "b"))
        return count_pixels(dataset, folder=folder), len(reads)

    assert counted() == ([3, 2], 1)
    assert counted() == ([3, 2], 1)
    Image.fromarray(1 - picture.clip(max=1)).save(tmp_path / "labels" / "a.png")
    os.utime(tmp_path / "labels" / "a.png", (1, 1))
    assert counted() == ([3, 3], 2)
    (file,) = folder.iterdir()  # the old counts are replaced, and nothing else is left
    for damage in (file.read_text()[:-9], "[]", json.dumps({**json.loads(file.read_text()), "pixels": None})):
        file.write_text(damage)
        assert counted()[0] == [3, 3]
    assert counted() == ([3, 3], 5)


def test_counting_that_is_stopped_keeps_nothing(tmp_path):
    with pytest.raises(DataError, match="field 1 is cut off"):
        count_pixels(Fields(broken=True), folder=tmp_path)
    assert not list(tmp_path.iterdir())
    assert count_pixels(Fields(broken=True), skip_bad=True, folder=tmp_path) == [4, 4, 0]


def test_worker_processes_count_alike_and_errors_have_their_own_words(tmp_path):
    state = torch.random.get_rng_state()
    assert count_pixels(Fields(), num_workers=1, folder=tmp_path) == [6, 6, 0]
    assert torch.equal(torch.random.get_rng_state(), state)
    with pytest.raises(DataError, match=r"^image 1: fields\[1\]: field 1 is cut off$"):
        count_pixels(Fields(broken=True), num_workers=1, folder=tmp_path)


def test_without_class_maps_there_is_nothing_to_count(tmp_path):
    dataset = Fields()
    with pytest.raises(DataError, match="no labelled pixel"):
        count_pixels(Subset(dataset, [3]), folder=tmp_path)
    dataset.unlabelled_indices = list
    with pytest.raises(DataError, match="field 3 has no class map"):
        count_pixels(dataset, folder=tmp_path)


def test_a_folder_that_cannot_be_written_only_warns(tmp_path, caplog):
    (tmp_path / "file").touch()
    with caplog.at_level(logging.WARNING):
        assert count_pixels(Fields(), folder=tmp_path / "file") == [6, 6, 0]
    assert "counts again" in caplog.text
