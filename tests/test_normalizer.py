import pytest
import torch

from pixvox.normalizer import FixedNormalizer, PercentileNormalizer, intensity_range


@pytest.mark.parametrize("size", [(6, 9), (3, 6, 9)])
def test_percentiles_become_the_same_values_whatever_the_contrast(size):
    image = torch.rand(1, 1, *size)
    ranges = torch.tensor([[[0.0, 1.0]]])
    dark = PercentileNormalizer()(image, ranges)
    bright = PercentileNormalizer()(40000 * image + 100, 40000 * ranges + 100)
    assert torch.allclose(dark, bright, atol=1e-4)
    assert torch.allclose(dark, (image - 0.25) / 0.25)


def test_a_given_range_wins_over_that_of_a_crop():
    crop = torch.full((1, 1, 4, 4), 5.0)
    assert torch.allclose(PercentileNormalizer(0.5, 0.5)(crop, torch.tensor([[[0.0, 10.0]]])), torch.zeros(1))


def test_constant_and_nan_images_stay_finite():
    images = torch.stack([torch.full((1, 4, 5), 7.0), torch.full((1, 4, 5), float("nan"))])
    assert torch.isfinite(PercentileNormalizer()(images)).all()


def test_hot_pixels_are_clipped():
    image = torch.zeros(1, 1, 4, 4)
    image[..., 0, 0] = 1e6
    assert PercentileNormalizer(limit=10)(image, torch.tensor([[[0.0, 1.0]]])).max() == 10


def test_fixed_values_and_zero_padding():
    images = torch.full((1, 3, 4, 6), 255.0)
    out = FixedNormalizer()(images, valid_sizes=torch.tensor([[3, 5]]))
    assert torch.allclose(
        out[0, :, 0, 0], (1 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    )
    assert (out[..., 3:, :] == 0).all() and (out[..., 5:] == 0).all()
    assert (images == 255).all(), "the caller's images stay as they are"


def test_grey_images_get_the_average_of_rgb_statistics():
    out = FixedNormalizer()(torch.full((1, 1, 2, 2), 255.0))
    assert torch.allclose(
        out, torch.tensor((1 - (0.485 + 0.456 + 0.406) / 3) / ((0.229 + 0.224 + 0.225) / 3))
    )


def test_range_is_that_of_the_valid_part():
    image = torch.zeros(1, 1, 10, 10)
    image[..., :5, :5] = torch.arange(25.0).view(5, 5) + 100
    low, high = intensity_range(image, torch.tensor([[5, 5]]), (0.0, 100.0))[0, 0].tolist()
    assert (low, high) == (100, 124)
