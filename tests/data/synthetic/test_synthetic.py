from itertools import pairwise

import numpy as np
import pytest
import torch

from pixvox.data.synthetic.nuclei3d import Nuclei3d
from pixvox.data.synthetic.shapes import Shapes

SMALL = {"image_size": (10, 28, 32), "count": (4, 8)}


@pytest.mark.parametrize("make", [lambda seed: Shapes(3, seed), lambda seed: Nuclei3d(3, seed, **SMALL)])
def test_images_depend_on_seed_and_index_alone(make):
    first, second = make(0), make(0)
    assert torch.equal(first[2].image, second[2].image)
    assert torch.equal(first[2].layers, second[2].layers)
    assert not torch.equal(first[1].image, first[2].image)
    assert not torch.equal(first[2].image, make(1)[2].image)


@pytest.mark.parametrize("dataset", [Shapes(8), Nuclei3d(4, **SMALL)], ids=["shapes", "nuclei"])
def test_ids_are_contiguous_and_every_label_is_a_class(dataset):
    for i in range(len(dataset)):
        sample = dataset[i]
        assert sample.layers.unique().tolist() in (
            list(range(len(sample.labels) + 1)),
            list(range(1, len(sample.labels) + 1)),
        )
        assert all(0 <= label < dataset.metadata.num_classes for label in sample.labels.tolist())
    with pytest.raises(IndexError):
        dataset[len(dataset)]


def test_shapes_have_the_size_and_area_of_their_kind():
    options = {"image_size": 100, "count": (1, 1), "radius": (20, 20), "overlap": 0}
    areas = {"circle": np.pi * 400, "triangle": 3 * np.sqrt(3) / 4 * 400}
    for kind, expected in areas.items():
        shapes = Shapes(40, 0, classes=[kind], **options)
        found = max(int((shapes[i].layers > 0).sum()) for i in range(40))  # the ones not cut by the border
        assert found == pytest.approx(expected, rel=0.03)


def test_overlap_zero_keeps_shapes_whole_and_apart():
    shapes = Shapes(10, 0, image_size=64, count=(6, 6), radius=(10, 10), overlap=0.0, classes=["circle"])
    for i in range(10):
        label_map = shapes[i].layers[0]
        for identity in label_map.unique()[1:]:
            inside = (label_map == identity).nonzero()
            centre = inside.float().mean(0)
            if ((centre > 11) & (centre < 52)).all():
                assert len(inside) == pytest.approx(np.pi * 100, rel=0.05)


def test_overlap_hides_at_most_the_share_asked_for():
    shapes = Shapes(20, 3, image_size=64, count=(8, 8), radius=(10, 10), overlap=0.5, classes=["circle"])
    areas = torch.cat([shapes[i].layers.flatten().bincount()[1:] for i in range(20)])
    assert areas.min() >= 20
    assert (areas < 0.95 * np.pi * 100).any()


@pytest.mark.parametrize("channels", [1, 3])
def test_image_size_and_channels_are_options(channels):
    shapes = Shapes(1, image_size=(40, 56), channels=channels, radius=(4, 8))
    assert shapes[0].image.shape == (channels, 40, 56)
    assert shapes.metadata.in_channels == channels


def test_aspect_is_that_of_rectangles():
    options = {"image_size": 96, "count": (1, 1), "radius": (20, 20), "classes": ["rectangle"]}
    shapes = Shapes(12, aspect=(0.2, 0.2), **options)
    whole = 4 * 0.2 * 400 / (1 + 0.2**2)
    assert max(int((shapes[i].layers > 0).sum()) for i in range(12)) == pytest.approx(whole, rel=0.06)


def test_crosses_are_part_of_the_ground_and_move_no_shape():
    plain, crossed = Shapes(4), Shapes(4, distractors=(3, 3))
    for i in range(4):
        ground = (plain[i].layers == 0)[0]
        assert torch.equal(plain[i].layers, crossed[i].layers)
        changed = (plain[i].image != crossed[i].image).any(0)
        assert changed[ground].any()
        assert not changed[~ground].any()


