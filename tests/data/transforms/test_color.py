import pytest
import torch
import torchvision.transforms.v2.functional as TF

from pixvox.data.sample import Sample
from pixvox.data.transforms import RandomAutoContrast, RandomBlur, RandomColorJitter, RandomGrayscale
from pixvox.data.transforms.color import (
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    luma,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def colours(size=(9, 11)):
    image = torch.rand((3, *size), generator=generator(1))
    image[:, 0] = image[:1, 0]  # some greys, and a few pure colours
    image[:, 1, :6] = (
        torch.tensor([[1, 0, 0, 1, 1, 0], [0, 1, 0, 1, 0, 1], [0, 0, 1, 0, 1, 1]])
        .float()
        .view(3, 6, *[1] * (len(size) - 2))
    )
    return image


OPERATIONS = {
    "brightness": (adjust_brightness, TF.adjust_brightness, [0.3, 1.7]),
    "contrast": (adjust_contrast, TF.adjust_contrast, [0.3, 1.7]),
    "saturation": (adjust_saturation, TF.adjust_saturation, [0.3, 1.7]),
    "hue": (adjust_hue, TF.adjust_hue, [-0.5, -0.2, 0.1, 0.5]),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_equals_torchvisions_within_the_range(name):
    ours, theirs, factors = OPERATIONS[name]
    for factor in factors:
        expected = theirs(colours(), factor)
        assert torch.allclose(ours(colours(), factor).clamp(0, 1), expected, atol=1e-5)
        assert not torch.allclose(expected, colours(), atol=0.05)


@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_treats_a_volume_of_equal_slices_as_the_slice(name):
    ours, _, factors = OPERATIONS[name]
    volume = colours()[:, None].expand(-1, 4, -1, -1)
    changed = ours(volume, factors[0])
    assert torch.allclose(changed, ours(colours(), factors[0])[:, None].expand_as(changed), atol=1e-6)


def test_the_luma_equals_torchvisions():
    assert torch.allclose(luma(colours()), TF.rgb_to_grayscale(colours()), atol=1e-6)


def test_values_beyond_the_range_are_kept():
    bright = torch.tensor([2.0, 2.0, 2.0]).view(3, 1, 1)
    for change, factor in ((adjust_saturation, 0.5), (adjust_hue, 0.3)):
        assert torch.allclose(change(bright, factor), bright, atol=1e-3)


@pytest.mark.parametrize("size", [(9, 11), (4, 9, 11)])
def test_jitter_changes_16_bit_as_8_bit_and_keeps_grey_grey(size):
    image = colours((9, 11)) if len(size) == 2 else colours(size)
    jitter = RandomColorJitter(probability=1.0)
    limits = torch.tensor([[0.0, 1.0]] * 3)
    small = jitter(Sample(image * 255, intensity_range=limits * 255), generator(3)).image / 255
    large = jitter(Sample(image * 65535, intensity_range=limits * 65535), generator(3)).image / 65535
    assert torch.allclose(small, large, atol=1e-4)
    grey = torch.rand((1, *size), generator=generator(2)).expand(3, *size)
    changed = jitter(
        Sample(grey, intensity_range=torch.tensor([[0.0, 1.0], [0.1, 0.9], [0.0, 0.8]])), generator(4)
    )
    assert torch.allclose(changed.image[0], changed.image[1], atol=1e-5)
    assert torch.allclose(changed.image[0], changed.image[2], atol=1e-5)


def test_jitter_without_strengths_changes_nothing():
    still = RandomColorJitter(0, 0, 0, 0, probability=1.0)(Sample(colours()), generator())
    assert torch.allclose(still.image, colours(), atol=1e-6)


def test_jitter_draws_its_order():
    sample = Sample(colours(), intensity_range=torch.tensor([[0.0, 1.0]] * 3))
    strong = RandomColorJitter(0.8, 0.8, 0.8, 0.5, probability=1.0)
    assert len({round(float(strong(sample, generator(seed)).image.sum()), 3) for seed in range(8)}) == 8


def test_grayscale_equals_torchvisions_and_leaves_other_channels_alone():
    grey = RandomGrayscale(1.0)(Sample(colours()), generator()).image
    assert torch.allclose(grey, TF.rgb_to_grayscale(colours(), num_output_channels=3), atol=1e-6)
    fluorescence = Sample(torch.rand(2, 4, 5))
    assert RandomGrayscale(1.0)(fluorescence, generator()) is fluorescence


def test_auto_contrast_equals_torchvisions_on_a_full_range():
    image = colours() * 0.4 + 0.3
    image[2] = 0.5
    sample = Sample(image, intensity_range=torch.tensor([[0.0, 1.0]] * 3))
    assert torch.allclose(
        RandomAutoContrast(1.0)(sample, generator()).image, TF.autocontrast(image), atol=1e-5
    )


def test_auto_contrast_spreads_a_dim_patch_over_the_range_of_the_file():
    patch = Sample(torch.tensor([[[[110.0, 120.0, 130.0]]]]), intensity_range=torch.tensor([[100.0, 300.0]]))
    assert RandomAutoContrast(1.0)(patch, generator()).image.flatten().tolist() == [100, 200, 300]


def test_blur_with_a_kernel_size_equals_torchvisions_inside():
    image = torch.rand((2, 20, 24), generator=generator(5))
    ours = RandomBlur((1.4, 1.4), 1.0, size=5)(Sample(image), generator()).image
    theirs = TF.gaussian_blur(image, [5, 5], [1.4, 1.4])
    assert torch.allclose(ours[:, 2:-2, 2:-2], theirs[:, 2:-2, 2:-2], atol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomColorJitter(hue=0.6), "0..0.5"),
        (lambda: RandomColorJitter(contrast=-1), "0 or above"),
        (lambda: RandomBlur(size=4), "odd"),
    ],
)
def test_wrong_strengths_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
