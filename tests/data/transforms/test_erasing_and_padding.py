import numpy as np
import pytest
import torch

from pixvox.data.sample import Sample
from pixvox.data.transforms import Pad, RandomCrop, RandomErasing, RandomRescale, Resize
from pixvox.data.transforms.erasing import random_box

SIZES = [(24, 30), (12, 24, 30)]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def ramp(size, **fields):
    image = torch.arange(1.0, 1 + np.prod(size)).view(1, *size)
    return Sample(image, **fields)


@pytest.mark.parametrize("size", SIZES)
def test_the_erased_share_lies_in_the_range_and_nothing_else_changes(size):
    sample = ramp(size)
    shares = []
    for seed in range(30):
        erased = RandomErasing(1.0, share=(0.1, 0.3), aspect=2.0)(sample, generator(seed)).image
        shares.append((erased != sample.image).float().mean().item())
        changed = erased[erased != sample.image]
        assert torch.allclose(changed, sample.image.mean().expand_as(changed))
    assert min(shares) > 0.06
    assert 0.25 < max(shares) < 0.36


def test_noise_fills_the_range_of_the_image():
    sample = ramp((40, 50), intensity_range=torch.tensor([[100.0, 300.0]]))
    image = RandomErasing(1.0, share=(0.5, 0.5), fill="noise")(sample, generator()).image
    noise = image[image != sample.image]
    assert 100 <= noise.min() < 110
    assert 290 < noise.max() <= 300


def test_labels_stay_unless_they_are_to_go():
    layers = torch.ones(1, 20, 20, dtype=torch.int32)
    objects = ramp((20, 20), layers=layers, labels=torch.tensor([0]), ignore=torch.tensor([False]))
    kept = RandomErasing(1.0, count=2)(objects, generator())
    assert torch.equal(kept.layers, layers)
    gone = RandomErasing(1.0, count=2, labels="erase")(objects, generator())
    assert torch.equal(gone.layers == 0, gone.image != objects.image)
    classes = ramp((20, 20), class_map=torch.ones(20, 20, dtype=torch.int64))
    gone = RandomErasing(1.0, labels="erase")(classes, generator())
    assert torch.equal(gone.class_map == 255, gone.image[0] != classes.image[0])


@pytest.mark.parametrize("mode", ["reflect", "edge"])
@pytest.mark.parametrize("size", [(3, 7), (2, 3, 7), (1, 7)])
def test_padding_equals_numpys_also_beyond_one_mirroring(size, mode):
    padded = Pad(12, image=mode)(ramp(size), generator()).image[0]
    room = [((12 - n) // 2, (12 - n) - (12 - n) // 2) for n in size]
    expected = np.pad(ramp(size).image[0].numpy(), room, mode=mode)
    assert np.array_equal(padded.numpy(), expected)


def test_padding_is_neither_learned_nor_scored():
    classes = ramp((4, 8), class_map=torch.ones(4, 8, dtype=torch.int64))
    padded = Pad(8)(classes, generator()).class_map
    assert (padded == 255).sum() == 32
    assert (padded[2:6] == 1).all()
    filled = Pad(8, mask_fill=0)(classes, generator())
    assert (filled.class_map == 0).sum() == 32
    assert filled.ignore_index == 255
    layers = torch.ones(1, 4, 8, dtype=torch.int32)
    objects = ramp((4, 8), layers=layers, labels=torch.tensor([3]), ignore=torch.tensor([False]))
    instances = Pad(8, image="low")(objects, generator()).instances()
    assert instances.ignore.tolist() == [False, True]
    assert instances.boxes[0].tolist() == [0, 2, 8, 6]
    assert instances.masks.dense()[1].sum() == 32


def test_an_image_that_is_large_enough_is_not_padded():
    sample = ramp((9, 12))
    assert Pad((9, 4))(sample, generator()) is sample


def test_a_safe_crop_cuts_fewer_objects():
    layers = torch.zeros(1, 20, 40, dtype=torch.int32)
    for i in range(8):
        layers[0, 4:16, 5 * i : 5 * i + 4] = i + 1
    sample = ramp((20, 40), layers=layers, labels=torch.zeros(8).long(), ignore=torch.zeros(8).bool())

    def cut_objects(attempts):
        patches = [RandomCrop((20, 14), attempts=attempts)(sample, generator(seed)) for seed in range(30)]
        areas = [torch.bincount(patch.layers.flatten(), minlength=9)[1:] for patch in patches]
        return sum(int(((area > 0) & (area < 48)).sum()) for area in areas)

    assert cut_objects(1) > 25
    assert cut_objects(12) <= 0.5 * cut_objects(1)


def test_rescaling_keeps_the_aspect_within_its_limits():
    areas = set()
    for seed in range(20):
        height, width = RandomRescale((0.5, 2.0))(ramp((40, 80)), generator(seed)).size
        assert width / height == pytest.approx(2, rel=0.05)
        areas.add(height)
    assert min(areas) < 30
    assert max(areas) > 60
    ratios = [
        width / height
        for height, width in (
            transform(ramp((40, 40)), generator(seed)).size
            for seed in range(20)
            for transform in (RandomRescale((1, 1), aspect=1.5), Resize(40, aspect=1.5))
        )
    ]
    assert 1 / 1.6 < min(ratios) < 0.8
    assert 1.25 < max(ratios) < 1.6


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomErasing(share=(0.5, 0.2)), "ascending"),
        (lambda: RandomCrop(4, attempts=0), "1 or above"),
        (lambda: RandomRescale((2, 1)), "ascending"),
        (lambda: Resize(4, aspect=0.5), "aspect"),
    ],
)
def test_wrong_options_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("size", [(40, 60), (20, 30, 40)])
def test_boxes_cover_their_share(size):
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        box = random_box(size, (0.1, 0.2), 3.0, generator)
        share = 1.0
        for span, length in zip(box, size, strict=True):
            assert 0 <= span.start < span.stop <= length
            share *= (span.stop - span.start) / length
        assert 0.08 < share < 0.24
