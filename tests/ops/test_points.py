import pytest
import torch
import torch.nn.functional as F

from pixvox.ops.points import most_uncertain, random_points, sample_at_points


@pytest.mark.parametrize("grid", [(5, 7), (3, 5, 7)], ids=["2-D", "3-D"])
def test_sampling_equals_grid_sample_in_value_and_gradient(grid):
    size = tuple(4 * n for n in grid)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(3, *grid, generator=generator, requires_grad=True)
    points = random_points(40, size, generator)
    places = points.flip(1) / torch.tensor(size[::-1]) * 2 - 1
    expected = F.grid_sample(
        features[None], places.view(1, *[1] * (len(grid) - 1), -1, len(grid)), align_corners=False
    )
    expected = expected.reshape(3, -1).T
    found = sample_at_points(features, points, size)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    upstream = torch.randn(found.shape, generator=generator)
    ours, theirs = (torch.autograd.grad((value * upstream).sum(), features)[0] for value in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_points_fill_the_canvas_and_come_from_their_generator():
    points = random_points(2000, (10, 40), torch.Generator().manual_seed(3))
    assert points.amin() >= 0
    assert 9.9 < points[:, 0].amax() <= 10
    assert 39.5 < points[:, 1].amax() <= 40
    assert torch.equal(points, random_points(2000, (10, 40), torch.Generator().manual_seed(3)))


def test_uncertain_points_are_those_nearest_to_zero():
    logits = torch.tensor([[5.0, -0.1, 2.0, -3.0], [0.3, 9.0, -9.0, -0.2]])
    assert most_uncertain(logits, 2).sort(dim=1).values.tolist() == [[1, 2], [0, 3]]
    assert most_uncertain(logits[:0], 2).shape == (0, 2)