def test_light_scales_all_intensities():
    plain, dark = Shapes(1, noise=0.0), Shapes(1, noise=0.0, light=(0.25, 0.25))
    bright = plain.render(0).image
    unclipped = (bright > 0) & (bright < 255)
    assert np.abs(dark.render(0).image - 0.25 * bright)[unclipped].max() <= 0.75  # both are rounded


def test_class_shares_are_those_of_the_shapes_drawn():
    shapes = Shapes(60, class_shares=[3, 1, 0], image_size=64, radius=(4, 6), count=(8, 8))
    labels = torch.cat([shapes[i].labels for i in range(60)])
    assert labels.bincount(minlength=3).div(len(labels)).tolist() == pytest.approx([0.75, 0.25, 0], abs=0.06)


def test_semantic_shapes_have_background_in_front():
    instance, semantic = Shapes(2), Shapes(2, task="semantic")
    assert semantic.metadata.class_names[0] == "background"
    sample = instance[1]
    expected = torch.cat([torch.tensor([0]), sample.labels + 1])[sample.layers[0].long()]
    assert torch.equal(semantic[1].class_map, expected)


def test_noise_adds_nothing_to_the_truth():
    calm, noisy = Shapes(1, noise=0.0), Shapes(1, noise=30.0)
    assert torch.equal(calm[0].layers, noisy[0].layers)
    assert not torch.equal(calm[0].image, noisy[0].image)


def _local_variance(image, inside):
    """Return the mean over the 3 x 3 windows that lie inside of a mask of the grey levels' variance."""
    windows = image.unfold(1, 3, 1).unfold(2, 3, 1).flatten(-2).var(-1)
    whole = inside.unfold(0, 3, 1).unfold(1, 3, 1).flatten(-2).all(-1)
    assert whole.any()
    return windows[:, whole].mean()


def test_texture_gives_shapes_grain_and_the_ground_waves():
    variances = {}
    for texture in (0.0, 20.0, 40.0):
        sample = Shapes(1, 0, image_size=64, count=(1, 1), radius=(12, 16), noise=0.0, texture=texture)[0]
        shapes = sample.layers[0] > 0
        variances[texture] = [_local_variance(sample.image, part) for part in (shapes, ~shapes)]
        # The grain's deviation is a quarter of the texture; what is cut at black and white has less.
        assert variances[texture][0] <= 1.2 * (texture / 4) ** 2
    grain, waves = zip(*(variances[texture] for texture in (0.0, 20.0, 40.0)), strict=True)
    assert grain[0] == waves[0] == 0
    assert 10 < grain[1] < grain[2]
    assert 1 < waves[1] < waves[2]


def _autocorrelation(volume, axis, lag):
    """Return the correlation of a volume with itself, some voxels further along an axis."""
    length = volume.shape[axis] - lag
    pairs = torch.stack(
        [volume.narrow(axis, 0, length).flatten(), volume.narrow(axis, lag, length).flatten()]
    )
    return float(pairs.corrcoef()[0, 1])


@pytest.mark.parametrize("count", [(0, 0), (20, 20)], ids=["ground", "nuclei"])
def test_blur_is_longer_along_depth_than_in_the_plane(count):
    clean = {"photons": 20_000.0, "attenuation": 0.0, "stripes": 0.0, "read_noise": 0.0, "offset": 0.0}
    nuclei = Nuclei3d(1, 0, image_size=(40, 40, 40), spacing=(1, 1, 1), count=count, radius=(3, 3), **clean)
    image, lag = nuclei[0].image[0], 2
    z, y, x = (_autocorrelation(image, axis, lag) for axis in range(3))
    assert z > max(y, x) + 0.05
    if count == (0, 0):  # chromatin of 1.5 um alone, blurred by 2 um along z and 0.8 um across
        for found, blur in ((z, 2.0), (y, 0.8), (x, 0.8)):
            assert found == pytest.approx(np.exp(-(lag**2) / (4 * (1.5**2 + blur**2))), abs=0.06)


