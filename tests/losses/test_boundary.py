import itertools

import numpy as np
import pytest
import torch

from pixvox.losses.boundary import Boundary, signed_distances


def by_hand(label_map, label, spacing):
    """Distances from each pixel to each other, the nearest one looked for."""
    places = list(itertools.product(*map(range, label_map.shape)))
    known = [place for place in places if label_map[place] != 255]
    inside = [place for place in known if label_map[place] == label]
    others = [place for place in known if label_map[place] != label]
    distances = np.zeros(label_map.shape)
    if not inside or not others:
        return distances
    for place in known:
        wanted = others if label_map[place] == label else inside
        steps = (np.array(wanted) - np.array(place)) * np.array(spacing)
        nearest = np.sqrt((steps**2).sum(1)).min()
        distances[place] = 1 - nearest if label_map[place] == label else nearest
    return distances


@pytest.mark.parametrize(
    ("size", "spacing"), [((7, 9), (1.0, 1.0)), ((7, 6), (1.0, 1.5)), ((4, 5, 6), (3.0, 1.0, 1.0))]
)
def test_signed_distances_are_those_to_the_nearest_known_pixel(size, spacing):
    generator = np.random.default_rng(0)
    label_map = generator.choice([0, 0, 0, 1, 2, 255], size)
    found = signed_distances(label_map, range(4), 255, spacing)
    for label in range(4):
        np.testing.assert_allclose(found[label], by_hand(label_map, label, spacing), rtol=1e-6)


def test_is_the_mean_of_probability_times_distance_over_foreground_and_known_pixels():
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 3, 5, 6), torch.randint(0, 3, (2, 5, 6))
    labels[0, :2] = 255
    loss = Boundary(spacing=[0.2, 0.4])(logits, labels)  # in any unit
    total = 0.0
    for chances, label_map in zip(logits.softmax(1).numpy(), labels.numpy(), strict=True):
        total += sum((chances[c] * by_hand(label_map, c, (1.0, 2.0))).sum() for c in (1, 2))
    assert float(loss) == pytest.approx(total / 2 / int((labels != 255).sum()), rel=1e-5)


def test_a_region_costs_more_the_further_away_it_is():
    labels = torch.zeros(1, 9, 20, dtype=torch.int64)
    labels[:, 3:6, 2:5] = 1
    losses = []
    for shift in (0, 4, 12):
        logits = torch.full((1, 2, 9, 20), -20.0)
        logits[:, 0] = 0.0
        logits[:, 1, 3:6, 2 + shift : 5 + shift] = 20.0
        losses.append(float(Boundary()(logits, labels)))
    assert losses[0] < 0 < losses[1] < losses[2]


def test_a_class_without_a_boundary_adds_nothing():
    logits = torch.randn(2, 3, 4, 5)
    labels = torch.stack([torch.zeros(4, 5), torch.ones(4, 5)]).long()  # nowhere, and everywhere
    assert Boundary(include_background=True)(logits, labels) == 0


def test_spacing_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="above 0 on every axis"):
        Boundary(spacing=[1.0, 0.0])
    with pytest.raises(ValueError, match="2 values for 3 axes"):
        Boundary(spacing=[1.0, 2.0])(torch.zeros(1, 2, 3, 4, 5), torch.zeros(1, 3, 4, 5, dtype=torch.int64))
