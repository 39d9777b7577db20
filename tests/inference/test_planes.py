from types import SimpleNamespace

import numpy as np
import pytest
import torch

from label_maps import one_to_one, random_objects
from pixvox import create_model, open_volume
from pixvox.data.sample import Sample, intensity_range
from pixvox.errors import ConfigError, DataError
from pixvox.inference.planes import predict_planes
from pixvox.inference.predictor import Predictor
from pixvox.structures import Segmentation
from truth_predictor import TruthPredictor


def of_images(**attributes):
    predictor = TruthPredictor(spatial_dims=2)
    predictor.batch_size = 3
    vars(predictor).update(attributes)
    return predictor


@pytest.mark.parametrize("axis", "zyx")
def test_objects_of_planes_become_objects_of_the_volume(axis):
    labels = random_objects((17, 24, 21), 9, seed=2)
    planes = np.moveaxis(labels, "zyx".index(axis), 0)
    found = predict_planes(of_images(), open_volume(labels.astype(np.float32), 3), [axis], join_iou=0.05)
    assert found.shape == labels.shape and np.array_equal(found > 0, labels > 0)
    changes = [set(np.unique(plane)) for plane in planes]
    whole = [number for number in np.unique(labels)[1:] if _in_a_row([number in plane for plane in changes])]
    assert len(whole) > 4
    mostly = [np.bincount(found[labels == number]).max() / (labels == number).sum() for number in whole]
    assert np.median(mostly) == 1


def _in_a_row(shown):
    places = np.flatnonzero(shown)
    return bool((np.diff(places) == 1).all())


def test_a_column_is_one_object_and_neighbours_stay_two():
    labels = np.zeros((6, 9, 8), dtype=np.float32)
    labels[:, 1:4, 1:7], labels[:, 4:8, 1:7] = 3, 8
    labels[3, 1:8, 1:7] = 5  # one plane sees both as one
    found = predict_planes(of_images(), open_volume(labels, 3))
    assert one_to_one(found[:3], labels[:3].astype(int))
    assert len(np.unique(found[3])) == 2 and found[3, 5, 3] == found[2, 5, 3] == found[4, 5, 3]
    assert found[2, 2, 3] != found[2, 5, 3] and found[4, 2, 3] != found[4, 5, 3]
    assert not predict_planes(of_images(), open_volume(np.zeros((2, 4, 4), np.float32), 3)).any()


def test_classes_are_those_of_the_mean_probability_over_all_axes():
    random = np.random.default_rng(0)
    volume = random.random((4, 5, 6)).astype(np.float32)
    weight = {(5, 6): 0.2, (4, 6): 0.5, (4, 5): 1.0}

    def scored(samples):
        results = []
        for sample in samples:
            bright = sample.image[0] * weight[tuple(sample.image.shape[1:])]
            shares = torch.stack([1 - bright, bright])
            results.append(Segmentation(class_map=shares.argmax(0), probabilities=shares))
        return results

    predictor = of_images(predict_samples=scored)
    predictor.model.task, predictor.model.head = "semantic", SimpleNamespace(gives_probabilities=False)
    expected = volume * (0.2 + 0.5 + 1.0) / 3 > 0.5
    assert np.array_equal(predict_planes(predictor, open_volume(volume, 3)), expected)
    assert np.array_equal(predict_planes(predictor, open_volume(volume, 3), ["x"]), volume > 0.5)
    predictor.predict_samples = lambda samples: (
        [Segmentation(class_map=torch.zeros(5, 6).long())] * len(samples)
    )
    with pytest.raises(ConfigError, match="gives no probabilities"):
        predict_planes(predictor, open_volume(volume, 3), ["z"])
    assert not predictor.model.head.gives_probabilities


def test_a_model_of_images_gives_the_classes_of_a_volume():
    torch.manual_seed(0)
    model = create_model(
        head="fcn", backbone="simple", backbone__channels=[4, 8], backbone__strides=[2, 4], num_classes=3,
        spatial_dims=2, in_channels=1,
    )  # fmt: skip
    volume = np.random.default_rng(0).integers(0, 4000, (3, 16, 24)).astype(np.uint16)
    found = predict_planes(Predictor(model, batch_size=2), open_volume(volume, 3), ["z"])
    assert found.shape == volume.shape and found.max() < 3
    limits = intensity_range(volume[None].astype(np.float32))
    sample = Sample(torch.from_numpy(volume[1:2].astype(np.float32)), intensity_range=limits)
    (alone,) = Predictor(model).predict_samples([sample])
    assert np.array_equal(found[1], alone.class_map)


def test_planes_are_read_one_by_one_with_the_range_and_spacing_of_the_volume():
    volume, seen = open_volume(np.arange(4 * 5 * 6, dtype=np.float32).reshape(4, 5, 6), 3), []
    volume.spacing = (3.0, 2.0, 1.0)
    predictor = of_images()
    predictor.predict_samples = lambda samples: (
        seen.extend(samples)
        or [
            Segmentation(class_map=torch.zeros(sample.size).long(), probabilities=torch.ones(1, *sample.size))
            for sample in samples
        ]
    )
    head = SimpleNamespace(gives_probabilities=False)
    predictor.model = SimpleNamespace(task="semantic", in_channels=1, spatial_dims=2, head=head)
    predict_planes(predictor, volume, ["y", "x"])
    assert [sample.size for sample in seen] == [(4, 6)] * 5 + [(4, 5)] * 6
    assert {sample.spacing for sample in seen} == {(3.0, 1.0), (3.0, 2.0)}
    assert len({tuple(sample.intensity_range.flatten().tolist()) for sample in seen}) == 1
    assert np.array_equal(seen[2].image[0], volume.read((slice(None), slice(2, 3), slice(None)))[0, :, 0])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"planes": ["z", "y"]}, ConfigError, "objects are joined along one axis"),
        ({"planes": []}, ConfigError, "name axes across which planes are cut"),
        ({"join_iou": 0.0}, ConfigError, r"in \(0, 1\]; got 0.0"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        predict_planes(of_images(), open_volume(np.zeros((2, 4, 4), np.float32), 3), **options)
    with pytest.raises(DataError, match="this model is 3-D"):
        predict_planes(TruthPredictor(), open_volume(np.zeros((2, 4, 4), np.float32), 3))