def test_photon_noise_has_the_variance_of_its_mean():
    options = {"offset": 0.0, "read_noise": 0.0, "image_size": (20, 48, 48), "count": (12, 12)}
    # The same light twice; with very many photons the counts tell what it was.
    light = Nuclei3d(1, 0, photons=20_000.0, **options)[0].image / 20_000.0
    for photons in (10.0, 100.0):
        expected = photons * light
        noise = Nuclei3d(1, 0, photons=photons, **options)[0].image - expected
        borders = expected.quantile(torch.tensor([0.5, 0.75, 0.9, 1.0]))
        for low, high in pairwise(borders.tolist()):
            among = (expected >= low) & (expected < high)
            assert float(noise[among].var()) == pytest.approx(float(expected[among].mean()), rel=0.1)
        assert borders[-1] > 5 * borders[0]


def test_nuclei_touch():
    volume = Nuclei3d(1, 0, image_size=(20, 60, 60), count=(15, 15), clustered=0.9)[0].layers[0]
    borders = 0
    for axis in range(3):
        first, second = (
            volume.narrow(axis, 0, volume.shape[axis] - 1),
            volume.narrow(axis, 1, volume.shape[axis] - 1),
        )
        borders += int(((first > 0) & (second > 0) & (first != second)).sum())
    assert borders > 20


def test_nuclei_stay_apart_when_asked():
    options = {"image_size": (20, 60, 60), "count": (12, 12), "touching": 1.5, "clustered": 0.0}
    volume = Nuclei3d(1, 0, **options)[0].layers[0]
    for axis in range(3):
        first, second = (
            volume.narrow(axis, 0, volume.shape[axis] - 1),
            volume.narrow(axis, 1, volume.shape[axis] - 1),
        )
        assert not ((first > 0) & (second > 0) & (first != second)).any()


def test_light_falls_with_depth_and_nuclei_are_brighter_than_the_ground():
    sample = Nuclei3d(
        1, 0, image_size=(40, 48, 48), count=(20, 20), attenuation=40.0, offset=0.0, read_noise=0.0
    )[0]
    image, inside = sample.image[0], sample.layers[0] > 0
    assert image[inside].mean() > 3 * image[~inside].mean()
    ground = torch.where(inside, torch.nan, image).nanmean(dim=(1, 2))
    assert ground[:10].mean() > 1.5 * ground[-10:].mean()


def test_camera_offset_and_16_bit_range_are_kept():
    image = Nuclei3d(1, 0, offset=40_000, **SMALL)[0].image
    assert image.min() > 39_000


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Shapes(classes=["star"]), "star"),
        (lambda: Shapes(count=(3, 1)), "ascending"),
        (lambda: Shapes(overlap=2.0), "0..1"),
        (lambda: Shapes(channels=2), "grey"),
        (
            lambda: Shapes(aspect=(0.5, 1.5)),
            "aspect must be an ascending pair of positive numbers, 1 at most",
        ),
        (lambda: Shapes(light=(0.0, 1.0)), "light must be an ascending pair of positive numbers, got"),
        (lambda: Shapes(distractors=(3, 1)), "distractors"),
        (lambda: Shapes(class_shares=[1, 2]), "class_shares are 3 numbers"),
        (lambda: Shapes(class_shares=[0, 0, 0]), "not all 0"),
        (lambda: Nuclei3d(radius=(0, 1)), "positive"),
        (lambda: Nuclei3d(spacing=(1, 1)), "three values"),
        (lambda: Nuclei3d(stripes=1.0), "0..1"),
    ],
)
def test_wrong_options_of_generators_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_panoptic_shapes_have_the_ground_as_stuff_at_the_end():
    options = {"image_size": (40, 56), "radius": (5, 9)}
    panoptic, instances = (Shapes(3, seed=0, task=task, **options) for task in ("panoptic", "instance"))
    assert panoptic.metadata.class_names == (*instances.metadata.class_names, "ground")
    assert panoptic.metadata.is_thing == (True, True, True, False)
    for i in range(3):
        sample, other = panoptic[i], instances[i]
        assert sample.labels.tolist() == [*other.labels.tolist(), 3]
        assert torch.equal(sample.layers[0] == len(sample.labels), other.layers[0] == 0)
        assert torch.equal(sample.image, other.image)
