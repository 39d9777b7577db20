import pytest
import torch
from scipy import ndimage

from pixvox.data.sample import Sample
from pixvox.data.transforms import (
    Compose,
    RandomBlur,
    RandomBrightnessContrast,
    RandomColor,
    RandomGamma,
    RandomNoise,
)
from pixvox.data.transforms.intensity import gaussian_blur

ALL = [
    RandomBrightnessContrast(probability=1.0),
    RandomGamma(probability=1.0),
    RandomNoise((0.05, 0.05), probability=1.0),
    RandomBlur((1.0, 1.0), probability=1.0),
    RandomColor(probability=1.0),
]
NAMES = ["brightness_contrast", "gamma", "noise", "blur", "color"]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def picture(size, offset=0.0, width=1.0):
    image = torch.rand((3, *size), generator=generator(1))
    limits = torch.tensor([[0.0, 1.0]] * 3)
    return Sample(image * width + offset, intensity_range=limits * width + offset)


@pytest.mark.parametrize("size", [(9, 11), (4, 9, 11)])
@pytest.mark.parametrize("transform", ALL, ids=NAMES)
def test_8_bit_and_16_bit_images_change_alike(size, transform):
    small = transform(picture(size, width=255.0), generator(2)).image / 255
    large = transform(picture(size, width=65535.0), generator(2)).image / 65535
    assert torch.allclose(small, large, atol=1e-4)


@pytest.mark.parametrize("transform", ALL[:4], ids=NAMES[:4])
def test_an_offset_of_the_camera_changes_nothing(transform):
    plain = transform(picture((9, 11)), generator(2)).image
    shifted = transform(picture((9, 11), offset=100.0), generator(2)).image - 100
    assert torch.allclose(plain, shifted, atol=1e-4)


@pytest.mark.parametrize("transform", ALL, ids=NAMES)
def test_input_and_its_range_are_left_as_they_were(transform):
    sample = picture((9, 11))
    before = sample.image.clone()
    changed = transform(sample, generator(2))
    assert torch.equal(sample.image, before)
    assert not torch.equal(changed.image, before)
    assert torch.equal(changed.intensity_range, sample.intensity_range)


@pytest.mark.parametrize("kind", [type(transform) for transform in ALL], ids=NAMES)
def test_probability_zero_is_identity(kind):
    sample = picture((9, 11))
    assert torch.equal(kind(probability=0.0)(sample, generator()).image, sample.image)


def test_noise_has_the_deviation_asked_for():
    sample = Sample(torch.zeros(1, 100, 120), intensity_range=torch.tensor([[0.0, 200.0]]))
    noisy = RandomNoise((0.1, 0.1), probability=1.0)(sample, generator())
    assert noisy.image.std().item() == pytest.approx(20, rel=0.05)


def test_gamma_keeps_both_ends_of_the_range():
    sample = Sample(torch.tensor([[[10.0, 15.0, 20.0]]]), intensity_range=torch.tensor([[10.0, 20.0]]))
    low, middle, high = RandomGamma(1.0, probability=1.0)(sample, generator(3)).image.flatten().tolist()
    assert (low, high) == (10, 20)
    assert 10 < middle < 20
    assert middle != pytest.approx(15)


def test_blur_keeps_the_sum_and_is_narrower_in_pixels_along_coarse_axes():
    impulse = torch.zeros(1, 21, 31)
    impulse[0, 10, 15] = 1
    blurred = RandomBlur((2.0, 2.0), probability=1.0)(Sample(impulse, spacing=(2.0, 1.0)), generator()).image[
        0
    ]
    assert blurred.sum().item() == pytest.approx(1, abs=1e-4)
    rows, columns = torch.arange(21.0) - 10, torch.arange(31.0) - 15
    assert (blurred.sum(1) * rows**2).sum().sqrt().item() == pytest.approx(1, abs=0.05)
    assert (blurred.sum(0) * columns**2).sum().sqrt().item() == pytest.approx(2, abs=0.05)


def test_blur_equals_scipy_with_repeated_edges():
    image = torch.rand((2, 6, 9, 11), generator=generator(4))
    blurred = gaussian_blur(image, (0.5, 1.0, 1.5))
    for channel, result in zip(image, blurred, strict=True):
        expected = ndimage.gaussian_filter(channel.numpy(), (0.5, 1.0, 1.5), mode="nearest", radius=(2, 3, 5))
        assert torch.allclose(result, torch.from_numpy(expected), atol=1e-5)


def test_color_leaves_grey_images_alone():
    sample = Sample(torch.rand(1, 3, 4))
    assert RandomColor(probability=1.0)(sample, generator()) is sample


def test_constant_image_stays_finite():
    sample = Sample(torch.full((3, 5, 6), 7.0), intensity_range=torch.tensor([[7.0, 7.0]] * 3))
    assert Compose(ALL)(sample, generator()).image.isfinite().all()


def test_a_step_that_is_none_is_left_out():
    assert Compose({"a": None, "b": ALL[0]}).steps == [ALL[0]]
